//! The reference of the KL penalty, and the other frozen models of a run.
//!
//! SALSA is the variant [`ReferenceConfig::Soup`]. With weight 0 for the second ingredient it is plain PPO.
use std::borrow::Cow;

use anyhow::{Context, bail, ensure};
use salsa_algo::{
    kl::{KlEstimator, kls},
    soup::lerp_in_place,
};
use salsa_engine::{Head, Model, ModelError, ModelSpec, Trainable, comm::CommError, geometric_logprobs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::paths::ModelPath,
    stage::{
        lifecycle::resume::{Restored, Snapshot},
        models::{
            bases::Bases,
            model_source::{ModelSource, SoupSource},
        },
        rollout::Rollouts,
    },
};

/// The reference of the KL penalty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ReferenceConfig {
    /// One frozen SFT model: plain PPO.
    Sft {
        /// The SFT model. None: the initial policy.
        #[serde(default)]
        model: Option<ModelPath>,
    },
    /// The weighted mean of SFT models: SALSA.
    Soup {
        /// The models: ingredients of the soup, or references side by side.
        models: Vec<ModelPath>,
        /// One number for each model, with sum 1. Empty: equal weights (the paper's alpha = 0.5 for two).
        #[serde(default)]
        weights: Vec<f64>,
    },
    /// A moving average of the policy (WARP, stage 1), starting from the initial policy.
    Ema {
        /// Share of the old reference kept at each update, from 0 to 1. WARP: 0.99.
        decay: f64,
    },
    /// The policy, copied periodically (TR-DPO), starting from the initial policy.
    Sync {
        /// Updates between two copies, at least 1. TRL: 512.
        every: u64,
        /// Share of the policy in the new reference, from 0 to 1; 1 replaces it. TRL: 0.6.
        mixup: f64,
    },
    /// Several models at once; the penalty is the weighted mean of their KLs (the paper's control MKL).
    Multi {
        /// The models: ingredients of the soup, or references side by side.
        models: Vec<ModelPath>,
        /// One number for each model, with sum 1. Empty: equal weights (the paper's alpha = 0.5 for two).
        #[serde(default)]
        weights: Vec<f64>,
    },
    /// The normalised geometric mean of several distributions: averages log-probs where a soup averages weights.
    Geometric {
        /// The models: ingredients of the soup, or references side by side.
        models: Vec<ModelPath>,
        /// One number for each model, with sum 1. Empty: equal weights (the paper's alpha = 0.5 for two).
        #[serde(default)]
        weights: Vec<f64>,
    },
    /// No reference, and no KL penalty.
    None,
}

impl Default for ReferenceConfig {
    fn default() -> Self {
        ReferenceConfig::Sft { model: None }
    }
}

impl ReferenceConfig {
    /// The kind, as in `reference.kind`.
    pub fn kind(&self) -> &'static str {
        match self {
            ReferenceConfig::None => "none",
            ReferenceConfig::Sft { .. } => "sft",
            ReferenceConfig::Soup { .. } => "soup",
            ReferenceConfig::Ema { .. } => "ema",
            ReferenceConfig::Sync { .. } => "sync",
            ReferenceConfig::Multi { .. } => "multi",
            ReferenceConfig::Geometric { .. } => "geometric",
        }
    }

    /// The role of the reference in a report's pipeline.
    pub(super) fn role(&self) -> String {
        match self {
            ReferenceConfig::Sft { .. } => "reference: the SFT model".to_owned(),
            _ => format!("reference: {}", self.kind()),
        }
    }

    /// Checks ranges; `kl_coef` is the coefficient of the penalty.
    ///
    /// # Errors
    /// If a value is invalid; the error names the key.
    pub fn validate(&self, kl_coef: f64) -> anyhow::Result<()> {
        match self {
            ReferenceConfig::None => ensure!(
                kl_coef == 0.0,
                "kl_coef is {kl_coef}, but reference.kind is none; say kl_coef: 0, or choose a reference"
            ),
            ReferenceConfig::Sft { .. } => {}
            ReferenceConfig::Soup { models, weights }
            | ReferenceConfig::Multi { models, weights }
            | ReferenceConfig::Geometric { models, weights } => {
                let soup = SoupSource { models: models.clone(), weights: weights.clone() };
                soup.checked_weights().context("reference")?;
            }
            ReferenceConfig::Ema { decay } => {
                ensure!((0.0..=1.0).contains(decay), "reference.decay is {decay}; it must be between 0 and 1");
            }
            ReferenceConfig::Sync { every, mixup } => {
                ensure!(*every > 0, "reference.every is 0; it must be at least 1");
                ensure!((0.0..=1.0).contains(mixup), "reference.mixup is {mixup}; it must be between 0 and 1");
            }
        }
        Ok(())
    }
}

impl ReferenceConfig {
    /// The frozen models of the reference and their weights; empty if it follows the policy. `start` is the source of
    /// the initial policy.
    ///
    /// # Errors
    /// If the weights do not match the models.
    pub fn frozen(&self, start: &ModelSource) -> anyhow::Result<Vec<(ModelSource, f64)>> {
        let soup =
            |models: &[ModelPath], weights: &[f64]| SoupSource { models: models.to_vec(), weights: weights.to_vec() };
        Ok(match self {
            ReferenceConfig::Sft { model } => {
                vec![(model.clone().map_or_else(|| start.clone(), ModelSource::Path), 1.0)]
            }
            ReferenceConfig::Soup { models, weights } => vec![(ModelSource::Soup(soup(models, weights)), 1.0)],
            ReferenceConfig::Multi { models, weights } | ReferenceConfig::Geometric { models, weights } => {
                let weights = soup(models, weights).checked_weights()?;
                models.iter().cloned().map(ModelSource::Path).zip(weights).collect()
            }
            ReferenceConfig::None | ReferenceConfig::Ema { .. } | ReferenceConfig::Sync { .. } => Vec::new(),
        })
    }
}

/// Frozen language models, each loaded once even if it has several uses.
#[derive(Default)]
pub(super) struct FrozenModels {
    models: Vec<(ModelSource, Model)>,
}

impl FrozenModels {
    /// Returns the index of a model, loading it if it is new. It must share the policy's vocabulary.
    ///
    /// # Errors
    /// If it cannot be read or has another vocabulary.
    pub(super) fn load(
        &mut self,
        source: &ModelSource,
        policy: &ModelSpec,
        bases: &mut Bases,
    ) -> anyhow::Result<usize> {
        if let Some(at) = self.models.iter().position(|(known, _)| known == source) {
            return Ok(at);
        }
        let model = source.load(bases).with_context(|| format!("model {source}"))?;
        let spec = model.spec();
        ensure!(
            spec.vocab_size == policy.vocab_size,
            "{source} has a vocabulary of {}, the policy one of {}; log-probs can only be compared over the same tokens",
            spec.vocab_size,
            policy.vocab_size
        );
        self.models.push((source.clone(), model));
        Ok(self.models.len() - 1)
    }

    /// All models, without repetition.
    #[cfg(test)]
    pub(super) fn models(&self) -> impl Iterator<Item = &Model> {
        self.models.iter().map(|(_, model)| model)
    }

    /// The log-probs of all response tokens under every model, with one forward pass each.
    ///
    /// # Errors
    /// As [`Rollouts::logprobs_of`].
    pub(super) fn logprobs(&self, rollouts: &Rollouts) -> Result<Vec<Vec<f64>>, CommError> {
        self.models.iter().map(|(_, model)| rollouts.logprobs_of(model)).collect()
    }
}

/// The weight of a model in the penalty, and the log-prob of every token under it.
pub(super) type Weighted<'a> = (f64, Cow<'a, [f64]>);

/// The reference of a run.
pub(super) enum Reference {
    /// None: no penalty.
    None,
    /// One frozen model (an SFT model or a soup).
    Frozen(usize),
    /// Several frozen models, whose KLs are averaged.
    Multi(Vec<(usize, f64)>),
    /// The geometric mean of several frozen models.
    Geometric(Vec<(usize, f64)>),
    /// A model that follows the policy.
    Moving {
        /// The current model.
        model: Box<Model>,
        /// Its weights; if the policy is an adapter, those of the adapter: the factors are averaged, not their
        /// products.
        weights: Vec<f32>,
        /// How it follows the policy.
        follow: Follow,
    },
}

/// The KL estimate of every response token against a reference of these log-probs: the weighted mean over its models.
pub(super) fn kls_to(reference: &[Weighted<'_>], estimator: KlEstimator, rollouts: &Rollouts) -> Vec<f64> {
    if let [(_, one)] = reference {
        return kls(estimator, &rollouts.logprobs, one);
    }
    let mut mean = vec![0.0; rollouts.logprobs.len()];
    for (weight, logprobs) in reference {
        let kls = kls(estimator, &rollouts.logprobs, logprobs);
        mean.iter_mut().zip(kls).for_each(|(mean, kl)| *mean += weight * kl);
    }
    mean
}

/// How a moving reference follows the policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Follow {
    /// `reference <- decay * reference + (1 - decay) * policy` at every update.
    Ema {
        /// Share of the old reference.
        decay: f64,
    },
    /// `reference <- (1 - mixup) * reference + mixup * policy` every `every` updates.
    Sync {
        /// Updates between copies.
        every: u64,
        /// Share of the policy.
        mixup: f64,
    },
}

impl Reference {
    /// Loads the configured models; `start` is the source of `policy`, which is not trained yet.
    ///
    /// # Errors
    /// If a model cannot be used.
    pub(super) fn load(
        config: &ReferenceConfig,
        start: &ModelSource,
        policy: &Trainable,
        frozen: &mut FrozenModels,
        bases: &mut Bases,
    ) -> anyhow::Result<Reference> {
        let spec = &policy.spec().with_head(Head::LanguageModel);
        let moving = |follow| -> anyhow::Result<Reference> {
            let weights = language_weights(policy, spec);
            Ok(Reference::Moving { model: Box::new(with_weights(policy, spec, &weights)?), weights, follow })
        };
        let parts = config.frozen(start)?.into_iter();
        let parts: Vec<(usize, f64)> = parts
            .map(|(source, weight)| Ok((frozen.load(&source, spec, bases)?, weight)))
            .collect::<anyhow::Result<_>>()?;
        Ok(match config {
            ReferenceConfig::None => Reference::None,
            ReferenceConfig::Sft { .. } | ReferenceConfig::Soup { .. } => Reference::Frozen(parts[0].0),
            ReferenceConfig::Multi { .. } => Reference::Multi(parts),
            ReferenceConfig::Geometric { .. } => Reference::Geometric(parts),
            ReferenceConfig::Ema { decay } => moving(Follow::Ema { decay: *decay })?,
            ReferenceConfig::Sync { every, mixup } => moving(Follow::Sync { every: *every, mixup: *mixup })?,
        })
    }

    /// The log-probs of every response token under each model of the reference, with the models' weights in the penalty.
    /// `frozen_logprobs` are the log-probs of `frozen`, by model.
    ///
    /// # Errors
    /// As [`Rollouts::logprobs_of`].
    pub(super) fn logprobs<'a>(
        &self,
        rollouts: &Rollouts,
        frozen: &FrozenModels,
        frozen_logprobs: &'a [Vec<f64>],
    ) -> Result<Vec<Weighted<'a>>, CommError> {
        Ok(match self {
            Reference::None => Vec::new(),
            Reference::Frozen(at) => vec![(1.0, Cow::Borrowed(&frozen_logprobs[*at][..]))],
            Reference::Moving { model, .. } => vec![(1.0, Cow::Owned(rollouts.logprobs_of(model)?))],
            Reference::Multi(models) => {
                models.iter().map(|&(at, weight)| (weight, Cow::Borrowed(&frozen_logprobs[at][..]))).collect()
            }
            Reference::Geometric(models) => {
                let parts: Vec<&Model> = models.iter().map(|&(at, _)| &frozen.models[at].1).collect();
                let weights: Vec<f32> = models.iter().map(|&(_, weight)| weight as f32).collect();
                let forward = |batch: &_, query: &_| geometric_logprobs(&parts, &weights, batch, query);
                vec![(1.0, Cow::Owned(rollouts.logprobs_by(forward)?))]
            }
        })
    }

    /// Updates a moving reference after an update of the policy (counted from 1).
    ///
    /// # Errors
    /// If the policy's weights are not finite.
    pub(super) fn follow(&mut self, policy: &Trainable, language_model: &ModelSpec, update: u64) -> anyhow::Result<()> {
        let Reference::Moving { model, weights, follow } = self else { return Ok(()) };
        let share = match *follow {
            Follow::Ema { decay } => 1.0 - decay,
            Follow::Sync { every, mixup } if update.is_multiple_of(every) => mixup,
            Follow::Sync { .. } => return Ok(()),
        };
        lerp_in_place(weights, &language_weights(policy, language_model), share);
        **model = with_weights(policy, language_model, weights).context("the moving reference")?;
        Ok(())
    }

    /// Adds the state of a moving reference to a checkpoint.
    pub(super) fn snapshot<'a>(&'a self, snapshot: Snapshot<'a>) -> Snapshot<'a> {
        match self {
            Reference::Moving { weights, .. } => snapshot.with_buffer("reference.weights", weights),
            _ => snapshot,
        }
    }

    /// Restores a moving reference from a checkpoint.
    ///
    /// # Errors
    /// If the checkpoint lacks the reference.
    pub(super) fn restore(&mut self, restored: &Restored) -> anyhow::Result<()> {
        let Reference::Moving { model, weights, .. } = self else { return Ok(()) };
        let saved = restored.buffer("reference.weights")?;
        if saved.len() != weights.len() {
            bail!("the checkpoint's reference has {} weights, this one {}", saved.len(), weights.len());
        }
        **model = with_weights(model, model.spec(), &saved)?;
        *weights = saved;
        Ok(())
    }
}

/// The trained weights of a policy, without the head that a shared critic adds.
fn language_weights(policy: &Trainable, language_model: &ModelSpec) -> Vec<f32> {
    match policy.lora() {
        Some(lora) => policy.weights()[..lora.parameters(language_model)].to_vec(),
        None => policy.spec().convert(&policy.weights(), language_model, 0),
    }
}

/// A frozen language model like `model`, with these weights.
fn with_weights(model: &Model, language_model: &ModelSpec, weights: &[f32]) -> Result<Model, ModelError> {
    match model.lora() {
        Some(_) => model.sibling(Head::LanguageModel, weights),
        None => Model::new(language_model.clone(), weights, model.backend().clone()),
    }
}
