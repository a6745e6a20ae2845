//! A recipe that is changed between two runs: which changes cause work, and which do not.
use std::fs;

use serde_json::Value;

mod tiny;

use tiny::{EVALUATE, PPO, Place, UP_TO_REWARD};

/// A recipe from the data to the evaluation.
fn recipe() -> String {
    let answers = "  answers: {kind: generate, model: sft-a, input: \"${stages.world}/prompts_test.jsonl\", \
                   max_new_tokens: 8}\n  scores: {kind: score, model: reward, input: answers}\n  \
                   probabilities: {kind: logprobs, model: sft-a, input: answers}\n";
    let ppo = PPO.replace("total_episodes: 40", "total_episodes: 24");
    format!("{UP_TO_REWARD}  soup: {{kind: soup, models: [sft-a, sft-b]}}\n  ppo:{ppo}{answers}  eval:{EVALUATE}")
}

/// Other values of keys without effect on results.
const NO_EFFECT: &[&str] = &[
    "stages.base.eval_steps=2",
    "stages.base.gradient_checkpointing=true",
    "stages.base.logging_steps=5",
    "stages.base.save_steps=2",
    "stages.sft-a.gradient_checkpointing=true",
    "stages.reward.eval_steps=3",
    "stages.reward.gradient_checkpointing=true",
    "stages.ppo.decode_slots=3",
    "stages.ppo.gradient_checkpointing=true",
    "stages.ppo.num_sample_generations=1",
    "stages.ppo.save_steps=1",
    "stages.answers.batch_size=3",
    "stages.scores.max_tokens_per_batch=20",
    "stages.probabilities.max_tokens_per_batch=20",
    "stages.eval.decode_slots=3",
    "stages.eval.samples=1",
    "stages.eval.title=Another title",
    "stages.eval.description=More words",
    "stages.eval.runs={sft_b: ppo}",
];

fn words(more: &[&str]) -> Vec<String> {
    let sets = NO_EFFECT.iter().flat_map(|set| ["--set", set]);
    ["run", "r.yaml"].into_iter().chain(sets).chain(more.iter().copied()).map(str::to_owned).collect()
}

fn run(place: &Place, words: &[String]) -> String {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    String::from_utf8(place.done(&mut place.command(&words)).stderr).unwrap()
}

#[test]
fn keys_of_no_effect_leave_a_stage_done_and_change_no_byte_of_a_result() {
    let place = Place::with(&recipe());
    let said = run(&place, &words(&[]));
    assert_eq!(said.matches("done before, skipped").count(), 11, "{said}");
    let page = String::from_utf8(place.bytes("out/report.html")).unwrap();
    assert!(page.contains("Another title") && page.contains("More words"), "the report is made anew");

    run(&place, &words(&["--out", "other"]));
    for stage in
        ["world", "base", "sft-a", "sft-b", "reward", "soup", "ppo", "answers", "scores", "probabilities", "eval"]
    {
        let results = |out: &str| -> Value {
            let record: Value = serde_json::from_slice(&place.bytes(format!("{out}/{stage}/stage.json"))).unwrap();
            record["results"].clone()
        };
        assert_eq!(results("out"), results("other"), "{stage}");
        for entry in fs::read_dir(place.path(format!("out/{stage}"))).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_result = name.ends_with(".safetensors") || (name.ends_with(".jsonl") && !is_log(&name));
            if is_result || name == "config.json" {
                let file = |out: &str| place.bytes(format!("{out}/{stage}/{name}"));
                assert!(file("out") == file("other"), "{stage}/{name}");
            }
        }
    }
    // The regenerated report of the first run shows the same samples as that of the second.
    let shown = |out: &str| -> Vec<String> {
        let page = String::from_utf8(place.bytes(format!("{out}/report.html"))).unwrap();
        let samples = page.split("<article class=\"sample\">").skip(1);
        samples.map(|sample| sample.split("</article>").next().unwrap().to_owned()).collect()
    };
    assert_eq!(shown("other").len(), 1);
    assert_eq!(shown("out"), shown("other"));
}

fn is_log(name: &str) -> bool {
    ["metrics.jsonl", "samples.jsonl"].contains(&name)
}

#[test]
fn the_command_line_says_what_it_sets_aside() {
    let place = Place::with(UP_TO_REWARD);
    let output = place.done(&mut place.command(&["run", "r.yaml", "--from", "sft-a"]));
    let said = String::from_utf8(output.stderr).unwrap();
    let start = said.find("set aside, to be made anew (nothing is deleted):\n  sft-a (done, ").unwrap_or(usize::MAX);
    assert!(start < said.find("[1/5] world").unwrap(), "before anything runs: {said}");
    assert!(said.contains(", as out/.aside/sft-a-1\n  reward (done, "), "{said}");
    assert!(!said.contains("sft-b-1") && place.path("out/.aside/reward-1/model.safetensors").exists(), "{said}");
    assert_eq!(place.bytes("out/.aside/sft-a-1/model.safetensors"), place.bytes("out/sft-a/model.safetensors"));
    let refused = place.command(&["run", "r.yaml", "--rerun", "sft_a"]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("the recipe has no stage \"sft_a\"; did you mean \"sft-a\"?"), "{said}");
}

#[test]
fn a_soup_of_adapters_that_is_made_anew_after_the_run_was_moved_is_the_same() {
    let adapters = UP_TO_REWARD.replace("    seed: 11\n", "    seed: 11\n    use_peft: true\n    lora_r: 4\n");
    let more = "  soup: {kind: soup, models: [sft-a, sft-b]}\n  dpo: {kind: dpo, model: soup, max_steps: 2, \
                dataset: \"${stages.world}/preferences.jsonl\", use_peft: true}\n";
    let place = Place::with(&format!("{adapters}{more}"));
    assert!(place.path("out/soup/adapter_config.json").exists());
    fs::create_dir(place.path("elsewhere")).unwrap();
    fs::rename(place.path("out"), place.path("elsewhere/run")).unwrap();
    let output = place.done(&mut place.command(&["run", "elsewhere/run/recipe.yaml", "--rerun", "soup"]));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("done before, skipped").count(), 6, "all but the soup: {said}");
    let config = |soup: &str| place.bytes(format!("elsewhere/run/{soup}/adapter_config.json"));
    assert_ne!(config("soup"), config(".aside/soup-1"), "the path of the base is another");
}

/// A stage of a run plans with what it would have alone: what the one before it has freed is there again.
#[test]
fn memory_that_a_stage_has_freed_is_there_for_the_next_one() {
    let place = Place::with(UP_TO_REWARD);
    place.write(
        "big.json",
        r#"{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 384, "intermediate_size": 1024,
            "num_hidden_layers": 4, "num_attention_heads": 6, "vocab_size": 320, "max_position_embeddings": 192}"#,
    );
    place.done(&mut place.command(&["init", "big.json", "--tokenizer", "out/base", "--output", "big"]));
    let stage = "{kind: sft, model: big, dataset: out/world/sft.jsonl, max_steps: 1, dtype: f32, seed: ";
    place.write("two.yaml", format!("out: two\nstages:\n  a: {stage}1}}\n  b: {stage}2}}\n"));
    let output = place.done(&mut place.command(&["run", "two.yaml"]));
    let said = String::from_utf8(output.stderr).unwrap();
    let planned: Vec<f64> = said.lines().filter_map(|line| line.split("program ").nth(1)).map(mib).collect();
    assert_eq!(planned.len(), 2, "{said}");
    // Weights, gradients and moments alone take over 100 MiB.
    assert!(planned[1] < planned[0] + 32.0, "what the first stage used counts as taken: {said}");
}

/// The number of `12.5 MiB), 22 GiB available`.
fn mib(text: &str) -> f64 {
    let mut words = text.split([' ', ')']);
    let number: f64 = words.next().unwrap().parse().unwrap();
    assert_eq!(words.next(), Some("MiB"), "{text}");
    number
}
