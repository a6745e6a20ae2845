//! Checkpoints opened for inference, with their memory estimates.
use std::path::Path;

use anyhow::{bail, ensure};
use salsa_engine::{Device, Head, LoraSpec, Model, ModelSpec};

use super::{bases::Bases, lora::LoraArguments};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        memory::{self, MemorySettings, Need, Passed, Passes, Saving, part, shape},
        text::{chat_arguments::ChatArguments, encoder::Encoder, rows},
    },
};

/// The shape of the adapter to train from a checkpoint; `None` if all weights are trained.
///
/// # Errors
/// If a key of the adapter is invalid, or it names a matrix that the model does not have.
pub(crate) fn trained_adapter(checkpoint: &Checkpoint, lora: &LoraArguments) -> anyhow::Result<Option<LoraSpec>> {
    match checkpoint.adapter() {
        _ if !lora.use_peft => Ok(None),
        Some(adapter) => Ok(Some(adapter.lora.clone())),
        None => lora.spec_for(&checkpoint.spec).map(Some),
    }
}

/// A checkpoint loaded for inference.
pub(crate) struct Frozen {
    /// Its checkpoint.
    pub checkpoint: Checkpoint,
    /// Its text encoder, if it has a tokenizer.
    pub encoder: Option<Encoder>,
    /// The model.
    pub model: Model,
}

impl Frozen {
    /// Reads the weights of an opened checkpoint; its base is shared with other models of the run.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub(crate) fn load(found: Found, bases: &mut Bases) -> anyhow::Result<Frozen> {
        let Found { checkpoint, encoder, head } = found;
        let model = bases.frozen(&checkpoint, head)?;
        Ok(Frozen { checkpoint, encoder, model })
    }
}

/// A checkpoint opened for inference, before its weights are read.
pub(crate) struct Found {
    /// Its checkpoint.
    pub checkpoint: Checkpoint,
    /// Its text encoder, if it has a tokenizer.
    pub encoder: Option<Encoder>,
    /// The head it is used with.
    pub head: Head,
}

impl Found {
    /// Opens a checkpoint for inference with the given head, which it must have. Reads no weights.
    ///
    /// # Errors
    /// If the checkpoint is incomplete or of another kind.
    pub(crate) fn open(path: &Path, head: Head) -> anyhow::Result<Found> {
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

    /// Applies the stage's prompt keys to the encoder.
    pub(crate) fn with_chat(self, chat: &ChatArguments) -> Found {
        Found { encoder: self.encoder.map(|encoder| encoder.with_chat(chat)), ..self }
    }

    /// The model's shape.
    pub(crate) fn spec(&self) -> ModelSpec {
        self.checkpoint.spec.with_head(self.head)
    }

    /// The shape of its adapter, if it is one.
    pub(crate) fn lora(&self) -> Option<&LoraSpec> {
        self.checkpoint.adapter().map(|adapter| &adapter.lora)
    }

    /// Reports the memory that the model needs, including what `more` adds; fails if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(crate) fn check_memory(
        &self,
        stage: &str,
        knobs: &MemorySettings,
        savings: &[Saving],
        more: &dyn Fn(Passed<'_>, &MemorySettings, &mut Need),
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let spec = self.spec();
        let need = |knobs: &MemorySettings| {
            let mut need = Need::default();
            need.add(part::FROZEN, shape::stored(&spec, knobs.dtype, self.checkpoint.embedding_is_bf16()));
            let lora = self.lora();
            need.add(part::FROZEN, lora.map_or(0, |lora| shape::frozen_adapter(&spec, lora, knobs.dtype)));
            more(Passed::new(&spec, lora), knobs, &mut need);
            need
        };
        memory::check(stage, knobs, savings, &need, context)
    }

    /// As [`Found::check_memory`], for forward passes over sets of sequences, `budget` tokens at a time.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(crate) fn check_memory_of_passes(
        &self,
        stage: &str,
        sets: &[&[Vec<u32>]],
        budget: usize,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let passes = |model: Passed<'_>, knobs: &MemorySettings, need: &mut Need| {
            let batches = sets.iter().flat_map(|sequences| rows::batches(sequences, knobs.pass));
            let lengths = |batch: &[Vec<u32>]| batch.iter().map(|tokens| tokens.len() as u64).collect::<Vec<_>>();
            let largest = batches.map(lengths).max_by_key(|lengths| lengths.iter().sum::<u64>());
            let passes = Passes::new(knobs);
            passes.forward(model, &largest.unwrap_or_default());
            need.add(part::ACTIVATIONS, passes.bytes());
        };
        let knobs = MemorySettings { pass: budget, ..MemorySettings::on(&context.device) };
        self.check_memory(stage, &knobs, &[Saving::Pass("max_tokens_per_batch", 1024), Saving::Dtype], &passes, context)
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub(crate) fn load(self, device: &Device) -> anyhow::Result<Frozen> {
        Frozen::load(self, &mut Bases::on(device))
    }
}

/// Shape and flat weights of a checkpoint's language model, without a scalar head.
///
/// # Errors
/// If the checkpoint is incomplete or a reward model.
pub(crate) fn language_model_weights(path: &Path) -> anyhow::Result<(ModelSpec, Vec<f32>)> {
    let checkpoint = open_language_model(path)?;
    let (spec, weights) = (checkpoint.spec.with_head(Head::LanguageModel), checkpoint.read_weights()?);
    let weights = if spec == checkpoint.spec { weights } else { checkpoint.spec.convert(&weights, &spec, 0) };
    Ok((spec, weights))
}

/// Opens a checkpoint that must be a language model.
///
/// # Errors
/// If the checkpoint is incomplete or a reward model.
pub(crate) fn open_language_model(path: &Path) -> anyhow::Result<Checkpoint> {
    let checkpoint = open(path)?;
    refuse_missing_language_head(&checkpoint, Head::LanguageModel)?;
    Ok(checkpoint)
}

pub(in crate::stage) fn open(path: &Path) -> anyhow::Result<Checkpoint> {
    ensure!(!path.as_os_str().is_empty(), "no model is given; say model_name_or_path: DIR (or --model DIR)");
    Checkpoint::open(path)
}

pub(in crate::stage) fn refuse_missing_language_head(checkpoint: &Checkpoint, head: Head) -> anyhow::Result<()> {
    let has_none = checkpoint.spec.head == Head::Scalar && head != Head::Scalar;
    ensure!(!has_none, "{} is a reward model; a language model is needed here", checkpoint.dir().display());
    Ok(())
}
