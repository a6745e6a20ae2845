//! The whole method with adapters, through the binary.
use std::collections::BTreeSet;

use serde_json::Value;

mod tiny;

use tiny::{EVALUATE, PPO, Place, UP_TO_REWARD, assert_same};

const ADAPTER: &str = "\n    use_peft: true\n    lora_r: 4\n    lora_alpha: 8\n";

/// The full-weight recipe with adapters for SFT models, reward model, policy and critic.
fn recipe() -> String {
    let stages = UP_TO_REWARD
        .replace("    kind: sft\n", &format!("    kind: sft{ADAPTER}"))
        .replace("    kind: reward\n", &format!("    kind: reward{ADAPTER}"));
    let soup = "  soup: {kind: soup, models: [sft-a, sft-b]}\n";
    let ppo = PPO.replace("{kind: sft, model: sft-a}", "{kind: soup, models: [sft-a, sft-b]}");
    let evaluate =
        EVALUATE.replace("{sft_a: sft-a, sft_b: sft-b}", "{sft_a: sft-a, sft_b: sft-b, soup: soup, salsa: salsa}");
    format!("{stages}{soup}  salsa:{ppo}{}\n  eval:{evaluate}", ADAPTER.trim_end())
}

/// The names of the files in a folder.
fn names(place: &Place, dir: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(place.path(dir)).unwrap().map(Result::unwrap);
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn numbers(place: &Place, file: &str) -> Vec<f64> {
    let text = String::from_utf8(place.bytes(file)).unwrap();
    let row = |line: &str| -> Value { serde_json::from_str(line).unwrap() };
    let rows = text.lines().map(row);
    rows.flat_map(|row| row["logprobs"].as_array().unwrap().clone()).map(|x| x.as_f64().unwrap()).collect()
}

#[test]
fn the_whole_method_with_adapters() {
    let place = Place::with(&recipe());
    for stage in ["sft-a", "sft-b", "soup", "reward", "salsa", "salsa/critic"] {
        let names = names(&place, &format!("out/{stage}"));
        assert!(
            names.contains("adapter_config.json") && names.contains("adapter_model.safetensors"),
            "{stage}: {names:?}"
        );
        assert!(!names.contains("model.safetensors") && !names.contains("config.json"), "{stage}: {names:?}");
        let config: Value = serde_json::from_slice(&place.bytes(format!("out/{stage}/adapter_config.json"))).unwrap();
        assert_eq!(config["base_model_name_or_path"], "out/base", "{stage}");
        let classifier = ["reward", "salsa/critic"].contains(&stage);
        assert_eq!(config["task_type"], if classifier { "SEQ_CLS" } else { "CAUSAL_LM" });
        assert_eq!(config["r"], if stage == "soup" { 8 } else { 4 }, "{stage}");
    }
    let last = place.metrics("out/salsa").pop().unwrap();
    assert!(last["objective/kl"].as_f64().is_some_and(|kl| kl != 0.0), "{last}");
    // The anchor `soup` and the reference are both built in memory: the same adapter.
    assert_eq!(last["objective/kl_soup"], last["objective/kl"]);

    // A second run produces the same bytes, and a finished one is not run again.
    let again = Place::with(&recipe());
    assert_same(&place.tree("out"), &again.tree("out"));
    let output = place.salsa("run r.yaml");
    assert_eq!(String::from_utf8_lossy(&output.stderr).matches("done before, skipped").count(), 8, "{output:?}");

    // Merged, the policy is the same model.
    place.salsa(
        "generate --model out/salsa --input out/world/prompts_test.jsonl --output answers.jsonl --max_new_tokens 12",
    );
    place.salsa("merge out/salsa --output merged");
    assert!(names(&place, "merged").contains("model.safetensors"));
    place.salsa("logprobs --model out/salsa --input answers.jsonl --output adapter-logprobs.jsonl");
    place.salsa("logprobs --model merged --input answers.jsonl --output merged-logprobs.jsonl");
    place.salsa("logprobs --model out/base --input answers.jsonl --output base-logprobs.jsonl");
    let [adapter, merged, base] =
        ["adapter", "merged", "base"].map(|name| numbers(&place, &format!("{name}-logprobs.jsonl")));
    let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(distance(&adapter, &merged) < 1e-4 && distance(&adapter, &base) > 1e-2);

    let inspected = String::from_utf8(place.salsa("inspect out/reward").stdout).unwrap();
    assert!(inspected.contains("adapter") && inspected.contains("rank 4, scale 2"), "{inspected}");
    assert!(inspected.contains("out/base"), "{inspected}");
}

#[test]
fn an_adapter_of_a_model_of_the_hub_names_it_by_its_id() {
    let place = Place::new();
    place.write("texts.txt", "hi yes so no the quick brown fox ".repeat(40));
    place.write("chats.jsonl", "{\"prompt\": \"hi\", \"completion\": \" yes\"}\n");
    place.salsa(
        "pretrain --dataset texts.txt --output_dir base --vocab_size 300 --hidden_size 32 --num_hidden_layers 1 \
         --num_attention_heads 2 --max_position_embeddings 128 --max_length 64 --max_steps 2",
    );
    let (commit, other) = ("0123456789abcdef0123456789abcdef01234567", "f".repeat(40));
    let repo = place.path("cache/models--org--tiny");
    std::fs::create_dir_all(repo.join("snapshots")).unwrap();
    std::fs::rename(place.path("base"), repo.join("snapshots").join(commit)).unwrap();
    let salsa = |line: &str| {
        let mut command = place.command(&line.split_whitespace().collect::<Vec<_>>());
        place.done(command.env("HF_HUB_CACHE", place.path("cache")))
    };
    // An output folder with the model's name is not mistaken for the model.
    for (main, output, revision) in [(commit, "tiny", Value::Null), (&other, "pinned", commit.into())] {
        place.write("cache/models--org--tiny/refs/main", main);
        let given = if revision.is_null() { "org/tiny".to_owned() } else { format!("org/tiny@{commit}") };
        salsa(&format!(
            "sft --model {given} --dataset chats.jsonl --output_dir {output} --use_peft true --max_steps 1"
        ));
        let config: Value = serde_json::from_slice(&place.bytes(format!("{output}/adapter_config.json"))).unwrap();
        assert_eq!(config["base_model_name_or_path"], "org/tiny");
        assert_eq!(config["revision"], revision);
        salsa(&format!("logprobs --model {output} --input chats.jsonl --output {output}.jsonl"));
        assert!(!numbers(&place, &format!("{output}.jsonl")).is_empty());
    }
}

#[test]
fn what_adapters_cannot_do_is_said_before_anything_starts() {
    let place = Place::new();
    let refused = |line: &str| {
        let output = place.command(&line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let error = refused("sft --model base --dataset d.jsonl --output_dir o --use_peft true --lora_dropout 0.1");
    assert!(error.contains("lora_dropout is 0.1; only 0 is supported"), "{error}");
    let error = refused("reward --model base --dataset d.jsonl --output_dir o --lora_target_modules q_proj lm_head");
    assert!(error.contains("lora_target_modules names \"lm_head\""), "{error}");
    let error = refused("ppo --model base --reward_model r --dataset d.jsonl --output_dir o --lora_rank 3");
    assert!(error.contains("lora_rank"), "{error}");
    let error = refused("dpo --model base --dataset d.jsonl --output_dir o --use_dora true");
    assert!(error.contains("use_dora") && error.contains("rsLoRA"), "{error}");
    let error = refused("merge nowhere --output o");
    assert!(error.contains("there is no model at nowhere"), "{error}");
    assert!(!place.path("o").exists());
}
