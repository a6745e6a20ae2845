//! Opens, reads and saves the model that a supervised stage trains.
use std::path::Path;

use anyhow::Context;
use salsa_engine::{Head, LoraSpec, ModelSpec, Trainable};
use serde_json::Value;

use super::{arguments::TrainingArguments, trainer::Outcome};
use crate::{
    checkpoint::{Checkpoint, SaveOptions},
    metrics::{self, TrainerState},
    stage::{
        StageContext,
        models::{
            bases::Bases,
            frozen::{open, refuse_missing_language_head, trained_adapter},
            lora::LoraArguments,
            save::save_model,
        },
        text::encoder::Encoder,
    },
};

/// A checkpoint opened for training, before its weights are read.
pub(super) struct Start {
    /// Its checkpoint.
    pub checkpoint: Checkpoint,
    /// Its text encoder.
    pub encoder: Encoder,
    /// The model's shape with the head that the stage needs.
    pub spec: ModelSpec,
}

impl Start {
    /// Opens a checkpoint for training with the given head. Reads no weights.
    ///
    /// # Errors
    /// If the checkpoint is incomplete, or a reward model where a language model is needed.
    pub(super) fn open(path: &Path, head: Head, arguments: &TrainingArguments) -> anyhow::Result<Start> {
        let checkpoint = open(path)?;
        let encoder = arguments.encoder(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        Ok(Start { spec: checkpoint.spec.with_head(head), checkpoint, encoder })
    }

    /// The shape of the adapter to train: that of the checkpoint, or a new one; `None` if all weights are trained.
    ///
    /// # Errors
    /// If a key of the adapter is invalid.
    pub(super) fn adapter(&self, lora: &LoraArguments) -> anyhow::Result<Option<LoraSpec>> {
        trained_adapter(&self.checkpoint, lora)
    }

    /// Reads the model: all its weights, or an adapter. A missing head is initialised from `arguments.seed`, unless it
    /// is a language-model head.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub(super) fn load(
        &self,
        arguments: &TrainingArguments,
        lora: &LoraArguments,
        bases: &mut Bases,
    ) -> anyhow::Result<Trainable> {
        let checkpoint = &self.checkpoint;
        if lora.use_peft {
            return bases.adapted(checkpoint, self.spec.head, lora, arguments.seed, arguments.recompute());
        }
        let weights = with_head(checkpoint, checkpoint.read_weights()?, &self.spec, arguments.seed);
        Trainable::new(self.spec.clone(), weights, bases.device().clone(), arguments.recompute())
            .with_context(|| format!("model {}", checkpoint.dir().display()))
    }
}

/// The effective maximum length: `max_length`, or the model's context if that is shorter, which is reported.
pub(super) fn within_context(max_length: usize, positions: usize, context: &StageContext) -> usize {
    if max_length > positions {
        context
            .say(&format!("max_length is {max_length}, the model's context {positions}: that is the longest example"));
    }
    max_length.min(positions)
}

/// Saves a trained model, or a trained adapter as a PEFT directory, with its tokenizer and `trainer_state.json`.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn save(
    output_dir: &Path,
    source: &Checkpoint,
    model: &Trainable,
    extra_config: &[(&str, Value)],
    arguments: &TrainingArguments,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    write_trainer_state(output_dir, arguments, outcome)?;
    let companions = arguments.companions(source.dir())?;
    let (dtype, max_shard_bytes) = (arguments.save_dtype, arguments.max_shard_size.0);
    let options = SaveOptions { dtype, max_shard_bytes, ..SaveOptions::like(source) };
    save_model(output_dir, source, model, model.spec(), &companions, extra_config, &options)
}

/// Writes `trainer_state.json`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write_trainer_state(
    output_dir: &Path,
    arguments: &TrainingArguments,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    let state = TrainerState {
        global_step: outcome.steps,
        max_steps: outcome.steps,
        epoch: outcome.epoch,
        num_train_epochs: outcome.epoch.ceil() as u64,
        train_batch_size: (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps) as u64,
    };
    metrics::write_trainer_state(output_dir, &state)
}

/// Converts the checkpoint's weights to the head of `spec`; missing parts are initialised from `seed`.
fn with_head(checkpoint: &Checkpoint, weights: Vec<f32>, spec: &ModelSpec, seed: u64) -> Vec<f32> {
    if *spec == checkpoint.spec { weights } else { checkpoint.spec.convert(&weights, spec, seed) }
}
