//! A frozen reward model for scoring responses.
use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_engine::{Head, Model, comm::CommError};

use super::bases::Bases;
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        models::{score_token::say_where_scores_are_read, tokenizers},
        rollout::Rollouts,
        text::encoder::Encoder,
    },
};

/// Normalisation of reward-model scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScoreScale {
    /// Unchanged output of the head.
    Raw,
    /// Minus the mean, divided by the standard deviation that the reward model was saved with, if any.
    Normalized,
}

/// A frozen reward model and the scale of its scores.
pub(crate) struct RewardModel {
    pub model: Model,
    mean: f64,
    deviation: f64,
}

impl RewardModel {
    /// The score of each response, normalised if configured.
    ///
    /// # Errors
    /// As [`Rollouts::last_values_of`].
    pub(in crate::stage) fn scores(&self, rollouts: &Rollouts) -> Result<Vec<f64>, CommError> {
        let scores = rollouts.last_values_of(&self.model)?;
        Ok(scores.into_iter().map(|score| (score - self.mean) / self.deviation).collect())
    }

    /// Opens its checkpoint and checks it against the policy's. Reads no weights.
    pub(crate) fn find(path: &Path, policy: &Checkpoint, context: &StageContext) -> anyhow::Result<Checkpoint> {
        ensure!(!path.as_os_str().is_empty(), "no reward model is given; say reward_model_path: DIR");
        let checkpoint = Checkpoint::open(path)?;
        ensure!(
            checkpoint.spec.head != Head::LanguageModel,
            "{} is a language model without score.weight; a reward model is needed (salsa reward makes one)",
            path.display()
        );
        ensure!(
            checkpoint.spec.vocab_size == policy.spec.vocab_size,
            "{} has a vocabulary of {}, the policy one of {}; train the reward model from a checkpoint with the policy's tokenizer",
            path.display(),
            checkpoint.spec.vocab_size,
            policy.spec.vocab_size
        );
        if let Some(difference) = tokenizers::difference(checkpoint.dir(), policy.dir())? {
            bail!(
                "{} and {} have different tokenizers ({difference}); train the reward model from a checkpoint with the policy's \
                 tokenizer",
                path.display(),
                policy.dir().display()
            );
        }
        say_where_scores_are_read(&checkpoint, Encoder::open_if_any(&checkpoint)?.as_ref(), context);
        Ok(checkpoint)
    }

    /// Reads the weights.
    pub(in crate::stage) fn load(
        checkpoint: Checkpoint,
        scale: ScoreScale,
        bases: &mut Bases,
    ) -> anyhow::Result<RewardModel> {
        let path = checkpoint.dir().to_owned();
        let normalization = checkpoint.score_normalization().filter(|_| scale == ScoreScale::Normalized);
        let (mean, deviation) = normalization.unwrap_or((0.0, 1.0));
        ensure!(deviation > 0.0, "{}: score_std is {deviation}; set normalize_scores: false", path.display());
        let model =
            bases.frozen(&checkpoint, Head::Scalar).with_context(|| format!("reward model {}", path.display()))?;
        Ok(RewardModel { model, mean, deviation })
    }
}
