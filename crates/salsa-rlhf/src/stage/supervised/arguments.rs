//! Keys shared by the supervised stages, named as in Hugging Face's `TrainingArguments`.
use std::path::Path;

use anyhow::{Context, ensure};
use salsa_algo::schedule::{self, Warmup};
use salsa_engine::Recompute;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    chat,
    checkpoint::{Checkpoint, Companions, Dtype},
    config::paths::{NoEffect, TemplateChoice},
    stage::{
        device::Choice as DeviceChoice,
        keys::{ByteSize, ComputeType, MOST_SEQUENCES, MOST_STEPS, check_count, check_most, check_range},
        optimizer::OptimizerArguments,
        text::{chat_arguments::ChatArguments, encoder::Encoder},
    },
};

/// The keys shared by `pretrain`, `sft`, `reward`, `dpo`, `kto`, `orpo` and `cpo`, flattened into each stage's own
/// struct.
///
/// "TRL" below is the default of TRL 1.10's `SFTConfig`, `RewardConfig` and `DPOConfig`, which agree on these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct TrainingArguments {
    /// Sequences (or pairs) per forward and backward pass, at least 1. TRL: 8.
    #[schemars(extend("x-heading" = "Batches and steps"))]
    pub per_device_train_batch_size: usize,
    /// Sequences (or pairs) per forward pass of the evaluation, at least 1; affects memory, and the rounding of means.
    /// TRL: 8.
    pub per_device_eval_batch_size: usize,
    /// Passes per optimizer step, at least 1. Times `per_device_train_batch_size`, this is the batch of a step, however
    /// many processes share it. The mean loss is taken over all tokens (or pairs) of the step, so one
    /// pass of 16 and two passes of 8 give the same step. TRL: 1.
    pub gradient_accumulation_steps: usize,
    /// Total optimizer steps; -1: determined by `num_train_epochs`. TRL: -1.
    pub max_steps: i64,
    /// Share of all steps over which the learning rate rises from 0, from 0 to 1; used if `warmup_steps` is 0. TRL: 0.
    #[schemars(extend("x-heading" = "Optimizer"))]
    pub warmup_ratio: f64,
    /// Steps over which the learning rate rises from 0 to its highest; 0: determined by `warmup_ratio`. TRL: 0.
    pub warmup_steps: u64,
    /// Optimizer settings apart from the learning rate.
    #[serde(flatten)]
    pub optimizer: OptimizerArguments,
    /// Seed of the data order and of newly initialised weights. TRL: 42.
    #[schemars(extend("x-heading" = "Run and output"))]
    pub seed: u64,
    /// Steps between two lines of `metrics.jsonl`, at least 1. TRL: 10.
    pub logging_steps: NoEffect<u64>,
    /// Steps between two evaluations; 0: one, at the end. TRL: off unless `eval_strategy` is set.
    pub eval_steps: NoEffect<u64>,
    /// Steps between two resumable checkpoints. 0: none before the end (an interruption by Ctrl-C still saves one).
    /// TRL: 500.
    pub save_steps: NoEffect<u64>,
    /// Recompute activations in the backward pass instead of storing them: less memory, about a third more time, the
    /// same results. TRL: true.
    pub gradient_checkpointing: NoEffect<bool>,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way. TRL: the flag `bf16`.
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Number type of the saved weights; training itself always keeps f32 master weights. TRL: the model's own.
    pub save_dtype: Dtype,
    /// Maximum bytes of weights per file: a number, or text such as 5GB (powers of ten). transformers: 5GB.
    pub max_shard_size: ByteSize,
    /// A chat template that replaces the model's own and is saved with the trained model: a Jinja file, or `chatml`.
    /// Empty: the model's own. TRL: `chat_template_path`.
    pub chat_template: TemplateChoice,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
}

impl Default for TrainingArguments {
    fn default() -> TrainingArguments {
        TrainingArguments {
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            max_steps: -1,
            warmup_ratio: 0.0,
            warmup_steps: 0,
            optimizer: OptimizerArguments::default(),
            seed: 42,
            logging_steps: NoEffect(10),
            eval_steps: NoEffect(0),
            save_steps: NoEffect(500),
            gradient_checkpointing: NoEffect(false),
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            save_dtype: Dtype::F32,
            max_shard_size: ByteSize(5_000_000_000),
            chat_template: TemplateChoice::default(),
            chat: ChatArguments::default(),
        }
    }
}

impl TrainingArguments {
    /// Checks ranges, including those of the two keys that each stage defines itself; errors name the key.
    ///
    /// # Errors
    /// If a value is invalid.
    pub fn validate(&self, learning_rate: f64, num_train_epochs: f64) -> anyhow::Result<()> {
        let counts = [
            ("per_device_train_batch_size", self.per_device_train_batch_size as u64, MOST_SEQUENCES),
            ("per_device_eval_batch_size", self.per_device_eval_batch_size as u64, MOST_SEQUENCES),
            ("gradient_accumulation_steps", self.gradient_accumulation_steps as u64, MOST_SEQUENCES),
            ("logging_steps", *self.logging_steps, u64::MAX),
        ];
        for (key, value, most) in counts {
            check_count(key, value, most)?;
        }
        ensure!(self.max_steps >= -1, "max_steps is {}; give a number of steps, or -1 for none", self.max_steps);
        check_most("max_steps", self.max_steps.max(0) as u64, MOST_STEPS)?;
        ensure!(self.max_shard_size.0 > 0, "max_shard_size is 0; give bytes, or such as 5GB");
        let ranges = [
            ("learning_rate", learning_rate, 0.0..=f64::MAX),
            ("num_train_epochs", num_train_epochs, 0.0..=MOST_EPOCHS),
            ("warmup_ratio", self.warmup_ratio, 0.0..=1.0),
        ];
        for (key, value, range) in ranges {
            check_range(key, value, range)?;
        }
        self.optimizer.validate()
    }

    /// The text encoder for training from this checkpoint.
    ///
    /// # Errors
    /// As [`Encoder::open`], and if the chat template is invalid.
    pub fn encoder(&self, checkpoint: &Checkpoint) -> anyhow::Result<Encoder> {
        let encoder = Encoder::open(checkpoint)?.with_chat(&self.chat);
        match &*self.chat_template {
            "" => Ok(encoder),
            choice => {
                encoder.with_template(&chat::source_of(choice)?).with_context(|| format!("chat_template {choice}"))
            }
        }
    }

    /// The files that are saved along with the trained model: those of `dir`, with the configured chat template.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn companions(&self, dir: &Path) -> anyhow::Result<Companions> {
        let companions = Companions::from_dir(dir)?;
        match &*self.chat_template {
            "" => Ok(companions),
            choice => Ok(companions.with_chat_template(&chat::source_of(choice)?)),
        }
    }

    /// The learning-rate schedule.
    pub fn schedule(&self) -> schedule::Schedule {
        let warmup = match self.warmup_steps {
            0 => Warmup::Ratio(self.warmup_ratio),
            steps => Warmup::Steps(steps as usize),
        };
        schedule::Schedule { warmup, decay: self.optimizer.lr_scheduler_type }
    }

    /// Which activations the backward pass recomputes.
    pub fn recompute(&self) -> Recompute {
        if *self.gradient_checkpointing { Recompute::PerLayer } else { Recompute::KeepActivations }
    }
}

/// Upper limit for passes over the data.
const MOST_EPOCHS: f64 = 1e6;
