//! The key `rewards`: what a response is rewarded for.
use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use salsa_algo::rules::{alphabet::Alphabet, format::Format, mathematics::AnswerPlace};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    judge::{Grades, Template},
    rules::Rule,
};
use crate::{
    config::{
        names,
        paths::{DataPath, ModelPath, NoEffect},
    },
    stage::{
        endpoint::http,
        gold::Gold,
        keys::{MOST_TOKENS, check_count, check_range},
    },
};

/// One reward of a run. The reward of a response is the weighted sum of all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RewardSource {
    /// A reward model, or several: an ensemble.
    Model {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The reward models, at least one.
        models: Vec<ModelPath>,
        /// How the scores of several become one.
        #[serde(default)]
        combine: Combine,
        /// Standard deviations subtracted by `combine: mean_minus_deviations`, at least 0.
        #[serde(default = "one")]
        deviations: f64,
    },
    /// A program: it reads a JSON line per response from its standard input and writes one to its standard output.
    Command {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The program and its arguments. It is started once, in the current directory.
        command: Vec<String>,
        /// Files that it consists of: they are inputs of the stage, which runs again when they change. Empty: none.
        #[serde(default)]
        files: Vec<DataPath>,
        /// The reward of all responses of an update for which it fails, after all retries. None: the run stops, with a
        /// checkpoint from which it can be resumed.
        #[serde(default)]
        fallback: Option<f64>,
        /// Time limit for the responses of one update, in seconds, above 0.
        #[serde(default = "minute")]
        timeout: NoEffect<f64>,
        /// How often a failed update is tried again, each time with the program started anew.
        #[serde(default = "retries")]
        max_retries: NoEffect<u32>,
    },
    /// A reward server with the interface of OpenRLHF's `remote_rm_url`, such as `salsa serve` at `/score`.
    Http {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The address of the server.
        url: String,
        /// The column of the data that is sent as `labels`. None: empty labels.
        #[serde(default)]
        labels: Option<String>,
        /// The environment variable with a key, sent as a bearer token; keys are never part of a recipe. Empty: no key.
        #[serde(default)]
        api_key_env: NoEffect<String>,
        /// The reward of all responses of an update for which it fails, after all retries. None: the run stops, with a
        /// checkpoint from which it can be resumed.
        #[serde(default)]
        fallback: Option<f64>,
        /// Responses per request, at least 1.
        #[serde(default = "per_request")]
        batch_size: NoEffect<usize>,
        /// Time limit of a request, in seconds, above 0.
        #[serde(default = "minute")]
        timeout: NoEffect<f64>,
        /// How often a failed request is sent again.
        #[serde(default = "retries")]
        max_retries: NoEffect<u32>,
    },
    /// The grade that a language model behind an OpenAI-compatible server gives to a response.
    Judge {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The judge's name on the server.
        judge_model: String,
        /// The system message. Empty: none.
        #[serde(default)]
        system_prompt: String,
        /// The message to the judge: `{prompt}`, `{response}` and `{COLUMN}`s of the data are filled in.
        #[serde(default = "grading")]
        template: String,
        /// A regular expression whose first group is the grade; its last match in the reply counts.
        #[serde(default = "in_brackets")]
        pattern: String,
        /// The lowest grade; a lower one is none.
        #[serde(default = "one")]
        lowest: f64,
        /// The highest grade; a higher one is none.
        #[serde(default = "ten")]
        highest: f64,
        /// The judge's temperature, 0 or above.
        #[serde(default)]
        temperature: f64,
        /// Maximum number of tokens of a reply, at least 1; a longer one has no grade.
        #[serde(default = "long_reply")]
        max_tokens: usize,
        /// The reward of a response without a grade, after all retries. None: the run stops, with a checkpoint from which
        /// it can be resumed.
        #[serde(default)]
        fallback: Option<f64>,
        /// Address of the server, up to `/chat/completions`.
        #[serde(default = "openai")]
        base_url: NoEffect<String>,
        /// The environment variable with a key; keys are never part of a recipe. Empty: no key.
        #[serde(default = "openai_key")]
        api_key_env: NoEffect<String>,
        /// A file with the key, used instead. Empty: none.
        #[serde(default)]
        api_key_file: NoEffect<String>,
        /// Number of concurrent calls, at least 1.
        #[serde(default = "eight")]
        concurrency: NoEffect<usize>,
        /// Time limit of a call, in seconds, above 0.
        #[serde(default = "minute")]
        timeout: NoEffect<f64>,
        /// How often a failed call is sent again, and how often a reply without a grade is asked for again.
        #[serde(default = "retries")]
        max_retries: NoEffect<u32>,
    },
    /// Whether the answer to a mathematical question equals that of a column of the data: 1 or 0.
    Mathematics {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The column with the right answer.
        #[serde(default = "answer")]
        column: String,
        /// Where the answer stands in a response.
        #[serde(default = "any_place")]
        place: AnswerPlace,
    },
    /// Whether a regular expression matches a response: 1 or 0.
    Regex {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The expression, in the syntax of the crate `regex`: no look-around, no back references.
        pattern: String,
        /// What has to match.
        #[serde(default, rename = "match")]
        matching: RegexMatch,
    },
    /// Whether a response is JSON, and fits a schema: 1 or 0.
    Json {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The JSON schema. None: any JSON.
        #[serde(default)]
        schema: Option<serde_json::Value>,
    },
    /// Whether a response has the form of reasoning models: 1 or 0.
    Format {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The form of the whole response.
        format: Format,
    },
    /// The share of these tags that stand in a response exactly once.
    Tags {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The tags, such as `<think>` and `</think>`.
        tags: Vec<String>,
    },
    /// Minus the distance of the length to a target, as a share of the target; at least -1.
    Length {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The wanted number of tokens, the end token included; at least 1.
        target: usize,
    },
    /// The soft punishment of overlong responses (DAPO): from 0 to -1.
    Overlong {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// Tokens from which on the punishment is -1, at least 1. TRL: `max_completion_len`.
        max_length: usize,
        /// Tokens before that over which it falls from 0 to -1. TRL: `soft_punish_cache`.
        cache: usize,
    },
    /// The penalty of repeated sequences of tokens: from 0 to `max_penalty`.
    Repetition {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// Tokens of a sequence, at least 1. TRL: 3.
        #[serde(default = "three")]
        ngram_size: usize,
        /// The penalty of a response that only repeats itself, at most 0. TRL: -1.
        #[serde(default = "minus_one")]
        max_penalty: f64,
    },
    /// The share of the letters of a response that belong to some alphabets; 1 if it has no letters.
    Alphabet {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The alphabets, at least one.
        alphabets: Vec<Alphabet>,
    },
    /// A reward that the program computes by itself, from 0 to 1: that of one of its toy worlds.
    Gold {
        /// Its name in metrics. None: the kind.
        #[serde(default)]
        name: Option<String>,
        /// Its weight in the sum.
        #[serde(default = "one")]
        weight: f64,
        /// The world whose reward it is.
        world: Gold,
    },
}

/// What a regular expression has to match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegexMatch {
    /// Any part of the response.
    #[default]
    Anywhere,
    /// The response as a whole.
    Whole,
}

/// How the scores of an ensemble become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Combine {
    /// The mean of the scores.
    #[default]
    Mean,
    /// The lowest of the scores.
    Min,
    /// The mean minus `deviations` times the standard deviation (over the models, with divisor n).
    MeanMinusDeviations,
}

fn answer() -> String {
    "answer".to_owned()
}

fn any_place() -> AnswerPlace {
    AnswerPlace::Any
}

fn three() -> usize {
    3
}

fn minus_one() -> f64 {
    -1.0
}

fn grading() -> String {
    "Grade how well the response answers the request: whether it is correct, helpful, and no longer than it needs to be. \
     Explain the grade in a few sentences, then end with the grade, a number from 1 to 10 in double brackets, such as \
     [[5]].\n\n<request>\n{prompt}\n</request>\n\n<response>\n{response}\n</response>"
        .to_owned()
}

fn in_brackets() -> String {
    r"\[\[\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\]\]".to_owned()
}

fn ten() -> f64 {
    10.0
}

fn long_reply() -> usize {
    1024
}

fn openai() -> NoEffect<String> {
    NoEffect("https://api.openai.com/v1".to_owned())
}

fn openai_key() -> NoEffect<String> {
    NoEffect("OPENAI_API_KEY".to_owned())
}

fn eight() -> NoEffect<usize> {
    NoEffect(8)
}

fn one() -> f64 {
    1.0
}

fn minute() -> NoEffect<f64> {
    NoEffect(60.0)
}

fn retries() -> NoEffect<u32> {
    NoEffect(3)
}

fn per_request() -> NoEffect<usize> {
    NoEffect(64)
}

/// Upper limit of a time limit: a week.
const LONGEST_WAIT: f64 = 604_800.0;

impl Combine {
    /// One number from the scores of all models.
    pub(super) fn of(self, deviations: f64, scores: &[f64]) -> f64 {
        let count = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / count;
        match self {
            Combine::Mean => mean,
            // A NaN stays one: `f64::min` would hide it.
            Combine::Min => {
                scores.iter().copied().reduce(|a, b| if b < a || b.is_nan() { b } else { a }).unwrap_or(mean)
            }
            Combine::MeanMinusDeviations => {
                let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
                mean - deviations * variance.sqrt()
            }
        }
    }
}

impl RewardSource {
    /// All rewards of a run: that of `reward_model_path`, if given, with weight 1, and the others.
    pub(in crate::stage) fn list(reward_model: &ModelPath, others: &[RewardSource]) -> Vec<RewardSource> {
        let models = vec![reward_model.clone()];
        let model = RewardSource::Model { name: None, weight: 1.0, models, combine: Combine::Mean, deviations: 1.0 };
        let model = (!reward_model.as_os_str().is_empty()).then_some(model);
        model.into_iter().chain(others.iter().cloned()).collect()
    }

    /// The kind, as in `rewards[0].kind`.
    fn kind(&self) -> &'static str {
        match self {
            RewardSource::Model { .. } => "model",
            RewardSource::Command { .. } => "command",
            RewardSource::Http { .. } => "http",
            RewardSource::Judge { .. } => "judge",
            RewardSource::Mathematics { .. } => "mathematics",
            RewardSource::Regex { .. } => "regex",
            RewardSource::Json { .. } => "json",
            RewardSource::Format { .. } => "format",
            RewardSource::Tags { .. } => "tags",
            RewardSource::Length { .. } => "length",
            RewardSource::Overlong { .. } => "overlong",
            RewardSource::Repetition { .. } => "repetition",
            RewardSource::Alphabet { .. } => "alphabet",
            RewardSource::Gold { .. } => "gold",
        }
    }

    /// Name and weight.
    pub(super) fn name_and_weight(&self) -> (&str, f64) {
        let (RewardSource::Model { name, weight, .. }
        | RewardSource::Command { name, weight, .. }
        | RewardSource::Http { name, weight, .. }
        | RewardSource::Judge { name, weight, .. }
        | RewardSource::Mathematics { name, weight, .. }
        | RewardSource::Regex { name, weight, .. }
        | RewardSource::Json { name, weight, .. }
        | RewardSource::Format { name, weight, .. }
        | RewardSource::Tags { name, weight, .. }
        | RewardSource::Length { name, weight, .. }
        | RewardSource::Overlong { name, weight, .. }
        | RewardSource::Repetition { name, weight, .. }
        | RewardSource::Alphabet { name, weight, .. }
        | RewardSource::Gold { name, weight, .. }) = self;
        (name.as_deref().unwrap_or(self.kind()), *weight)
    }

    /// Checks ranges.
    fn check(&self) -> anyhow::Result<()> {
        check_range("weight", self.name_and_weight().1, f64::MIN..=f64::MAX)?;
        let patience = |timeout: f64| check_range("timeout", timeout, f64::MIN_POSITIVE..=LONGEST_WAIT);
        let check_fallback = |value: Option<f64>| check_range("fallback", value.unwrap_or(0.0), f64::MIN..=f64::MAX);
        match self {
            RewardSource::Model { models, deviations, .. } => {
                let given = !models.is_empty() && models.iter().all(|path| !path.as_os_str().is_empty());
                ensure!(given, "no reward model is given; say models: [DIR]");
                check_range("deviations", *deviations, 0.0..=f64::MAX)
            }
            RewardSource::Command { command, timeout, fallback, .. } => {
                let program = command.first().is_some_and(|program| !program.is_empty());
                ensure!(program, "command is empty; say command: [python3, reward.py]");
                check_fallback(*fallback)?;
                patience(**timeout)
            }
            RewardSource::Http { url, timeout, fallback, batch_size, .. } => {
                super::remote::check_address(url)?;
                check_count("batch_size", **batch_size as u64, crate::stage::keys::MOST_SEQUENCES)?;
                check_fallback(*fallback)?;
                patience(**timeout)
            }
            RewardSource::Judge {
                judge_model,
                base_url,
                temperature,
                max_tokens,
                fallback,
                concurrency,
                timeout,
                ..
            } => {
                ensure!(!judge_model.is_empty(), "no judge is given; say judge_model: its name on the server");
                http::check_address(base_url)?;
                Grades::of(self)?;
                Template::of(self)?;
                check_range("temperature", *temperature, 0.0..=f64::MAX)?;
                check_count("max_tokens", *max_tokens as u64, MOST_TOKENS)?;
                check_count("concurrency", **concurrency as u64, http::MOST_CALLS)?;
                check_fallback(*fallback)?;
                patience(**timeout)
            }
            RewardSource::Mathematics { column, .. } => {
                ensure!(!column.is_empty(), "column is empty; say column: answer");
                Ok(())
            }
            RewardSource::Tags { tags, .. } => {
                ensure!(!tags.is_empty() && tags.iter().all(|tag| !tag.is_empty()), "tags is empty, or a tag is");
                Ok(())
            }
            RewardSource::Length { target, .. } => check_count("target", *target as u64, MOST_TOKENS),
            RewardSource::Overlong { max_length, cache, .. } => {
                check_count("max_length", *max_length as u64, MOST_TOKENS)?;
                ensure!(cache <= max_length, "cache is {cache}, more than max_length, {max_length}");
                Ok(())
            }
            RewardSource::Repetition { ngram_size, max_penalty, .. } => {
                check_count("ngram_size", *ngram_size as u64, MOST_TOKENS)?;
                check_range("max_penalty", *max_penalty, f64::MIN..=0.0)
            }
            RewardSource::Alphabet { alphabets, .. } => {
                ensure!(!alphabets.is_empty(), "alphabets is empty; say alphabets: [latin]");
                Ok(())
            }
            RewardSource::Regex { .. } | RewardSource::Json { .. } => Rule::of(self).map(drop),
            RewardSource::Format { .. } | RewardSource::Gold { .. } => Ok(()),
        }
    }

    /// The columns of the data that it needs.
    pub(super) fn columns(&self) -> Vec<String> {
        match self {
            RewardSource::Http { labels, .. } => labels.iter().cloned().collect(),
            RewardSource::Mathematics { column, .. } => vec![column.clone()],
            RewardSource::Judge { template, .. } => Template::columns_of(template),
            _ => Vec::new(),
        }
    }

    /// Whether it is computed from texts or columns of the data.
    pub(in crate::stage) fn reads_text(&self) -> bool {
        !matches!(self, RewardSource::Model { .. })
    }
}

/// Checks a list of rewards next to a reward model.
///
/// # Errors
/// If a value is invalid, or two rewards have one name; the error names the place.
pub(in crate::stage) fn check(reward_model: &ModelPath, rewards: &[RewardSource]) -> anyhow::Result<()> {
    let alone = RewardSource::list(reward_model, &[]);
    let mut known: BTreeSet<&str> = alone.iter().map(|reward| reward.name_and_weight().0).collect();
    for (at, reward) in rewards.iter().enumerate() {
        reward.check().with_context(|| format!("rewards[{at}]"))?;
        let (name, _) = reward.name_and_weight();
        names::check_component("rewards", name)?;
        ensure!(
            known.insert(name),
            "rewards[{at}]: an earlier reward is called {name:?}, too; give this one another name: name: NAME"
        );
    }
    Ok(())
}
