//! Output of a run for readers: `summary.json`, a table for the terminal, and `report.html`, one self-contained page.

mod columns;
mod comparisons;
#[cfg(test)]
mod fixture;
mod forest;
mod geometry;
mod glance;
mod history;
mod html;
mod judgments;
mod labels;
mod landscape;
mod number;
mod page;
mod pipeline;
mod plane;
mod profile;
mod scale;
mod sections;
mod study;
mod summary;
mod table;
#[cfg(test)]
mod tests;
mod versus;
mod xy;

pub(crate) use geometry::letter;
pub(crate) use geometry::{GeometryPart, SoupGeometry};
pub(crate) use judgments::Judgments;
pub(crate) use labels::label;
pub(crate) use landscape::{GridPoint, Landscape};
pub(crate) use study::variant;
pub(crate) use study::{
    ArmNumbers, BandPoint, CellNumbers, CellSet, Claim, Cost, DistanceAndGain, Frontier, FrontierPoint, LineOverSeeds,
    OverSeeds, Seconds, Signs, StudyArm, StudyFactor, StudyReport, Sweep, SweepPoint, study_table,
};
pub(crate) use summary::{Comparison, Contrast, Estimate, LandscapePoint, Ordered, PromptCount, SplitSummary, Summary};
pub(crate) use table::table;
pub(crate) use versus::{INTERVAL, Versus};

use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::{
    atomic,
    metrics::{Metrics, names},
};

/// The contents of `report.html`. Missing parts (empty list, `None`, NaN) are left out or shown as a gap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The headline: `"SALSA quickstart"`.
    pub title: String,
    /// One or two sentences about the run and its data.
    pub description: String,
    /// Name of the recipe.
    pub recipe: String,
    /// Number of threads.
    pub threads: usize,
    /// The numbers, as in `summary.json`.
    pub summary: Summary,
    /// Readable names of the arms, in the order of the arm keys in `summary`; an arm without an entry is named by its
    /// key.
    #[serde(default)]
    pub arms: Vec<Arm>,
    /// The stages and the data flow between them.
    #[serde(default)]
    pub pipeline: Pipeline,
    /// The RL runs, one per trained arm.
    #[serde(default)]
    pub runs: Vec<Run>,
    /// Reward landscapes, each with a heading.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub landscapes: Vec<(String, Landscape)>,
    /// Results of judges, stage by stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub judgments: Vec<Judgments>,
    /// Names of the models at the ends of the line in [`Summary::landscape`].
    #[serde(default)]
    pub line: Option<[String; 2]>,
    /// Prompts with the responses of the arms.
    #[serde(default)]
    pub samples: Vec<Sample>,
    /// Resolved recipe values: dotted key and value.
    #[serde(default)]
    pub settings: Vec<(String, String)>,
}

/// Readable description of an arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// The key in `summary.json`: `"ppo"`.
    pub key: String,
    /// The name: `"PPO"`.
    pub label: String,
    /// A short description: `"reference: SFT A"`.
    pub role: String,
}

/// The pipeline diagram: boxes on a grid, read from top to bottom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pipeline {
    /// The boxes.
    pub stages: Vec<Stage>,
    /// The arrows.
    pub flows: Vec<Flow>,
}

/// A box of the pipeline diagram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// The key that [`Flow`]s use; an arm's key gives the box the arm's colour.
    pub key: String,
    /// The name in the box.
    pub title: String,
    /// Short lines below it: `"600 steps"`, `"loss 1.23"`, `"12 s"`.
    pub facts: Vec<String>,
    /// Row from the top, from 0.
    pub row: u8,
    /// Column from the left, 0 to 2.
    pub column: u8,
}

/// An arrow of the pipeline diagram.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Key of the stage it starts from.
    pub from: String,
    /// Key of the stage it ends at.
    pub to: String,
    /// What is passed on: `"reference"`, `"start"`, `"score"`; may be empty.
    pub label: String,
}

/// The training history of one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Key of the arm.
    pub arm: String,
    /// The steps in order.
    pub points: Vec<Point>,
}

/// One step of a training history. `None` or NaN: not measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// The step.
    pub step: u64,
    /// Mean reward-model score.
    pub score: Option<f64>,
    /// Mean gold reward.
    pub gold: Option<f64>,
    /// KL per response to the run's own reference, nats.
    pub kl: Option<f64>,
    /// KL per response to each anchor, by its name, nats.
    #[serde(default)]
    pub kls: Ordered<Option<f64>>,
    /// Mean response length, tokens.
    pub length: Option<f64>,
    /// Mean entropy per token, nats.
    pub entropy: Option<f64>,
    /// Share of empty responses.
    pub empty: Option<f64>,
}

impl Run {
    /// Builds the history of `arm` from the rows of its `metrics.jsonl`, by the names in [`crate::metrics::names`].
    pub fn from_metrics(arm: &str, rows: &[(u64, Metrics)]) -> Run {
        let point = |(step, metrics): &(u64, Metrics)| Point {
            step: *step,
            score: metrics.get(names::SCORE),
            gold: metrics.get(names::GOLD),
            kl: metrics.get(names::KL),
            kls: kls(metrics),
            length: metrics.get(names::LENGTH),
            entropy: metrics.get(names::ENTROPY),
            empty: metrics.get(names::EMPTY),
        };
        Run { arm: arm.to_owned(), points: rows.iter().map(point).collect() }
    }
}

/// The KLs to anchors in the metrics of a step.
fn kls(metrics: &Metrics) -> Ordered<Option<f64>> {
    let measured = metrics.iter().filter(|(name, _)| *name != names::KL_COEF);
    Ordered(measured.filter_map(|(name, kl)| Some((name.strip_prefix(names::KL_TO)?.to_owned(), Some(kl)))).collect())
}

/// A prompt with the responses of several arms.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Key of its split.
    pub split: String,
    /// The prompt.
    pub prompt: String,
    /// The responses, in the order of the arms.
    pub answers: Vec<Answer>,
}

/// The response of an arm to a prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Key of the arm.
    pub arm: String,
    /// Its text.
    pub text: String,
    /// Gold reward, if the data has one.
    pub gold: Option<f64>,
    /// Reward-model score.
    pub score: Option<f64>,
}

impl Report {
    /// Renders the page: self-contained HTML without scripts or network access.
    pub fn html(&self) -> String {
        page::page(self)
    }

    /// Writes `summary.json` and `report.html` atomically into `dir`, which is created if absent.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> Result<()> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create the directory {}", dir.display()))?;
        let summary = serde_json::to_string_pretty(&self.summary).context("cannot write the summary as JSON")?;
        atomic::write(&dir.join("summary.json"), (summary + "\n").as_bytes())?;
        atomic::write(&dir.join("report.html"), self.html().as_bytes())
    }
}
