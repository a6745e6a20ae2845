//! Arena-Hard-Auto: two games per prompt against a baseline, whose answer is A in the first and B in the second.
use anyhow::Context;
use salsa_algo::judge::arena::Row;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    super::{
        call::{Call, Reply},
        question::Question,
        verdict::{self, Found, without_thoughts},
    },
    Inputs, Match, Prompts, Protocol, Replies,
};
use crate::chat::Message;

/// The template name in the identity of calls.
const TEMPLATE: &str = "arena-hard";

/// v0.1's follow-up message to a judge that gave no label.
const ONCE_MORE: &str = "continue your judgment and finish by outputting a final verdict label";

/// A row of `model_judgment/JUDGE/MODEL.jsonl`, of either version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct ArenaRow {
    /// The question's id.
    #[serde(alias = "question_id")]
    pub uid: Value,
    /// v2: the category.
    #[serde(default)]
    pub category: String,
    /// The model compared with the baseline.
    pub model: String,
    /// The judge.
    #[serde(default)]
    pub judge: String,
    /// v2: the baseline.
    #[serde(default)]
    pub baseline: String,
    /// Two games; null if the judge could not be reached.
    pub games: Vec<Option<ArenaGame>>,
}

/// One game.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in super::super) struct ArenaGame {
    /// The label, if there is one.
    pub score: Option<String>,
    /// The judge's reply: a text, or in v2 a mapping with `answer`.
    pub judgment: Value,
    /// v0.1: the prompt.
    #[serde(default)]
    pub user_prompt: Option<String>,
    /// v2: the conversation.
    #[serde(default)]
    pub prompt: Option<Value>,
}

impl ArenaRow {
    /// Both verdicts. Labels without a meaning count as missing.
    pub(crate) fn verdicts(&self) -> Row {
        let label = |game: usize| self.games.get(game)?.as_ref()?.score.as_deref().and_then(verdict::label);
        Row { first: label(0), second: label(1) }
    }

    /// The row in the layout of the version.
    pub(crate) fn written(&self, protocol: Protocol) -> Value {
        let game = |game: &Option<ArenaGame>| match game {
            None if protocol == Protocol::ArenaHardV2 => Value::Null,
            None => json!({"user_prompt": "", "judgment": super::mt_bench::ERROR, "score": null}),
            Some(game) if protocol == Protocol::ArenaHardV2 => {
                json!({"score": game.score, "judgment": {"answer": game.said()}, "prompt": game.prompt})
            }
            Some(game) => json!({"user_prompt": game.user_prompt, "judgment": game.said(), "score": game.score}),
        };
        let games: Vec<Value> = self.games.iter().map(game).collect();
        match protocol {
            Protocol::ArenaHardV2 => json!({
                "uid": self.uid, "category": self.category, "judge": self.judge, "model": self.model,
                "baseline": self.baseline, "games": games,
            }),
            _ => json!({"question_id": self.uid, "model": self.model, "judge": self.judge, "games": games}),
        }
    }
}

impl ArenaGame {
    /// The judge's reply.
    pub(crate) fn said(&self) -> &str {
        self.judgment.as_str().or_else(|| self.judgment["answer"].as_str()).unwrap_or_default()
    }

    /// The judge's prompt.
    pub(crate) fn asked(&self) -> &str {
        let of_v2 = || {
            let user = self.prompt.as_ref()?.as_array()?.iter().find(|message| message["role"] == "user")?;
            user["content"].as_str()
        };
        self.user_prompt.as_deref().or_else(of_v2).unwrap_or_default()
    }
}

/// The baseline for a category: the configured one, otherwise the tool's.
pub(super) fn baseline<'a>(inputs: &'a Inputs, category: &str) -> &'a str {
    match (inputs.baseline.as_str(), inputs.protocol) {
        ("", protocol) => default_baseline(protocol, category),
        (given, _) => given,
    }
}

/// The tool's baseline for a category.
pub(in super::super) fn default_baseline(protocol: Protocol, category: &str) -> &'static str {
    match (protocol, category) {
        (Protocol::ArenaHardV01, _) | (_, "arena-hard-v0.1") => "gpt-4-0314",
        (_, "creative_writing") => "gemini-2.0-flash-001",
        _ => "o3-mini-2025-01-31",
    }
}

pub(super) fn plan(inputs: &Inputs) -> anyhow::Result<Vec<Match>> {
    let mut matches = Vec::new();
    for model in inputs.judged() {
        for (number, question) in inputs.questions.iter().enumerate() {
            let games = games(inputs, model, question).with_context(|| format!("question {}", question.id))?;
            let models = vec![model.to_owned(), baseline(inputs, &question.category).to_owned()];
            matches.push(Match { question: number, turn: 1, template: TEMPLATE.to_owned(), models, games });
        }
    }
    Ok(matches)
}

fn games(inputs: &Inputs, model: &str, question: &Question) -> anyhow::Result<Vec<Call>> {
    let Prompts::Arena(config, _, systems) = &inputs.prompts else {
        unreachable!("this protocol reads Arena-Hard's files")
    };
    let base = baseline(inputs, &question.category);
    let ours = inputs.answer(model, question, 1)?.turns[0].as_str();
    let theirs = inputs.answer(base, question, 1)?.turns[0].as_str();
    let system = systems.get(&question.category).or(config.system_prompt.as_ref()).with_context(|| {
        format!(
            "there is no system prompt for the category {:?}: v0.1's judge_config.yaml has one; for v2 give judge_settings: \
             utils/judge_utils.py of Arena-Hard-Auto",
            question.category
        )
    })?;
    let models = [model.to_owned(), base.to_owned()];
    let game = |order: u8, a: &str, b: &str| -> anyhow::Result<Call> {
        let messages = vec![Message::new("system", system.as_str()), config.message(&question.turns[0], a, b)?];
        Ok(inputs.call(question, &models, TEMPLATE, order, messages))
    };
    Ok(vec![game(1, theirs, ours)?, game(2, ours, theirs)?])
}

/// The second attempts of v0.1, for calls whose first reply has no label.
pub(super) fn second_attempts(matches: &[Match], replies: &dyn Replies) -> Vec<Call> {
    let calls = matches.iter().flat_map(|found| &found.games);
    calls.filter_map(|call| second_attempt(call, replies)).collect()
}

fn second_attempt(call: &Call, replies: &dyn Replies) -> Option<Call> {
    let first = replies.reply(call).filter(|_| replies.whole(call).is_none())?;
    let has_none = verdict::only_label(without_thoughts(&first.text).0) == Found::Nothing;
    has_none.then(|| {
        let mut call = call.clone();
        call.messages.extend([Message::new("assistant", first.text.as_str()), Message::new("user", ONCE_MORE)]);
        call
    })
}

/// The rows of all games.
pub(in super::super) fn rows(inputs: &Inputs, matches: &[Match], replies: &dyn Replies) -> Vec<ArenaRow> {
    let row = |found: &Match| {
        let question = &inputs.questions[found.question];
        ArenaRow {
            uid: question.id.clone(),
            category: question.category.clone(),
            model: found.models[0].clone(),
            judge: inputs.judge.clone(),
            baseline: found.models[1].clone(),
            games: found.games.iter().map(|call| game(inputs, call, replies)).collect(),
        }
    };
    matches.iter().map(row).collect()
}

fn game(inputs: &Inputs, call: &Call, replies: &dyn Replies) -> Option<ArenaGame> {
    let Prompts::Arena(_, patterns, _) = &inputs.prompts else {
        unreachable!("this protocol reads Arena-Hard's files")
    };
    let first = &replies.reply(call)?.text;
    let user_prompt = Some(call.user_prompt().to_owned());
    if inputs.protocol == Protocol::ArenaHardV2 {
        let score = patterns.last_label(without_thoughts(first).0);
        return Some(ArenaGame {
            score,
            judgment: json!(first),
            user_prompt: None,
            prompt: Some(json!(call.messages)),
        });
    }
    let judgment = match replies.whole(call) {
        Some(whole) => whole.to_owned(),
        None => {
            let second =
                second_attempt(call, replies).and_then(|call| replies.reply(&call).map(|reply: &Reply| &reply.text));
            [Some(first), second].into_iter().flatten().map(|text| format!("\n{text}")).collect()
        }
    };
    let score = match verdict::only_label(without_thoughts(&judgment).0) {
        Found::Label(label) => Some(label),
        Found::Nothing | Found::Contradiction => None,
    };
    Some(ArenaGame { score, judgment: json!(judgment), user_prompt, prompt: None })
}
