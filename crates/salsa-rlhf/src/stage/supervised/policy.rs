//! Training of a policy on preferences: what `dpo`, `kto`, `orpo` and `cpo` share.
use std::path::Path;

use anyhow::ensure;
use salsa_engine::{Head, Model};

use super::{
    arguments::TrainingArguments,
    model::{Start, save, within_context},
    order::Batching,
    trainer::{self, Job, Lengths, Objective, Outcome},
};
use crate::{
    checkpoint::Checkpoint,
    config::paths::ModelPath,
    stage::{
        StageContext,
        lifecycle::resume::Fingerprint,
        memory::{MemorySettings, Passed, Saving},
        models::{
            bases::Bases,
            lora::LoraArguments,
            model_source::{ModelSource, adapter_shape},
            roles::Roles,
        },
    },
};

/// What can be done with the trained model.
pub(super) const NEXT: &[(&str, &str)] = &[
    ("talk to it", "salsa chat --model OUT"),
    ("answer prompts", "salsa generate --model OUT --input PROMPTS --output FILE"),
];

/// The keys that the stages share, and where they run.
pub(super) struct Setup<'a> {
    /// Name of the stage.
    pub title: &'static str,
    /// Where the policy starts.
    pub model: &'a ModelPath,
    /// The frozen reference, if the loss has one.
    pub reference: Option<&'a ModelSource>,
    /// Directory of the results.
    pub output_dir: &'a Path,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Passes over the data, used where `max_steps` is negative.
    pub num_train_epochs: f64,
    /// The keys of adapters.
    pub lora: &'a LoraArguments,
    /// The keys that all training stages share.
    pub training: &'a TrainingArguments,
    /// Where the stage runs.
    pub context: &'a StageContext,
}

/// The models of a stage, opened; no weight is read.
pub(super) struct Opened {
    /// Where the policy starts.
    pub start: Start,
    /// The checkpoints of the reference; empty: there is none.
    reference: Vec<Checkpoint>,
}

/// Data sets with a loss.
pub(super) struct Objectives<'m> {
    /// To train on.
    pub training: Box<dyn Objective + 'm>,
    /// Held out.
    pub evaluation: Option<Box<dyn Objective + 'm>>,
}

impl Setup<'_> {
    /// Opens the models.
    ///
    /// # Errors
    /// If one is incomplete or no language model, or policy and reference do not share a vocabulary.
    pub(super) fn open(&self) -> anyhow::Result<Opened> {
        let reference = self.reference.map(ModelSource::open).transpose()?.unwrap_or_default();
        let start = Start::open(self.model, Head::LanguageModel, self.training)?;
        if let Some(first) = reference.first() {
            let (vocab, reference_vocab) = (start.spec.vocab_size, first.spec.vocab_size);
            ensure!(
                vocab == reference_vocab,
                "policy {} has {vocab} tokens, the reference {reference_vocab}: they must share a tokenizer",
                self.model.display()
            );
        }
        Ok(Opened { start, reference })
    }

    /// Checks the memory, reads the models, trains and saves the policy. `objectives` makes data and loss for the
    /// reference; `lengths` are those of the data.
    ///
    /// # Errors
    /// If memory is short, a model cannot be read, or training fails or is interrupted.
    pub(super) fn train(
        &self,
        opened: Opened,
        fingerprint: Fingerprint,
        lengths: &Lengths,
        objectives: impl for<'m> FnOnce(Option<&'m Model>) -> Objectives<'m>,
    ) -> anyhow::Result<Outcome> {
        let Opened { start, reference } = opened;
        let (context, training) = (self.context, self.training);
        let job = Job {
            title: self.title,
            output_dir: self.output_dir,
            arguments: training,
            learning_rate: self.learning_rate,
            batching: Batching::Examples(training.per_device_train_batch_size),
            num_train_epochs: self.num_train_epochs,
            fingerprint,
            context,
            stop: &|_| context.interrupted(),
        };
        let models = |knobs: &MemorySettings| {
            let mut roles = Roles::new(knobs.dtype).shared(knobs.sharing);
            if !reference.is_empty() {
                roles.source(&reference);
            }
            roles.trained(&start.checkpoint, Head::LanguageModel, knobs.adapter.as_ref());
            roles.need()
        };
        let (spec, lora) =
            (reference.first().map(|model| model.spec.with_head(Head::LanguageModel)), adapter_shape(&reference));
        job.check_memory(
            &start.spec,
            start.adapter(self.lora)?,
            spec.as_ref().map(|spec| Passed::new(spec, lora.as_ref())),
            &models,
            &Batching::Examples,
            lengths,
            Saving::TRAINING,
            context,
        )?;
        let mut bases = Bases::on(&context.device);
        let reference = self.reference.map(|source| source.load(&mut bases)).transpose()?;
        let mut model = start.load(training, self.lora, &mut bases)?;
        let Objectives { training: data, evaluation } = objectives(reference.as_ref());
        let outcome = trainer::train(&job, &mut model, &*data, evaluation.as_deref())?;
        if context.is_first() {
            save(self.output_dir, &start.checkpoint, &model, &[], training, &outcome)?;
        }
        Ok(outcome)
    }
}

impl Opened {
    /// The effective maximum length: `max_length`, or the shortest context of the models.
    pub(super) fn max_length(&self, max_length: usize, context: &StageContext) -> usize {
        let own = self.start.spec.max_positions;
        let positions = self.reference.iter().map(|model| model.spec.max_positions).min().unwrap_or(own);
        within_context(max_length, own.min(positions), context)
    }
}
