//! The protocols: their calls, and the rows of the tool's files made from the answers.
use std::collections::BTreeMap;

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    call::{Call, Reply, Subject},
    question::{Answer, Answers, Question},
    template::{ArenaConfig, Template},
    verdict::Patterns,
};
use crate::chat::Message;

pub(super) mod alpaca;
pub(super) mod arena;
pub(super) mod mt_bench;
#[cfg(test)]
mod tests;

/// Which prompts are used, and how verdicts are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Protocol {
    /// MT-Bench, each answer graded from 1 to 10 (FastChat's mode `single`).
    #[serde(rename = "mt_bench_single")]
    MtBenchSingle,
    /// MT-Bench, pairs in both orders (FastChat's modes `pairwise-baseline` and `pairwise-all`).
    #[serde(rename = "mt_bench_pair")]
    MtBenchPair,
    /// Arena-Hard-Auto v0.1: two games per prompt against gpt-4-0314.
    #[serde(rename = "arena_hard_v0.1")]
    ArenaHardV01,
    /// Arena-Hard-Auto v2: two games per prompt against a baseline of its category.
    #[serde(rename = "arena_hard_v2")]
    ArenaHardV2,
    /// AlpacaEval 2: one order, the probability of the first token.
    #[serde(rename = "alpaca_eval2")]
    AlpacaEval2,
    /// Any prompts, FastChat's pair template in both orders.
    #[serde(rename = "pairwise")]
    Pairwise,
}

impl Protocol {
    /// The tool's token limit for a judgment.
    pub fn max_tokens(self) -> usize {
        match self {
            Protocol::MtBenchSingle | Protocol::MtBenchPair | Protocol::Pairwise => 2048,
            Protocol::ArenaHardV01 => 4096,
            Protocol::ArenaHardV2 => 16_000,
            Protocol::AlpacaEval2 => 1,
        }
    }

    /// The tool's temperature of the judge.
    pub fn temperature(self) -> f64 {
        if self == Protocol::AlpacaEval2 { 1.0 } else { 0.0 }
    }

    /// The number of most likely tokens that the protocol reads.
    pub fn top_logprobs(self) -> u32 {
        if self == Protocol::AlpacaEval2 { 5 } else { 0 }
    }

    /// Whether the protocol compares two models.
    pub fn has_pairs(self) -> bool {
        self != Protocol::MtBenchSingle
    }

    /// The name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::MtBenchSingle => "mt_bench_single",
            Protocol::MtBenchPair => "mt_bench_pair",
            Protocol::ArenaHardV01 => "arena_hard_v0.1",
            Protocol::ArenaHardV2 => "arena_hard_v2",
            Protocol::AlpacaEval2 => "alpaca_eval2",
            Protocol::Pairwise => "pairwise",
        }
    }
}

/// The inputs of a judgment, read into memory.
pub(super) struct Inputs {
    /// The protocol.
    pub protocol: Protocol,
    /// The judge's name.
    pub judge: String,
    /// The questions in the order of their file.
    pub questions: Vec<Question>,
    /// The answers of each model, baselines included.
    pub answers: BTreeMap<String, Answers>,
    /// The model to compare the others with; empty for the protocol's own, or all pairs.
    pub baseline: String,
    /// The judge prompts.
    pub prompts: Prompts,
    /// Reference answers, if a template needs them.
    pub references: Option<Answers>,
}

/// The judge prompts.
pub(super) enum Prompts {
    /// FastChat's templates, and the name of the one for [`Protocol::Pairwise`].
    FastChat(BTreeMap<String, Template>, String),
    /// Arena-Hard's configuration, its patterns, and system prompts by category.
    Arena(ArenaConfig, Patterns, BTreeMap<String, String>),
    /// AlpacaEval's template.
    Alpaca(String),
}

/// A unit of judgment: one answer, or two in one or both orders.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Match {
    /// The index of the question.
    pub question: usize,
    /// The judged turn.
    pub turn: u32,
    /// The template's name.
    pub template: String,
    /// The models, the baseline last.
    pub models: Vec<String>,
    /// The calls: one for each order.
    pub games: Vec<Call>,
}

/// Finds replies to calls.
pub(super) trait Replies {
    /// The reply to a call, if there is one.
    fn reply(&self, call: &Call) -> Option<&Reply>;

    /// The text of a complete judgment of this call by another tool, including further attempts.
    fn whole(&self, call: &Call) -> Option<&str>;
}

impl Inputs {
    /// The calls of the protocol, by match, in the order of the tool.
    ///
    /// # Errors
    /// If an answer, a reference answer or a template is missing.
    pub(super) fn plan(&self) -> anyhow::Result<Vec<Match>> {
        match self.protocol {
            Protocol::MtBenchSingle | Protocol::MtBenchPair => mt_bench::plan(self),
            Protocol::Pairwise => mt_bench::plan_pairwise(self),
            Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => arena::plan(self),
            Protocol::AlpacaEval2 => alpaca::plan(self),
        }
    }

    /// Calls that follow from replies: Arena-Hard v0.1 repeats a call whose judgment has no label.
    pub(super) fn second_attempts(&self, matches: &[Match], replies: &dyn Replies) -> Vec<Call> {
        match self.protocol {
            Protocol::ArenaHardV01 => arena::second_attempts(matches, replies),
            _ => Vec::new(),
        }
    }

    /// The judged models without baselines, sorted by name.
    pub(super) fn judged(&self) -> Vec<&str> {
        let baselines = self.baselines();
        self.answers.keys().map(String::as_str).filter(|name| !baselines.contains(name)).collect()
    }

    /// The baselines of the protocol: the configured one, otherwise those of the tool.
    fn baselines(&self) -> Vec<&str> {
        match self.protocol {
            _ if !self.baseline.is_empty() => vec![self.baseline.as_str()],
            Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => {
                let of_categories = self.questions.iter().map(|question| arena::baseline(self, &question.category));
                let mut names: Vec<&str> = of_categories.collect();
                names.sort_unstable();
                names.dedup();
                names
            }
            _ => Vec::new(),
        }
    }

    /// The answer of a model to a question.
    ///
    /// # Errors
    /// If there is none, or it has too few turns.
    pub(super) fn answer(&self, model: &str, question: &Question, turns: usize) -> anyhow::Result<&Answer> {
        let answers = self.answers.get(model).with_context(|| {
            let given: Vec<&str> = self.answers.keys().map(String::as_str).collect();
            format!("there are no answers of {model}; give them under answers (there are: {})", given.join(", "))
        })?;
        let answer = answers.get(&question.key());
        let answer = answer.with_context(|| format!("{model} has no answer to question {}", question.id))?;
        anyhow::ensure!(
            answer.turns.len() >= turns,
            "{model} answers {} of the {turns} turns of question {}",
            answer.turns.len(),
            question.id
        );
        Ok(answer)
    }

    /// A call.
    pub(super) fn call(
        &self,
        question: &Question,
        models: &[String],
        template: &str,
        order: u8,
        messages: Vec<Message>,
    ) -> Call {
        let subject = Subject {
            question: question.key(),
            models: models.to_vec(),
            judge: self.judge.clone(),
            template: template.to_owned(),
            order,
        };
        Call { subject, messages }
    }
}
