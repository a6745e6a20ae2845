//! How stages open and leave checkpoints.
use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_engine::{Cpu, Head, Model, ModelSpec, Trainable};
use serde::Serialize;
use serde_json::{Value, json};

use super::{arguments::TrainingArguments, encoder::Encoder, trainer::Outcome};
use crate::{
    checkpoint::{self, Checkpoint, SaveOptions},
    config::paths::visit_strings,
    metrics::{self, TrainerState},
};

/// A checkpoint opened for training.
pub struct Start {
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// Its way from text to tokens.
    pub encoder: Encoder,
    /// The model with the head that the stage needs.
    pub model: Trainable,
}

impl Start {
    /// Opens a checkpoint for training. A head that it lacks is made new from `arguments.seed`, except a language-model head.
    ///
    /// # Errors
    /// If the checkpoint is incomplete, or a reward model where a language model is needed.
    pub fn open(path: &Path, head: Head, arguments: &TrainingArguments) -> anyhow::Result<Start> {
        let checkpoint = open(path)?;
        let encoder = arguments.encoder(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        let (spec, weights) = (checkpoint.spec.with_head(head), checkpoint.read_weights()?);
        let weights = with_head(&checkpoint, weights, &spec, arguments.seed);
        let model = Trainable::new(spec, weights, Cpu::current(), arguments.recompute())
            .with_context(|| format!("model {}", path.display()))?;
        Ok(Start { checkpoint, encoder, model })
    }
}

/// A checkpoint opened for use.
pub struct Frozen {
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// Its way from text to tokens, if it has a tokenizer.
    pub encoder: Option<Encoder>,
    /// The model.
    pub model: Model,
}

impl Frozen {
    /// Opens a checkpoint for use with the given head, which it must have.
    ///
    /// # Errors
    /// If the checkpoint is incomplete or of another kind.
    pub fn open(path: &Path, head: Head) -> anyhow::Result<Frozen> {
        let checkpoint = open(path)?;
        let encoder = Encoder::open_if_any(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        if head == Head::Scalar && checkpoint.spec.head == Head::LanguageModel {
            bail!(
                "{} is a language model without score.weight; a reward model is needed (salsa reward makes one)",
                path.display()
            );
        }
        let (spec, weights) = (checkpoint.spec.with_head(head), checkpoint.read_weights()?);
        let weights = with_head(&checkpoint, weights, &spec, 0);
        let model = Model::new(spec, &weights, Cpu::current()).with_context(|| format!("model {}", path.display()))?;
        Ok(Frozen { checkpoint, encoder, model })
    }
}

/// Shape and flat weights of a checkpoint's language model; a second head that it may have is left out.
///
/// # Errors
/// If the checkpoint is incomplete or a reward model.
pub fn language_model_weights(path: &Path) -> anyhow::Result<(ModelSpec, Vec<f32>)> {
    let checkpoint = open(path)?;
    refuse_missing_language_head(&checkpoint, Head::LanguageModel)?;
    let (spec, weights) = (checkpoint.spec.with_head(Head::LanguageModel), checkpoint.read_weights()?);
    let weights = if spec == checkpoint.spec { weights } else { checkpoint.spec.convert(&weights, &spec, 0) };
    Ok((spec, weights))
}

/// All that the result of a stage depends on apart from the bytes of its inputs: its configuration without paths.
///
/// # Errors
/// If the configuration has no JSON form.
pub fn fingerprint(stage: &str, config: &impl Serialize) -> anyhow::Result<Value> {
    let mut config = serde_json::to_value(config).context("configuration")?;
    visit_strings(&mut config, "", "", &mut |kind, _, _| Ok(kind.map(|_| Value::Null)))?;
    if let Value::Object(keys) = &mut config {
        keys.shift_remove("output_dir");
    }
    Ok(json!({"stage": stage, "config": config}))
}

/// Saves a trained model with the tokenizer it came with, and `trainer_state.json`.
///
/// # Errors
/// If the disk refuses.
pub fn save(
    output_dir: &Path,
    source: &Checkpoint,
    model: &Trainable,
    extra_config: &[(&str, Value)],
    arguments: &TrainingArguments,
    outcome: &Outcome,
) -> anyhow::Result<()> {
    write_trainer_state(output_dir, arguments, outcome)?;
    let companions = arguments.companions(source.dir())?;
    let (dtype, max_shard_bytes) = (arguments.save_dtype.into(), arguments.max_shard_size.0);
    let options = SaveOptions { dtype, max_shard_bytes, ..SaveOptions::like(source) };
    checkpoint::save(output_dir, model.spec(), model.weights(), &companions, extra_config, &options)
}

/// Writes `trainer_state.json`.
///
/// # Errors
/// If the disk refuses.
pub fn write_trainer_state(output_dir: &Path, arguments: &TrainingArguments, outcome: &Outcome) -> anyhow::Result<()> {
    let state = TrainerState {
        global_step: outcome.steps,
        max_steps: outcome.steps,
        epoch: outcome.epoch,
        num_train_epochs: outcome.epoch.ceil() as u64,
        train_batch_size: (arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps) as u64,
    };
    metrics::write_trainer_state(output_dir, &state)
}

fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    ensure!(!path.as_os_str().is_empty(), "no model is given; say model_name_or_path: DIR (or --model DIR)");
    Checkpoint::open(path)
}

/// The checkpoint's weights for a model with the head of `spec`; what it lacks is made from `seed`.
fn with_head(checkpoint: &Checkpoint, weights: Vec<f32>, spec: &ModelSpec, seed: u64) -> Vec<f32> {
    if *spec == checkpoint.spec { weights } else { checkpoint.spec.convert(&weights, spec, seed) }
}

fn refuse_missing_language_head(checkpoint: &Checkpoint, head: Head) -> anyhow::Result<()> {
    let has_none = checkpoint.spec.head == Head::Scalar && head != Head::Scalar;
    ensure!(!has_none, "{} is a reward model; a language model is needed here", checkpoint.dir().display());
    Ok(())
}
