//! The scale of a reward model's scores, and the token at which they are read, according to its files.

use anyhow::{Result, bail};
use salsa_engine::Head;
use serde_json::Value;

use super::Checkpoint;

/// Names of mean and standard deviation: ours, and OpenRLHF's.
const OURS: (&str, &str) = ("score_mean", "score_std");
const OPENRLHF: (&str, &str) = ("mean", "std");

/// Returns mean and standard deviation of the scores of a model with this config and head.
///
/// # Errors
/// When one of the two is missing or invalid; names the key.
pub(super) fn normalization(config: &Value, head: Head) -> Result<Option<(f64, f64)>> {
    if head == Head::LanguageModel {
        return Ok(None);
    }
    for (mean_key, std_key) in [OURS, OPENRLHF] {
        let (mean, std) = (&config[mean_key], &config[std_key]);
        let others = mean_key == OPENRLHF.0 && !(mean.is_number() && std.is_number());
        if others || (mean.is_null() && std.is_null()) {
            continue;
        }
        return match (mean.as_f64(), std.as_f64()) {
            (Some(mean), Some(std)) if mean.is_finite() && std.is_finite() && std > 0.0 => Ok(Some((mean, std))),
            _ => bail!(
                "{mean_key} is {mean} and {std_key} {std}: expected the mean of the scores and their standard deviation, \
                 above 0; remove both if the scores are to be used as they are"
            ),
        };
    }
    Ok(None)
}

impl Checkpoint {
    /// The mean and standard deviation of a reward model's scores on its normalisation data: `score_mean` and
    /// `score_std` of `config.json`, or OpenRLHF's `mean` and `std`.
    pub fn score_normalization(&self) -> Option<(f64, f64)> {
        self.scores
    }

    /// Whether this is a reward model trained by Salsa, whose scores are read at the end token.
    pub fn is_own_reward_model(&self) -> bool {
        self.spec.head == Head::Scalar && self.config[OURS.0].is_number()
    }

    /// Whether this is a reward model trained by another program.
    pub fn is_foreign_reward_model(&self) -> bool {
        self.spec.head == Head::Scalar && !self.is_own_reward_model()
    }

    /// The end token of a reward model if it is also its padding token. transformers, and so TRL and PEFT, then reads
    /// the score at the token before it. OpenRLHF uses the attention mask and is not affected.
    pub fn end_token_that_pads(&self) -> Option<u32> {
        let openrlhf = self.config[OPENRLHF.0].is_number() && self.scores.is_some();
        self.padding_end_token().filter(|_| self.spec.head == Head::Scalar && !openrlhf)
    }

    /// The end token that is also `pad_token_id` of `config.json` (for a PEFT directory: of its base's): transformers
    /// reads the score at the last token that is not padding.
    pub fn padding_end_token(&self) -> Option<u32> {
        let pad = self.config["pad_token_id"].as_u64();
        self.tokens.eos.iter().copied().find(|end| pad == Some(u64::from(*end)))
    }
}
