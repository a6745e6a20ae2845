//! How stages open and leave checkpoints.
use std::{borrow::Cow, path::Path};

use anyhow::{Context, bail, ensure};
use salsa_engine::{Device, Head, LoraSpec, Model, ModelSpec, Trainable};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    StageContext,
    arguments::TrainingArguments,
    bases::Bases,
    chat_arguments::ChatArguments,
    encoder::Encoder,
    lora::LoraArguments,
    memory::{self, Knobs, Need, Passed, Passes, Saving, part, shape},
    resume::Fingerprint,
    rows,
    trainer::Outcome,
};
use crate::{
    checkpoint::{self, AdapterToSave, Checkpoint, Companions, SaveOptions, save_adapter},
    config::paths::{Places, below},
    metrics::{self, TrainerState},
};

/// A checkpoint opened for training; its weights are still to be read.
pub struct Start {
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// Its way from text to tokens.
    pub encoder: Encoder,
    /// The model's shape with the head that the stage needs.
    pub spec: ModelSpec,
}

impl Start {
    /// Opens a checkpoint for training under the given head. No weight is read.
    ///
    /// # Errors
    /// If the checkpoint is incomplete, or a reward model where a language model is needed.
    pub fn open(path: &Path, head: Head, arguments: &TrainingArguments) -> anyhow::Result<Start> {
        let checkpoint = open(path)?;
        let encoder = arguments.encoder(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        Ok(Start { spec: checkpoint.spec.with_head(head), checkpoint, encoder })
    }

    /// The adapter that is going to be trained: that of the checkpoint, or a new one; none if all weights are.
    ///
    /// # Errors
    /// If a key of the adapter makes no sense.
    pub fn adapter(&self, lora: &LoraArguments) -> anyhow::Result<Option<LoraSpec>> {
        trained_adapter(&self.checkpoint, lora)
    }

    /// Reads the model: all its weights, or an adapter. A head that it lacks is made new from `arguments.seed`, except a
    /// language-model head.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub fn load(
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
        Trainable::new(self.spec.clone(), weights, Device::current(), arguments.recompute())
            .with_context(|| format!("model {}", checkpoint.dir().display()))
    }
}

/// The longest example for a model of this context, which cuts as `max_length` does; says so if that is less.
pub fn within_context(max_length: usize, positions: usize, context: &StageContext) -> usize {
    if max_length > positions {
        context
            .say(&format!("max_length is {max_length}, the model's context {positions}: that is the longest example"));
    }
    max_length.min(positions)
}

/// The adapter that training from a checkpoint trains, if `lora` asks for one.
///
/// # Errors
/// If a key of the adapter makes no sense.
pub fn trained_adapter(checkpoint: &Checkpoint, lora: &LoraArguments) -> anyhow::Result<Option<LoraSpec>> {
    match checkpoint.adapter() {
        _ if !lora.use_peft => Ok(None),
        Some(adapter) => Ok(Some(adapter.lora.clone())),
        None => lora.spec().map(Some),
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
        Found::open(path, head)?.load()
    }

    /// Reads a checkpoint that was opened, its base shared with other models of the run.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub fn load(found: Found, bases: &mut Bases) -> anyhow::Result<Frozen> {
        let Found { checkpoint, encoder, head } = found;
        let model = bases.frozen(&checkpoint, head)?;
        Ok(Frozen { checkpoint, encoder, model })
    }
}

/// A checkpoint opened for use; its weights are still to be read.
pub struct Found {
    /// Where it is.
    pub checkpoint: Checkpoint,
    /// Its way from text to tokens, if it has a tokenizer.
    pub encoder: Option<Encoder>,
    /// The head it is used with.
    pub head: Head,
}

impl Found {
    /// Opens a checkpoint for use with the given head, which it must have. No weight is read.
    ///
    /// # Errors
    /// If the checkpoint is incomplete or of another kind.
    pub fn open(path: &Path, head: Head) -> anyhow::Result<Found> {
        let checkpoint = open(path)?;
        let encoder = Encoder::open_if_any(&checkpoint)?;
        refuse_missing_language_head(&checkpoint, head)?;
        if head == Head::Scalar && checkpoint.spec.head == Head::LanguageModel {
            bail!(
                "{} is a language model without score.weight; a reward model is needed (salsa reward makes one)",
                path.display()
            );
        }
        Ok(Found { checkpoint, encoder, head })
    }

    /// The same with the stage's keys for prompts.
    pub fn with_chat(self, chat: &ChatArguments) -> Found {
        Found { encoder: self.encoder.map(|encoder| encoder.with_chat(chat)), ..self }
    }

    /// The model's shape.
    pub fn spec(&self) -> ModelSpec {
        self.checkpoint.spec.with_head(self.head)
    }

    /// The shape of its adapter, if it is one.
    pub fn lora(&self) -> Option<&LoraSpec> {
        self.checkpoint.adapter().map(|adapter| &adapter.lora)
    }

    /// Says what memory the model needs, and what `more` adds; refuses if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub fn check_memory(
        &self,
        stage: &str,
        knobs: &Knobs,
        savings: &[Saving],
        more: &dyn Fn(Passed<'_>, &Knobs, &mut Need),
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let spec = self.spec();
        let need = |knobs: &Knobs| {
            let mut need = Need::default();
            need.add(part::FROZEN, shape::stored(&spec, knobs.dtype, self.checkpoint.embedding_is_bf16()));
            let lora = self.lora();
            need.add(part::FROZEN, lora.map_or(0, |lora| shape::adapter(&spec, lora, knobs.dtype)));
            more(Passed::new(&spec, lora), knobs, &mut need);
            need
        };
        memory::check(stage, knobs, savings, &need, context)
    }

    /// The same for forward passes over sets of sequences, `budget` tokens at a time.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub fn check_memory_of_passes(
        &self,
        stage: &str,
        sets: &[&[Vec<u32>]],
        budget: usize,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let passes = |model: Passed<'_>, knobs: &Knobs, need: &mut Need| {
            let batches = sets.iter().flat_map(|sequences| rows::batches(sequences, knobs.pass));
            let lengths = |batch: &[Vec<u32>]| batch.iter().map(|tokens| tokens.len() as u64).collect::<Vec<_>>();
            let largest = batches.map(lengths).max_by_key(|lengths| lengths.iter().sum::<u64>());
            let passes = Passes::new(knobs.dtype);
            passes.forward(model, &largest.unwrap_or_default());
            need.add(part::ACTIVATIONS, passes.bytes());
        };
        let knobs = Knobs { pass: budget, ..Knobs::default() };
        self.check_memory(stage, &knobs, &[Saving::Pass("max_tokens_per_batch", 1024), Saving::Dtype], &passes, context)
    }

    /// Reads the model.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub fn load(self) -> anyhow::Result<Frozen> {
        Frozen::load(self, &mut Bases::default())
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

/// Says so if whoever trained a reward model read its scores elsewhere than they are read here.
pub fn say_where_scores_are_read(checkpoint: &Checkpoint, context: &StageContext) {
    if checkpoint.is_scored_before_the_end() {
        context.say(&format!(
            "{}: its pad_token_id is its end token, so transformers and TRL trained it to be read at the token before the \
             end; it is read at the end token here, and its scores may mean less",
            checkpoint.dir().display()
        ));
    }
}

/// All that the result of a stage depends on apart from its inputs: its configuration without paths, which
/// [`super::run_stage`] compares by what they lead to.
///
/// # Errors
/// If the configuration has no JSON form.
pub fn fingerprint(stage: &str, config: &impl Serialize) -> anyhow::Result<Fingerprint> {
    let places = Places::of(config)?;
    let mut config = serde_json::to_value(config).context("configuration")?;
    places.visit(&mut config, &mut |_, _, _| Ok(Some(Value::Null)))?;
    if let Value::Object(keys) = &mut config {
        keys.shift_remove("output_dir");
    }
    let no_effect = places.no_effect.iter().map(|place| below("config", place)).collect();
    Ok(Fingerprint { value: json!({"stage": stage, "config": config}), no_effect })
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
        let converted = (spec != model.spec()).then(|| model.spec().convert(&model.weights(), spec, 0));
        let weights = converted.map_or_else(|| model.weights(), Cow::Owned);
        return checkpoint::save(output_dir, spec, &weights, companions, extra_config, options);
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
