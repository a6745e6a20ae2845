//! The models of a PPO run before any is read, and the memory that they and the run will take.
use anyhow::Context;
use salsa_engine::{Dtype, Head, ModelSpec};

use super::{
    TextPrompt,
    config::{CriticKind, PpoConfig},
    rollout,
};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        memory::{self, Knobs, Need, Roles, Saving, part, shape},
        reference::{ModelSource, ReferenceConfig, SoupSource},
        start::{open_language_model, trained_adapter},
    },
};

/// The checkpoints of a run, opened.
pub(super) struct Cast<'a> {
    policy: Vec<Checkpoint>,
    reward: &'a Checkpoint,
    /// The frozen language models, each once: the ingredients of each.
    frozen: Vec<Vec<Checkpoint>>,
}

impl<'a> Cast<'a> {
    /// Opens what the configuration names, and holds soups' ingredients against each other.
    ///
    /// # Errors
    /// If one is incomplete or no language model, or ingredients do not fit together.
    pub(super) fn open(config: &PpoConfig, reward: &'a Checkpoint) -> anyhow::Result<Cast<'a>> {
        let mut sources = frozen_sources(&config.reference, &config.model_name_or_path);
        sources.extend(config.anchors.values().cloned());
        let mut once: Vec<ModelSource> = Vec::new();
        for source in sources {
            if !once.contains(&source) {
                once.push(source);
            }
        }
        let open_frozen = |source: &ModelSource| open(source).with_context(|| format!("model {source}"));
        Ok(Cast {
            policy: open(&config.model_name_or_path).context("policy")?,
            reward,
            frozen: once.iter().map(open_frozen).collect::<anyhow::Result<_>>()?,
        })
    }

    /// Says what memory the run needs, and refuses it if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(super) fn check_memory(
        &self,
        config: &PpoConfig,
        prompts: &[TextPrompt],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let knobs = Knobs {
            adapter: trained_adapter(&self.policy[0], &config.lora)?,
            recompute: config.recompute(),
            pass: config.per_device_train_batch_size.min(config.batch_size),
            slots: config.decode_slots.min(config.batch_size),
            dtype: Dtype::current(),
        };
        let savings = [Saving::TRAINING, &[Saving::Slots("decode_slots")]].concat();
        let need = |knobs: &Knobs| {
            let mut need = self.models(config, knobs).need();
            self.add_passes(config, prompts, knobs, &mut need);
            need
        };
        memory::check("ppo", &knobs, &savings, &need, context)
    }

    /// The models, in the order in which the run reads them.
    fn models(&self, config: &PpoConfig, knobs: &Knobs) -> Roles {
        let (mut roles, policy, lora) = (Roles::new(knobs.dtype), &self.policy[0], knobs.adapter.as_ref());
        let head = match config.critic {
            CriticKind::Separate => Head::LanguageModel,
            CriticKind::Shared => Head::LanguageModelWithValue,
        };
        // A policy that is an adapter comes first: its base serves all others.
        roles.trained(policy, head, lora);
        roles.frozen(self.reward, Head::Scalar);
        if config.critic == CriticKind::Separate {
            roles.trained(self.reward, Head::Scalar, lora);
        }
        for models in &self.frozen {
            match models.as_slice() {
                [model] => roles.frozen(model, Head::LanguageModel),
                ingredients => roles.soup(ingredients),
            }
        }
        if matches!(config.reference, ReferenceConfig::Ema { .. } | ReferenceConfig::Sync { .. }) {
            roles.moving(&policy.spec.with_head(Head::LanguageModel), lora);
        }
        roles
    }

    /// Generation and passes. The free memory of the one serves the other, so the larger counts.
    fn add_passes(&self, config: &PpoConfig, prompts: &[TextPrompt], knobs: &Knobs, need: &mut Need) {
        let spec: &ModelSpec = &self.policy[0].spec;
        let (response, tokens) = (config.response_length as u64, || prompts.iter().map(|prompt| &prompt.tokens));
        let longest = memory::longest(tokens(), 1) + response;
        need.add(part::GENERATION, shape::generation(spec, knobs.dtype, knobs.slots as u64, longest));
        let whole = |count: usize| memory::longest(tokens(), count) + count as u64 * response;
        let scoring = shape::forward_pass(spec, whole(config.batch_size).min(rollout::PASS as u64).max(longest));
        let reading = shape::forward_pass(spec, memory::longest(tokens(), knobs.slots));
        let (pass, critic) = (whole(knobs.pass), config.critic == CriticKind::Separate);
        // Policy and critic keep a pass at the same time, but work one after the other.
        let kept = pass * shape::kept_per_token(&self.reward.spec, knobs.recompute);
        let learning = shape::training_pass(spec, knobs, pass) + if critic { kept } else { 0 };
        need.add(part::ACTIVATIONS, learning.max(scoring).max(reading));
    }
}

fn open(source: &ModelSource) -> anyhow::Result<Vec<Checkpoint>> {
    match source {
        ModelSource::Path(path) => Ok(vec![open_language_model(path)?]),
        ModelSource::Soup(soup) => soup.open(),
    }
}

/// The models of a reference that do not follow the policy.
fn frozen_sources(reference: &ReferenceConfig, start: &ModelSource) -> Vec<ModelSource> {
    match reference {
        ReferenceConfig::Sft { model } => vec![model.clone().map_or_else(|| start.clone(), ModelSource::Path)],
        ReferenceConfig::Soup { models, weights } => {
            vec![ModelSource::Soup(SoupSource { models: models.clone(), weights: weights.clone() })]
        }
        ReferenceConfig::Multi { models, .. } | ReferenceConfig::Geometric { models, .. } => {
            models.iter().cloned().map(ModelSource::Path).collect()
        }
        ReferenceConfig::Ema { .. } | ReferenceConfig::Sync { .. } => Vec::new(),
    }
}
