//! The report of a recipe's run, from the files of the run: `resolved.json`, each stage's `stage.json`, `timings.json`
//! and `metrics.jsonl`, and the evaluation.
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{facts, pipeline};
use crate::{
    atomic,
    config::names::plain,
    input, metrics,
    report::{Arm, Judgments, Ordered, Report, Run, label},
    stage::{
        eval::{
            evaluate::{EVALUATION, EvaluateConfig},
            landscape::LANDSCAPE,
        },
        kind::{Kind, Shown},
        lifecycle::{record::Record, runner::seconds_of},
        table,
    },
};

/// The fields of `resolved.json` that the report needs.
#[derive(Deserialize)]
pub(super) struct Resolved {
    name: String,
    seed: Option<u64>,
    pub out: PathBuf,
    pub stages: Map<String, Value>,
}

/// Writes `report.html` and, if the run has an evaluation, `summary.json`. Returns the path of the page.
///
/// # Errors
/// If the directory is no run of a recipe, or a file in it cannot be read or written.
pub(crate) fn write(out: &Path) -> anyhow::Result<PathBuf> {
    let resolved: Resolved = read(&out.join("resolved.json"))
        .with_context(|| format!("{} is not a directory that `salsa run` filled", out.display()))?;
    let place = |name: &str| out.join(name).join(EVALUATION);
    let evaluated = resolved.stages.iter().rfind(|(name, _)| place(name).exists());
    let evaluation = evaluated.map(|(name, _)| place(name));
    let mut report: Report = evaluation.as_deref().map(read).transpose()?.unwrap_or_default();
    if let (None, Some(seed)) = (&evaluation, resolved.seed) {
        report.summary.seed = seed;
    }
    if let Some((name, stage)) = evaluated
        && let Ok(config) = EvaluateConfig::deserialize(&stage["config"])
    {
        // The run may have been moved.
        let place = |path: &Path| path.strip_prefix(&resolved.out).map_or(path.to_owned(), |inside| out.join(inside));
        config.shown_now(&mut report, &out.join(name), &place)?;
    }
    fill(&mut report, out, &resolved)?;
    let page = out.join("report.html");
    match evaluation {
        Some(_) => report.write(out)?,
        None => atomic::write(&page, report.html().as_bytes())?,
    }
    Ok(page)
}

/// Fills in everything but the evaluation.
fn fill(report: &mut Report, out: &Path, resolved: &Resolved) -> anyhow::Result<()> {
    let (mut lines, mut arms) = (Ordered::new(), Vec::new());
    for (name, stage) in &resolved.stages {
        let dir = out.join(name);
        let key = plain(name);
        if let Some(record) = Record::read(&dir.join("stage.json"))? {
            if kind_of(stage).is_some_and(|kind| kind.shown == Shown::Judgments) {
                report.judgments.push(Judgments::from_results(&label(&key), &record.results));
            }
            lines.insert(key.clone(), facts::lines(kind_of(stage), stage, &record.results, seconds_of(&dir)));
        }
        if let Some(seconds) = seconds_of(&dir) {
            report.summary.seconds.insert(key.clone(), seconds);
        }
        let kind = kind_of(stage);
        let shown = kind.map_or(Shown::Facts, |kind| kind.shown);
        if shown == Shown::Trajectory && !report.runs.iter().any(|run| run.arm == key) {
            report.runs.extend(metrics::read(&dir).ok().map(|rows| Run::from_metrics(&key, &rows)));
        }
        let landscape = dir.join(LANDSCAPE);
        if shown == Shown::Landscape && landscape.exists() {
            report.landscapes.push((label(&key), read(&landscape)?));
        }
        report.settings.extend(settings(name, stage));
        arms.push(Arm {
            label: label(&key),
            role: kind.map(|kind| (kind.role)(&stage["config"])).unwrap_or_default(),
            key,
        });
    }
    let shown = |key: &str| {
        report.summary.arms.iter().any(|(arm, _)| arm == key) || report.runs.iter().any(|run| run.arm == key)
    };
    if report.arms.is_empty() {
        report.arms = arms.into_iter().filter(|arm| shown(&arm.key)).collect();
    }
    if report.title.is_empty() {
        report.title = resolved.name.clone();
    }
    report.recipe = resolved.name.clone();
    report.threads = salsa_engine::threads();
    report.pipeline = pipeline::of(resolved, &lines);
    if report.summary.version.is_empty() {
        report.summary.version = env!("CARGO_PKG_VERSION").to_owned();
        report.summary.isa = salsa_engine::isa().to_owned();
    }
    Ok(())
}

/// The values that differ from the defaults, under dotted keys.
fn settings(name: &str, stage: &Value) -> Vec<(String, String)> {
    let defaults = kind_of(stage).map(|kind| (kind.defaults)()).unwrap_or_default();
    let config = stage["config"].as_object().into_iter().flatten();
    let changed = config.filter(|(key, value)| *key != "output_dir" && defaults.get(*key) != Some(value));
    let shown = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    changed.map(|(key, value)| (format!("{name}.{key}"), shown(value))).collect()
}

/// The kind of a stage, if this version knows it.
pub(super) fn kind_of(stage: &Value) -> Option<&'static Kind> {
    stage["kind"].as_str().and_then(table::find)
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> anyhow::Result<T> {
    let bytes = input::read(path)?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged; remove it and run again", path.display()))
}
