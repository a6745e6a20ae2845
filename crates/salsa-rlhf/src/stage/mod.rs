//! Stages: each reads files and fills one output directory.
//!
//! A stage is a configuration with an `impl` of [`kind::Stage`] and a line in [`table::STAGES`]. Its `run` fills its
//! output directory and returns its results as JSON. `run_stage` wraps it: it skips a finished stage, refuses a
//! changed one, locks the directory for one process and writes `stage.json` last.
//!
//! The `mod.rs` of each folder states what the folder may import; modules shared by all of them are directly in
//! `stage`.
//!
//! In Rust, a stage is its configuration, with the same keys as in recipes, and [`Stage::run`]; to skip finished stages
//! and resume interrupted ones, run it in a [`crate::recipe::Recipe`].
//!
//! ```
//! use salsa_rlhf::config::{self, Origin};
//! use salsa_rlhf::stage::{
//!     GenerateConfig, KitchenConfig, LogprobsConfig, PretrainConfig, RewardConfig, ScoreConfig, SoupConfig, Stage,
//!     StageContext,
//! };
//! use serde_json::{Value, json};
//!
//! /// Every name of a key is known, and an unknown one is an error.
//! fn stage<S: Stage>(keys: Value) -> anyhow::Result<S> {
//!     config::from_mapping(keys.as_object().expect("a mapping"), &Origin::CommandLine)
//! }
//! # let dir = tempfile::tempdir()?;
//! let at = |name: &str| dir.path().join(name);
//! let context = StageContext::quiet();
//!
//! // A small world: texts, preferences and prompts. Two language models and a reward model trained on them for a moment.
//! let world = json!({"output_dir": at("world"), "pretrain": 100, "sft": 4, "preferences": 40});
//! stage::<KitchenConfig>(world)?.run(&context)?;
//! for seed in [1, 2] {
//!     let keys = json!({
//!         "dataset": at("world/pretrain.jsonl"), "output_dir": at(&format!("base-{seed}")), "seed": seed,
//!         "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_steps": 2,
//!         "max_length": 32, "max_position_embeddings": 256,
//!     });
//!     stage::<PretrainConfig>(keys)?.run(&context)?;
//! }
//! let keys = json!({
//!     "model_name_or_path": at("base-1"), "dataset": at("world/preferences.jsonl"), "output_dir": at("reward"),
//!     "max_steps": 2, "max_length": 256, "chat_template": "chatml",
//! });
//! stage::<RewardConfig>(keys)?.run(&context)?;
//!
//! // Their soup.
//! let keys = json!({"models": [at("base-1"), at("base-2")], "weights": [0.5, 0.5], "output_dir": at("soup")});
//! assert_eq!(stage::<SoupConfig>(keys)?.run(&context)?["ingredients"], 2);
//!
//! // What it answers, how likely it finds that, and what the reward model gives for it.
//! std::fs::write(at("prompts.jsonl"), r#"{"prompt": "Salt"}"#)?;
//! let keys = json!({
//!     "model_name_or_path": at("soup"), "input": at("prompts.jsonl"), "output": at("answers.jsonl"), "max_new_tokens": 5
//! });
//! stage::<GenerateConfig>(keys)?.run(&context)?;
//! let keys = json!({
//!     "model_name_or_path": at("soup"), "input": at("answers.jsonl"), "output": at("logprobs.jsonl"),
//! });
//! stage::<LogprobsConfig>(keys)?.run(&context)?;
//! let keys = json!({
//!     "model_name_or_path": at("reward"), "input": at("answers.jsonl"), "output": at("scores.jsonl"),
//! });
//! stage::<ScoreConfig>(keys)?.run(&context)?;
//! let line: Value = serde_json::from_str(&std::fs::read_to_string(at("scores.jsonl"))?)?;
//! assert!(line["score"].is_number());
//! # Ok::<(), anyhow::Error>(())
//! ```
use std::{
    collections::BTreeSet,
    io::Write,
    path::Path,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use salsa_engine::{
    Device,
    comm::{Comm, CommError, Solo},
};

mod arithmetic;
pub(crate) mod device;
mod endpoint;
pub(crate) mod eval;
#[cfg(test)]
pub(crate) mod fixture;
mod gold;
pub(crate) mod keys;
pub(crate) mod kind;
mod kitchen;
pub(crate) mod lifecycle;
mod lines;
pub(crate) mod memory;
pub(crate) mod models;
pub(crate) mod optimizer;
pub(crate) mod ranks;
pub(crate) mod reads;
mod rewards;
pub(crate) mod rl;
pub(crate) mod rollout;
pub(crate) mod soup;
pub(crate) mod supervised;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod text;

pub use arithmetic::ArithmeticConfig;
pub use eval::{
    evaluate::config::EvaluateConfig,
    judge::{JudgeConfig, Protocol, StyleControl, StyleFeature, Transport},
    landscape::LandscapeConfig,
    winrate::WinrateConfig,
};
pub use kind::Stage;
pub use kitchen::KitchenConfig;
pub(crate) use lifecycle::runner::run_stage;
pub use lifecycle::{record::Record, runner::Outcome};
pub use lines::{generate::GenerateConfig, logprobs::LogprobsConfig, score::ScoreConfig};
pub use rl::{grpo::config::GrpoConfig, online_dpo::config::OnlineDpoConfig, ppo::config::PpoConfig};
pub use soup::{SoupConfig, criterion::MeasureConfig, search::SearchConfig};
pub use supervised::{
    cpo::CpoConfig, dpo::DpoConfig, kto::KtoConfig, orpo::OrpoConfig, pretrain::PretrainConfig, reward::RewardConfig,
    sft::SftConfig,
};
pub use table::STAGES;

use crate::{metrics::MetricsWriter, progress::Progress};

/// Execution context of a stage: verbosity, device, processes, interruption.
#[derive(Clone, Debug)]
pub struct StageContext {
    /// Verbosity on stderr.
    pub verbosity: Verbosity,
    /// Whether the stage runs to its result or stops after planning.
    pub until: Until,
    /// Where models are stored and computed; the CPU in f32 until the stage opens the device of its `device` key.
    pub device: Device,
    /// The processes that run the stage together; one by default. See [`StageContext::with_ranks`].
    pub ranks: Arc<dyn Comm>,
    interrupted: Arc<AtomicBool>,
    said: Arc<Mutex<BTreeSet<String>>>,
    left_out: Arc<Mutex<Vec<String>>>,
}

/// Where a stage stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// After its result.
    #[default]
    Done,
    /// After planning its memory: it returns [`memory::PlanOnly`] as an error before it reads any weight.
    Planned,
}

/// Verbosity on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verbosity {
    /// Current work, and progress.
    #[default]
    Normal,
    /// Errors only.
    Quiet,
}

impl Default for StageContext {
    fn default() -> StageContext {
        StageContext {
            verbosity: Verbosity::default(),
            until: Until::default(),
            device: Device::default(),
            ranks: Arc::new(Solo),
            interrupted: Arc::default(),
            said: Arc::default(),
            left_out: Arc::default(),
        }
    }
}

impl StageContext {
    /// A context that handles Ctrl-C and termination requests: the first sets [`StageContext::interrupted`], the second
    /// ends the process at once.
    ///
    /// # Errors
    /// If the process already has such a handler.
    pub fn with_signals(verbosity: Verbosity) -> anyhow::Result<StageContext> {
        let context = StageContext { verbosity, ..StageContext::default() };
        let flag = context.interrupted.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                process::exit(130);
            }
            if verbosity == Verbosity::Normal {
                let note = "\ninterrupted: stopping where it can be resumed (once more to stop at once)";
                // stderr may be closed; saving the checkpoint matters more.
                let _ = writeln!(std::io::stderr(), "{note}");
            }
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(context)
    }

    /// A copy of this context that shares its state, on another device.
    pub fn on(&self, device: Device) -> StageContext {
        StageContext { device, ..self.clone() }
    }

    /// A copy of this context for a stage that several processes run together. Each of them runs it with the same
    /// configuration on a shared file system; the first alone writes and prints.
    ///
    /// A stage that returns an error on one process has not told the others, who may wait for it: end them by
    /// [`Comm::abort`], unless the error is [`Interrupted`], which all of them return.
    pub fn with_ranks(&self, ranks: Arc<dyn Comm>) -> StageContext {
        let verbosity = if ranks.is_first() { self.verbosity } else { Verbosity::Quiet };
        StageContext { verbosity, ranks, ..self.clone() }
    }

    /// A copy of this context for work that one process does while the others wait for it.
    pub(crate) fn alone(&self) -> StageContext {
        StageContext { ranks: Arc::new(Solo), ..self.clone() }
    }

    /// Whether this process writes and prints what all have computed.
    pub fn is_first(&self) -> bool {
        self.ranks.is_first()
    }

    /// Whether an interruption was requested of any process; all of them ask at the same place.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(crate) fn any_interrupted(&self) -> Result<bool, CommError> {
        ranks::any(&*self.ranks, self.interrupted())
    }

    /// The metrics in `dir` of a run that has `done` steps; `None` on all processes but the first.
    pub(crate) fn metrics(&self, dir: &Path, done: u64) -> anyhow::Result<Option<MetricsWriter>> {
        Ok(match (self.is_first(), done) {
            (false, _) => None,
            (true, 0) => Some(MetricsWriter::create(dir)?),
            (true, done) => Some(MetricsWriter::resume(dir, done)?),
        })
    }

    /// The progress of a task, shown by the first process.
    pub(crate) fn progress(&self, title: &str, total: u64, unit: &str) -> Progress {
        if self.is_first() { Progress::new(title, total, unit) } else { Progress::silent(title, total, unit) }
    }

    /// A context that prints nothing and handles no signals.
    pub fn quiet() -> StageContext {
        StageContext { verbosity: Verbosity::Quiet, ..StageContext::default() }
    }

    /// A quiet context for a rehearsal (dry run): the stage stops after planning.
    pub fn rehearsal() -> StageContext {
        StageContext { until: Until::Planned, ..StageContext::quiet() }
    }

    /// Whether an interruption was requested. A stage checks this after every step, saves a checkpoint and returns
    /// [`Interrupted`].
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Requests an interruption, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
    }

    /// Prints a line on stderr unless it was printed before: a stage may read a data set several times.
    pub fn print_once(&self, line: &str) {
        let is_new = self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned());
        if is_new {
            self.say(line);
        }
    }

    /// Prints how many examples of a data set are used, `left_out` of them not: `line`. If there are such examples, a
    /// rehearsal keeps the line.
    pub(crate) fn say_used(&self, line: String, left_out: usize) {
        self.say(&line);
        if left_out > 0 && self.until == Until::Planned {
            self.left_out.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    }

    /// The lines of a rehearsal about data sets of which examples are left out.
    pub(crate) fn left_out(&self) -> Vec<String> {
        self.left_out.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Prints a line on stderr.
    pub fn say(&self, line: &str) {
        if self.verbosity == Verbosity::Normal {
            // If stderr is closed, the work still continues.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// The error of an interrupted stage; a resumable checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted after step {step} of {total}; the same command goes on from there")]
pub struct Interrupted {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
}
