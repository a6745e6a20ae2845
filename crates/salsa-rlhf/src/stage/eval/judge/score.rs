//! Scores from rows by the rule of each tool, and additional statistics: an interval over prompts, position bias,
//! lengths.
use std::collections::{BTreeMap, BTreeSet};

use salsa_algo::{
    judge::{
        alpaca::{self as length, Form, Gamed, Instruction},
        pair::{self, PositionBias},
        style::{FEATURES, Scale, Style},
        units::{self, Unit},
    },
    stats::{Interval, Resampling},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::protocol::{
    Protocol,
    alpaca::Annotation,
    arena::ArenaRow,
    mt_bench::{PairRow, SingleRow},
};

mod alpaca;
mod arena;
mod fastchat;
#[cfg(test)]
mod tests;

/// Whether Arena-Hard's scores are controlled for style.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StyleControl {
    /// Scores are not controlled.
    #[default]
    None,
    /// As computed by the tool, including its optimiser, which in v2 stops before the optimum.
    Compat,
    /// The same model at its optimum.
    Exact,
}

/// A feature that style control accounts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StyleFeature {
    /// The number of tokens.
    Length,
    /// Headers, lists and bold passages.
    Markdown,
}

/// Rows of a tool's file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    /// FastChat's grades.
    Single(Vec<SingleRow>),
    /// FastChat's pairs.
    Pair(Vec<PairRow>),
    /// Arena-Hard's games.
    Arena(Vec<ArenaRow>),
    /// AlpacaEval's annotations.
    Alpaca(Vec<Annotation>),
}

/// How rows are counted.
pub(super) struct Counting<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The model to compare the others with; may be empty.
    pub baseline: &'a str,
    /// Resampling of the interval over prompts.
    pub how: Resampling,
    /// Arena-Hard's style control.
    pub style: StyleControl,
    /// Which of the four features are controlled.
    pub controlled: [bool; FEATURES],
    /// A fixed scale of the features.
    pub scale: Option<Scale>,
    /// The style of a model's answer to a question.
    pub style_of: &'a dyn Fn(&str, &str) -> Option<Style>,
    /// The characters of a model's answer to a question.
    pub length_of: &'a dyn Fn(&str, &str) -> Option<usize>,
    /// The category of a question.
    pub category_of: &'a dyn Fn(&str) -> Option<String>,
    /// AlpacaEval: the difficulty of each instruction, in the order of the set.
    pub difficulties: Option<Vec<f64>>,
    /// AlpacaEval: rows of the gamed baseline.
    pub gamed: Option<Vec<Gamed>>,
}

impl Rows {
    /// The number of rows.
    pub(super) fn len(&self) -> usize {
        match self {
            Rows::Single(rows) => rows.len(),
            Rows::Pair(rows) => rows.len(),
            Rows::Arena(rows) => rows.len(),
            Rows::Alpaca(rows) => rows.len(),
        }
    }

    /// Removes later rows with the same subject; returns their number.
    pub(super) fn remove_duplicates(&mut self) -> usize {
        let before = self.len();
        match self {
            Rows::Single(rows) => retain_first(rows, |row| json!([row.question_id, row.model, row.judge, row.turn])),
            Rows::Pair(rows) => {
                retain_first(rows, |row| json!([row.question_id, row.model_1, row.model_2, row.judge, row.turn]));
            }
            Rows::Arena(rows) => retain_first(rows, |row| json!([row.uid, row.model, row.baseline, row.judge])),
            Rows::Alpaca(rows) => {
                retain_first(rows, |row| json!([row.instruction, row.generator_1, row.generator_2, row.annotator]));
            }
        }
        before - self.len()
    }

    /// The score of every model, with the rule of its computation.
    ///
    /// # Errors
    /// If style control lacks the style of an answer, or difficulties do not match the instructions.
    pub(super) fn scores(&self, counting: &Counting<'_>) -> anyhow::Result<Value> {
        match self {
            Rows::Single(rows) => Ok(fastchat::singles(rows, counting)),
            Rows::Pair(rows) => Ok(fastchat::pairs(rows, counting)),
            Rows::Arena(rows) => arena::arenas(rows, counting),
            Rows::Alpaca(rows) => alpaca::alpacas(rows, counting),
        }
    }
}

fn retain_first<T>(rows: &mut Vec<T>, key: impl Fn(&T) -> Value) {
    let mut seen = BTreeSet::new();
    rows.retain(|row| seen.insert(key(row).to_string()));
}

/// A map from names to values, sorted by name.
fn by_name(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let sorted: BTreeMap<String, Value> = entries.into_iter().collect();
    Value::Object(sorted.into_iter().collect::<Map<_, _>>())
}

fn ends(interval: Interval, factor: f64) -> Value {
    json!([interval.low * factor, interval.high * factor])
}

/// The interval over prompts of `(prompt key, value, weight)` entries.
fn over_prompts(values: impl IntoIterator<Item = (String, f64, f64)>, counting: &Counting<'_>, factor: f64) -> Value {
    let mut of: BTreeMap<String, Unit> = BTreeMap::new();
    values.into_iter().for_each(|(key, value, weight)| of.entry(key).or_default().add(value, weight));
    let found: Vec<Unit> = of.into_values().collect();
    units::mean(&found, &counting.how).map_or(Value::Null, |estimate| ends(estimate.interval, factor))
}

fn bias(rows: impl IntoIterator<Item = pair::Row>) -> Value {
    let bias = PositionBias::of(rows);
    json!({
        "rows": bias.rows, "orders_disagree": bias.disagree, "share": bias.share(),
        "first_shown_won_both": bias.first_shown, "second_shown_won_both": bias.second_shown,
    })
}

/// Adds mean lengths, and the win rate at equal length if it can be fitted.
fn add_lengths(found: &mut Value, instructions: &[Instruction]) {
    if instructions.is_empty() {
        return;
    }
    let n = instructions.len() as f64;
    let mean = |of: &dyn Fn(&Instruction) -> usize| instructions.iter().map(|i| of(i) as f64).sum::<f64>() / n;
    let (own, other) = (mean(&|i| i.length), mean(&|i| i.baseline_length));
    found["mean_characters"] = json!(own);
    found["mean_characters_of_the_other"] = json!(other);
    found["mean_length_difference"] = json!(own - other);
    if let Some(controlled) = length::length_controlled(instructions, Form::Minimal) {
        found["win_rate_at_equal_length"] = json!({
            "rule": "AlpacaEval's length_controlled_minimal: logistic regression on tanh of the standardised difference of \
                     lengths and a constant, at difference 0; in percent",
            "win_rate": controlled.win_rate, "coefficient_of_length": controlled.coefficients[1],
        });
    }
}
