//! The stages of a recipe as a picture: who feeds whom, laid out in rows.
use std::path::Path;

use serde_json::Value;

use super::report::Resolved;
use crate::{
    config::{
        names::plain,
        paths::{PathKind, visit_strings},
    },
    report::{Flow, Ordered, Pipeline, Stage, label},
};

/// Keys whose models are only looked at, which would cover the picture with arrows.
const LOOKED_AT: &[&str] = &["anchors", "landscape", "runs", "tokenizer_name_or_path"];

/// The picture of a run; `facts` are the short lines in each box.
pub(super) fn of(resolved: &Resolved, facts: &Ordered<Vec<String>>) -> Pipeline {
    let keys: Vec<String> = resolved.stages.keys().map(|name| plain(name)).collect();
    if ["base", "sft_a", "sft_b", "reward", "ppo", "salsa"].iter().all(|key| keys.iter().any(|known| known == key)) {
        return Pipeline::salsa(facts);
    }
    let flows = flows(resolved);
    let is_shown = |key: &String| flows.iter().any(|flow| flow.from == *key || flow.to == *key);
    let shown: Vec<&String> = keys.iter().filter(|key| is_shown(key)).collect();
    let mut stages: Vec<Stage> = Vec::new();
    for (row, keys) in rows(&shown, &flows).into_iter().enumerate() {
        for (column, key) in columns(keys.len()).iter().zip(keys) {
            let facts = facts.get(&key).cloned().unwrap_or_default();
            let row = u8::try_from(row).unwrap_or(u8::MAX);
            stages.push(Stage { title: label(&key), key, facts, row, column: *column });
        }
    }
    Pipeline { stages, flows }
}

/// One arrow per pair of stages, with what flows on it.
fn flows(resolved: &Resolved) -> Vec<Flow> {
    let mut flows: Vec<Flow> = Vec::new();
    for (to, stage) in &resolved.stages {
        let mut config = stage["config"].clone();
        let mut visit = |kind: Option<PathKind>, place: &str, text: &str| {
            let from = stage_of(resolved, text).filter(|from| *from != to && kind == Some(PathKind::Model));
            let root = place.split(['.', '[']).next().unwrap_or_default();
            if let Some(from) = from.filter(|_| !LOOKED_AT.contains(&root)) {
                add(&mut flows, &plain(from), &plain(to), what(stage, root));
            }
            Ok(None)
        };
        visit_strings(&mut config, "", "", &mut visit).expect("this visit cannot fail");
    }
    flows
}

/// The stage in whose directory a path lies.
fn stage_of<'a>(resolved: &'a Resolved, path: &str) -> Option<&'a String> {
    let inside = Path::new(path).strip_prefix(&resolved.out).ok()?;
    resolved.stages.keys().find(|name| inside.starts_with(name.as_str()))
}

fn what(stage: &Value, key: &str) -> &'static str {
    match (stage["kind"].as_str(), key) {
        (Some("ppo"), "model_name_or_path") => "start",
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

/// The stages by their distance from the start, at most three in a row.
fn rows(keys: &[&String], flows: &[Flow]) -> Vec<Vec<String>> {
    let mut depths: Vec<usize> = Vec::new();
    for (i, key) in keys.iter().enumerate() {
        // Stages come after what they use, so the depths of those are known.
        let feeds = flows.iter().filter(|flow| flow.to == **key);
        let before = feeds.filter_map(|flow| keys[..i].iter().position(|from| **from == flow.from));
        depths.push(before.map(|from| depths[from] + 1).max().unwrap_or(0));
    }
    let deepest = depths.iter().max().map_or(0, |depth| depth + 1);
    let level = |depth| keys.iter().zip(&depths).filter(move |(_, at)| **at == depth).map(|(key, _)| (*key).clone());
    let levels = (0..deepest).map(|depth| level(depth).collect::<Vec<String>>());
    levels.flat_map(|level| level.chunks(3).map(<[String]>::to_vec).collect::<Vec<_>>()).collect()
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
        assert_eq!(flows, ["sft_a ppo start and reference", "sft_b ppo reference"]);
        let places: Vec<(&str, u8, u8)> =
            picture.stages.iter().map(|stage| (stage.key.as_str(), stage.row, stage.column)).collect();
        assert_eq!(places, [("sft_a", 0, 0), ("sft_b", 0, 2), ("ppo", 1, 1)]);
    }
}
