//! The keys shared by reinforcement-learning methods, in groups: functions take only the group they need.
use salsa_algo::{
    kl::{KlController, KlEstimator},
    reward::{MissingEos, ScoreRule},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, Dtype, SaveOptions},
    config::paths::NoEffect,
    stage::{
        device::Choice as DeviceChoice,
        gold::Gold,
        keys::{ComputeType, MOST_SEQUENCES, MOST_STEPS, MOST_TOKENS, check_count, check_range},
        models::reward_model::ScoreScale,
    },
};

/// Number of responses, and how they are sampled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SamplingArguments {
    /// Total number of responses, at least 1; one per prompt is one pass over the data. TRL: none; its examples 10,000
    /// and more.
    #[schemars(extend("x-heading" = "Batches and sampling"))]
    pub total_episodes: u64,
    /// Responses per update, at least 1. TRL: `per_device_train_batch_size * gradient_accumulation_steps`.
    pub batch_size: usize,
    /// Maximum number of tokens of a response, its end token included; at least 1. TRL: 53.
    pub response_length: usize,
    /// Prompts longer than this many tokens are omitted; capped at the model's context. TRL: none.
    pub max_prompt_length: usize,
    /// Sampling temperature, from 0.001 to 100; also applied to all log-probs. No top-k or top-p, so that KL estimates
    /// are unbiased. TRL: 0.7.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Responses generated at once, at least 1; affects speed and memory only. TRL: `local_rollout_forward_batch_size`,
    /// 64.
    pub decode_slots: NoEffect<usize>,
}

/// The KL penalty that keeps the policy close to its reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PenaltyArguments {
    /// Coefficient beta of the KL penalty: each token's reward is `-beta * KL`; 0: no penalty. TRL: 0.05.
    #[schemars(extend("x-heading" = "Reward and KL"))]
    pub kl_coef: f64,
    /// Estimator of the KL of a token. TRL: k1.
    pub kl_estimator: KlEstimator,
    /// Target KL per response, in nats, above 0: beta adapts to it, as in TRL up to 0.11 (6). None: beta is fixed.
    pub kl_target: Option<f64>,
    /// Responses over which an adaptive beta changes by at most a fifth, above 0; used with `kl_target`. TRL up to
    /// 0.11: 10,000.
    pub kl_horizon: f64,
}

/// Post-processing of reward-model scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScoreArguments {
    /// Subtract the mean and divide by the standard deviation that the reward model was saved with. TRL: not there.
    pub normalize_scores: bool,
    /// Clips normalised scores to plus and minus this, above 0. None: not clipped, as in TRL.
    pub score_clip: Option<f64>,
    /// Subtracted from the score of a response without an end token. TRL and none: not subtracted.
    pub missing_eos_penalty: Option<f64>,
}

/// Settings of the run as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RunArguments {
    /// Seed of prompt order, sampling and minibatches. TRL: 42.
    #[schemars(extend("x-heading" = "Run and output"))]
    pub seed: u64,
    /// Updates between two resumable checkpoints. 0: none before the end (an interruption by Ctrl-C still saves one).
    /// TRL: 500.
    pub save_steps: NoEffect<u64>,
    /// How often sample responses are written to `samples.jsonl` during the run; 0: never. TRL: 10.
    pub num_sample_generations: NoEffect<u64>,
    /// A reward function that is logged in addition to the learned one, but not trained on. None: none.
    pub gold: Option<Gold>,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way. TRL: the flag `bf16`.
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Number type of the saved weights; training itself always keeps f32 master weights. TRL: the model's own.
    pub save_dtype: Dtype,
}

impl Default for SamplingArguments {
    fn default() -> SamplingArguments {
        SamplingArguments {
            total_episodes: 10_000,
            batch_size: 64,
            response_length: 53,
            max_prompt_length: 1024,
            temperature: 0.7,
            decode_slots: NoEffect(64),
        }
    }
}

impl Default for PenaltyArguments {
    fn default() -> PenaltyArguments {
        PenaltyArguments { kl_coef: 0.05, kl_estimator: KlEstimator::K1, kl_target: None, kl_horizon: 10_000.0 }
    }
}

impl Default for ScoreArguments {
    fn default() -> ScoreArguments {
        ScoreArguments { normalize_scores: true, score_clip: None, missing_eos_penalty: None }
    }
}

impl Default for RunArguments {
    fn default() -> RunArguments {
        RunArguments {
            seed: 42,
            save_steps: NoEffect(0),
            num_sample_generations: NoEffect(10),
            gold: None,
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            save_dtype: Dtype::F32,
        }
    }
}

impl SamplingArguments {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value is out of range; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_count("total_episodes", self.total_episodes, MOST_STEPS)?;
        check_count("batch_size", self.batch_size as u64, MOST_SEQUENCES)?;
        check_count("response_length", self.response_length as u64, MOST_TOKENS)?;
        check_count("max_prompt_length", self.max_prompt_length as u64, u64::MAX)?;
        check_count("decode_slots", *self.decode_slots as u64, MOST_SEQUENCES)?;
        check_range("temperature", self.temperature.into(), 1e-3..=100.0)
    }

    /// The number of updates.
    pub fn updates(&self) -> u64 {
        self.total_episodes.div_ceil(self.batch_size as u64)
    }
}

impl PenaltyArguments {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value is out of range; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_range("kl_coef", self.kl_coef, 0.0..=f64::MAX)?;
        check_range("kl_target", self.kl_target.unwrap_or(1.0), f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("kl_horizon", self.kl_horizon, f64::MIN_POSITIVE..=f64::MAX)
    }

    /// The controller of beta.
    pub fn controller(&self) -> KlController {
        let horizon = self.kl_horizon;
        self.kl_target.map_or(KlController::Fixed, |target| KlController::Adaptive { target, horizon })
    }
}

impl ScoreArguments {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value is out of range; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_range("score_clip", self.score_clip.unwrap_or(1.0), f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("missing_eos_penalty", self.missing_eos_penalty.unwrap_or(0.0), f64::MIN..=f64::MAX)
    }

    /// Whether scores are normalised.
    pub fn scale(&self) -> ScoreScale {
        if self.normalize_scores { ScoreScale::Normalized } else { ScoreScale::Raw }
    }

    /// The post-processing of scores.
    pub fn rule(&self) -> ScoreRule {
        ScoreRule {
            clip: self.score_clip.unwrap_or(f64::INFINITY),
            missing_eos: self.missing_eos_penalty.map_or(MissingEos::Keep, MissingEos::Subtract),
        }
    }
}

impl RunArguments {
    /// The options for saving weights of a run that started from `source`.
    pub fn save_options(&self, source: &Checkpoint) -> SaveOptions {
        SaveOptions { dtype: self.save_dtype, ..SaveOptions::like(source) }
    }
}
