//! Evaluations of tiny models, checked by their output files.
use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::{
    report,
    stage::{
        eval::winrate::{self, WinrateConfig},
        fixture,
        text::source::DataSource,
    },
};

/// Two models, a copy of one with a shorter context, and a reward model, all from one base.
struct World(tempfile::TempDir);

/// Positions of the model with a shorter context.
const SHORT: usize = 24;

impl World {
    fn new() -> World {
        let world = World(tempfile::tempdir().unwrap());
        let base = fixture::base(world.0.path());
        fixture::variants(&base, &[("other", 7, |_| ()), ("short", 7, |spec| spec.max_positions = SHORT)]);
        fixture::reward_model(&base);
        let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
        fixture::write_lines(&world.path("prompts.jsonl"), &prompts);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn models(&self, names: &[(&str, &str)]) -> BTreeMap<String, ModelSource> {
        names.iter().map(|(name, dir)| ((*name).to_owned(), ModelSource::Path(self.path(dir).into()))).collect()
    }

    fn config(&self) -> EvaluateConfig {
        EvaluateConfig {
            arms: self.models(&[("sft_a", "base"), ("salsa", "other")]),
            datasets: vec![EvalSet {
                name: "test".to_owned(),
                dataset: DataSource::Path(self.path("prompts.jsonl").into()),
                max_prompts: None,
            }],
            reward_model_path: self.path("reward").into(),
            anchors: self.models(&[("sft_a", "base")]),
            max_new_tokens: 5,
            output_dir: self.path("out"),
            ..EvaluateConfig::default()
        }
    }
}

/// The numbers of an arm in the file.
fn numbers(config: &EvaluateConfig, arm: &str) -> Value {
    let text = fs::read(config.output_dir.join(EVALUATION)).unwrap();
    serde_json::from_slice::<Value>(&text).unwrap()["summary"]["arms"][arm]["test"].clone()
}

fn written(config: &EvaluateConfig) -> Report {
    serde_json::from_slice(&fs::read(config.output_dir.join(EVALUATION)).unwrap()).unwrap()
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let world = World(tempfile::tempdir().unwrap());
    let refused = |change: fn(&mut EvaluateConfig)| {
        let mut config = world.config();
        change(&mut config);
        config.validate().unwrap_err().to_string()
    };
    let none = refused(|c| c.datasets[0].max_prompts = Some(0));
    assert!(none.contains("max_prompts of \"test\" is 0"), "{none}");
    assert!(refused(|c| c.baseline = "ppo".to_owned()).contains("\"ppo\", which is not among the arms"));
    let taken = refused(|c| {
        let anchor = c.anchors["sft_a"].clone();
        c.anchors.insert("a_ci95".to_owned(), anchor);
    });
    assert!(taken.contains("\"a_ci95\""), "{taken}");
}

#[test]
fn one_prompt_has_means_and_no_intervals() {
    let world = World::new();
    let mut config = world.config();
    config.datasets[0].max_prompts = Some(1);
    config.comparisons = vec![("salsa".to_owned(), "sft_a".to_owned())];
    run(&config, &fixture::quiet()).unwrap();
    let numbers = numbers(&config, "salsa");
    assert!(numbers["proxy_score"]["mean"].is_f64() && numbers["kl_sft_a"].is_f64(), "{numbers}");
    for interval in [&numbers["proxy_score"]["ci95"], &numbers["kl_sft_a_ci95"], &numbers["length_ci95"]] {
        assert_eq!(*interval, json!([null, null]));
    }
    let report = written(&config);
    let difference = report.summary.comparisons.iter().find(|c| c.metric == Contrast::ProxyDifference).unwrap();
    assert!(difference.estimate.mean.is_finite() && difference.estimate.ci95[0].is_nan());
    let table = report::table(&report.summary, usize::MAX);
    let score = table.lines().nth(3).unwrap().split_whitespace().nth(2).unwrap();
    assert!(!table.contains('–') && !score.starts_with('['), "{table}");
    let html = report.html();
    assert!(!html.contains("– to –") && !html.contains("(–)"), "an interval that is none is shown");
}

#[test]
fn anchors_and_baseline_go_by_their_names() {
    let world = World::new();
    let config = EvaluateConfig {
        arms: world.models(&[("start", "base"), ("salsa", "other")]),
        baseline: "start".to_owned(),
        anchors: world.models(&[("sft_a", "base"), ("my_run", "base"), ("soup", "other")]),
        ..world.config()
    };
    run(&config, &fixture::quiet()).unwrap();
    let keys: Vec<String> = numbers(&config, "salsa").as_object().unwrap().keys().cloned().collect();
    let expected = [
        "proxy_score",
        "win_rate_vs_start",
        "kl_my_run",
        "kl_my_run_ci95",
        "kl_sft_a",
        "kl_sft_a_ci95",
        "kl_soup",
        "kl_soup_ci95",
        "length_mean",
        "length_ci95",
        "empty_rate",
        "empty_rate_ci95",
    ];
    assert_eq!(keys, expected);
    let numbers = numbers(&config, "salsa");
    assert_eq!(numbers["kl_my_run"], numbers["kl_sft_a"], "they are one model");
    assert_eq!(numbers["kl_soup"], 0.0, "the arm itself");
    let report = written(&config);
    let table = report::table(&report.summary, usize::MAX);
    for heading in ["win rate vs start", "KL to my run", "KL to SFT A", "KL to soup"] {
        assert!(table.contains(heading), "{table}");
    }
    let html = report.html();
    assert!(html.contains("vs start</p>") && html.contains("Win rate against start"));
    assert!(!html.contains("vs SFT"), "SFT A is not the baseline");
}

#[test]
fn a_model_with_too_short_a_context_is_refused_before_any_work() {
    let world = World::new();
    let good = EvaluateConfig { max_new_tokens: SHORT, ..world.config() };
    let short = ModelSource::Path(world.path("short").into());
    let arm = {
        let mut config = good.clone();
        config.arms.insert("ppo".to_owned(), short.clone());
        config
    };
    let anchor = EvaluateConfig { anchors: [("soup".to_owned(), short)].into(), ..good.clone() };
    let line = Landscape { models: (world.path("short").into(), world.path("short").into()), alphas: vec![0.5] };
    for config in [arm, anchor, EvaluateConfig { landscape: Some(line), ..good }] {
        let error = format!("{:#}", run(&config, &fixture::quiet()).unwrap_err());
        for word in ["short", "max_new_tokens 24", "context of 24", "lower max_new_tokens"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!config.output_dir.exists(), "nothing was answered");
    }
}

#[test]
fn answers_can_be_judged_again() {
    let world = World::new();
    let said = |role: &str, content: &str| json!({"role": role, "content": content});
    let prompts = ["the cat sat", "a dog ran home"].map(|asked| {
        let earlier = [said("user", asked), said("assistant", "yes")];
        json!({"prompt": [&earlier[0], &earlier[1], &said("user", "the cat ran")]})
    });
    fixture::write_lines(&world.path("prompts.jsonl"), &prompts);
    let config = world.config();
    run(&config, &fixture::quiet()).unwrap();
    let answers = |arm: &str| config.output_dir.join(format!("answers-{arm}-test.jsonl"));
    let rows = fixture::read_lines(&answers("salsa"));
    for (row, prompt) in rows.iter().zip(&prompts) {
        assert_eq!(row["prompt"], prompt["prompt"]);
        assert!(row["finish_reason"] == "length" || row["finish_reason"] == "stop", "{row}");
    }
    assert!(rows.iter().any(|row| row["finish_reason"] == "length"), "{rows:?}");
    let judged = WinrateConfig {
        answers: answers("salsa").into(),
        baseline: answers("sft_a").into(),
        reward_model_path: Some(config.reward_model_path.clone()),
        resamples: 10,
        ..WinrateConfig::default()
    };
    let result = winrate::run(&judged, &fixture::quiet()).unwrap();
    let mean = |arm: &str| {
        let scores: Vec<f64> =
            fixture::read_lines(&answers(arm)).iter().map(|row| row["score"].as_f64().unwrap()).collect();
        scores.iter().sum::<f64>() / scores.len() as f64
    };
    assert_eq!(result["score"]["mean"], mean("salsa"));
    assert_eq!(result["baseline_score"]["mean"], mean("sft_a"));
    let shown = &written(&config).samples[0];
    assert_eq!(shown.prompt, "the cat ran", "the page shows what was said last");
    assert_eq!(config.samples_of(&config.output_dir).unwrap(), written(&config).samples, "the answers tell as much");
}

#[test]
fn names_that_would_lead_elsewhere_or_meet_are_refused() {
    let world = World::new();
    let set = |name: &str| EvalSet { name: name.to_owned(), ..world.config().datasets[0].clone() };
    let arms = |name: &str| EvaluateConfig {
        arms: world.models(&[("sft_a", "base"), (name, "other")]),
        datasets: vec![set("test"), set("b-test")],
        ..world.config()
    };
    for name in ["../x", "a/b", "a\\b", "..", ".x", "", "a\0b", "a\nb", "a b", &"x".repeat(65)] {
        let datasets = EvaluateConfig { datasets: vec![set(name)], ..world.config() };
        let anchors = EvaluateConfig { anchors: world.models(&[(name, "base")]), ..world.config() };
        for (key, config) in [("arms", arms(name)), ("datasets", datasets), ("anchors", anchors)] {
            let refused = config.validate().unwrap_err().to_string();
            assert!(refused.starts_with(&format!("{key}: the name {name:?} ")), "{refused}");
        }
    }
    arms("sft_b.2-é").validate().unwrap();
    let refused = arms("sft_a-b").validate().unwrap_err().to_string();
    assert!(refused.contains("one name, answers-sft_a-b-test.jsonl"), "{refused}");
}
