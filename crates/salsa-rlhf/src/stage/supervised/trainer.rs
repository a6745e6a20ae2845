//! The shared loop of the supervised stages (`pretrain`, `sft`, `reward`, `dpo`, `kto`, `orpo`, `cpo`): order → loss →
//! gradient → AdamW → logs.
use anyhow::{Context, bail};
use salsa_engine::{Batch, Model, Output, OutputGradient, Query, Trainable, comm::Comm};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{order::Step, tally::Tally};
use crate::{
    metrics::Metrics,
    stage::{
        Interrupted,
        lifecycle::resume::{Checkpoints, REMEDY, Restored, Snapshot},
        ranks,
    },
};

mod job;
#[cfg(test)]
mod tests;

pub(crate) use job::{Job, Lengths, Sequences};

/// A data set and a loss on it.
///
/// Losses use only two model outputs: log-probabilities of selected tokens and scalars at selected rows.
pub(crate) trait Objective {
    /// Number of examples.
    fn examples(&self) -> usize;
    /// Number of tokens that an example adds to a batch.
    fn length(&self, example: usize) -> usize;
    /// The example's share of the divisor of the mean loss: learned tokens or pairs. Above 0.
    fn weight(&self, example: usize) -> f64;
    /// The example's share of the divisor of a second term of the loss: tokens of a likelihood.
    fn tokens(&self, _example: usize) -> f64 {
        0.0
    }
    /// Concatenates examples into a batch and states the outputs that the loss needs.
    fn assemble(&self, examples: &[usize]) -> Pass;
    /// Loss and gradient of a pass, as its share of the mean over the whole optimizer step. The tally must contain
    /// `loss`.
    fn loss(&self, pass: &Pass, output: &Output, step: Divisors) -> Loss;
}

/// Sums over the examples of an optimizer step.
#[derive(Clone, Copy)]
pub(crate) struct Divisors {
    /// Of [`Objective::weight`].
    pub weight: f64,
    /// Of [`Objective::tokens`].
    pub tokens: f64,
}

impl Divisors {
    fn of<'e>(data: &dyn Objective, examples: impl Iterator<Item = &'e usize> + Clone) -> Divisors {
        Divisors {
            weight: examples.clone().map(|&example| data.weight(example)).sum(),
            tokens: examples.map(|&example| data.tokens(example)).sum(),
        }
    }
}

/// One forward pass over concatenated examples.
pub(crate) struct Pass {
    /// Indices of the examples.
    pub examples: Vec<usize>,
    /// Tokens of the examples.
    pub batch: Batch,
    /// Requested model outputs.
    pub query: Query,
    /// What the model computes beside it, without a gradient.
    pub beside: Option<Beside>,
}

/// Sequences whose log-probabilities the loss needs, without a gradient.
pub(crate) struct Beside {
    /// Tokens of the sequences.
    pub batch: Batch,
    /// Requested log-probabilities.
    pub query: Query,
    /// Those of the model; the trainer computes them before the loss.
    pub logprobs: Vec<f32>,
}

impl Pass {
    /// A pass and what its loss needs beside it.
    fn of(data: &dyn Objective, examples: &[usize], model: &Model) -> Pass {
        let mut pass = data.assemble(examples);
        if let Some(beside) = &mut pass.beside {
            beside.logprobs = model.forward(&beside.batch, &beside.query).logprobs;
        }
        pass
    }
}

/// The result of a loss.
pub(crate) struct Loss {
    /// Derivatives of the step's mean loss with respect to the queried log-probabilities.
    pub d_logprobs: Vec<f32>,
    /// Derivatives of the step's mean loss with respect to the queried values.
    pub d_values: Vec<f32>,
    /// Statistics to log.
    pub tally: Tally,
}

/// Results of a finished training.
pub(crate) struct Outcome {
    /// Optimizer steps.
    pub steps: u64,
    /// Passes over the data.
    pub epoch: f64,
    /// Number of tokens trained on.
    pub tokens: u64,
    /// Means over the whole training.
    pub train: Tally,
    /// The last evaluation; empty without evaluation data.
    pub eval: Tally,
}

impl Outcome {
    /// The results as a JSON object.
    pub(crate) fn to_json(&self) -> Value {
        let object = |tally: &Tally| tally.values().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let (train, eval): (serde_json::Map<_, _>, serde_json::Map<_, _>) = (object(&self.train), object(&self.eval));
        json!({"steps": self.steps, "num_tokens": self.tokens, "train": train, "eval": eval})
    }
}

/// Trains `model` until the job is done, starting from the newest checkpoint if there is one. All processes of the job's
/// context train it together.
///
/// # Errors
/// If there is nothing to train on, if loss or gradient are not finite, if a file cannot be written, or if `job.stop`
/// returns true (after writing a checkpoint). In all cases the last good checkpoint is kept.
pub(crate) fn train(
    job: &Job<'_>,
    model: &mut Trainable,
    data: &dyn Objective,
    eval: Option<&dyn Objective>,
) -> anyhow::Result<Outcome> {
    let arguments = job.arguments;
    let lengths = job::lengths(data);
    let ranks = &job.context.ranks;
    let plan = job.plan(&lengths);
    if ranks::any(&**ranks, plan.as_ref().is_err_and(|error| error.is::<Interrupted>()))? {
        bail!(Interrupted { step: 0, total: 0 });
    }
    let plan = plan?;
    let total = plan.len();
    let schedule = arguments.schedule();
    let checkpoints = Checkpoints::new(job.output_dir, job.fingerprint.clone(), ranks.clone());
    let newest = checkpoints.newest()?;
    let saved = newest.as_ref().map(|restored| restored.gradient_units);
    model.share(ranks.clone(), ranks::gradient_units(arguments.optimizer.gradient_units, saved, &**ranks)?)?;
    let mut state = resume(job, newest, model)?;
    let mut metrics = job.context.metrics(job.output_dir, state.step)?;
    let progress = job.context.progress(job.title, plan.tokens(), "tok");
    progress.start_at(state.tokens);

    let mut epoch = None;
    for step in plan.from(state.step) {
        epoch = Some(step.epoch);
        let learning_rate = job.learning_rate * schedule.factor(state.step as usize, total as usize);
        let tally = optimizer_step(job, model, data, (&step, &lengths), learning_rate).with_context(|| {
            format!("{} stopped at step {} of {total}; {}", job.title, state.step + 1, checkpoints.kept())
        })?;
        state.advance(&step, &tally, data);

        if is_due(state.step, *arguments.logging_steps, total) {
            if let Some(metrics) = &mut metrics {
                metrics.log(state.step, &state.log_line(learning_rate, step.epoch))?;
            }
            state.window = Tally::new();
        }
        if let Some(eval) = eval.filter(|_| is_due(state.step, *arguments.eval_steps, total)) {
            state.eval = evaluate(model, eval, arguments.per_device_eval_batch_size, &**ranks)?;
            let line = state.eval_line(step.epoch);
            if let Some((name, value)) = line.iter().find(|(_, value)| !value.is_finite()) {
                bail!("{name} is {value} after step {} of {total}; {}; {REMEDY}", state.step, checkpoints.kept());
            }
            if let Some(metrics) = &mut metrics {
                metrics.log(state.step, &line)?;
            }
        }
        let stopped = state.step < total && ranks::any(&**ranks, (job.stop)(state.step))?;
        if stopped || (*arguments.save_steps > 0 && state.step.is_multiple_of(*arguments.save_steps)) {
            checkpoints.save(&Snapshot::new(state.step, serde_json::to_value(&state)?).with_model("model", model))?;
        }
        if stopped {
            bail!(Interrupted { step: state.step, total });
        }
        progress.set(state.tokens);
        progress.message(&format!("step {}/{total} loss {:.4}", state.step, tally.get("loss").unwrap_or(f64::NAN)));
    }
    progress.finish(&format!("{total} steps"));
    // A run that was stopped after its last step has no steps left.
    let epoch = epoch.or_else(|| Some(plan.from(total - 1).next()?.epoch)).unwrap_or(0.0);
    Ok(Outcome { steps: total, epoch, tokens: state.tokens, train: state.total, eval: state.eval })
}

/// Mean statistics of a model over a data set, whose passes are dealt to the processes.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn evaluate(
    model: &Model,
    data: &dyn Objective,
    batch_size: usize,
    ranks: &dyn Comm,
) -> anyhow::Result<Tally> {
    let examples: Vec<usize> = (0..data.examples()).collect();
    let passes: Vec<&[usize]> = examples.chunks(batch_size.max(1)).collect();
    let tally = |examples: &&[usize]| {
        let pass = Pass::of(data, examples, model);
        let output = model.forward(&pass.batch, &pass.query);
        data.loss(&pass, &output, Divisors::of(data, examples.iter())).tally
    };
    let own = ranks::part(&passes, ranks.rank(), ranks.size()).iter().map(tally).collect();
    Tally::sum(ranks, own)
}

/// One optimizer step: gradients of all its passes, then AdamW. The divisors of the loss are those of the whole step;
/// each process computes its own units of it.
fn optimizer_step(
    job: &Job<'_>,
    model: &mut Trainable,
    data: &dyn Objective,
    (step, lengths): (&Step, &[usize]),
    learning_rate: f64,
) -> anyhow::Result<Tally> {
    let divisors = Divisors::of(data, step.micro_batches.iter().flatten());
    let units = step.units(model.units(), job.batching, lengths);
    let mut tallies = Vec::new();
    for unit in &units[model.own_units()] {
        let mut tally = Tally::new();
        for examples in unit {
            let pass = Pass::of(data, examples, model);
            let (output, tape) = model.forward_train(&pass.batch, &pass.query);
            let loss = data.loss(&pass, &output, divisors);
            model.backward(tape, &OutputGradient { d_logprobs: &loss.d_logprobs, d_values: &loss.d_values });
            tally.absorb(&loss.tally);
        }
        model.finish_unit();
        tallies.push(tally);
    }
    let mut tally = Tally::sum(model.comm(), tallies)?;
    if !tally.get("loss").is_some_and(f64::is_finite) {
        bail!("the loss is not finite; {REMEDY}");
    }
    let norm = model.adamw_step(&job.arguments.optimizer.adamw(), learning_rate).context(REMEDY)?;
    tally.mean("grad_norm", norm, 1.0);
    Ok(tally)
}

/// The state carried from step to step and saved in checkpoints.
#[derive(Default, Serialize, Deserialize)]
struct State {
    step: u64,
    tokens: u64,
    window: Tally,
    total: Tally,
    eval: Tally,
}

impl State {
    fn advance(&mut self, step: &Step, tally: &Tally, data: &dyn Objective) {
        self.step += 1;
        self.tokens += step_tokens(step, data);
        self.window.absorb(tally);
        self.total.absorb(tally);
    }

    fn log_line(&self, learning_rate: f64, epoch: f64) -> Metrics {
        let tail = [("learning_rate", learning_rate), ("num_tokens", self.tokens as f64), ("epoch", epoch)];
        self.window.values().chain(tail).collect()
    }

    fn eval_line(&self, epoch: f64) -> Metrics {
        let values = self.eval.values().map(|(name, value)| (format!("eval_{name}"), value));
        values.chain([("epoch".to_owned(), epoch)]).collect()
    }
}

fn resume(job: &Job<'_>, newest: Option<Restored>, model: &mut Trainable) -> anyhow::Result<State> {
    let Some(restored) = newest else { return Ok(State::default()) };
    restored.restore_model("model", model)?;
    job.context.say(&format!("{}: resuming after step {}", job.title, restored.step));
    serde_json::from_value(restored.state).context("state of the checkpoint")
}

/// Whether an action that runs every `every` steps, and at the end, is due after `step`.
fn is_due(step: u64, every: u64, total: u64) -> bool {
    step == total || (every > 0 && step.is_multiple_of(every))
}

fn step_tokens(step: &Step, data: &dyn Objective) -> u64 {
    step.micro_batches.iter().flatten().map(|&example| data.length(example) as u64).sum()
}
