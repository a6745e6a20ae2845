//! Rewards that are decided by a rule.
use anyhow::{Context, ensure};
use regex::Regex;
use salsa_algo::rules::{
    alphabet::{self, Alphabet},
    format::{self, Format},
    length,
    mathematics::{self, AnswerPlace, Verdict},
    repetition,
};
use serde_json::{Map, Value};

use super::{
    Answered,
    config::{RegexMatch, RewardSource},
};
use crate::stage::gold::Gold;

/// A rule, ready to be applied.
pub(super) enum Rule {
    Mathematics { column: String, place: AnswerPlace },
    Regex(Regex),
    Json(Option<jsonschema::Validator>),
    Format(Format),
    Tags(Vec<String>),
    Length { target: usize },
    Overlong { limit: usize, cache: usize },
    Repetition { ngram: usize, max_penalty: f64 },
    Alphabet(Vec<Alphabet>),
    Gold(Gold),
}

/// The reward of a response by a rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Ruled {
    /// The reward.
    Reward(f64),
    /// The response cannot be read, which counts as 0.
    Unreadable,
}

/// The largest size of a compiled expression, in bytes.
const LARGEST_EXPRESSION: usize = 1 << 22;

impl Rule {
    /// The rule of a source; `None` if it is none.
    ///
    /// # Errors
    /// If an expression or a schema is invalid.
    pub(super) fn of(source: &RewardSource) -> anyhow::Result<Option<Rule>> {
        Ok(Some(match source {
            RewardSource::Model { .. }
            | RewardSource::Command { .. }
            | RewardSource::Http { .. }
            | RewardSource::Judge { .. } => return Ok(None),
            RewardSource::Mathematics { column, place, .. } => {
                Rule::Mathematics { column: column.clone(), place: *place }
            }
            RewardSource::Regex { pattern, matching, .. } => {
                let whole = match matching {
                    RegexMatch::Anywhere => pattern.clone(),
                    RegexMatch::Whole => format!("^(?:{pattern})$"),
                };
                let compiled = regex::RegexBuilder::new(&whole).size_limit(LARGEST_EXPRESSION).build();
                let pattern = compiled.with_context(|| format!("pattern {pattern:?} is no regular expression"))?;
                Rule::Regex(pattern)
            }
            RewardSource::Json { schema, .. } => Rule::Json(match schema {
                None => None,
                Some(schema) => {
                    let compiled = jsonschema::validator_for(schema);
                    Some(compiled.map_err(|error| anyhow::anyhow!("schema is no JSON schema: {error}"))?)
                }
            }),
            RewardSource::Format { format, .. } => Rule::Format(*format),
            RewardSource::Tags { tags, .. } => Rule::Tags(tags.clone()),
            RewardSource::Length { target, .. } => Rule::Length { target: *target },
            RewardSource::Overlong { max_length, cache, .. } => Rule::Overlong { limit: *max_length, cache: *cache },
            RewardSource::Repetition { ngram_size, max_penalty, .. } => {
                Rule::Repetition { ngram: *ngram_size, max_penalty: *max_penalty }
            }
            RewardSource::Alphabet { alphabets, .. } => Rule::Alphabet(alphabets.clone()),
            RewardSource::Gold { world, .. } => Rule::Gold(*world),
        }))
    }

    /// The reward of a response.
    pub(super) fn reward(&self, one: &Answered<'_>) -> Ruled {
        let yes = |is_so: bool| f64::from(u8::from(is_so));
        let text = one.text.as_str();
        Ruled::Reward(match self {
            Rule::Mathematics { column, place } => {
                let reference = one.columns.get(column).and_then(reference).unwrap_or_default();
                match mathematics::grade(&reference, text, *place) {
                    Verdict::Equal => 1.0,
                    Verdict::Different => 0.0,
                    Verdict::Unreadable(_) => return Ruled::Unreadable,
                }
            }
            Rule::Regex(pattern) => yes(pattern.is_match(text)),
            Rule::Json(schema) => {
                let value: Option<Value> = serde_json::from_str(text).ok();
                yes(value.is_some_and(|value| schema.as_ref().is_none_or(|schema| schema.is_valid(&value))))
            }
            Rule::Format(format) => yes(format::has_format(text, *format)),
            Rule::Tags(tags) => format::tags_once(text, &tags.iter().map(String::as_str).collect::<Vec<_>>()),
            Rule::Length { target } => length::target_length(one.tokens.len(), *target),
            Rule::Overlong { limit, cache } => length::soft_overlong_punishment(one.tokens.len(), *limit, *cache),
            Rule::Repetition { ngram, max_penalty } => repetition::repetition_penalty(one.tokens, *ngram, *max_penalty),
            // A response without letters has none of another alphabet.
            Rule::Alphabet(alphabets) => alphabet::share(text, alphabets).unwrap_or(1.0),
            Rule::Gold(world) => world.reward(one.prompt.last_words(), text),
        })
    }

    /// Checks the columns of a record.
    ///
    /// # Errors
    /// If a reference answer cannot be read.
    pub(super) fn check(&self, columns: &Map<String, Value>) -> anyhow::Result<()> {
        let Rule::Mathematics { column, .. } = self else { return Ok(()) };
        let value = columns.get(column).with_context(|| format!("there is no column {column:?}"))?;
        let text = reference(value).with_context(|| format!("{column} is {value}, neither text nor a number"))?;
        ensure!(!text.trim().is_empty(), "{column} is empty");
        mathematics::check_reference(&text).map_err(|refusal| anyhow::anyhow!("{column} cannot be compared: {refusal}"))
    }
}

/// A reference answer as text.
fn reference(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
