//! Stages: one directory in, one directory out.
//!
//! A stage is a configuration with an `impl` of [`kind::Stage`] and a line in [`table::STAGES`]. Its `run` fills its output
//! directory and returns its results as JSON. [`run_stage`] wraps it: skip what is done, refuse what has changed, one
//! process per directory, `stage.json` written last.
//!
//! Folders are rooms, each with a line on what it may import; what all of them need stands beside this file.
//!
//! From Rust a stage is its configuration, with the keys that recipes have, and [`Stage::run`]; to skip what is done and
//! resume what was interrupted, run it in a [`crate::recipe::Recipe`].
//!
//! ```
//! use salsa_rlhf::stage::{
//!     GenerateConfig, KitchenConfig, LogprobsConfig, PretrainConfig, RewardConfig, ScoreConfig, SoupConfig, Stage,
//!     StageContext,
//! };
//! use serde_json::{Value, from_value, json};
//! # let dir = tempfile::tempdir()?;
//! let at = |name: &str| dir.path().join(name);
//! let context = StageContext::quiet();
//!
//! // A small world: texts, preferences and prompts. Two language models and a reward model trained on them for a moment.
//! let world = json!({"output_dir": at("world"), "pretrain": 100, "sft": 4, "preferences": 40});
//! from_value::<KitchenConfig>(world)?.run(&context)?;
//! for seed in [1, 2] {
//!     let keys = json!({
//!         "dataset": at("world/pretrain.jsonl"), "output_dir": at(&format!("base-{seed}")), "seed": seed,
//!         "vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_steps": 2,
//!         "max_length": 32, "max_position_embeddings": 256,
//!     });
//!     from_value::<PretrainConfig>(keys)?.run(&context)?;
//! }
//! let keys = json!({
//!     "model_name_or_path": at("base-1"), "dataset": at("world/preferences.jsonl"), "output_dir": at("reward"),
//!     "max_steps": 2, "max_length": 256, "chat_template": "chatml",
//! });
//! from_value::<RewardConfig>(keys)?.run(&context)?;
//!
//! // Their soup.
//! let keys = json!({"models": [at("base-1"), at("base-2")], "weights": [0.5, 0.5], "output_dir": at("soup")});
//! assert_eq!(from_value::<SoupConfig>(keys)?.run(&context)?["ingredients"], 2);
//!
//! // What it answers, how likely it finds that, and what the reward model gives for it.
//! std::fs::write(at("prompts.jsonl"), r#"{"prompt": "Salt"}"#)?;
//! let keys = json!({
//!     "model_name_or_path": at("soup"), "input": at("prompts.jsonl"), "output": at("answers.jsonl"), "max_new_tokens": 5
//! });
//! from_value::<GenerateConfig>(keys)?.run(&context)?;
//! let keys = json!({
//!     "model_name_or_path": at("soup"), "input": at("answers.jsonl"), "output": at("logprobs.jsonl"),
//! });
//! from_value::<LogprobsConfig>(keys)?.run(&context)?;
//! let keys = json!({
//!     "model_name_or_path": at("reward"), "input": at("answers.jsonl"), "output": at("scores.jsonl"),
//! });
//! from_value::<ScoreConfig>(keys)?.run(&context)?;
//! let line: Value = serde_json::from_str(&std::fs::read_to_string(at("scores.jsonl"))?)?;
//! assert!(line["score"].is_number());
//! # Ok::<(), anyhow::Error>(())
//! ```
use std::{
    collections::BTreeSet,
    io::Write,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::Context;
use salsa_engine::Device;

pub(crate) mod device;
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
pub(crate) mod reads;
pub(crate) mod rl;
pub(crate) mod rollout;
pub(crate) mod soup;
pub(crate) mod supervised;
pub(crate) mod table;
#[cfg(test)]
mod tests;
pub(crate) mod text;

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
pub use rl::ppo::config::PpoConfig;
pub use soup::{SoupConfig, greedy::GreedyConfig};
pub use supervised::{dpo::DpoConfig, pretrain::PretrainConfig, reward::RewardConfig, sft::SftConfig};
pub use table::STAGES;

/// What a stage may ask of its surroundings.
#[derive(Clone, Debug, Default)]
pub struct StageContext {
    /// How much is said on stderr.
    pub talk: Talk,
    /// How far a stage goes.
    pub until: Until,
    /// Where models live and compute; the CPU in f32 until a stage has opened the device that its keys name.
    pub device: Device,
    interrupted: Arc<AtomicBool>,
    said: Arc<Mutex<BTreeSet<String>>>,
}

/// How far a stage goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// To its result.
    #[default]
    Done,
    /// To where it knows what memory it needs: it stops with [`memory::Rehearsed`] before it reads a weight.
    Planned,
}

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Talk {
    /// What is being done, and progress.
    #[default]
    Normal,
    /// Nothing but errors.
    Quiet,
}

impl StageContext {
    /// A context that notices Ctrl-C and termination requests: the first is reported by [`StageContext::interrupted`],
    /// the second ends the process at once.
    ///
    /// # Errors
    /// If the process already has such a handler.
    pub fn with_signals() -> anyhow::Result<StageContext> {
        let context = StageContext::default();
        let flag = context.interrupted.clone();
        ctrlc::set_handler(move || {
            if flag.swap(true, Ordering::SeqCst) {
                process::exit(130);
            }
            let note = "\ninterrupted: stopping where it can be resumed (once more to stop at once)";
            // stderr may be gone; the checkpoint is what matters.
            let _ = writeln!(std::io::stderr(), "{note}");
        })
        .context("cannot listen for Ctrl-C")?;
        Ok(context)
    }

    /// The same work on this device.
    pub fn on(&self, device: Device) -> StageContext {
        StageContext { device, ..self.clone() }
    }

    /// A context that says nothing and hears no signals.
    pub fn quiet() -> StageContext {
        StageContext { talk: Talk::Quiet, ..StageContext::default() }
    }

    /// A context for a rehearsal, in which nothing is said either.
    pub fn rehearsal() -> StageContext {
        StageContext { until: Until::Planned, ..StageContext::quiet() }
    }

    /// Whether somebody asked to stop. A stage looks after every step, saves a checkpoint and returns [`Interrupted`].
    pub fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Asks to stop, as Ctrl-C would.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
    }

    /// One line on stderr, the first time that it is said: a stage may read a data set several times.
    pub fn say_once(&self, line: &str) {
        let is_new = self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned());
        if is_new {
            self.say(line);
        }
    }

    /// One line on stderr.
    pub fn say(&self, line: &str) {
        if self.talk == Talk::Normal {
            // Nobody can be told if stderr is gone; the work itself goes on.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }
}

/// The error of a stage that stopped because it was asked to; a resumable checkpoint was written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted after step {step} of {total}; the same command goes on from there")]
pub struct Interrupted {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub total: u64,
}
