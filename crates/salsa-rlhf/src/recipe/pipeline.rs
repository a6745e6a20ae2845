//! The data flow between the stages of a recipe, as a diagram in rows.
use std::path::Path;

use serde_json::Value;

use super::report::{Resolved, kind_of};
use crate::{
    config::{names::plain, paths::PathKind},
    report::{Flow, Ordered, Pipeline, Stage, label},
    stage::{
        kind::{Shown, Stage as _},
        soup::SoupConfig,
    },
};

/// Keys of models that are used for analysis only; their arrows would clutter the diagram.
const LOOKED_AT: &[&str] = &["anchors", "landscape", "runs", "tokenizer_name_or_path"];

/// Prefix of the box key of a model that no stage makes; no stage has such a name.
const OUTSIDE: &str = "outside ";

/// The diagram of a run; `facts` are the short lines in each box.
pub(super) fn of(resolved: &Resolved, facts: &Ordered<Vec<String>>) -> Pipeline {
    let mut flows = flows(resolved);
    keep_last_models(resolved, &mut flows);
    let outside = flows.iter().map(|flow| &flow.from).filter(|from| from.starts_with(OUTSIDE)).cloned();
    let keys = outside.chain(resolved.stages.keys().map(|name| plain(name)));
    let mut shown: Vec<String> = Vec::new();
    for key in keys.filter(|key| flows.iter().any(|flow| flow.from == *key || flow.to == *key)) {
        if !shown.contains(&key) {
            shown.push(key);
        }
    }
    let mut stages: Vec<Stage> = Vec::new();
    for (row, keys) in rows(&shown, &flows).into_iter().enumerate() {
        for (column, key) in columns(keys.len()).iter().zip(keys) {
            let facts = facts.get(&key).cloned().unwrap_or_default();
            let row = u8::try_from(row).unwrap_or(u8::MAX);
            stages.push(Stage { title: title(&key), key, facts, row, column: *column });
        }
    }
    Pipeline { stages, flows }
}

/// The title of a box: the name of a stage, or the folder of a model from outside.
fn title(key: &str) -> String {
    match key.strip_prefix(OUTSIDE) {
        Some(path) => Path::new(path).file_name().map_or(path.into(), |name| name.to_string_lossy().into_owned()),
        None => label(key),
    }
}

/// One arrow per pair of stages, labelled with what is passed.
fn flows(resolved: &Resolved) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    for (to, stage) in &resolved.stages {
        let soup = soup_stage(resolved, &stage["config"]["reference"]);
        if let Some(soup) = soup {
            add(&mut flows, &plain(soup), &plain(to), "reference");
        }
        let mut config = stage["config"].clone();
        // A configuration of another version may not be valid for this kind; its box has no arrows then.
        let kind = kind_of(stage);
        let places = kind.and_then(|kind| (kind.places)(&config)).unwrap_or_default();
        let mut visit = |kind: PathKind, place: &str, text: &str| {
            let root = place.split(['.', '[']).next().unwrap_or_default();
            let is_drawn = kind == PathKind::Model
                && !text.is_empty()
                && !LOOKED_AT.contains(&root)
                && (root != "reference" || soup.is_none());
            let from = match stage_of(resolved, text) {
                Some(from) if from == to => None,
                Some(from) => Some(plain(from)),
                None => (root == "model_name_or_path").then(|| format!("{OUTSIDE}{text}")),
            };
            if let Some(from) = from.filter(|_| is_drawn) {
                add(&mut flows, &from, &plain(to), what(stage, root));
            }
            Ok(None)
        };
        places.visit(&mut config, &mut visit).expect("this visit cannot fail");
    }
    flows
}

/// Reduces the arrows to an evaluation, whose box lists its arms, to models that feed nothing else, if there are some.
fn keep_last_models(resolved: &Resolved, flows: &mut Vec<Flow>) {
    let evaluations =
        resolved.stages.iter().filter(|(_, stage)| kind_of(stage).is_some_and(|kind| kind.shown == Shown::Evaluation));
    let evaluations: Vec<String> = evaluations.map(|(name, _)| plain(name)).collect();
    let feeds: Vec<String> =
        flows.iter().filter(|flow| !evaluations.contains(&flow.to)).map(|flow| flow.from.clone()).collect();
    let is_last = |flow: &Flow| !feeds.contains(&flow.from);
    for evaluation in evaluations {
        if flows.iter().any(|flow| flow.to == evaluation && is_last(flow)) {
            flows.retain(|flow| flow.to != evaluation || is_last(flow));
        }
    }
}

/// The stage that makes the soup used as this reference: a run may average the models itself, with the same result.
fn soup_stage<'a>(resolved: &'a Resolved, reference: &Value) -> Option<&'a String> {
    if reference["kind"] != "soup" {
        return None;
    }
    let equal = |models: &Value| models.as_array().map_or(0, Vec::len);
    let weights = |soup: &Value| match soup["weights"].as_array() {
        Some(weights) if !weights.is_empty() => Value::Array(weights.clone()),
        _ => vec![1.0 / equal(&soup["models"]) as f64; equal(&soup["models"])].into(),
    };
    let is_it = |soup: &Value| soup["models"] == reference["models"] && weights(soup) == weights(reference);
    let mut soups = resolved.stages.iter().filter(|(_, stage)| stage["kind"] == SoupConfig::NAME);
    soups.find(|(_, stage)| is_it(&stage["config"])).map(|(name, _)| name)
}

/// The stage whose directory contains a path.
fn stage_of<'a>(resolved: &'a Resolved, path: &str) -> Option<&'a String> {
    let inside = Path::new(path).strip_prefix(&resolved.out).ok()?;
    resolved.stages.keys().find(|name| inside.starts_with(name.as_str()))
}

fn what(stage: &Value, key: &str) -> &'static str {
    match (stage["config"]["reference"].is_object(), key) {
        // A stage with a reference is trained away from its start.
        (true, "model_name_or_path") => "start",
        (_, "reference") => "reference",
        (_, "reward_model_path") => "score",
        _ => "",
    }
}

fn add(flows: &mut Vec<Flow>, from: &str, to: &str, label: &str) {
    match flows.iter_mut().find(|flow| flow.from == from && flow.to == to) {
        Some(flow) if flow.label.is_empty() => flow.label = label.to_owned(),
        Some(flow) if !label.is_empty() && !flow.label.contains(label) => flow.label += &format!(" and {label}"),
        Some(_) => {}
        None => flows.push(Flow { from: from.to_owned(), to: to.to_owned(), label: label.to_owned() }),
    }
}

/// The stages by their distance from the start, at most three in a row, each row sorted by the positions of its inputs.
fn rows(keys: &[String], flows: &[Flow]) -> Vec<Vec<String>> {
    let mut depths: Vec<usize> = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        // Stages come after their inputs, whose depths are therefore known.
        let feeds = flows.iter().filter(|flow| flow.to == *key);
        let before = feeds.filter_map(|flow| keys[..i].iter().position(|from| *from == flow.from));
        depths.push(before.map(|from| depths[from] + 1).max().unwrap_or(0));
    }
    let deepest = depths.iter().max().map_or(0, |depth| depth + 1);
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut places: Ordered<f64> = Ordered::new();
    for depth in 0..deepest {
        let here = keys.iter().zip(&depths).filter(|(_, at)| **at == depth).map(|(key, _)| key);
        let mut level: Vec<(f64, String)> = here.map(|key| (mean_place(key, flows, &places), key.clone())).collect();
        level.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        for row in level.chunks(3) {
            for (column, (_, key)) in columns(row.len()).iter().zip(row) {
                places.insert(key, f64::from(*column));
            }
            rows.push(row.iter().map(|(_, key)| key.clone()).collect());
        }
    }
    rows
}

/// The mean column of a stage's inputs; the middle for a stage without inputs.
fn mean_place(key: &str, flows: &[Flow], places: &Ordered<f64>) -> f64 {
    let feeds: Vec<f64> =
        flows.iter().filter(|flow| flow.to == key).filter_map(|flow| places.get(&flow.from).copied()).collect();
    if feeds.is_empty() { 1.0 } else { feeds.iter().sum::<f64>() / feeds.len() as f64 }
}

fn columns(count: usize) -> &'static [u8] {
    match count {
        1 => &[1],
        2 => &[0, 2],
        _ => &[0, 1, 2],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn arrows_follow_the_models_and_rows_the_arrows() {
        let resolved: Resolved = serde_json::from_value(json!({
            "name": "x", "out": "runs/x", "stages": {
                "data": {"kind": "kitchen", "config": {}},
                "sft-a": {"kind": "sft", "config": {"model_name_or_path": "base", "dataset": "runs/x/data/sft.jsonl"}},
                "sft-b": {"kind": "sft", "config": {"model_name_or_path": "base"}},
                "ppo": {"kind": "ppo", "config": {
                    "model_name_or_path": "runs/x/sft-a",
                    "reference": {"kind": "soup", "models": ["runs/x/sft-a", "runs/x/sft-b"]},
                    "anchors": {"b": "runs/x/sft-b"}
                }},
            }
        }))
        .unwrap();
        let picture = of(&resolved, &Ordered::new());
        let flows: Vec<String> =
            picture.flows.iter().map(|flow| format!("{} {} {}", flow.from, flow.to, flow.label)).collect();
        let expected =
            ["outside base sft_a ", "outside base sft_b ", "sft_a ppo start and reference", "sft_b ppo reference"];
        assert_eq!(flows, expected);
        let places: Vec<(&str, u8, u8)> =
            picture.stages.iter().map(|stage| (stage.key.as_str(), stage.row, stage.column)).collect();
        assert_eq!(places, [("outside base", 0, 1), ("sft_a", 1, 0), ("sft_b", 1, 2), ("ppo", 2, 1)]);
        assert_eq!(picture.stages[0].title, "base");
    }
    #[test]
    fn a_reference_that_a_soup_stage_makes_is_drawn_from_that_stage() {
        let models = json!(["runs/x/sft-a", "runs/x/sft-b"]);
        let of_weights = |of_stage: Value, of_reference: Value| {
            let resolved: Resolved = serde_json::from_value(json!({
                "name": "x", "out": "runs/x", "stages": {
                    "sft-a": {"kind": "sft", "config": {}},
                    "sft-b": {"kind": "sft", "config": {}},
                    "soup": {"kind": "soup", "config": {"models": models, "weights": of_stage}},
                    "salsa": {"kind": "ppo", "config": {
                        "reference": {"kind": "soup", "models": models, "weights": of_reference}
                    }},
                }
            }))
            .unwrap();
            let flows = flows(&resolved);
            flows.iter().filter(|flow| flow.to == "salsa").map(|flow| flow.from.clone()).collect::<Vec<_>>()
        };
        assert_eq!(of_weights(json!([0.5, 0.5]), json!([0.5, 0.5])), ["soup"]);
        assert_eq!(of_weights(json!([]), json!([0.5, 0.5])), ["soup"]);
        assert_eq!(of_weights(json!([0.25, 0.75]), json!([0.5, 0.5])), ["sft_a", "sft_b"]);
    }
}
