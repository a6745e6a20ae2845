//! Reads the measurements of finished cells from the files of their evaluations.
use std::path::Path;

use anyhow::{Context, ensure};
use serde::Deserialize;
use serde_json::Value;

use super::{
    config::Measure,
    plan::{Cell, Node, Study},
};
use crate::{
    input,
    report::{LandscapePoint, Report, SplitSummary},
    stage::{eval::evaluate::EVALUATION, lifecycle::record::Record},
};

/// The measurements of a cell's arm.
pub(super) struct Outcome {
    /// Set by set, in the order of the study.
    pub sets: Vec<OfSet>,
    /// Responses sampled in training, if recorded.
    pub episodes: Option<u64>,
}

/// An arm on one set of prompts.
pub(super) struct OfSet {
    /// One number for each prompt.
    pub rewards: Vec<f64>,
    /// The means.
    pub summary: SplitSummary,
}

/// The measurements of the models before RL.
pub(super) struct Before {
    /// Arm by arm, set by set; the sets in the order of the study.
    pub arms: Vec<(String, Vec<OfSet>)>,
    /// Rewards along the line between two of them.
    pub landscape: Vec<LandscapePoint>,
}

/// One line of a file of answers.
#[derive(Deserialize)]
struct Line {
    score: f64,
    gold: Option<f64>,
}

impl Study {
    /// The measurements of a cell; none if it is not done.
    ///
    /// # Errors
    /// If one of its files is damaged.
    pub(super) fn outcome(&self, cell: &Cell) -> anyhow::Result<Option<Outcome>> {
        let arm = &self.arms[cell.arm].name;
        let (Some(node), Some(trained)) = (self.node_of(cell, &self.base.evaluate), self.node_of(cell, arm)) else {
            return Ok(None);
        };
        if !node.is_done() {
            return Ok(None);
        }
        let report = evaluation(node)?;
        let episodes = record(trained)?.and_then(|results| results["episodes"].as_u64());
        Ok(Some(Outcome { sets: self.sets_of(node, &report, arm)?, episodes }))
    }

    /// The measurements of the models before RL; none if they are not evaluated yet, or there are none.
    ///
    /// # Errors
    /// If one of their files is damaged.
    pub(super) fn before(&self, node: &Node) -> anyhow::Result<Option<Before>> {
        if !node.is_done() {
            return Ok(None);
        }
        let report = evaluation(node)?;
        let of_arm = |arm: &String| Ok((arm.clone(), self.sets_of(node, &report, arm)?));
        let arms = report.summary.arms.iter().map(|(arm, _)| of_arm(arm)).collect::<anyhow::Result<_>>()?;
        Ok(Some(Before { arms, landscape: report.summary.landscape }))
    }

    fn sets_of(&self, node: &Node, report: &Report, arm: &str) -> anyhow::Result<Vec<OfSet>> {
        let of_set = |set: &String| {
            let path = node.dir.join(format!("answers-{arm}-{set}.jsonl"));
            let rewards = rewards(&path, self.measured.measure)?;
            let summary = report.summary.arms.get(arm).and_then(|sets| sets.get(set)).cloned();
            let summary = summary.with_context(|| format!("{} has no {arm} on {set}", node.dir.display()))?;
            Ok(OfSet { rewards, summary })
        };
        self.measured.sets.iter().map(of_set).collect()
    }
}

fn evaluation(node: &Node) -> anyhow::Result<Report> {
    let path = node.dir.join(EVALUATION);
    let bytes = input::read(&path)?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged; remove its directory", path.display()))
}

/// The results in the record of a stage.
pub(super) fn record(node: &Node) -> anyhow::Result<Option<Value>> {
    Ok(Record::read(&node.dir.join("stage.json"))?.map(|record| record.results))
}

/// One number for each line of a file of answers.
fn rewards(path: &Path, measure: Measure) -> anyhow::Result<Vec<f64>> {
    let text = input::read_to_string(path)?;
    let reward = |(at, line): (usize, &str)| {
        let place = || format!("{}:{}", path.display(), at + 1);
        let line: Line = serde_json::from_str(line).with_context(|| format!("{} is damaged", place()))?;
        match measure {
            Measure::ProxyScore => Ok(line.score),
            Measure::GoldReward => line.gold.with_context(|| format!("{} has no gold reward", place())),
        }
    };
    let rewards = text.lines().enumerate().map(reward).collect::<anyhow::Result<Vec<f64>>>()?;
    ensure!(!rewards.is_empty(), "{} holds no answer", path.display());
    Ok(rewards)
}
