//! Settings of a training, its steps, and its memory estimate.
use std::path::Path;

use anyhow::bail;
use salsa_engine::{LoraSpec, ModelSpec};

use super::Objective;
use crate::stage::{
    Interrupted, StageContext,
    lifecycle::resume::Fingerprint,
    memory::{self, MemorySettings, Need, Passed, Passes, Saving, Sharing, part},
    supervised::{
        arguments::TrainingArguments,
        order::{Batching, Duration, Plan},
    },
};

/// How to train, apart from model and data.
pub(crate) struct Job<'a> {
    /// Name of the stage, for messages.
    pub title: &'a str,
    /// Directory of metrics and checkpoints.
    pub output_dir: &'a Path,
    /// The keys that all supervised stages share.
    pub arguments: &'a TrainingArguments,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How examples are grouped into passes.
    pub batching: Batching,
    /// Passes over the data, used where `max_steps` is negative.
    pub num_train_epochs: f64,
    /// Everything the result depends on: a checkpoint with another fingerprint is refused.
    pub fingerprint: Fingerprint,
    /// Where the stage runs.
    pub context: &'a StageContext,
    /// Called after every step with the number of steps done; returns whether to checkpoint and stop.
    pub stop: &'a dyn Fn(u64) -> bool,
}

impl Job<'_> {
    /// Reports the memory that the job needs, and fails if that is too much: `models` is the need of the models, `spec`
    /// the trained one, `reference` one that the loss runs in every pass, `batching` maps a number of examples per pass
    /// to a batching.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(crate) fn check_memory(
        &self,
        spec: &ModelSpec,
        adapter: Option<LoraSpec>,
        reference: Option<Passed<'_>>,
        models: &dyn Fn(&MemorySettings) -> Need,
        batching: &dyn Fn(usize) -> Batching,
        lengths: &Lengths,
        savings: &[Saving],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let need = |knobs: &MemorySettings| {
            let mut need = models(knobs);
            let passes = Passes::new(knobs);
            let model = Passed::new(spec, knobs.adapter.as_ref());
            self.add_passes(model, reference, knobs, batching(knobs.pass), lengths, &passes);
            need.add(part::ACTIVATIONS, passes.bytes());
            need
        };
        let arguments = self.arguments;
        let (pass, eval_pass) = (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size);
        let knobs = MemorySettings {
            adapter,
            recompute: arguments.recompute(),
            pass,
            eval_pass,
            sharing: Sharing::of(&*context.ranks, arguments.optimizer.gradient_units),
            ..MemorySettings::on(&context.device)
        };
        memory::check(self.title, &knobs, savings, &need, context)
    }

    /// Adds the largest passes of training and evaluation.
    pub(super) fn add_passes(
        &self,
        model: Passed<'_>,
        reference: Option<Passed<'_>>,
        knobs: &MemorySettings,
        batching: Batching,
        lengths: &Lengths,
        passes: &Passes,
    ) {
        let training = lengths.sequences.of(self.largest_pass(batching, &lengths.training));
        passes.train(model, reference, knobs, &training);
        if let Sequences::Pairs = lengths.sequences {
            passes.train(model.sharing(), reference.map(Passed::sharing), knobs, &training);
        }
        let evaluation = lengths.evaluation.chunks(knobs.eval_pass.max(1));
        if let Some(largest) = evaluation.max_by_key(|pass| pass.iter().sum::<usize>()) {
            let largest = lengths.sequences.of(largest.iter().map(|&length| length as u64).collect());
            for model in [Some(model), reference].into_iter().flatten() {
                passes.forward(model, &largest);
            }
        }
    }

    /// Example lengths of the pass with the most tokens.
    pub(super) fn largest_pass(&self, batching: Batching, lengths: &[usize]) -> Vec<u64> {
        // Above this number of steps, the longest examples stand in for the largest pass.
        const LOOKED_AT: u64 = 50_000;
        let steps = match self.duration() {
            Duration::Steps(steps) => Duration::Steps(steps.min(LOOKED_AT)),
            Duration::Epochs(epochs) => Duration::Epochs(epochs.min(MOST_EPOCHS_LOOKED_AT)),
        };
        let Some(plan) = self.plan_of(batching, lengths, steps) else { return Vec::new() };
        if steps != self.duration() || plan.len() > LOOKED_AT {
            return longest_pass(batching, lengths);
        }
        let passes = plan.from(0).flat_map(|step| step.micro_batches);
        let tokens = |pass: &Vec<usize>| pass.iter().map(|&example| lengths[example]).sum::<usize>();
        let largest = passes.max_by_key(tokens).unwrap_or_default();
        largest.into_iter().map(|example| lengths[example] as u64).collect()
    }

    /// All steps over examples of these lengths.
    ///
    /// # Errors
    /// If there are none, or an interruption was requested.
    pub(super) fn plan<'l>(&self, lengths: &'l [usize]) -> anyhow::Result<Plan<'l>> {
        let Some(plan) = self.plan_of(self.batching, lengths, self.duration()) else {
            bail!(Interrupted { step: 0, total: 0 });
        };
        if plan.is_empty() {
            let (examples, steps, epochs) = (lengths.len(), self.arguments.max_steps, self.num_train_epochs);
            bail!(
                "{} has nothing to do: {examples} examples, max_steps {steps}, num_train_epochs {epochs}",
                self.title
            );
        }
        Ok(plan)
    }

    fn duration(&self) -> Duration {
        match u64::try_from(self.arguments.max_steps) {
            Ok(steps) => Duration::Steps(steps),
            Err(_) => Duration::Epochs(self.num_train_epochs),
        }
    }

    /// All steps over examples of these lengths; `None` if an interruption was requested.
    fn plan_of<'l>(&self, batching: Batching, lengths: &'l [usize], duration: Duration) -> Option<Plan<'l>> {
        let TrainingArguments { gradient_accumulation_steps, seed, .. } = *self.arguments;
        Plan::new(lengths, batching, gradient_accumulation_steps, duration, seed, &|| (self.stop)(0))
    }
}

/// Epochs whose passes the memory plan enumerates; for more, the longest examples stand in.
const MOST_EPOCHS_LOOKED_AT: f64 = 1000.0;

/// Lengths of a pass that no other exceeds.
fn longest_pass(batching: Batching, lengths: &[usize]) -> Vec<u64> {
    let mut lengths: Vec<u64> = lengths.iter().map(|&length| length as u64).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    match batching {
        Batching::Examples(count) => lengths.into_iter().take(count.max(1)).collect(),
        Batching::Tokens(budget) => vec![lengths.first().copied().unwrap_or(0).max(budget as u64)],
    }
}

/// Lengths of all examples of a job, in tokens.
pub(crate) struct Lengths {
    /// Training examples.
    pub training: Vec<usize>,
    /// Evaluation examples, in evaluation order; empty: no evaluation.
    pub evaluation: Vec<usize>,
    /// How the tokens of a pass are put into sequences.
    pub sequences: Sequences,
}

/// How the memory plan puts the tokens of a pass into sequences.
#[derive(Clone, Copy)]
pub(crate) enum Sequences {
    /// Those of each example are one.
    Apart,
    /// The same; the two sides of an example have their prompt in common, which is computed once.
    Pairs,
    /// All are one: the loss also runs prompts with the responses of others, as many tokens in sequences of other
    /// lengths.
    Together,
}

impl Sequences {
    fn of(self, examples: Vec<u64>) -> Vec<u64> {
        match self {
            Sequences::Apart | Sequences::Pairs => examples,
            Sequences::Together => vec![examples.iter().sum()],
        }
    }
}

impl Lengths {
    /// Lengths of a training set and of an evaluation set.
    pub(crate) fn of(training: &dyn Objective, evaluation: Option<&dyn Objective>) -> Lengths {
        Lengths {
            training: lengths(training),
            evaluation: evaluation.map(lengths).unwrap_or_default(),
            sequences: Sequences::Apart,
        }
    }
}

/// Length of every example, in tokens.
pub(super) fn lengths(data: &dyn Objective) -> Vec<usize> {
    (0..data.examples()).map(|example| data.length(example)).collect()
}
