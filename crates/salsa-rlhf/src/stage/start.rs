//! How stages open and leave checkpoints.
use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_engine::{Cpu, Head, Model, ModelSpec, Trainable};
use serde::Serialize;
use serde_json::{Value, json};

use super::{arguments::TrainingArguments, bases::Bases, encoder::Encoder, lora::LoraArguments, trainer::Outcome};
use crate::{
    checkpoint::{self, AdapterToSave, Checkpoint, Companions, SaveOptions, save_adapter},
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
    /// Opens a checkpoint for training: all its weights, or an adapter. A head that it lacks is made new from `arguments.seed`, except a language-model head.
    ///
    /// # Errors
    /// If the checkpoint is incomplete, or a reward model where a language model is needed.
    pub fn open(
        path: &Path,
        head: Head,
        arguments: &TrainingArguments,
        lora: &LoraArguments,
        bases: &mut Bases,
    ) -> anyhow::Result<Start> {
        let checkpoint = open(path)?;
        let encoder = arguments.encoder(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        if lora.use_peft {
            let model = bases.adapted(&checkpoint, head, lora, arguments.seed, arguments.recompute())?;
            return Ok(Start { checkpoint, encoder, model });
        }
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
        Frozen::open_on(path, head, &mut Bases::default())
    }

    /// The same, sharing its base with other models of the run.
    ///
    /// # Errors
    /// As [`Frozen::open`].
    pub fn open_on(path: &Path, head: Head, bases: &mut Bases) -> anyhow::Result<Frozen> {
        let checkpoint = open(path)?;
        let encoder = Encoder::open_if_any(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        if head == Head::Scalar && checkpoint.spec.head == Head::LanguageModel {
            bail!(
                "{} is a language model without score.weight; a reward model is needed (salsa reward makes one)",
                path.display()
            );
        }
        let model = bases.frozen(&checkpoint, head)?;
        Ok(Frozen { checkpoint, encoder, model })
    }
}

/// Shape and flat weights of a checkpoint's language model; a second head that it may have is left out.
///
/// # Errors
/// If the checkpoint is incomplete or a reward model.
pub fn language_model_weights(path: &Path) -> anyhow::Result<(ModelSpec, Vec<f32>)> {
    let checkpoint = open_language_model(path)?;
    let (spec, weights) = (checkpoint.spec.with_head(Head::LanguageModel), checkpoint.read_weights()?);
    let weights = if spec == checkpoint.spec { weights } else { checkpoint.spec.convert(&weights, &spec, 0) };
    Ok((spec, weights))
}

/// Opens a checkpoint that must be a language model.
///
/// # Errors
/// If the checkpoint is incomplete or a reward model.
pub fn open_language_model(path: &Path) -> anyhow::Result<Checkpoint> {
    let checkpoint = open(path)?;
    refuse_missing_language_head(&checkpoint, Head::LanguageModel)?;
    Ok(checkpoint)
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

/// Saves a trained model, or a trained adapter as a PEFT directory, with the tokenizer it came with, and
/// `trainer_state.json`.
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
    save_model(output_dir, source, model, model.spec(), &companions, extra_config, &options)
}

/// Saves what was trained of a model under the heads of `spec`, which may lack a head that the model has.
///
/// # Errors
/// If the disk refuses.
pub fn save_model(
    output_dir: &Path,
    source: &Checkpoint,
    model: &Trainable,
    spec: &ModelSpec,
    companions: &Companions,
    extra_config: &[(&str, Value)],
    options: &SaveOptions,
) -> anyhow::Result<()> {
    let Some(lora) = model.lora() else {
        let converted = (spec != model.spec()).then(|| model.spec().convert(model.weights(), spec, 0));
        let weights = converted.as_deref().unwrap_or(model.weights());
        return checkpoint::save(output_dir, spec, weights, companions, extra_config, options);
    };
    let adapter = AdapterToSave {
        base: source.base_dir(),
        spec,
        lora,
        // The head is last: a model without one has the same factors.
        weights: &model.weights()[..lora.parameters(spec)],
        dtype: options.dtype,
        companions,
        scores: extra_config,
    };
    save_adapter(output_dir, &adapter)
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
