//! What the cells of a study show together: the content of `study.json`, a table for the terminal, and the page.

mod charts;
mod page;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use table::study_table;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Ordered;

/// What `study.json` holds: every number that the page shows, and no clock.
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
    /// What is compared: `gold_reward` or `proxy_score`.
    pub measure: String,
    /// The model to which KL is measured; none if it is not measured.
    pub anchor: Option<String>,
    /// The sets of prompts that are reported.
    pub sets: Vec<String>,
    /// The set on which settings were chosen.
    pub validation: Option<String>,
    /// The factor whose values are the repetitions that intervals speak about; empty if there is none.
    pub unit: String,
    /// The largest difference that counts as none, in units of what is compared.
    pub margin: f64,
    /// What was varied.
    pub factors: Vec<StudyFactor>,
    /// The models before RL, set by set.
    pub before: Vec<StudyArm>,
    /// The arms, each at its chosen setting.
    pub arms: Vec<StudyArm>,
    /// The claims and what became of them.
    pub claims: Vec<Claim>,
    /// Reward against KL.
    pub frontiers: Vec<Frontier>,
    /// Each arm along each factor.
    pub sweeps: Vec<Sweep>,
    /// Reward along the line between two models, set by set.
    pub landscape: Vec<LineOverSeeds>,
    /// The gain of the first comparison against the distance of the soup's ingredients.
    pub distances: Vec<DistanceAndGain>,
    /// What each arm was trained with.
    pub costs: Vec<Cost>,
    /// Every cell that is done.
    pub cells: Vec<CellNumbers>,
    /// The cells that are not.
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

/// A mean over seeds; each seed counts the same.
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
    /// What is compared.
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

/// A claim and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// What is claimed, in a sentence.
    pub claim: String,
    /// What was measured, in a few words.
    pub measured: String,
    /// The set of prompts.
    pub set: String,
    /// The difference that the claim says is above 0; none if no seed has one.
    pub difference: Option<OverSeeds>,
    /// `supported`, `not supported` or `cannot tell`.
    pub verdict: String,
    /// Two-sided paired t test over seeds.
    pub p: Option<f64>,
    /// The same after Holm's correction for all claims of the study.
    pub p_holm: Option<f64>,
    /// Seeds in which the difference is above and below 0, and the exact sign test.
    pub signs: Option<Signs>,
    /// Seeds needed to find a difference of this size four times in five.
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
    /// The factor along which the points lie.
    pub along: String,
    /// One point for each of its values: the means over seeds.
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
    /// What is compared.
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
    /// The set of prompts; the validation set is among them.
    pub set: String,
    /// One for each value.
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
    /// What is compared.
    pub reward: OverSeeds,
}

/// One seed of the first comparison.
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

/// What an arm is trained with, in one cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// The arm.
    pub arm: String,
    /// The values of factors that are neither seeds nor chosen.
    pub at: Map<String, Value>,
    /// Stages by kind, in the order of the recipe.
    pub stages: Ordered<usize>,
    /// Tokens of supervised fine-tuning, all its stages together.
    pub sft_tokens: Option<u64>,
    /// Responses that RL sampled.
    pub episodes: Option<u64>,
}

/// One cell on every set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellNumbers {
    /// The arm.
    pub arm: String,
    /// The value of every factor.
    pub at: Map<String, Value>,
    /// The directory of its run, seen from that of the study.
    pub run: String,
    /// Set by set.
    pub sets: Ordered<CellSet>,
}

/// One cell on one set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CellSet {
    /// What is compared.
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

/// Wall-clock seconds of an arm's cell, all its stages together: the mean over cells. Not part of `study.json`.
pub(crate) type Seconds = Ordered<f64>;

impl StudyReport {
    /// The page: HTML that needs nothing else, no script, no network.
    pub(crate) fn html(&self, seconds: &Seconds) -> String {
        page::page(self, seconds)
    }

    /// What is compared, in words.
    pub(super) fn measured(&self) -> String {
        self.measure.replace('_', " ")
    }
}

/// An arm and what it is at, for people: `salsa`, `salsa, ingredients 3`.
pub(crate) fn variant(arm: &str, at: &Map<String, Value>) -> String {
    let mut name = super::label(arm);
    for (factor, value) in at {
        name += &format!(", {} {}", super::labels::spoken(factor), shown(value));
    }
    name
}

/// A value of a factor for people: texts without quotes, lists by their length if they are long.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" + ")
        }
        other => other.to_string(),
    }
}
