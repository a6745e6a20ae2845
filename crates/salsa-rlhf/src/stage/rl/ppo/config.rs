//! What `salsa ppo` can be told.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::ensure;
use salsa_algo::{
    kl::{KlController, KlEstimator},
    ppo::Settings,
    reward::{MissingEos, ScoreAt, ScoreRule},
    schedule::{self, Decay, Warmup},
};
use salsa_engine::{AdamW, Recompute};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    checkpoint::{Checkpoint, SaveOptions},
    config::{
        names,
        paths::{ModelPath, NoEffect},
    },
    stage::{
        device::Choice as DeviceChoice,
        gold::Gold,
        keys::{ComputeType, MOST_SEQUENCES, MOST_STEPS, MOST_TOKENS, Schedule, WeightType, check_count, check_range},
        models::{lora::LoraArguments, model_source::ModelSource, reward_model::ScoreScale},
        rl::reference::ReferenceConfig,
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

/// The keys of a PPO run. Names are TRL's where TRL has one; "TRL" is `PPOConfig` of TRL 1.12.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PpoConfig {
    /// Where the policy starts: an SFT model (SALSA and PPO), or a soup made in memory. TRL: `sft_model_path`.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelSource,
    /// The reward model; a separate critic starts from it, too.
    pub reward_model_path: ModelPath,
    /// What the KL penalty is measured against. TRL: the model that the policy starts from.
    pub reference: ReferenceConfig,
    /// Models to which the policy's KL is logged besides, by names of your own (`--anchors.NAME DIR`): the same for all
    /// arms of an experiment, so that their reward-KL curves can be compared. Empty: none.
    pub anchors: BTreeMap<String, ModelSource>,
    /// The prompts; of records with responses, the prompts alone. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Directory of the trained policy, its metrics and its checkpoints.
    pub output_dir: PathBuf,

    /// Responses sampled in all, at least 1; one per prompt is a pass over the data. TRL: none; its examples 10,000 and
    /// more.
    #[schemars(extend("x-heading" = "Batches and sampling"))]
    pub total_episodes: u64,
    /// Responses per update, at least 1. TRL: `per_device_train_batch_size * gradient_accumulation_steps`.
    pub batch_size: usize,
    /// Passes over the responses of an update, at least 1. TRL: 4.
    pub num_ppo_epochs: usize,
    /// Optimizer steps per pass, from 1 to `batch_size`; each sees `batch_size / num_mini_batches` responses. TRL: 1.
    pub num_mini_batches: usize,
    /// Responses per forward and backward pass, at least 1; changes memory and the rounding of sums. TRL: 8.
    pub per_device_train_batch_size: usize,
    /// The longest response, in tokens, its end token included; at least 1. TRL: 53.
    pub response_length: usize,
    /// Prompts longer than this many tokens are left out; the model's context at most. TRL: none.
    pub max_prompt_length: usize,
    /// Sampling temperature, from 0.001 to 100; all log-probs use it, too. Sampling is pure (no top-k, no top-p), so
    /// that KL estimates are unbiased. TRL: 0.7.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Responses generated at once, at least 1; changes speed and memory, never the result. TRL:
    /// `local_rollout_forward_batch_size`, 64.
    pub decode_slots: NoEffect<usize>,

    /// Coefficient beta of the KL penalty: each token's reward is `-beta * KL`; 0: no penalty. TRL: 0.05.
    #[schemars(extend("x-heading" = "Reward and KL"))]
    pub kl_coef: f64,
    /// How the KL of a token is estimated. TRL: k1.
    pub kl_estimator: KlKind,
    /// Wanted KL per response, in nats, above 0: beta adapts to it, as in TRL up to 0.11 (6). None: beta is fixed.
    pub kl_target: Option<f64>,
    /// Responses after which an adaptive beta has moved by a fifth at most, above 0; used with `kl_target`. TRL up to 0.11:
    /// 10,000.
    pub kl_horizon: f64,
    /// Where a response's score is added. TRL since 0.12: after_eos; nearly all others: last_token.
    pub score_position: ScorePosition,
    /// Subtract the mean and divide by the deviation that the reward model was saved with. TRL: not there.
    pub normalize_scores: bool,
    /// Scores are clipped to plus and minus this, above 0, after they are normalised. None: not clipped, as in TRL.
    pub score_clip: Option<f64>,
    /// Subtracted from the score of a response that was cut off before its end token. TRL and none: nothing is.
    pub missing_eos_penalty: Option<f64>,
    /// Divide the rewards of an update by their deviation, their mean kept. TRL: false.
    pub whiten_rewards: bool,
    /// Discount of later rewards, per token, from 0 to 1. TRL: 1.
    #[schemars(extend("x-heading" = "PPO"))]
    pub gamma: f64,
    /// Lambda of generalised advantage estimation, from 0 (one step) to 1 (whole returns). TRL: 0.95.
    pub lam: f64,
    /// How far the probability ratio may move from 1 before its gradient stops, at least 0. TRL: 0.2.
    pub cliprange: f64,
    /// How far a value may move from the one before the update, in units of reward, at least 0. TRL: 0.2.
    pub cliprange_value: f64,
    /// Weight of the value loss, at least 0. TRL: 0.1.
    pub vf_coef: f64,
    /// Where values come from. TRL since 0.12: separate; before: shared.
    pub critic: CriticKind,

    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,

    /// The keys of adapters: with `use_peft` policy and critic are adapters, and all models of the run that stand on the same
    /// base share it.
    #[serde(flatten)]
    pub lora: LoraArguments,

    /// Highest learning rate, at least 0. TRL: 3e-6.
    #[schemars(extend("x-heading" = "Optimizer"))]
    pub learning_rate: f64,
    /// Highest learning rate of a separate critic, at least 0. None: the policy's, as in TRL.
    pub critic_learning_rate: Option<f64>,
    /// Shape of the learning rate over the updates, after the warm-up. TRL: linear.
    pub lr_scheduler_type: Schedule,
    /// Updates over which the learning rate rises from 0 to its highest. TRL: 0.
    pub warmup_steps: u64,
    /// Updates at the start in which only the critic learns. TRL: not there.
    pub critic_warmup: u64,
    /// AdamW's decoupled weight decay, per step and unit of learning rate; 0: none. TRL: 0.
    pub weight_decay: f64,
    /// AdamW's decay of the mean of gradients, from 0 to below 1. TRL: 0.9.
    pub adam_beta1: f64,
    /// AdamW's decay of the mean of squared gradients, from 0 to below 1. TRL: 0.999.
    pub adam_beta2: f64,
    /// AdamW's epsilon, added to the root of the mean of squared gradients; above 0. TRL: 1e-8.
    pub adam_epsilon: f64,
    /// Largest Euclidean norm of the whole gradient; longer ones are scaled down to it. 0: no clipping, as TRL's
    /// PPOTrainer (which ignores the key).
    pub max_grad_norm: f64,
    /// Recompute activations in the backward pass instead of keeping them: less memory, about a third more time, the
    /// same numbers. TRL: true.
    pub gradient_checkpointing: NoEffect<bool>,

    /// Seed of prompt order, sampling and minibatches. TRL: 42.
    #[schemars(extend("x-heading" = "Run and output"))]
    pub seed: u64,
    /// Updates between two resumable checkpoints. 0: none before the end (an interruption by Ctrl-C still saves one).
    /// TRL: 500.
    pub save_steps: NoEffect<u64>,
    /// How often sample responses are written to `samples.jsonl` over the run; 0: never. TRL: 10.
    pub num_sample_generations: NoEffect<u64>,
    /// A reward function to log beside the learned one, never trained on. None: none.
    pub gold: Option<Gold>,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way. TRL: the flag `bf16`.
    pub dtype: ComputeType,
    /// Where it is computed; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Number type of the saved weights; training itself always keeps f32 master weights. TRL: the model's own.
    pub save_dtype: WeightType,
}

/// Per-token estimators of the KL, in Schulman's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KlKind {
    /// `logp - ref`: unbiased, of either sign.
    #[default]
    K1,
    /// `(logp - ref)^2 / 2`: biased, small variance.
    K2,
    /// `exp(ref - logp) - 1 - (ref - logp)`: unbiased, never negative.
    K3,
}

/// Where a response's score is added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScorePosition {
    /// On the last token.
    #[default]
    LastToken,
    /// One slot after the end token.
    AfterEos,
}

/// Where values come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// A model of its own, started from the reward model.
    #[default]
    Separate,
    /// A second head on the policy's trunk, started at random.
    Shared,
}

impl Default for PpoConfig {
    fn default() -> PpoConfig {
        PpoConfig {
            model_name_or_path: ModelSource::Path(ModelPath::new()),
            reward_model_path: ModelPath::new(),
            reference: ReferenceConfig::default(),
            anchors: BTreeMap::new(),
            dataset: DataSource::default(),
            output_dir: PathBuf::new(),
            total_episodes: 10_000,
            batch_size: 64,
            num_ppo_epochs: 4,
            num_mini_batches: 1,
            per_device_train_batch_size: 8,
            response_length: 53,
            max_prompt_length: 1024,
            temperature: 0.7,
            decode_slots: NoEffect(64),
            kl_coef: 0.05,
            kl_estimator: KlKind::K1,
            kl_target: None,
            kl_horizon: 10_000.0,
            score_position: ScorePosition::LastToken,
            normalize_scores: true,
            score_clip: None,
            missing_eos_penalty: None,
            whiten_rewards: false,
            gamma: 1.0,
            lam: 0.95,
            cliprange: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.1,
            critic: CriticKind::Separate,
            chat: ChatArguments::default(),
            lora: LoraArguments::default(),
            learning_rate: 3e-6,
            critic_learning_rate: None,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            critic_warmup: 0,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            gradient_checkpointing: NoEffect(false),
            seed: 42,
            save_steps: NoEffect(0),
            num_sample_generations: NoEffect(10),
            gold: None,
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            save_dtype: WeightType::Float32,
        }
    }
}

/// Most passes over the responses of an update.
const MOST_PASSES: u64 = 10_000;

impl PpoConfig {
    /// Checks ranges and relations.
    ///
    /// # Errors
    /// If a value makes no sense; names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        let counts = [
            ("total_episodes", self.total_episodes, MOST_STEPS),
            ("batch_size", self.batch_size as u64, MOST_SEQUENCES),
            ("num_ppo_epochs", self.num_ppo_epochs as u64, MOST_PASSES),
            ("num_mini_batches", self.num_mini_batches as u64, MOST_SEQUENCES),
            ("per_device_train_batch_size", self.per_device_train_batch_size as u64, MOST_SEQUENCES),
            ("response_length", self.response_length as u64, MOST_TOKENS),
            ("max_prompt_length", self.max_prompt_length as u64, u64::MAX),
            ("decode_slots", *self.decode_slots as u64, MOST_SEQUENCES),
        ];
        for (key, value, most) in counts {
            check_count(key, value, most)?;
        }
        self.anchors.keys().try_for_each(|name| names::check_component("anchors", name))?;
        ensure!(
            self.num_mini_batches <= self.batch_size,
            "num_mini_batches {} is more than batch_size {}; every minibatch needs a response",
            self.num_mini_batches,
            self.batch_size
        );
        let ranges = [
            ("kl_coef", self.kl_coef, 0.0, f64::MAX),
            ("kl_target", self.kl_target.unwrap_or(1.0), f64::MIN_POSITIVE, f64::MAX),
            ("kl_horizon", self.kl_horizon, f64::MIN_POSITIVE, f64::MAX),
            ("temperature", f64::from(self.temperature), 1e-3, 100.0),
            ("score_clip", self.score_clip.unwrap_or(1.0), f64::MIN_POSITIVE, f64::MAX),
            ("gamma", self.gamma, 0.0, 1.0),
            ("lam", self.lam, 0.0, 1.0),
            ("cliprange", self.cliprange, 0.0, f64::MAX),
            ("cliprange_value", self.cliprange_value, 0.0, f64::MAX),
            ("missing_eos_penalty", self.missing_eos_penalty.unwrap_or(0.0), f64::MIN, f64::MAX),
            ("vf_coef", self.vf_coef, 0.0, f64::MAX),
            ("learning_rate", self.learning_rate, 0.0, f64::MAX),
            ("critic_learning_rate", self.critic_learning_rate.unwrap_or(0.0), 0.0, f64::MAX),
            ("max_grad_norm", self.max_grad_norm, 0.0, f64::MAX),
            ("weight_decay", self.weight_decay, 0.0, f64::MAX),
            ("adam_epsilon", self.adam_epsilon, f64::MIN_POSITIVE, f64::MAX),
        ];
        for (key, value, low, high) in ranges {
            check_range(key, value, low..=high)?;
        }
        for (key, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            ensure!((0.0..1.0).contains(&beta), "{key} is {beta}; it must be at least 0 and below 1");
        }
        self.lora.validate()?;
        self.reference.validate()
    }

    /// Updates in all.
    pub fn updates(&self) -> u64 {
        self.total_episodes.div_ceil(self.batch_size as u64)
    }

    /// The estimator of the KL.
    pub fn estimator(&self) -> KlEstimator {
        match self.kl_estimator {
            KlKind::K1 => KlEstimator::K1,
            KlKind::K2 => KlEstimator::K2,
            KlKind::K3 => KlEstimator::K3,
        }
    }

    /// How beta moves.
    pub fn controller(&self) -> KlController {
        let horizon = self.kl_horizon;
        self.kl_target.map_or(KlController::Fixed, |target| KlController::Adaptive { target, horizon })
    }

    /// Where scores go.
    pub fn score_at(&self) -> ScoreAt {
        match self.score_position {
            ScorePosition::LastToken => ScoreAt::LastToken,
            ScorePosition::AfterEos => ScoreAt::AfterEos,
        }
    }

    /// Whether scores are used as they come.
    pub fn score_scale(&self) -> ScoreScale {
        if self.normalize_scores { ScoreScale::Normalized } else { ScoreScale::Raw }
    }

    /// What is done to scores.
    pub fn score_rule(&self) -> ScoreRule {
        ScoreRule {
            clip: self.score_clip.unwrap_or(f64::INFINITY),
            missing_eos: self.missing_eos_penalty.map_or(MissingEos::Keep, MissingEos::Subtract),
        }
    }

    /// How the learning rate moves over the updates.
    pub fn schedule(&self) -> schedule::Schedule {
        let decay = match self.lr_scheduler_type {
            Schedule::Constant => Decay::Constant,
            Schedule::Linear => Decay::Linear,
            Schedule::Cosine => Decay::Cosine,
        };
        schedule::Schedule { warmup: Warmup::Steps(self.warmup_steps as usize), decay }
    }

    /// The constants of the loss.
    pub fn loss_settings(&self) -> Settings {
        Settings { clip_ratio: self.cliprange, clip_value: self.cliprange_value, value_coef: self.vf_coef }
    }

    /// The optimizer.
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: if self.max_grad_norm == 0.0 { f64::INFINITY } else { self.max_grad_norm },
        }
    }

    /// What the backward pass keeps.
    pub fn recompute(&self) -> Recompute {
        if *self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }

    /// How weights are saved, for a run that started from `source`.
    pub fn save_options(&self, source: &Checkpoint) -> SaveOptions {
        SaveOptions { dtype: self.save_dtype.into(), ..SaveOptions::like(source) }
    }
}
