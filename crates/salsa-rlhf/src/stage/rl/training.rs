//! The loop over the updates of a run: metrics, samples, checkpoints, interruption, resumption.
use std::path::Path;

use anyhow::{Context, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    arguments::{RunArguments, SamplingArguments},
    environment::Environment,
    measure::{self, Samples},
};
use crate::{
    checkpoint::{Checkpoint, Companions},
    metrics::{self, Metrics, TrainerState},
    stage::{
        Interrupted, StageContext,
        kind::Stage,
        lifecycle::{
            fingerprint::fingerprint,
            resume::{Checkpoints, Snapshot},
        },
        models::save::save_model,
        rewards::Unavailable,
    },
};

/// A method, between two updates.
pub(super) trait Method {
    /// Its configuration.
    type Config: Stage + Serialize;

    /// Runs an update, counted from 0.
    ///
    /// # Errors
    /// If a number is not finite.
    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)>;

    /// The policy's learning rate in an update.
    fn rate(&self, update: u64) -> f64;

    /// Prompts and frozen models.
    fn environment(&self) -> &Environment;

    /// The state after `done` updates.
    fn snapshot(&self, done: u64) -> Snapshot<'_>;

    /// Restores the newest checkpoint. Returns the number of updates done.
    ///
    /// # Errors
    /// If a checkpoint does not fit.
    fn resume(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<u64>;

    /// Checks, before anything is saved, that all weights are finite.
    ///
    /// # Errors
    /// If a weight is not finite; the error names the model.
    fn ensure_finite(&self) -> anyhow::Result<()>;

    /// Saves the trained models.
    ///
    /// # Errors
    /// If a file cannot be written.
    fn save(&self, source: &Checkpoint, dir: &Path) -> anyhow::Result<()>;
}

/// The keys of a run that the loop needs.
pub(super) struct Loop<'a> {
    /// Directory of the results.
    pub dir: &'a Path,
    /// Number of responses.
    pub sampling: &'a SamplingArguments,
    /// Checkpoints and samples.
    pub run: &'a RunArguments,
}

/// Trains to the end and saves the result, which the first process returns; `source` is the checkpoint whose tokenizer is saved with it.
///
/// # Errors
/// If a number is not finite (the last checkpoint is kept), a file cannot be written, or the run was interrupted (a
/// checkpoint is written first).
pub(super) fn train<M: Method>(
    method: &mut M,
    config: &M::Config,
    settings: &Loop<'_>,
    source: &Checkpoint,
    context: &StageContext,
) -> anyhow::Result<Value> {
    let (name, dir, total) = (M::Config::NAME, settings.dir, settings.sampling.updates());
    let checkpoints = Checkpoints::new(dir, fingerprint(name, config)?, context.ranks.clone());
    let mut done = method.resume(&checkpoints)?;
    if done > 0 {
        context.say(&format!("{name}: resuming after update {done} of {total}"));
    }
    let mut writer = context.metrics(dir, done)?;
    if context.is_first() {
        measure::truncate_samples(dir, done)?;
    }
    let progress = context.progress(name, total, "update");
    progress.start_at(done);
    while done < total {
        let stopped_at = || format!("update {} of {total}; {}", done + 1, checkpoints.kept());
        let (mut metrics, samples) = match method.step(done) {
            Ok(stepped) => stepped,
            Err(error) if error.is::<Unavailable>() => {
                // Nothing was learned in this update: it can be repeated when the reward is there again.
                checkpoints.save(&method.snapshot(done))?;
                if context.any_interrupted()? {
                    bail!(Interrupted { step: done, total });
                }
                return Err(error.context(format!("update {} of {total}; {}", done + 1, checkpoints.kept())));
            }
            Err(error) => return Err(error.context(stopped_at())),
        };
        measure::ensure_finite(&metrics).with_context(stopped_at)?;
        metrics.set("lr", method.rate(done));
        done += 1;
        metrics.set("episode", (done * settings.sampling.batch_size as u64) as f64);
        if let Some(writer) = &mut writer {
            writer.log(done, &metrics)?;
            let generations = *settings.run.num_sample_generations;
            if generations > 0 && (done - 1).is_multiple_of(total.div_ceil(generations)) {
                samples.append(dir, done)?;
            }
        }
        progress.message(&measure::headline(&metrics));
        progress.set(done);
        let (stopped, every) = (done < total && context.any_interrupted()?, *settings.run.save_steps);
        if stopped || (every > 0 && done.is_multiple_of(every) && done < total) {
            checkpoints.save(&method.snapshot(done))?;
        }
        if stopped {
            bail!(Interrupted { step: done, total });
        }
    }
    progress.finish(&format!("{total} updates"));
    method.ensure_finite().with_context(|| checkpoints.kept())?;
    let environment = method.environment();
    if !context.is_first() {
        return Ok(Value::Null);
    }
    write_state(settings, environment, total)?;
    method.save(source, dir)?;
    let last = metrics::read(dir)?.pop().map(|(_, metrics)| metrics).unwrap_or_default();
    Ok(json!({
        "updates": total,
        "episodes": total * settings.sampling.batch_size as u64,
        "prompts": environment.prompts.len(),
        "left_out": environment.left_out,
        "last": last.iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>(),
    }))
}

fn write_state(settings: &Loop<'_>, environment: &Environment, updates: u64) -> anyhow::Result<()> {
    let batch = settings.sampling.batch_size as u64;
    let epoch = (updates * batch) as f64 / environment.prompts.len() as f64;
    let state = TrainerState {
        global_step: updates,
        max_steps: updates,
        epoch,
        num_train_epochs: epoch.ceil() as u64,
        train_batch_size: batch,
    };
    metrics::write_trainer_state(settings.dir, &state)
}

/// Saves the policy with its tokenizer.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn save_policy(
    policy: &salsa_engine::Trainable,
    environment: &Environment,
    run: &RunArguments,
    source: &Checkpoint,
    dir: &Path,
) -> anyhow::Result<()> {
    let companions = Companions::from_dir(source.dir())?;
    save_model(dir, source, policy, &environment.language_model, &companions, &[], &run.save_options(source))
}
