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
        "good (sft)\n  model_name_or_path out/sft-a: llama, 44192 parameters\n",
        "  dataset out/world/sft.jsonl: 80 examples (messages)\n  memory ",
        "later (dpo)\n  model_name_or_path: what good will write\n  dataset out/world/preferences.jsonl: 1",
        "hub (generate)\n  model nobody/nothing: not checked, an id of the hub",
        "after (sft)\n  model_name_or_path: what absent will write\n  dataset",
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
  generate: {kind: generate, model: out/sft-a, input: mixed.jsonl, max_new_tokens: 10}
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
    let lines = [PLACE.path("long.jsonl"), PLACE.path("prompt.jsonl")].map(|path| fs::read_to_string(path).unwrap());
    fs::write(place.path().join("mixed.jsonl"), lines.concat()).unwrap();
    let output = PLACE.command(&["run", recipe.to_str().unwrap(), "--check", "--out", "checked"]).output().unwrap();
    let (lines, errors) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{errors}");
    assert_eq!(lines.lines().filter(|line| line.starts_with("  memory ") && line.contains("MiB")).count(), 10);
    let left_out = "mixed.jsonl: 1 of 2 rows left out as too long (line 1: ";
    assert!(lines.contains(left_out), "{left_out} is not in {lines}");
    assert!(!PLACE.path("checked").exists());
}

#[test]
fn a_check_notes_settings_in_which_stages_disagree() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let here = PLACE.path("");
    let world = here.join("out/world");
    let (prompts, pairs) = (world.join("prompts_test.jsonl"), world.join("preferences.jsonl"));
    let (sft, prompts, pairs) = (here.join("out/sft-a"), prompts.display().to_string(), pairs.display().to_string());
    let recipe = |ppo: &str, evaluate: &str| {
        format!(
            "stages:
  reward: {{kind: reward, model: {0}, dataset: {pairs}, max_steps: 1}}
  ppo: {{kind: ppo, model: {0}, reward_model: reward, dataset: {prompts}, response_length: 10{ppo}}}
  eval: {{kind: evaluate, arms: {{ppo: ppo}}, baseline: ppo, reward_model: reward, max_new_tokens: 10{evaluate},
         datasets: [{{name: test, dataset: {prompts}}}]}}
",
            sft.display()
        )
    };
    let place = tempfile::tempdir().unwrap();
    let notes = |ppo: &str, evaluate: &str| {
        let path = place.path().join("r.yaml");
        fs::write(&path, recipe(ppo, evaluate)).unwrap();
        let output = PLACE.command(&["run", path.to_str().unwrap(), "--check", "--out", "noted"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.matches("note: ").count().to_string() + " " + &lines
    };
    assert!(notes(", temperature: 1", "").starts_with("0 "));
    let temperature = notes("", "");
    let expected = "note: temperature is 1.0 here, but 0.7 in ppo: answers would be sampled at another temperature";
    assert!(temperature.starts_with("1 ") && temperature.contains(expected), "{temperature}");
    let template = notes(", temperature: 1, text_prompts: chat", ", text_prompts: chat");
    assert!(template.starts_with("2 "), "ppo and eval differ from the reward model: {template}");
    assert!(
        template.contains("ppo (ppo)\n") && template.contains("note: text_prompts is chat here, but plain in reward: ")
    );
}
