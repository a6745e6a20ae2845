//! Output of `salsa run --check`.
use std::{fs, sync::PoisonError};

use crate::{ONE, place::PLACE, tiny::assert_same};

#[test]
fn a_check_opens_everything_and_tells_every_fault() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = PLACE.tree("");
    let output = PLACE.command(&["run", "faults.yaml", "--check"]).output().unwrap();
    assert_same(&before, &PLACE.tree(""));
    assert_eq!(output.status.code(), Some(1));
    let (lines, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    for line in [
        "good (sft): model_name_or_path out/sft-a: llama, 44192 parameters",
        "dataset out/world/sft.jsonl: 80 examples (messages); memory ",
        "later (dpo): model_name_or_path: what good will write; dataset out/world/preferences.jsonl: 1",
        "hub (generate): model nobody/nothing: not checked, an id of the hub",
        "after (sft): model_name_or_path: what absent will write; dataset",
    ] {
        assert!(lines.contains(line), "{line:?} is not in: {lines}");
    }
    let wanted = [
        "stages.later: dataset: ",
        "stages.broken: model_name_or_path: ",
        "stages.broken: dataset: ",
        "stages.broken: eval_dataset: ",
        "stages.untold: dataset: ",
        "stages.absent: model: no earlier stage is called \"no-model\"",
        "stages.absent: dataset: there is no file no-data.jsonl",
        "stages.strange: reward_model_path: other-reward has a vocabulary of 300",
        "stages.long: input: long.jsonl: line 1: ",
        "stages.wrong: max_length is 0",
    ];
    for fault in wanted {
        assert_eq!(errors.matches(&format!("error: faults.yaml: {fault}")).count(), 1, "{fault}: {errors}");
    }
    assert_eq!(errors.lines().filter(|line| line.starts_with("error: ")).count(), wanted.len(), "{errors}");
}

#[test]
fn a_check_plans_the_memory_of_every_stage_that_can_start() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let stages = "
  sft: {kind: sft, model: out/sft-a, dataset: out/world/sft.jsonl}
  reward: {kind: reward, model: out/sft-a, dataset: out/world/preferences.jsonl}
  dpo: {kind: dpo, model: out/sft-a, dataset: out/world/preferences.jsonl}
  ppo: {kind: ppo, model: out/sft-a, reward_model: out/reward, dataset: prompt.jsonl, response_length: 10}
  evaluate: {kind: evaluate, arms: {sft_a: out/sft-a}, reward_model: out/reward, max_new_tokens: 10,
             datasets: [{name: test, dataset: prompt.jsonl}]}
  landscape: {kind: landscape, models: [out/sft-a, out/sft-b], reward_model: out/reward, max_new_tokens: 10,
              prompts: prompt.jsonl}
  soup: {kind: soup, models: [out/sft-a, out/sft-b], method: greedy, greedy: {dataset: out/world/sft.jsonl}}
  generate: {kind: generate, model: out/sft-a, input: prompt.jsonl, max_new_tokens: 10}
  score: {kind: score, model: out/reward, input: answer.jsonl}
  logprobs: {kind: logprobs, model: out/sft-a, input: answer.jsonl}
";
    let place = tempfile::tempdir().unwrap();
    let recipe = place.path().join("r.yaml");
    let here = PLACE.path("");
    let stages = ["out/", "prompt.jsonl", "answer.jsonl"].iter().fold(stages.to_owned(), |text, name| {
        text.replace(&format!(" {name}"), &format!(" {}/{name}", here.display()))
            .replace(&format!("[{name}"), &format!("[{}/{name}", here.display()))
    });
    fs::write(&recipe, format!("stages:{stages}")).unwrap();
    let output = PLACE.command(&["run", recipe.to_str().unwrap(), "--check", "--out", "checked"]).output().unwrap();
    let (lines, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{errors}");
    assert_eq!(lines.lines().count(), 10);
    for line in lines.lines() {
        assert!(line.contains("; memory ") && line.contains("MiB"), "{line}");
    }
    assert!(!PLACE.path("checked").exists());
}
