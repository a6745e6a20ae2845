//! Configuration of `salsa grpo`.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::ensure;
use salsa_algo::{
    group::{Baseline, ImportanceLevel, KlPenalty, LossType, ScaleRewards, Settings},
    kl::KlEstimator,
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
            arguments::{RunArguments, SamplingArguments, ScoreArguments},
            environment::{PromptUse, Setup},
            order::{Learned, Order},
            reference::ReferenceConfig,
        },
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

/// The keys of a GRPO run. Names are those of TRL if it has one; "TRL" is `GRPOConfig` of TRL 1.16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GrpoConfig {
    /// The initial policy: an SFT model, or a soup computed in memory.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelSource,
    /// The reward model. None: if `rewards` has others. TRL: `reward_funcs`.
    pub reward_model_path: ModelPath,
    /// More rewards, each with a weight; the reward of a response is their sum. Empty: none. TRL: `reward_funcs`,
    /// `reward_weights`.
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
    /// Responses per prompt, at least 2 (1 with `baseline: none`); `batch_size` is a multiple of it. TRL: 8.
    pub num_generations: usize,
    /// Rounds of sampling per update, at least 1. With more than 1, groups whose rewards are all equal, from which nothing
    /// can be learned, are replaced by groups of the next prompts (DAPO's dynamic sampling). TRL: 1; veRL: 10.
    pub max_sampling_rounds: usize,
    /// Passes over the responses of an update, at least 1. TRL: 1.
    pub num_iterations: usize,
    /// Optimizer steps per pass, from 1 to `batch_size`; each sees `batch_size / num_mini_batches` responses. TRL:
    /// `steps_per_generation`, divided by `gradient_accumulation_steps`.
    pub num_mini_batches: usize,
    /// Responses per forward and backward pass, at least 1; affects memory and the rounding of sums. TRL: 8.
    pub per_device_train_batch_size: usize,

    /// Coefficient beta of the KL penalty, at least 0. TRL: 0, no penalty.
    #[schemars(extend("x-heading" = "Reward and KL"))]
    pub kl_coef: f64,
    /// Estimator of the KL of a token. TRL: k3.
    pub kl_estimator: KlEstimator,
    /// Where the penalty is. TRL: in the loss; in its RLOO in the reward, with k1.
    pub kl_in: KlIn,
    /// Post-processing of scores.
    #[serde(flatten)]
    pub scores: ScoreArguments,
    /// What is subtracted from a reward: group (GRPO), leave_one_out (RLOO), or none (REINFORCE++).
    pub baseline: Baseline,
    /// What advantages are divided by. TRL: group.
    pub scale_rewards: ScaleRewards,

    /// How the losses of tokens become one number. TRL: dapo.
    #[schemars(extend("x-heading" = "GRPO"))]
    pub loss_type: LossType,
    /// What a probability ratio is taken over: token (GRPO), sequence (GSPO), or product (RLOO). TRL: token.
    pub importance_sampling_level: ImportanceLevel,
    /// How far the ratio may fall below 1 before its gradient stops, from 0 to 1. TRL: 0.2.
    pub epsilon: f64,
    /// How far the ratio may rise above 1 before its gradient stops, at least 0. None: `epsilon`. TRL: none; DAPO: 0.28.
    pub epsilon_high: Option<f64>,
    /// Upper limit of the ratio where the advantage is negative, above 1 + `epsilon`. None: no limit, as in TRL.
    pub delta: Option<f64>,
    /// Exclude responses without an end token from the loss (DAPO's overlong filtering). TRL: false.
    pub mask_truncated_completions: bool,

    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,

    /// The keys of adapters: with `use_peft`, the policy is an adapter, and all models of the run with the same base
    /// share it.
    #[serde(flatten)]
    pub lora: LoraArguments,

    /// Highest learning rate, at least 0. TRL: 1e-6.
    #[schemars(extend("x-heading" = "Optimizer"))]
    pub learning_rate: f64,
    /// Updates over which the learning rate rises from 0 to its highest. TRL: 0.
    pub warmup_steps: u64,
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

/// Where the KL penalty is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlIn {
    /// In the loss: its derivative is added to that of the policy's loss.
    #[default]
    Loss,
    /// In the reward of a response: the KL summed over its tokens is subtracted, times beta.
    Reward,
    /// In the advantage of each token: the KL summed over this and the later tokens is subtracted, times beta
    /// (REINFORCE++).
    RewardToGo,
}

impl Default for GrpoConfig {
    fn default() -> GrpoConfig {
        GrpoConfig {
            model_name_or_path: ModelSource::Path(ModelPath::new()),
            reward_model_path: ModelPath::new(),
            rewards: Vec::new(),
            reference: ReferenceConfig::default(),
            anchors: BTreeMap::new(),
            dataset: DataSource::default(),
            output_dir: PathBuf::new(),
            sampling: SamplingArguments::default(),
            num_generations: 8,
            max_sampling_rounds: 1,
            num_iterations: 1,
            num_mini_batches: 1,
            per_device_train_batch_size: 8,
            kl_coef: 0.04,
            kl_estimator: KlEstimator::K3,
            kl_in: KlIn::Loss,
            scores: ScoreArguments::default(),
            baseline: Baseline::Group,
            scale_rewards: ScaleRewards::Group,
            loss_type: LossType::Dapo,
            importance_sampling_level: ImportanceLevel::Token,
            epsilon: 0.2,
            epsilon_high: None,
            delta: None,
            mask_truncated_completions: false,
            chat: ChatArguments::default(),
            lora: LoraArguments::default(),
            learning_rate: 1e-6,
            warmup_steps: 0,
            optimizer: OptimizerArguments::default(),
            gradient_checkpointing: NoEffect(false),
            run: RunArguments::default(),
        }
    }
}

/// Upper limit for passes over the responses of an update.
const MOST_PASSES: u64 = 10_000;

impl GrpoConfig {
    /// Checks ranges and consistency.
    ///
    /// # Errors
    /// If a value is invalid; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.sampling.validate()?;
        let counts = [
            ("num_generations", self.num_generations as u64, MOST_SEQUENCES),
            ("max_sampling_rounds", self.max_sampling_rounds as u64, MOST_PASSES),
            ("num_iterations", self.num_iterations as u64, MOST_PASSES),
            ("num_mini_batches", self.num_mini_batches as u64, MOST_SEQUENCES),
            ("per_device_train_batch_size", self.per_device_train_batch_size as u64, MOST_SEQUENCES),
        ];
        for (key, value, most) in counts {
            check_count(key, value, most)?;
        }
        let (batch, group) = (self.sampling.batch_size, self.num_generations);
        let compares = [
            ("baseline", self.baseline != Baseline::None, "none"),
            ("scale_rewards", self.scale_rewards == ScaleRewards::Group, "tokens"),
            ("max_sampling_rounds", self.max_sampling_rounds > 1, "1"),
        ];
        for (key, _, instead) in compares.into_iter().filter(|(_, compares, _)| *compares) {
            ensure!(
                group > 1,
                "num_generations is 1: a response needs others to the same prompt to be compared with; say 2 or more, or \
                 {key}: {instead}"
            );
        }
        ensure!(
            batch.is_multiple_of(group),
            "batch_size {batch} is no multiple of num_generations {group}; say batch_size: {}",
            batch.div_ceil(group).saturating_mul(group)
        );
        ensure!(
            self.num_mini_batches <= batch,
            "num_mini_batches {} is more than batch_size {batch}; every minibatch needs a response",
            self.num_mini_batches
        );
        ensure!(
            self.kl_coef == 0.0 || self.kl_in != KlIn::Loss || self.kl_estimator != KlEstimator::K1,
            "kl_estimator k1 in the loss pushes in no direction: its derivative has mean 0; say kl_estimator: k3 or k2, \
             or kl_in: reward"
        );
        self.scores.validate()?;
        rewards::config::check(&self.reward_model_path, &self.rewards)?;
        self.optimizer.validate()?;
        self.anchors.keys().try_for_each(|name| names::check_component("anchors", name))?;
        let lowest_limit = 1.0 + self.epsilon_high.unwrap_or(self.epsilon);
        let ranges = [
            ("kl_coef", self.kl_coef, 0.0, f64::MAX),
            ("epsilon", self.epsilon, 0.0, 1.0),
            ("epsilon_high", self.epsilon_high.unwrap_or(0.0), 0.0, f64::MAX),
            ("delta", self.delta.unwrap_or(f64::MAX), lowest_limit, f64::MAX),
            ("learning_rate", self.learning_rate, 0.0, f64::MAX),
        ];
        for (key, value, low, high) in ranges {
            check_range(key, value, low..=high)?;
        }
        self.lora.validate()?;
        self.reference.validate(self.kl_coef)
    }

    /// All rewards.
    fn reward_list(&self) -> Vec<RewardSource> {
        RewardSource::list(&self.reward_model_path, &self.rewards)
    }

    /// The learning-rate schedule over the updates.
    pub fn schedule(&self) -> Schedule {
        Schedule { warmup: Warmup::Steps(self.warmup_steps as usize), decay: self.optimizer.lr_scheduler_type }
    }

    /// The constants of the loss.
    pub fn loss_settings(&self) -> Settings {
        let in_loss = self.kl_in == KlIn::Loss && self.kl_coef > 0.0;
        Settings {
            loss_type: self.loss_type,
            level: self.importance_sampling_level,
            clip_low: self.epsilon,
            clip_high: self.epsilon_high.unwrap_or(self.epsilon),
            ratio_limit: self.delta.unwrap_or(f64::INFINITY),
            penalty: in_loss.then_some(KlPenalty { beta: self.kl_coef, estimator: self.kl_estimator }),
        }
    }

    /// Which activations the backward pass recomputes.
    pub fn recompute(&self) -> Recompute {
        if *self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }

    /// The settings that do not depend on the method.
    pub(in crate::stage::rl) fn setup(&self) -> Setup<'_> {
        Setup {
            name: "grpo",
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
            critic: None,
            recompute: self.recompute(),
            pass: self.per_device_train_batch_size,
            gradient_units: self.optimizer.gradient_units,
            order: Order {
                seed: self.run.seed,
                batch: self.sampling.batch_size,
                group: self.num_generations,
                epochs: self.num_iterations as u64,
                minibatches: self.num_mini_batches,
                learned: Learned::Responses,
            },
            prompts: if self.max_sampling_rounds > 1 { PromptUse::Any } else { PromptUse::InOrder },
            dir: &self.output_dir,
        }
    }
}
