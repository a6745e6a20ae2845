//! Errors are one line with the cause and a remedy, and no partial output remains.
use std::{
    fs,
    path::Path,
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

mod check;
mod place;
#[path = "../tiny/mod.rs"]
mod tiny;

use place::{PLACE, copy};
use tiny::assert_same;

/// Runs the program, which must end by itself, in `dir`. Returns its exit code and its last message.
#[cfg(unix)]
fn ends(line: &str, dir: &Path) -> (i32, String) {
    let mut command = PLACE.command(&line.split_whitespace().collect::<Vec<_>>());
    let mut child = command.current_dir(dir).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if start.elapsed() > Duration::from_secs(60) {
            child.kill().unwrap();
            panic!("{line}: it does not end");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), stderr.lines().last().unwrap_or_default().to_owned())
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused_wherever_a_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let model = at("model");
    let original = PLACE.path("out/sft-a");
    copy(&original, &model);
    let refused = |line: &str, name: &str| {
        let (code, said) = ends(line, dir.path());
        assert_eq!(code, 1, "{line}: {said}");
        assert!(said.contains(&format!("{name} is not a regular file but ")), "{line}: {said}");
    };
    let files = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"];
    for name in files.into_iter().chain(["tokenizer_config.json", "chat_template.jinja"]) {
        let file = model.join(name);
        let _ = fs::remove_file(&file);
        assert!(std::process::Command::new("mkfifo").arg(&file).status().unwrap().success());
        refused("inspect model", name);
        fs::remove_file(&file).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
        refused("inspect model", name);
        fs::remove_file(&file).unwrap();
        if original.join(name).exists() {
            fs::copy(original.join(name), &file).unwrap();
        }
    }
    for name in ["zero.jsonl", "zero.yaml", "zero.jinja"] {
        std::os::unix::fs::symlink("/dev/zero", at(name)).unwrap();
    }
    refused("sft --model model --dataset zero.jsonl --output_dir o", "zero.jsonl");
    refused("sft --config zero.yaml", "zero.yaml");
    refused("run zero.yaml", "zero.yaml");
    refused("soup --config zero.yaml", "zero.yaml");
    refused("generate --model model --input zero.jsonl --output out.jsonl", "zero.jsonl");
    let reward = PLACE.path("out/reward");
    let reward = reward.display();
    refused(&format!("score --model {reward} --input zero.jsonl --output out.jsonl"), "zero.jsonl");
    refused("logprobs --model model --input zero.jsonl --output out.jsonl", "zero.jsonl");
    refused(&format!("eval winrate --reward_model {reward} --answers zero.jsonl --baseline zero.jsonl"), "zero.jsonl");
    refused("inspect zero.jsonl", "zero.jsonl");
    let text = PLACE.path("text.jsonl");
    refused(
        &format!("sft --model model --dataset {} --chat_template zero.jinja --output_dir o", text.display()),
        "zero.jinja",
    );
    for link in ["a", "b", "c"] {
        std::os::unix::fs::symlink(".", model.join(link)).unwrap();
    }
    let (code, said) =
        ends(&format!("sft --model model --dataset {} --output_dir o --max_steps 1", text.display()), dir.path());
    assert_eq!(code, 0, "{said}");
}

/// The tests of this file share one place: one command at a time.
static ONE: Mutex<()> = Mutex::new(());

/// Asserts that the command fails with this exit code and one line that contains all the words, and leaves no file.
fn assert_fails(code: i32, line: &str, words: &[&str]) {
    assert_fails_with(&[], code, line, words);
}

/// The same with environment variables.
fn assert_fails_with(environment: &[(&str, &str)], code: i32, line: &str, words: &[&str]) {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = PLACE.tree("");
    let mut command = PLACE.command(&line.split_whitespace().collect::<Vec<_>>());
    let output = command.envs(environment.iter().copied()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{line}: {stderr}");
    assert_eq!(stderr.lines().last(), Some(errors[0]), "{line}: the error is not the last line");
    for word in words {
        assert!(errors[0].contains(word), "{line}: {word:?} is not in: {}", errors[0]);
    }
    assert!(output.stdout.is_empty(), "{line}");
    assert_same(&before, &PLACE.tree(""));
}

const SFT: &str = "--dataset out/world/sft.jsonl --output_dir new";
const PPO: &str = "ppo --model out/sft-a --output_dir new --response_length 10";

#[test]
fn one_line_names_the_thing_and_the_remedy() {
    let data = "--reward_model out/reward --dataset out/world/prompts_train.jsonl";
    let soup = |models: &str| format!("{PPO} {data} --reference.kind soup --reference.models {models}");
    for (line, words) in [
        // A missing file.
        (format!("sft --model nowhere {SFT}"), &["nowhere", "check the path"][..]),
        ("sft --model out/base --dataset nowhere.jsonl --output_dir new".into(), &["nowhere.jsonl", "check the path"]),
        ("logprobs --model nowhere --input prompt.jsonl --output new".into(), &["nowhere", "give the folder of"]),
        ("score --model out/reward --input nowhere.jsonl --output new".into(), &["nowhere.jsonl", "check the path"]),
        ("run nowhere.yaml".into(), &["nowhere.yaml", "check the path"]),
        // An unknown key of a recipe.
        (
            "run typo.yaml --out new".into(),
            &["typo.yaml", "stages.base.learning_rte", "did you mean \"learning_rate\"?"],
        ),
        // Another vocabulary.
        (
            format!("{PPO} --reward_model other-reward --dataset out/world/prompts_train.jsonl"),
            &["other-reward", "300", "320", "train the reward model from"],
        ),
        (
            format!("{PPO} {data} --reference.kind sft --reference.model other-vocabulary"),
            &["other-vocabulary", "300", "320", "the same tokens"],
        ),
        (
            format!("{PPO} --reward_model other-tokenizer --dataset out/world/prompts_train.jsonl"),
            &["other-tokenizer", "out/sft-a", "different tokenizers (the token \"", "train the reward model from"],
        ),
        // A soup of different architectures.
        (
            soup("[out/sft-a,other-shape]"),
            &["out/sft-a", "other-shape", "num_hidden_layers 2 against 1", "of one shape"],
        ),
        ("soup out/sft-a other-shape --output new".into(), &["out/sft-a", "other-shape", "num_hidden_layers"]),
        // Broken weights.
        (format!("sft --model corrupt {SFT}"), &["corrupt/model.safetensors", "header", "download or copy it again"]),
        (format!("sft --model cut {SFT}"), &["cut/model.safetensors", "cut off", "download or copy it again"]),
        (format!("sft --model nan {SFT}"), &["nan/model.safetensors", ".weight is NaN", "take an earlier checkpoint"]),
        ("soup out/sft-a nan --output new".into(), &["nan", "NaN"]),
        // No data.
        ("pretrain --dataset empty.jsonl --output_dir new".into(), &["empty.jsonl", "needs at least one"]),
        ("sft --model out/base --dataset empty.jsonl --output_dir new".into(), &["empty.jsonl", "needs at least one"]),
        (format!("{PPO} --reward_model out/reward --dataset empty.jsonl"), &["empty.jsonl", "needs at least one"]),
        (
            "generate --model out/sft-a --input empty.jsonl --output new".into(),
            &["empty.jsonl", "at least one is needed"],
        ),
        // Prompts that do not fit the context of 192.
        (
            "generate --model out/sft-a --input long.jsonl --output new".into(),
            &["long.jsonl: line 1", "192", "shorten"],
        ),
        (
            "generate --model out/sft-a --input prompt.jsonl --output new --max_new_tokens 190".into(),
            &["prompt.jsonl: line 1", "192", "lower max_new_tokens"],
        ),
        (
            format!("{PPO} --reward_model out/reward --dataset long.jsonl"),
            &["long.jsonl", "182 tokens", "shorten them"],
        ),
        (
            format!("ppo --model out/sft-a --output_dir new {data} --response_length 192"),
            &["192 tokens", "make them shorter"],
        ),
    ] {
        assert_fails(1, &line, words);
    }
}

#[test]
fn a_reward_model_of_others_is_not_read_where_its_trainer_did_without_a_word() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let said = |line: &str, file: &str| {
        let out = tempfile::tempdir().unwrap();
        let output = format!(
            "{} {}",
            if file.is_empty() { "--output_dir" } else { "--output" },
            out.path().join(file).display()
        );
        String::from_utf8(PLACE.salsa(&format!("{line} {output}")).stderr).unwrap()
    };
    let score = |model: &str| said(&format!("score --model {model} --input answer.jsonl"), "scores.jsonl");
    let behind = "foreign-reward: its chat template writes \"\\n\" behind the end token";
    assert!(score("foreign-reward").contains(behind), "{}", score("foreign-reward"));
    let padded = "is an end token, so transformers and TRL trained it to be read at the token before";
    assert!(score("padded-reward").contains(padded), "{}", score("padded-reward"));
    let ours = score("out/reward");
    assert!(!ours.contains("read at") && !ours.contains("behind the end"), "{ours}");
    let ppo = "ppo --model out/sft-a --dataset out/world/prompts_train.jsonl --response_length 4 --batch_size 4 \
         --total_episodes 4 --reward_model foreign-reward";
    let ppo = said(ppo, "");
    assert_eq!(ppo.matches(behind).count(), 1, "{ppo}");
    // PEFT uses the config of the base.
    let reward = |base: &str| {
        let data = "--dataset out/world/preferences.jsonl --max_steps 1 --per_device_train_batch_size 2";
        said(&format!("reward --model {base} {data} --use_peft true"), "")
    };
    let peft = "PEFT and transformers go by it when they load a reward adapter of this base";
    assert!(reward("padded-base").contains(peft), "{}", reward("padded-base"));
    assert!(!reward("out/sft-a").contains(peft));
}

#[test]
fn numbers_out_of_range_are_refused_by_their_keys() {
    let sft = |keys: &str| format!("sft --model out/sft-a {SFT} {keys}");
    let ppo = |keys: &str| format!("{PPO} --reward_model out/reward --dataset out/world/prompts_train.jsonl {keys}");
    let generate = |keys: &str| format!("generate --model out/sft-a --input prompt.jsonl --output new {keys}");
    let landscape = |models: &str, keys: &str| {
        let inputs = "--reward_model out/reward --prompts prompt.jsonl --output_dir new";
        format!("landscape --models {models} {inputs} {keys}")
    };
    let (line, plane) = ("[out/sft-a,out/sft-b]", "[out/sft-a,out/sft-b,out/base]");
    for (line, key) in [
        (generate("--max_new_tokens 18446744073709551615"), "max_new_tokens"),
        (generate("--num_return_sequences 4000000000"), "num_return_sequences"),
        (generate("--batch_size 18446744073709551615"), "batch_size"),
        (sft("--use_peft true --lora_r 9223372036854775808"), "lora_r"),
        (sft("--max_steps 9223372036854775807"), "max_steps"),
        (sft("--per_device_train_batch_size 18446744073709551615"), "per_device_train_batch_size"),
        (sft("--per_device_eval_batch_size 18446744073709551615"), "per_device_eval_batch_size"),
        (sft("--gradient_accumulation_steps 18446744073709551615"), "gradient_accumulation_steps"),
        (ppo("--batch_size 4294967296 --total_episodes 4294967296"), "batch_size"),
        (ppo("--total_episodes 18446744073709551615"), "total_episodes"),
        (ppo("--decode_slots 18446744073709551615"), "decode_slots"),
        (ppo("--num_ppo_epochs 18446744073709551615"), "num_ppo_epochs"),
        (ppo("").replace("_length 10", "_length 18446744073709551615"), "response_length"),
        (landscape(line, "--steps 18446744073709551615"), "steps"),
        (landscape(plane, "--divisions 18446744073709551615"), "divisions"),
        (landscape(plane, "--divisions 9999 --margin 10"), "points"),
        (landscape(line, "--max_new_tokens 18446744073709551615"), "max_new_tokens"),
        ("pretrain --dataset text.jsonl --output_dir new --hidden_size 18446744073709551615".to_owned(), "hidden_size"),
        ("kitchen --output_dir new --sft 18446744073709551615".to_owned(), "sft"),
    ] {
        assert_fails(1, &line, &[key, "at most"]);
    }
    assert_fails(1, &sft("--num_train_epochs 1e9"), &["num_train_epochs", "between 0 and 1000000"]);
}

#[test]
fn numbers_that_are_not_finite_reach_no_checkpoint_of_any_training() {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let place = tempfile::tempdir().unwrap();
    let keys = "--learning_rate 1e38 --save_steps 1";
    let pairs = "--dataset out/world/preferences.jsonl --per_device_train_batch_size 2";
    let ppo = "--reward_model out/reward --dataset out/world/prompts_train.jsonl --response_length 8 --batch_size 4 \
               --total_episodes 40 --critic_learning_rate 1e38 --num_ppo_epochs 1";
    for (i, line) in [
        "sft --model out/sft-a --dataset out/world/sft.jsonl --per_device_train_batch_size 2".to_owned(),
        "sft --model out/sft-a --dataset out/world/sft.jsonl --use_peft true".to_owned(),
        format!("reward --model out/sft-a {pairs}"),
        format!("dpo --model out/sft-a {pairs}"),
        format!("ppo --model out/sft-a {ppo}"),
        "pretrain --dataset out/world/pretrain.jsonl --max_length 64 --vocab_size 320 --hidden_size 32 \
         --num_hidden_layers 1 --num_attention_heads 2 --max_position_embeddings 512"
            .to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let out = place.path().join(i.to_string());
        let line = format!("{line} {keys} --output_dir {}", out.display());
        let output = PLACE.command(&line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{line}: {error}");
        let error = error.lines().last().unwrap();
        assert!(error.contains("finite") || error.contains("NaN") || error.contains("inf"), "{error}");
        assert!(error.contains("learning_rate"), "{error}");
        let saved: Vec<_> = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten().collect();
        for step in &saved {
            let bytes = fs::read(step.path().join("buffers.safetensors")).unwrap();
            let buffers = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let numbers = buffers.iter().flat_map(|(_, buffer)| buffer.data().as_chunks::<4>().0.to_vec());
            assert!(numbers.map(f32::from_le_bytes).all(f32::is_finite), "{line}");
        }
        assert_eq!(error.contains("no checkpoint has been saved"), saved.is_empty(), "{error}");
    }
}

#[test]
fn too_little_memory_is_refused_before_a_weight_is_read() {
    // Each of these models or runs has a non-finite weight, which reading it would detect first.
    let reward = "--reward_model out/reward --dataset out/world/prompts_train.jsonl";
    for (line, words) in [
        (format!("sft --model nan {SFT}"), ["sft needs", "weights in training", "gradient_checkpointing: true"]),
        (format!("sft --model nan {SFT} --use_peft true --dtype f32"), ["sft needs", "frozen weights", "dtype: bf16"]),
        (
            "reward --model nan --dataset out/world/preferences.jsonl --output_dir new".to_owned(),
            ["reward needs", "activations", "per_device_train_batch_size: 1"],
        ),
        (
            "dpo --model nan --dataset out/world/preferences.jsonl --output_dir new".to_owned(),
            ["dpo needs", "frozen weights", "gradient_checkpointing: true"],
        ),
        (
            format!("ppo --model nan --output_dir new --response_length 10 {reward}"),
            ["ppo needs", "generation", "decode_slots: 1"],
        ),
        (
            "generate --model nan --input prompt.jsonl --output new.jsonl --dtype f32".to_owned(),
            ["generate needs", "generation", "dtype: bf16"],
        ),
        (
            "evaluate --config evaluate.yaml --output_dir new".to_owned(),
            ["evaluate needs", "generation", "SALSA_MEMORY=1GB"],
        ),
        (
            "landscape --models [out/sft-a,nan] --reward_model out/reward --prompts out/world/prompts_test.jsonl \
             --eval_dataset text.jsonl --output_dir new"
                .to_owned(),
            ["landscape needs", "ingredients", "SALSA_MEMORY=1GB"],
        ),
        (
            "eval winrate --answers answer.jsonl --baseline answer.jsonl --reward_model nan-reward".to_owned(),
            ["winrate needs", "activations", "SALSA_MEMORY=1GB"],
        ),
        ("chat --model nan --dtype f32".to_owned(), ["chat needs", "generation", "dtype: bf16"]),
        (
            "soup out/sft-a nan --method greedy --greedy.dataset text.jsonl --output new".to_owned(),
            ["soup needs", "ingredients", "No key would lower it"],
        ),
        (
            "soup out/sft-a nan --method greedy --greedy.dataset prompt.jsonl --greedy.reward_model_path out/reward --output new"
                .to_owned(),
            ["soup needs", "generation", "SALSA_MEMORY=1GB"],
        ),
        (
            "logprobs --model nan --input text.jsonl --output new.jsonl".to_owned(),
            ["logprobs needs", "SALSA_MEMORY=1GB", "are stated"],
        ),
    ] {
        assert_fails_with(&[("SALSA_MEMORY", "8MB")], 1, &line, &words);
    }
    let line = format!("sft --model out/sft-a {SFT}");
    assert_fails_with(&[("SALSA_MEMORY", "lots")], 1, &line, &["SALSA_MEMORY", "\"lots\" is no size"]);
    assert_fails_with(&[("SALSA_MEMORY", "1TB")], 1, &format!("sft --model nan {SFT}"), &["NaN"]);
}
