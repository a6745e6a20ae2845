//! `salsa judge`: answers judged by a language model, with the protocols of MT-Bench, Arena-Hard and AlpacaEval.
//!
//! ```text
//! questions, answers ─► protocol ─► calls ─► transport ─► judgments.jsonl ─► rows of the tool ─► scores
//! ```
//!
//! A call is identified by its content, so an interrupted run continues where it stopped, and no call is paid for
//! twice.
use salsa_engine::Head;
use serde_json::Value;

use crate::stage::{
    StageContext,
    device::Choice as DeviceChoice,
    keys::ComputeType,
    kind::{Processes, Produces, Product, Shown, Stage},
    models::frozen::Found,
    reads::Reads,
};

mod call;
pub(in crate::stage) mod config;
mod files;
mod generating;
mod given;
#[cfg(test)]
mod golden;
mod journal;
mod judging;
mod protocol;
mod question;
mod recorded;
mod results;
mod run;
mod score;
mod style;
mod switched;
mod tables;
mod template;
mod transport;
mod verdict;

pub use config::JudgeConfig;
pub use protocol::Protocol;
pub use score::{StyleControl, StyleFeature};
pub use transport::Transport;

impl Stage for JudgeConfig {
    const NAME: &'static str = "judge";
    const ABOUT: &'static str =
        "Scores of answers by a language model as the judge: MT-Bench, Arena-Hard, AlpacaEval, or any pairs.";
    const EXAMPLE: &'static str = "--protocol mt_bench_single --questions question.jsonl --templates judge_prompts.jsonl \
                                   --reference_answers gpt-4.jsonl --answers '{mine: mine.jsonl}' --judge_model gpt-4 \
                                   --output_dir judged";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Results;
    const NEXT: &'static [(&'static str, &'static str)] =
        &[("read the scores", "OUT/judgment.json"), ("read what the judge said", "OUT/judgments.jsonl")];
    const SHOWN: Shown = Shown::Judgments;
    const PROCESSES: Processes = Processes::First;

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        let reader = self.models.values().next().or(self.judge_path.as_ref());
        Reads::with_reader(reader.map(AsRef::as_ref), &self.chat)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        self.has_models().then_some((self.device, self.dtype))
    }

    fn check_inputs(&self) -> anyhow::Result<()> {
        if let Some(path) = &self.judge_path {
            Found::open(path, Head::LanguageModel)?;
        }
        run::check(self)
    }

    fn is_dry_run(&self) -> bool {
        self.dry_run.0
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run::run(self, context)
    }
}

impl JudgeConfig {
    fn has_models(&self) -> bool {
        !self.models.is_empty() || self.judge_path.is_some()
    }
}
