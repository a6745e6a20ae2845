//! The combined results of a study's cells: the content of `study.json`, a table for the terminal, and the page.

mod charts;
mod page;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use table::study_table;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Ordered;

/// The contents of `study.json`: every number on the page, without timings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StudyReport {
    /// Version of the program.
    pub version: String,
    /// The instruction set of the kernels.
    pub isa: String,
    /// Name of the study.
    pub name: String,
    /// The heading of the page.
    pub title: String,
    /// One or two sentences below it.
    pub description: String,
    /// The base recipe.
    pub recipe: String,
    /// The compared quantity: `gold_reward` or `proxy_score`.
    pub measure: String,
    /// The model that KL is measured to; none if it is not measured.
    pub anchor: Option<String>,
    /// The sets of prompts that are reported.
    pub sets: Vec<String>,
    /// The set on which settings were chosen; none if nothing was chosen.
    pub validation: Option<String>,
    /// The factor whose values are the repetitions over which intervals are computed; empty if there is none.
    pub unit: String,
    /// The largest difference that counts as none, in units of the compared quantity.
    pub margin: f64,
    /// The varied factors.
    pub factors: Vec<StudyFactor>,
    /// The models before RL, set by set.
    pub before: Vec<StudyArm>,
    /// The arms, each at its chosen setting.
    pub arms: Vec<StudyArm>,
    /// The claims and their verdicts.
    pub claims: Vec<Claim>,
    /// Reward against KL.
    pub frontiers: Vec<Frontier>,
    /// Each arm along each factor.
    pub sweeps: Vec<Sweep>,
    /// Reward along the line between two models, set by set.
    pub landscape: Vec<LineOverSeeds>,
    /// The gain of the first comparison against the distance of the soup's ingredients.
    pub distances: Vec<DistanceAndGain>,
    /// The training costs of each arm.
    pub costs: Vec<Cost>,
    /// The finished cells.
    pub cells: Vec<CellNumbers>,
    /// The unfinished cells.
    pub missing: Vec<String>,
}

/// A factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StudyFactor {
    /// Its name.
    pub name: String,
    /// `seed`, `chosen` or `setting`.
    pub role: String,
    /// Its values.
    pub values: Vec<Value>,
}

/// A mean over seeds, all weighted equally.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct OverSeeds {
    /// The mean of the seeds' means.
    pub mean: f64,
    /// Its 95 % interval, Student's t on the seeds' means; none for one seed.
    pub ci95: Option<[f64; 2]>,
    /// The mean of each seed.
    pub seeds: Ordered<f64>,
}

/// An arm on every reported set, at its chosen setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct StudyArm {
    /// The arm.
    pub arm: String,
    /// The values of factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// The values that were chosen on the validation set.
    pub chosen: Map<String, Value>,
    /// Set by set.
    pub sets: Ordered<ArmNumbers>,
}

/// An arm on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmNumbers {
    /// The compared quantity.
    pub reward: OverSeeds,
    /// The score of the reward model.
    pub proxy_score: OverSeeds,
    /// KL to the anchor, nats per response.
    pub kl: Option<OverSeeds>,
    /// Tokens per response.
    pub length: OverSeeds,
    /// Share of empty responses.
    pub empty: OverSeeds,
}

/// A claim and its verdict.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The claim as a sentence.
    pub claim: String,
    /// The measured quantity, in a few words.
    pub measured: String,
    /// The set of prompts.
    pub set: String,
    /// The difference, claimed to be above 0; none if no seed has one.
    pub difference: Option<OverSeeds>,
    /// `supported`, `not supported` or `cannot tell`.
    pub verdict: String,
    /// Two-sided paired t test over seeds.
    pub p: Option<f64>,
    /// The same after Holm's correction for all claims of the study.
    pub p_holm: Option<f64>,
    /// Seeds in which the difference is above and below 0, and the exact sign test.
    pub signs: Option<Signs>,
    /// Seeds needed to detect a difference of this size with a power of 80 %.
    pub seeds_needed: Option<usize>,
    /// Seeds that could not be compared.
    pub excluded: Vec<String>,
}

/// The sign test over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Signs {
    /// Seeds with a difference above 0.
    pub above: usize,
    /// Seeds with a difference below 0.
    pub below: usize,
    /// Exact, two-sided.
    pub p: f64,
}

/// Reward against KL of one arm on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Frontier {
    /// The arm.
    pub arm: String,
    /// The values of factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// The set of prompts.
    pub set: String,
    /// The factor that varies along the points.
    pub along: String,
    /// One point per value of the factor: the means over seeds.
    pub points: Vec<FrontierPoint>,
    /// The mean curve over the KL that all seeds reach, and its band.
    pub band: Vec<BandPoint>,
}

/// A measured point of a frontier.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct FrontierPoint {
    /// The value of the factor.
    pub value: Value,
    /// KL to the anchor, nats per response.
    pub kl: OverSeeds,
    /// The compared quantity.
    pub reward: OverSeeds,
}

/// A point of a mean curve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct BandPoint {
    /// KL to the anchor, nats per response.
    pub kl: f64,
    /// The mean of the seeds' curves.
    pub reward: f64,
    /// Its 95 % interval.
    pub ci95: Option<[f64; 2]>,
}

/// One arm along the values of a factor, the other chosen factors at their chosen values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sweep {
    /// The factor.
    pub factor: String,
    /// The arm.
    pub arm: String,
    /// The values of other factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// The set of prompts, including the validation set.
    pub set: String,
    /// One point per value.
    pub points: Vec<SweepPoint>,
}

/// An arm at one value of a factor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SweepPoint {
    /// The value.
    pub value: Value,
    /// The numbers.
    pub numbers: ArmNumbers,
}

/// Reward on the line between two models, over seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LineOverSeeds {
    /// The set of prompts.
    pub set: String,
    /// Weight of the second model.
    pub alpha: f64,
    /// The compared quantity.
    pub reward: OverSeeds,
}

/// Distance and gain of one seed, for the first comparison.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct DistanceAndGain {
    /// The seed.
    pub seed: String,
    /// The values of factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// Mean Euclidean distance of the soup's ingredients from each other.
    pub distance: f64,
    /// Difference of the two arms, set by set.
    pub gains: Ordered<f64>,
}

/// The training costs of an arm, in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The arm.
    pub arm: String,
    /// The values of factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// Stages by kind, in the order of the recipe.
    pub stages: Ordered<usize>,
    /// Tokens of supervised fine-tuning, over all its stages.
    pub sft_tokens: Option<u64>,
    /// Responses that RL sampled.
    pub episodes: Option<u64>,
}

/// The numbers of one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellNumbers {
    /// The arm.
    pub arm: String,
    /// The value of every factor.
    pub at: Map<String, Value>,
    /// The directory of its run, relative to that of the study.
    pub run: String,
    /// Set by set.
    pub sets: Ordered<CellSet>,
}

/// The numbers of one cell on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellSet {
    /// The compared quantity.
    pub reward: f64,
    /// The score of the reward model.
    pub proxy_score: f64,
    /// KL to the anchor, nats per response.
    pub kl: Option<f64>,
    /// Tokens per response.
    pub length: f64,
    /// Share of empty responses.
    pub empty: f64,
}

/// Wall-clock seconds of an arm's cell over all its stages: the mean over cells. Not part of `study.json`.
pub(crate) type Seconds = Ordered<f64>;

impl StudyReport {
    /// Renders the page: self-contained HTML without scripts or network access.
    pub(crate) fn html(&self, seconds: &Seconds) -> String {
        page::page(self, seconds)
    }

    /// The readable name of the compared quantity.
    pub(super) fn measured(&self) -> String {
        self.measure.replace('_', " ")
    }
}

/// The readable name of an arm and its factor values: `salsa`, `salsa, ingredients 3`.
pub(crate) fn variant(arm: &str, at: &Map<String, Value>) -> String {
    let mut name = super::label(arm);
    for (factor, value) in at {
        name += &format!(", {} {}", super::labels::spoken(factor), shown(value));
    }
    name
}

/// The readable form of a factor's value: texts without quotes, long lists by their length.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" + ")
        }
        other => other.to_string(),
    }
}
