//! Configuration of `salsa online_dpo`.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::ensure;
use salsa_algo::{
    preference::{
        dpo::{LossType, Objective},
        online::Pairing,
    },
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
        keys::{MOST_SEQUENCES, check_count, check_objective, check_range},
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

/// The keys of an online DPO run. Names are those of TRL if it has one; "TRL" is `OnlineDPOConfig` of TRL 1.16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OnlineDpoConfig {
    /// The initial policy: an SFT model, or a soup computed in memory.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelSource,
    /// The reward model. None: if `rewards` has others. TRL: `reward_funcs`.
    pub reward_model_path: ModelPath,
    /// More rewards, each with a weight; the reward of a response is their sum. Empty: none. TRL: `reward_funcs`,
    /// `reward_weights`.
    pub rewards: Vec<RewardSource>,
    /// The reference of the loss; `none` is refused. TRL: the model that the policy starts from.
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
    /// Responses per prompt, at least 2; `batch_size` is a multiple of it. TRL: 2.
    pub num_generations: usize,
    /// Which responses to a prompt become pairs. TRL: none; both are the same with two responses.
    pub pairing: Pairing,
    /// What happens to a pair whose rewards are equal. TRL: keep.
    pub ties: Ties,
    /// Passes over the pairs of an update, at least 1. TRL: 1.
    pub num_iterations: usize,
    /// Optimizer steps per pass, from 1 to the number of pairs of an update. TRL: 1.
    pub num_mini_batches: usize,
    /// Pairs per forward and backward pass, at least 1; affects memory and the rounding of sums. TRL: 8.
    pub per_device_train_batch_size: usize,

    /// The loss on the log-ratios of policy to reference, `c` of the response with the higher reward and `r` of the
    /// other; `x = beta (c - r)`, `e` is `label_smoothing`. TRL: sigmoid; it has this and ipo.
    #[schemars(extend("x-heading" = "Loss and rewards"))]
    pub loss_type: LossType,
    /// Strength of the pull towards the reference, above 0. TRL: 0.1.
    pub beta: f64,
    /// Share of labels assumed to be wrong, from 0 to below 0.5; used by `sigmoid` (cDPO), `robust`, and `exo_pair`,
    /// which needs one above 0. TRL: not there.
    pub label_smoothing: f64,
    /// Temperature of `discopop`, above 0; used by it only. TRL: not there.
    pub discopop_tau: f64,
    /// Post-processing of scores.
    #[serde(flatten)]
    pub scores: ScoreArguments,

    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,

    /// The keys of adapters: with `use_peft`, the policy is an adapter, and all models of the run with the same base
    /// share it.
    #[serde(flatten)]
    pub lora: LoraArguments,

    /// Highest learning rate, at least 0. TRL: 5e-7.
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

/// What happens to a pair whose rewards are equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ties {
    /// It is left out: it says nothing about which response is better.
    #[default]
    Drop,
    /// The response that was sampled first counts as the better one.
    Keep,
}

impl Default for OnlineDpoConfig {
    fn default() -> OnlineDpoConfig {
        OnlineDpoConfig {
            model_name_or_path: ModelSource::Path(ModelPath::new()),
            reward_model_path: ModelPath::new(),
            rewards: Vec::new(),
            reference: ReferenceConfig::default(),
            anchors: BTreeMap::new(),
            dataset: DataSource::default(),
            output_dir: PathBuf::new(),
            sampling: SamplingArguments::default(),
            num_generations: 2,
            pairing: Pairing::BestWorst,
            ties: Ties::Drop,
            num_iterations: 1,
            num_mini_batches: 1,
            per_device_train_batch_size: 8,
            loss_type: LossType::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            discopop_tau: 0.05,
            scores: ScoreArguments::default(),
            chat: ChatArguments::default(),
            lora: LoraArguments::default(),
            learning_rate: 5e-7,
            warmup_steps: 0,
            optimizer: OptimizerArguments::default(),
            gradient_checkpointing: NoEffect(false),
            run: RunArguments::default(),
        }
    }
}

/// Upper limit for passes over the pairs of an update.
const MOST_PASSES: u64 = 10_000;

impl OnlineDpoConfig {
    /// Checks ranges and consistency.
    ///
    /// # Errors
    /// If a value is invalid; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.sampling.validate()?;
        let counts = [
            ("num_generations", self.num_generations as u64, MOST_SEQUENCES),
            ("num_iterations", self.num_iterations as u64, MOST_PASSES),
            ("num_mini_batches", self.num_mini_batches as u64, MOST_SEQUENCES),
            ("per_device_train_batch_size", self.per_device_train_batch_size as u64, MOST_SEQUENCES),
        ];
        for (key, value, most) in counts {
            check_count(key, value, most)?;
        }
        let (batch, group) = (self.sampling.batch_size, self.num_generations);
        ensure!(group > 1, "num_generations is 1: a pair needs two responses to the same prompt; say 2 or more");
        ensure!(
            batch.is_multiple_of(group),
            "batch_size {batch} is no multiple of num_generations {group}; say batch_size: {}",
            batch.div_ceil(group).saturating_mul(group)
        );
        ensure!(
            self.pairing != Pairing::Neighbours || group.is_multiple_of(2),
            "num_generations is {group}, so with pairing: neighbours a response would have no other; say an even number, \
             or pairing: best_worst"
        );
        let pairs = self.order().count();
        ensure!(
            self.num_mini_batches <= pairs,
            "num_mini_batches is {}, but an update has {pairs} pairs; every minibatch needs one",
            self.num_mini_batches
        );
        check_objective(&self.objective())?;
        self.scores.validate()?;
        rewards::config::check(&self.reward_model_path, &self.rewards)?;
        self.optimizer.validate()?;
        self.anchors.keys().try_for_each(|name| names::check_component("anchors", name))?;
        check_range("learning_rate", self.learning_rate, 0.0..=f64::MAX)?;
        self.lora.validate()?;
        ensure!(
            self.reference != ReferenceConfig::None,
            "reference.kind is none, but the loss compares the policy with a reference; say reference: {{kind: sft}} or \
             another kind"
        );
        self.reference.validate(self.beta)
    }

    /// The loss of a pair.
    pub(super) fn objective(&self) -> Objective {
        let OnlineDpoConfig { loss_type, beta, label_smoothing, discopop_tau, .. } = *self;
        Objective { loss_type, beta, label_smoothing, discopop_tau }
    }

    /// The learning-rate schedule over the updates.
    pub(super) fn schedule(&self) -> Schedule {
        Schedule { warmup: Warmup::Steps(self.warmup_steps as usize), decay: self.optimizer.lr_scheduler_type }
    }

    /// The order of prompts and pairs.
    pub(super) fn order(&self) -> Order {
        Order {
            seed: self.run.seed,
            batch: self.sampling.batch_size,
            group: self.num_generations,
            epochs: self.num_iterations as u64,
            minibatches: self.num_mini_batches,
            learned: Learned::Pairs { per_prompt: self.pairing.per_prompt(self.num_generations) },
        }
    }

    /// Which activations the backward pass recomputes.
    pub(super) fn recompute(&self) -> Recompute {
        if *self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }

    /// The settings that do not depend on the method.
    pub(super) fn setup(&self) -> Setup<'_> {
        Setup {
            name: "online_dpo",
            model: &self.model_name_or_path,
            rewards: RewardSource::list(&self.reward_model_path, &self.rewards),
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
            order: self.order(),
            prompts: PromptUse::InOrder,
            dir: &self.output_dir,
        }
    }
}
