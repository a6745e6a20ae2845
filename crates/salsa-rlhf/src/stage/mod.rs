//! Stages: one directory in, one directory out.
//!
//! A stage is a configuration with an `impl` of [`kind::Stage`] and a line in [`table::STAGES`]. Its `run` fills its output
//! directory and returns its results as JSON. [`run_stage`] wraps it: skip what is done, refuse what has changed, one
//! process per directory, `stage.json` written last.
//!
//! Folders are rooms, each with a line on what it may import; what all of them need stands beside this file.
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
pub use lifecycle::{
    record::Record,
    runner::{Outcome, run_stage},
};
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
