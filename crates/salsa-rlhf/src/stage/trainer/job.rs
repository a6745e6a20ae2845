//! What a training is told, and what follows from it before it starts: its steps, and the memory that it needs.
use std::path::Path;

use anyhow::bail;
use salsa_engine::{LoraSpec, ModelSpec};

use super::Objective;
use crate::stage::{
    StageContext,
    arguments::TrainingArguments,
    memory::{self, Arrays, Knobs, Need, Saving, part, shape},
    order::{Batching, Duration, Plan},
    resume::Fingerprint,
};

/// How to train, apart from what.
pub struct Job<'a> {
    /// Name of the stage, for people.
    pub title: &'a str,
    /// Where metrics and checkpoints go.
    pub output_dir: &'a Path,
    /// The keys that all supervised stages share.
    pub arguments: &'a TrainingArguments,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// How examples make a pass.
    pub batching: Batching,
    /// Passes over the data, used where `max_steps` is negative.
    pub num_train_epochs: f64,
    /// All that the result depends on: a checkpoint of a run with another one is refused.
    pub fingerprint: Fingerprint,
    /// Asked after every step with the number of steps done: whether to checkpoint and stop here.
    pub stop: &'a dyn Fn(u64) -> bool,
}

impl Job<'_> {
    /// Says what memory the job needs, and refuses it if that is too much: `models` is what the models need, `spec` the
    /// one that is trained, `batching` how a number of examples makes a pass.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub fn check_memory(
        &self,
        spec: &ModelSpec,
        adapter: Option<LoraSpec>,
        models: &dyn Fn(&Knobs) -> Need,
        batching: &dyn Fn(usize) -> Batching,
        lengths: &Lengths,
        savings: &[Saving],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let need = |knobs: &Knobs| {
            let mut need = models(knobs);
            need.add(part::ACTIVATIONS, self.activations(spec, knobs, batching(knobs.pass), lengths));
            need
        };
        let arguments = self.arguments;
        let (pass, eval_pass) = (arguments.per_device_train_batch_size, arguments.per_device_eval_batch_size);
        let knobs = Knobs { adapter, recompute: arguments.recompute(), pass, eval_pass, ..Knobs::default() };
        memory::check(self.title, &knobs, savings, &need, context)
    }

    /// What the passes of training and evaluation take.
    pub(super) fn activations(&self, spec: &ModelSpec, knobs: &Knobs, batching: Batching, lengths: &Lengths) -> u64 {
        let plan = self.plan_of(batching, &lengths.training);
        let tokens = |pass: &Vec<usize>| pass.iter().map(|&example| lengths.training[example] as u64).sum();
        let training = Arrays::of(plan.steps().iter().flat_map(|step| &step.micro_batches).map(tokens));
        let evaluation = lengths.evaluation.chunks(knobs.eval_pass.max(1));
        let evaluation = Arrays::of(evaluation.map(|pass| pass.iter().sum::<usize>() as u64));
        let beside = evaluation.beside(&training).tokens();
        shape::training_pass(spec, knobs, training.tokens()) + shape::forward_pass(spec, beside)
    }

    /// All steps over a data set.
    ///
    /// # Errors
    /// If there are none.
    pub(super) fn plan(&self, data: &dyn Objective) -> anyhow::Result<Plan> {
        let lengths = lengths(data);
        let plan = self.plan_of(self.batching, &lengths);
        if plan.steps().is_empty() {
            let (examples, steps, epochs) = (lengths.len(), self.arguments.max_steps, self.num_train_epochs);
            bail!(
                "{} has nothing to do: {examples} examples, max_steps {steps}, num_train_epochs {epochs}",
                self.title
            );
        }
        Ok(plan)
    }

    /// All steps over examples of these lengths.
    fn plan_of(&self, batching: Batching, lengths: &[usize]) -> Plan {
        let arguments = self.arguments;
        let duration = match u64::try_from(arguments.max_steps) {
            Ok(steps) => Duration::Steps(steps),
            Err(_) => Duration::Epochs(self.num_train_epochs),
        };
        Plan::new(lengths, batching, arguments.gradient_accumulation_steps, duration, arguments.seed)
    }
}

/// The tokens of every example of a job.
pub struct Lengths {
    /// Of those that are learned.
    pub training: Vec<usize>,
    /// Of those that are only looked at, in the order in which they are; empty: no evaluation.
    pub evaluation: Vec<usize>,
}

impl Lengths {
    /// Those of a data set, and of one to evaluate on.
    pub fn of(training: &dyn Objective, evaluation: Option<&dyn Objective>) -> Lengths {
        Lengths { training: lengths(training), evaluation: evaluation.map(lengths).unwrap_or_default() }
    }
}

/// The length of every example, in tokens.
fn lengths(data: &dyn Objective) -> Vec<usize> {
    (0..data.examples()).map(|example| data.length(example)).collect()
}
