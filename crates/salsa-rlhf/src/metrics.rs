//! The metrics of a training stage: `metrics.jsonl`, a TensorBoard event file, `trainer_state.json`.
//!
//! `metrics.jsonl` has one object per line, `{"step": N, "name": value, …}`, in the order in which the metrics were
//! set. It contains no times, so equal runs write equal bytes; the event file contains wall-clock times, which
//! TensorBoard requires. JSON has no NaN and no infinity: a non-finite value is written as `null` and read back as NaN.

use std::{
    fs::File,
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use crate::{atomic, input, tensorboard::EventWriter};

/// The name of the metrics file in a stage directory.
pub(crate) const FILE_NAME: &str = "metrics.jsonl";

/// Names used by several parts of the program; the report draws training curves from them.
pub(crate) mod names {
    /// Mean proxy score (reward model) of the sampled responses.
    pub(crate) const SCORE: &str = "objective/scores";
    /// Mean gold reward of the sampled responses, if the data set has one.
    pub(crate) const GOLD: &str = "objective/gold";
    /// Mean KL per response to the run's own reference.
    pub(crate) const KL: &str = "objective/kl";
    /// Prefix of the name of an anchor: the mean KL per response to it.
    pub(crate) const KL_TO: &str = "objective/kl_";
    /// The coefficient of the KL penalty, whose name looks like that of an anchor.
    pub(crate) const KL_COEF: &str = "objective/kl_coef";
    /// Mean entropy of the policy per token, in nats.
    pub(crate) const ENTROPY: &str = "policy/entropy_avg";
    /// Mean response length in tokens.
    pub(crate) const LENGTH: &str = "val/response_length";
    /// Share of responses without any token before the end token.
    pub(crate) const EMPTY: &str = "val/empty_rate";
}

/// The metrics of one step: names and values in the order given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

impl Metrics {
    /// Empty metrics.
    pub fn new() -> Metrics {
        Metrics::default()
    }

    /// Sets `name` to `value`, appending it if the name is new.
    pub fn set(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Chainable [`Metrics::set`]: `Metrics::new().with("loss", 0.5)`.
    pub fn with(mut self, name: impl Into<String>, value: f64) -> Metrics {
        self.set(name, value);
        self
    }

    /// The value of `name`, if set. A non-finite value read back from a file is NaN.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|&(_, value)| value)
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Whether there are no metrics.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(pairs: I) -> Metrics {
        let mut metrics = Metrics::new();
        for (name, value) in pairs {
            metrics.set(name, value);
        }
        metrics
    }
}

/// Appends metrics to a stage directory: one line and one TensorBoard event per call of [`MetricsWriter::log`].
#[derive(Debug)]
pub(crate) struct MetricsWriter {
    path: PathBuf,
    lines: File,
    events: EventWriter,
    last_step: u64,
}

impl MetricsWriter {
    /// Starts new metrics in `dir`, which is created if absent: truncates an existing `metrics.jsonl`, and makes
    /// TensorBoard drop the points of older event files.
    ///
    /// # Errors
    /// If the directory or a file in it cannot be written.
    pub(crate) fn create(dir: &Path) -> Result<MetricsWriter> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let path = dir.join(FILE_NAME);
        let lines = atomic::create_new(&path)?;
        Ok(MetricsWriter { path, lines, events: EventWriter::open(dir, 0)?, last_step: 0 })
    }

    /// Continues after `last_step`: removes later lines and an incomplete last line from `metrics.jsonl`; a new event
    /// file makes TensorBoard drop later points. The result is as if the run had never stopped.
    ///
    /// # Errors
    /// If a file cannot be read or written, or a line other than the last is invalid.
    pub(crate) fn resume(dir: &Path, last_step: u64) -> Result<MetricsWriter> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let path = dir.join(FILE_NAME);
        let context = || format!("cannot write {}", path.display());
        let mut lines = atomic::open_to_continue(&path)?;
        let (_, kept) = parse(&path, Some(last_step))?;
        lines.set_len(kept.bytes as u64).with_context(context)?;
        lines.seek(SeekFrom::End(0)).with_context(context)?;
        if kept.needs_newline {
            lines.write_all(b"\n").with_context(context)?;
        }
        Ok(MetricsWriter { lines, events: EventWriter::open(dir, last_step + 1)?, last_step, path })
    }

    /// Appends the metrics of `step` to both files and flushes them to the operating system.
    ///
    /// # Errors
    /// If `step` is smaller than in an earlier call, if a metric is called `step`, or if a file cannot be written.
    pub(crate) fn log(&mut self, step: u64, metrics: &Metrics) -> Result<()> {
        ensure!(
            step >= self.last_step,
            "{}: step {step} logged after step {}; steps may not go back",
            self.path.display(),
            self.last_step
        );
        let mut object = Map::new();
        object.insert("step".to_owned(), json!(step));
        for (name, value) in metrics.iter() {
            ensure!(name != "step", "{}: a metric cannot be called \"step\"; rename it", self.path.display());
            object.insert(name.to_owned(), json!(value));
        }
        let line = format!("{}\n", Value::Object(object));
        self.lines
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}; is the disk full?", self.path.display()))?;
        self.last_step = step;
        self.events.scalars(step, metrics.iter())
    }
}

/// Reads `metrics.jsonl` of a stage directory: steps and metrics in file order; `null` becomes NaN. An incomplete last
/// line is skipped.
///
/// # Errors
/// If the file is absent or unreadable, or a line other than the last is invalid.
pub(crate) fn read(dir: &Path) -> Result<Vec<(u64, Metrics)>> {
    Ok(parse(&dir.join(FILE_NAME), None)?.0)
}

/// The contents of `trainer_state.json` besides the history, under Hugging Face's names.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TrainerState {
    /// Completed optimizer steps.
    pub global_step: u64,
    /// Planned optimizer steps.
    pub max_steps: u64,
    /// Completed passes over the data, including fractions.
    pub epoch: f64,
    /// Planned passes over the data.
    pub num_train_epochs: u64,
    /// Examples per optimizer step.
    pub train_batch_size: u64,
}

/// Writes `trainer_state.json` into `dir` in the shape of `transformers`' Trainer; `log_history` is `metrics.jsonl`.
///
/// # Errors
/// If `metrics.jsonl` cannot be read or the file cannot be written.
pub(crate) fn write_trainer_state(dir: &Path, state: &TrainerState) -> Result<()> {
    let history: Vec<Value> = read(dir)?
        .into_iter()
        .map(|(step, metrics)| {
            let mut entry: Map<String, Value> = metrics.iter().map(|(k, v)| (k.to_owned(), json!(v))).collect();
            entry.insert("step".to_owned(), json!(step));
            Value::Object(entry)
        })
        .collect();
    let value = json!({
        "best_global_step": null,
        "best_metric": null,
        "best_model_checkpoint": null,
        "epoch": state.epoch,
        "eval_steps": 0,
        "global_step": state.global_step,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": history,
        "logging_steps": 1,
        "max_steps": state.max_steps,
        "num_input_tokens_seen": 0,
        "num_train_epochs": state.num_train_epochs,
        "save_steps": 0,
        "stateful_callbacks": {},
        "total_flos": 0.0,
        "train_batch_size": state.train_batch_size,
        "trial_name": null,
        "trial_params": null,
    });
    atomic::write(&dir.join("trainer_state.json"), format!("{value:#}\n").as_bytes())
}

/// The valid part of a metrics file.
struct Kept {
    bytes: usize,
    needs_newline: bool,
}

/// The lines of `path` up to `last_step`. Bytes after the last newline count only if they form a complete line.
fn parse(path: &Path, last_step: Option<u64>) -> Result<(Vec<(u64, Metrics)>, Kept)> {
    let Some(bytes) = input::read_if_any(path)? else {
        bail!("{}: no such file; has the stage run?", path.display());
    };
    let mut rows = Vec::new();
    let mut kept = Kept { bytes: 0, needs_newline: false };
    for (index, piece) in bytes.split_inclusive(|&b| b == b'\n').enumerate() {
        let (step, metrics) = match parse_line(piece) {
            Ok(row) => row,
            Err(_) if kept.bytes + piece.len() == bytes.len() => break,
            Err(why) => {
                bail!("{} line {}: {why}; delete the file to start the metrics afresh", path.display(), index + 1)
            }
        };
        if last_step.is_some_and(|last| step > last) {
            break;
        }
        rows.push((step, metrics));
        kept = Kept { bytes: kept.bytes + piece.len(), needs_newline: !piece.ends_with(b"\n") };
    }
    Ok((rows, kept))
}

fn parse_line(line: &[u8]) -> Result<(u64, Metrics), String> {
    let mut object: Map<String, Value> =
        serde_json::from_slice(line).map_err(|e| format!("not a JSON object ({e})"))?;
    let step = object.shift_remove("step").and_then(|step| step.as_u64()).ok_or("no whole number under \"step\"")?;
    let mut metrics = Metrics::new();
    for (name, value) in object {
        let value = match value {
            Value::Null => f64::NAN,
            other => other.as_f64().ok_or_else(|| format!("\"{name}\" is not a number"))?,
        };
        metrics.set(name, value);
    }
    Ok((step, metrics))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(dir: &Path) -> String {
        std::fs::read_to_string(dir.join(FILE_NAME)).unwrap()
    }

    #[test]
    fn lines_keep_order_and_turn_nan_into_null() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        writer.log(1, &Metrics::new().with("loss", 0.5).with("a", f64::NAN).with("b", f64::INFINITY)).unwrap();
        assert_eq!(text(dir.path()), "{\"step\":1,\"loss\":0.5,\"a\":null,\"b\":null}\n");
        let rows = read(dir.path()).unwrap();
        assert_eq!(rows[0].0, 1);
        assert_eq!(rows[0].1.get("loss"), Some(0.5));
        assert!(rows[0].1.get("a").unwrap().is_nan());
        assert_eq!(rows[0].1.get("step"), None);
    }

    #[test]
    fn values_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().with("x", 0.1 + 0.2).with("y", -1.234_567_890_123_456_7e-300).with("z", 1e22);
        MetricsWriter::create(dir.path()).unwrap().log(7, &metrics).unwrap();
        assert_eq!(read(dir.path()).unwrap(), vec![(7, metrics)]);
    }

    #[test]
    fn resume_cuts_later_steps_and_a_torn_line() {
        for tail in ["", "{\"step\":4,\"lo", "{\"step\":4,\"loss\":0.25}", "garbage", "\0\0\0\0"] {
            let dir = tempfile::tempdir().unwrap();
            let mut writer = MetricsWriter::create(dir.path()).unwrap();
            for step in 1..=3 {
                writer.log(step, &Metrics::new().with("loss", step as f64)).unwrap();
            }
            let undisturbed = text(dir.path());
            drop(writer);
            std::fs::write(dir.path().join(FILE_NAME), undisturbed.clone() + tail).unwrap();
            let mut writer = MetricsWriter::resume(dir.path(), 2).unwrap();
            writer.log(3, &Metrics::new().with("loss", 3.0)).unwrap();
            assert_eq!(text(dir.path()), undisturbed, "tail {tail:?}");
        }
    }

    #[test]
    fn resume_ends_a_whole_last_line_that_lacks_its_newline() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{\"step\":1,\"loss\":2.0}").unwrap();
        MetricsWriter::resume(dir.path(), 1).unwrap().log(2, &Metrics::new().with("loss", 1.0)).unwrap();
        assert_eq!(text(dir.path()), "{\"step\":1,\"loss\":2.0}\n{\"step\":2,\"loss\":1.0}\n");
    }

    #[test]
    fn resume_without_a_file_starts_one() {
        let dir = tempfile::tempdir().unwrap();
        MetricsWriter::resume(&dir.path().join("new"), 0).unwrap().log(1, &Metrics::new()).unwrap();
        assert_eq!(text(&dir.path().join("new")), "{\"step\":1}\n");
    }

    #[test]
    fn errors_name_file_line_and_remedy() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{\"step\":1}\n{\"loss\":1}\n{\"step\":3}\n").unwrap();
        let message = format!("{:#}", read(dir.path()).unwrap_err());
        assert!(message.contains("metrics.jsonl line 2: no whole number under \"step\""), "{message}");
        assert!(message.contains("delete"), "{message}");
        assert!(read(&dir.path().join("nowhere")).unwrap_err().to_string().contains("no such file"));
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        assert!(writer.log(1, &Metrics::new().with("step", 1.0)).is_err());
        writer.log(5, &Metrics::new()).unwrap();
        assert!(writer.log(4, &Metrics::new()).unwrap_err().to_string().contains("step 4 logged after step 5"));
    }

    #[test]
    fn trainer_state_has_the_shape_transformers_reads() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = MetricsWriter::create(dir.path()).unwrap();
        writer.log(1, &Metrics::new().with("loss", 0.5).with("epoch", 0.1)).unwrap();
        writer.log(2, &Metrics::new().with("loss", f64::NAN)).unwrap();
        let state = TrainerState { global_step: 2, max_steps: 2, epoch: 0.2, num_train_epochs: 1, train_batch_size: 8 };
        write_trainer_state(dir.path(), &state).unwrap();
        let text = std::fs::read_to_string(dir.path().join("trainer_state.json")).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["global_step"], 2);
        assert_eq!(value["log_history"][0], json!({"loss": 0.5, "epoch": 0.1, "step": 1}));
        assert_eq!(value["log_history"][1], json!({"loss": null, "step": 2}));
    }
}
