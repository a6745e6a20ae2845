//! Configuration of `salsa ppo`.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::ensure;
use salsa_algo::{
    ppo::Settings,
    reward::ScorePosition,
    schedule::{Schedule, Warmup},
};
use salsa_engine::Recompute;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::{
        names,
        paths::{ModelPath, NoEffect},
    },
    stage::{
        keys::{MOST_SEQUENCES, check_count, check_range},
        models::{lora::LoraArguments, model_source::ModelSource},
        optimizer::OptimizerArguments,
        rewards::{self, RewardSource},
        rl::{
            arguments::{PenaltyArguments, RunArguments, SamplingArguments, ScoreArguments},
            environment::{PromptUse, Setup},
            order::{Learned, Order},
            reference::ReferenceConfig,
        },
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

/// The keys of a PPO run. Names are those of TRL if it has one; "TRL" is `PPOConfig` of TRL 1.12.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PpoConfig {
    /// The initial policy: an SFT model (SALSA and PPO), or a soup computed in memory. TRL: `sft_model_path`.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelSource,
    /// The reward model; a separate critic starts from it, too. None: if `rewards` has others.
    pub reward_model_path: ModelPath,
    /// More rewards, each with a weight; the reward of a response is their sum. A separate critic starts from the first
    /// reward model, or without one from the initial policy with a new head. Empty: none.
    pub rewards: Vec<RewardSource>,
    /// The reference of the KL penalty. TRL: the model that the policy starts from.
    pub reference: ReferenceConfig,
    /// Models for additional logged KLs of the policy, by names of your choice (`--anchors.NAME DIR`): the same for all
    /// arms of an experiment, so that their reward-KL curves can be compared. Empty: none.
    pub anchors: BTreeMap<String, ModelSource>,
    /// The prompts; of records with responses, the prompts alone. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Directory of the trained policy, its metrics and its checkpoints.
    pub output_dir: PathBuf,

    /// Number of responses, and how they are sampled.
    #[serde(flatten)]
    pub sampling: SamplingArguments,
    /// Passes over the responses of an update, at least 1. TRL: 4.
    pub num_ppo_epochs: usize,
    /// Optimizer steps per pass, from 1 to `batch_size`; each sees `batch_size / num_mini_batches` responses. TRL: 1.
    pub num_mini_batches: usize,
    /// Responses per forward and backward pass, at least 1; affects memory and the rounding of sums. TRL: 8.
    pub per_device_train_batch_size: usize,

    /// The KL penalty that keeps the policy close to its reference.
    #[serde(flatten)]
    pub penalty: PenaltyArguments,
    /// The slot that gets a response's score. TRL since 0.12: after_eos; nearly all others: last_token.
    pub score_position: ScorePosition,
    /// Post-processing of scores.
    #[serde(flatten)]
    pub scores: ScoreArguments,
    /// Divide the rewards of an update by their standard deviation, without subtracting the mean. TRL: false.
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
    /// Source of values. TRL since 0.12: separate; before: shared.
    pub critic: CriticKind,

    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,

    /// The keys of adapters: with `use_peft`, policy and critic are adapters, and all models of the run with the same
    /// base share it.
    #[serde(flatten)]
    pub lora: LoraArguments,

    /// Highest learning rate, at least 0. TRL: 3e-6.
    #[schemars(extend("x-heading" = "Optimizer"))]
    pub learning_rate: f64,
    /// Highest learning rate of a separate critic, at least 0. None: the policy's, as in TRL.
    pub critic_learning_rate: Option<f64>,
    /// Updates over which the learning rate rises from 0 to its highest. TRL: 0.
    pub warmup_steps: u64,
    /// Initial updates in which only the critic is trained. TRL: not there.
    pub critic_warmup: u64,
    /// Optimizer settings apart from the learning rate.
    #[serde(flatten)]
    pub optimizer: OptimizerArguments,
    /// Recompute activations in the backward pass instead of storing them: less memory, about a third more time, the
    /// same results. TRL: true.
    pub gradient_checkpointing: NoEffect<bool>,

    /// Settings of the run as a whole.
    #[serde(flatten)]
    pub run: RunArguments,
}

/// Source of values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CriticKind {
    /// A separate model, initialised from the reward model or, without one, from the policy.
    #[default]
    Separate,
    /// A second head on the policy's trunk, initialised at random.
    Shared,
}

impl Default for PpoConfig {
    fn default() -> PpoConfig {
        PpoConfig {
            model_name_or_path: ModelSource::Path(ModelPath::new()),
            reward_model_path: ModelPath::new(),
            rewards: Vec::new(),
            reference: ReferenceConfig::default(),
            anchors: BTreeMap::new(),
            dataset: DataSource::default(),
            output_dir: PathBuf::new(),
            sampling: SamplingArguments::default(),
            num_ppo_epochs: 4,
            num_mini_batches: 1,
            per_device_train_batch_size: 8,
            penalty: PenaltyArguments::default(),
            score_position: ScorePosition::LastToken,
            scores: ScoreArguments::default(),
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
            warmup_steps: 0,
            critic_warmup: 0,
            optimizer: OptimizerArguments::default(),
            gradient_checkpointing: NoEffect(false),
            run: RunArguments::default(),
        }
    }
}

/// Upper limit for passes over the responses of an update.
const MOST_PASSES: u64 = 10_000;

impl PpoConfig {
    /// Checks ranges and consistency.
    ///
    /// # Errors
    /// If a value is invalid; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.sampling.validate()?;
        let counts = [
            ("num_ppo_epochs", self.num_ppo_epochs as u64, MOST_PASSES),
            ("num_mini_batches", self.num_mini_batches as u64, MOST_SEQUENCES),
            ("per_device_train_batch_size", self.per_device_train_batch_size as u64, MOST_SEQUENCES),
        ];
        for (key, value, most) in counts {
            check_count(key, value, most)?;
        }
        self.penalty.validate()?;
        self.scores.validate()?;
        rewards::config::check(&self.reward_model_path, &self.rewards)?;
        self.optimizer.validate()?;
        self.anchors.keys().try_for_each(|name| names::check_component("anchors", name))?;
        ensure!(
            self.num_mini_batches <= self.sampling.batch_size,
            "num_mini_batches {} is more than batch_size {}; every minibatch needs a response",
            self.num_mini_batches,
            self.sampling.batch_size
        );
        let ranges = [
            ("gamma", self.gamma, 0.0, 1.0),
            ("lam", self.lam, 0.0, 1.0),
            ("cliprange", self.cliprange, 0.0, f64::MAX),
            ("cliprange_value", self.cliprange_value, 0.0, f64::MAX),
            ("vf_coef", self.vf_coef, 0.0, f64::MAX),
            ("learning_rate", self.learning_rate, 0.0, f64::MAX),
            ("critic_learning_rate", self.critic_learning_rate.unwrap_or(0.0), 0.0, f64::MAX),
        ];
        for (key, value, low, high) in ranges {
            check_range(key, value, low..=high)?;
        }
        self.lora.validate()?;
        self.reference.validate(self.penalty.kl_coef)
    }

    /// All rewards.
    fn reward_list(&self) -> Vec<RewardSource> {
        RewardSource::list(&self.reward_model_path, &self.rewards)
    }

    /// The learning-rate schedule over the updates.
    pub fn schedule(&self) -> Schedule {
        Schedule { warmup: Warmup::Steps(self.warmup_steps as usize), decay: self.optimizer.lr_scheduler_type }
    }

    /// The order of prompts and responses.
    pub(in crate::stage::rl) fn order(&self) -> Order {
        Order {
            seed: self.run.seed,
            batch: self.sampling.batch_size,
            group: 1,
            epochs: self.num_ppo_epochs as u64,
            minibatches: self.num_mini_batches,
            learned: Learned::Responses,
        }
    }

    /// The settings that do not depend on the method.
    pub(in crate::stage::rl) fn setup(&self) -> Setup<'_> {
        Setup {
            name: "ppo",
            model: &self.model_name_or_path,
            rewards: self.reward_list(),
            reference: &self.reference,
            anchors: &self.anchors,
            dataset: &self.dataset,
            chat: &self.chat,
            sampling: &self.sampling,
            scores: &self.scores,
            lora: &self.lora,
            run: &self.run,
            critic: Some(self.critic),
            recompute: self.recompute(),
            pass: self.per_device_train_batch_size,
            gradient_units: self.optimizer.gradient_units,
            order: self.order(),
            prompts: PromptUse::InOrder,
            dir: &self.output_dir,
        }
    }

    /// The constants of the loss.
    pub fn loss_settings(&self) -> Settings {
        Settings { clip_ratio: self.cliprange, clip_value: self.cliprange_value, value_coef: self.vf_coef }
    }

    /// Which activations the backward pass recomputes.
    pub fn recompute(&self) -> Recompute {
        if *self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }
}
