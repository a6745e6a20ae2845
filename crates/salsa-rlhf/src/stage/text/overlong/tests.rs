//! An overlong row, in every command that reads lines.
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::stage::{
    eval::winrate::{self, WinrateConfig},
    fixture::{self, quiet},
    lines::{
        generate::{self, GenerateConfig},
        logprobs::{self, LogprobsConfig},
        score::{self, ScoreConfig},
    },
    models::reading::ReadingArguments,
};

fn reading(on_overlong: Overlong) -> ReadingArguments {
    ReadingArguments { on_overlong, ..ReadingArguments::default() }
}

/// Three rows; the second is too long for the base's context of 96 tokens.
fn lines(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    let lengths = [4, 97, 3];
    let row = |(i, length): (usize, usize)| json!({"name": i, "tokens": vec![1; length]});
    fixture::write_lines(&path, &lengths.into_iter().enumerate().map(row).collect::<Vec<_>>());
    path
}

fn names(output: &Path) -> Vec<Value> {
    fixture::read_lines(output).iter().map(|row| row["name"].clone()).collect()
}

const REFUSAL: &str = "in.jsonl: line 2: 97 tokens do not fit the model's context of 96; shorten it, or leave such rows \
                       out (on_overlong: drop)";

#[test]
fn a_row_that_is_too_long_is_left_out_and_counted_or_ends_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let reward = fixture::reward_model(&base);
    let (input, output) = (lines(dir.path(), "in.jsonl"), dir.path().join("out.jsonl"));
    let logprobs = |on_overlong| {
        let (model, input, output) = (base.clone().into(), input.clone().into(), output.clone());
        logprobs::run(&LogprobsConfig { model, input, output, reading: reading(on_overlong) }, &quiet())
    };
    let score = |on_overlong| {
        let (model, input, output) = (reward.clone().into(), input.clone().into(), output.clone());
        score::run(&ScoreConfig { model, input, output, reading: reading(on_overlong) }, &quiet())
    };
    let commands: [&dyn Fn(Overlong) -> anyhow::Result<Value>; 2] = [&logprobs, &score];
    for run in commands {
        let results = run(Overlong::Drop).unwrap();
        assert_eq!((&results["rows"], &results["left_out"]), (&json!(2), &json!(1)), "{results}");
        assert_eq!(names(&output), [0, 2]);
        std::fs::remove_file(&output).unwrap();
        let error = format!("{:#}", run(Overlong::Error).unwrap_err());
        assert!(error.ends_with(REFUSAL), "{error}");
        assert!(!output.exists(), "nothing half-written");
    }
    fixture::write_lines(&input, &[json!({"tokens": vec![1; 97]})]);
    let error = format!("{:#}", logprobs(Overlong::Drop).unwrap_err());
    let place = "in.jsonl: line 1: 97 tokens do not fit the model's context of 96";
    assert!(error.contains(place) && error.ends_with("none of the 1 rows fits; shorten them"), "{error}");
}

#[test]
fn a_prompt_without_room_for_a_response_changes_no_other_response() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let config = GenerateConfig {
        model: base.into(),
        input: input.clone().into(),
        output: output.clone(),
        max_new_tokens: 7,
        num_return_sequences: 2,
        ..GenerateConfig::default()
    };
    let rows = |length: usize| [vec![5], vec![1; length], vec![6, 7]].map(|tokens| json!({"tokens": tokens}));
    fixture::write_lines(&input, &rows(89));
    assert_eq!(generate::run(&config, &quiet()).unwrap()["left_out"], 0);
    let whole = fixture::read_lines(&output);
    fixture::write_lines(&input, &rows(90));
    let results = generate::run(&config, &quiet()).unwrap();
    assert_eq!((&results["responses"], &results["left_out"]), (&json!(4), &json!(1)));
    assert_eq!(fixture::read_lines(&output), [&whole[..2], &whole[4..]].concat());

    let error = generate::run(&GenerateConfig { on_overlong: Overlong::Error, ..config }, &quiet()).unwrap_err();
    let expected = "line 2: prompt of 90 tokens and max_new_tokens 7 exceed the model's context of 96; lower max_new_tokens; shorten it";
    assert!(format!("{error:#}").contains(expected), "{error:#}");
}

#[test]
fn an_answer_that_is_too_long_takes_its_pair_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let reward = fixture::reward_model(&fixture::base(dir.path()));
    let answers = |name: &str, responses: [&str; 3]| {
        let path = dir.path().join(name);
        let row = |(i, response): (usize, &str)| json!({"prompt": format!("p{i}"), "response": response});
        fixture::write_lines(&path, &responses.into_iter().enumerate().map(row).collect::<Vec<_>>());
        path
    };
    let long = "zqx ".repeat(200);
    let run = |ours, theirs, on_overlong| {
        let (answers, baseline) = (answers("ours.jsonl", ours), answers("theirs.jsonl", theirs));
        let config = WinrateConfig {
            answers: answers.into(),
            baseline: baseline.into(),
            reward_model_path: Some(reward.clone().into()),
            resamples: 100,
            reading: reading(on_overlong),
            ..WinrateConfig::default()
        };
        winrate::run(&config, &quiet())
    };
    let all = run(["a", "b", "c"], ["b", "c", "b"], Overlong::Drop).unwrap();
    assert_eq!((&all["left_out"], &all["rows"]), (&json!(0), &json!(3)), "{all}");
    let some = run(["a", &long, "c"], ["b", "c", &long], Overlong::Drop).unwrap();
    assert_eq!((&some["left_out"], &some["rows"]), (&json!(2), &json!(1)), "{some}");
    let error = run(["a", &long, "c"], ["b", "c", "b"], Overlong::Error).unwrap_err();
    assert!(format!("{error:#}").contains("ours.jsonl: line 2: "), "{error:#}");
    let error = run([&long, "b", "c"], ["b", &long, &long], Overlong::Drop).unwrap_err();
    assert!(error.to_string().contains("of every pair one answer is too long"), "{error:#}");
}
