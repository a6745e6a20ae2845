//! A tiny world in which the whole pipeline takes seconds, and helpers that run the program in it.
#![allow(dead_code, reason = "every test file uses its own part")]
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use salsa_rlhf::checkpoint::Checkpoint;
use serde_json::Value;

/// Stages up to the reward model.
pub(crate) const UP_TO_REWARD: &str = r#"
name: tiny
out: out
seed: 1
stages:
  world:
    kind: kitchen
    pretrain: 200
    sft: 80
    preferences: 120
    prompts_train: 32
    prompts_validation: 4
    prompts_test: 8
    prompts_ood: 8
  base:
    kind: pretrain
    dataset: "${stages.world}/pretrain.jsonl"
    vocab_size: 320
    hidden_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    max_position_embeddings: 192
    max_length: 64
    per_device_train_batch_size: 4
    learning_rate: 3.0e-3
    max_steps: 8
    logging_steps: 1
    save_steps: 3
  sft-a: &sft
    kind: sft
    model: base
    dataset: "${stages.world}/sft.jsonl"
    seed: 11
    per_device_train_batch_size: 4
    learning_rate: 3.0e-3
    max_steps: 8
    logging_steps: 1
    save_steps: 3
  sft-b: {<<: *sft, seed: 12}
  reward:
    kind: reward
    model: sft-a
    dataset: {path: "${stages.world}/preferences.jsonl", split: train}
    eval_dataset: {path: "${stages.world}/preferences.jsonl", split: test}
    per_device_train_batch_size: 4
    learning_rate: 3.0e-3
    max_steps: 8
    logging_steps: 1
    save_steps: 3
"#;

/// Group methods and online DPO with several rewards, after [`UP_TO_REWARD`].
pub(crate) const GROUP: &str = r#"
  grpo: &grpo
    kind: grpo
    model: sft-a
    reward_model: reward
    rewards:
      - {kind: repetition, weight: 0.5}
      - {kind: regex, pattern: "^.{0,30}$", name: short}
    reference: {kind: soup, models: [sft-a, sft-b]}
    kl_coef: 0.1
    dataset: "${stages.world}/prompts_train.jsonl"
    total_episodes: 48
    batch_size: 12
    num_generations: 3
    max_sampling_rounds: 2
    num_mini_batches: 2
    per_device_train_batch_size: 5
    response_length: 10
    temperature: 1.0
    learning_rate: 3.0e-3
    decode_slots: 3
    save_steps: 1
  reinforce:
    <<: *grpo
    num_generations: 1
    max_sampling_rounds: 1
    baseline: none
    scale_rewards: tokens
    kl_in: reward_to_go
    kl_estimator: k1
  online:
    kind: online_dpo
    model: sft-a
    reward_model: reward
    rewards: [{kind: repetition, weight: 0.5}]
    reference: {kind: ema, decay: 0.5}
    dataset: "${stages.world}/prompts_train.jsonl"
    total_episodes: 48
    batch_size: 12
    num_generations: 3
    num_mini_batches: 2
    per_device_train_batch_size: 2
    response_length: 10
    temperature: 1.0
    learning_rate: 3.0e-3
    decode_slots: 3
    save_steps: 1
"#;

/// The stages that learn from preferences, after [`UP_TO_REWARD`].
pub(crate) const PREFERENCE: &str = r#"
  dpo: &preference
    kind: dpo
    model: sft-a
    ref_model_name_or_path: {models: [sft-a, sft-b], weights: [0.25, 0.75]}
    dataset: {path: "${stages.world}/preferences.jsonl", split: train}
    eval_dataset: {path: "${stages.world}/preferences.jsonl", split: test}
    loss_type: apo_zero
    per_device_train_batch_size: 4
    gradient_accumulation_steps: 2
    learning_rate: 3.0e-3
    max_steps: 8
    logging_steps: 1
    eval_steps: 4
    save_steps: 3
  kto: {<<: *preference, kind: kto, loss_type: kto}
  orpo: &alone
    kind: orpo
    model: sft-a
    dataset: {path: "${stages.world}/preferences.jsonl", split: train}
    eval_dataset: {path: "${stages.world}/preferences.jsonl", split: test}
    per_device_train_batch_size: 4
    learning_rate: 3.0e-3
    max_steps: 8
    logging_steps: 1
    save_steps: 3
  simpo: {<<: *alone, kind: cpo, loss_type: simpo, beta: 2, cpo_alpha: 0, use_peft: true}
"#;

/// A PPO stage that recipes extend with their own keys.
pub(crate) const PPO: &str = r#"
    kind: ppo
    model: sft-a
    reward_model: reward
    reference: {kind: sft, model: sft-a}
    anchors: {sft_a: sft-a, soup: {models: [sft-a, sft-b]}}
    dataset: "${stages.world}/prompts_train.jsonl"
    gold: kitchen
    total_episodes: 40
    batch_size: 8
    num_ppo_epochs: 2
    num_mini_batches: 2
    response_length: 10
    temperature: 1.0
    learning_rate: 3.0e-3
    save_steps: 2
"#;

/// An evaluation of two arms.
pub(crate) const EVALUATE: &str = r#"
    kind: evaluate
    arms: {sft_a: sft-a, sft_b: sft-b}
    baseline: sft_a
    anchors: {sft_a: sft-a}
    comparisons: [[sft_b, sft_a]]
    datasets: [{name: test, dataset: "${stages.world}/prompts_test.jsonl"}]
    reward_model: reward
    gold: kitchen
    landscape: {models: [sft-a, sft-b], alphas: [0, 0.5]}
    max_new_tokens: 10
"#;

/// A folder to run the program in; its recipes write to `out`.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    /// An empty place.
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    /// A place in which the recipe has run.
    pub(crate) fn with(recipe: &str) -> Place {
        let place = Place::new();
        place.write("r.yaml", recipe);
        place.done(&mut place.command(&["run", "r.yaml"]));
        place
    }

    pub(crate) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    /// The program, ready to run here.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_salsa"));
        command
            .current_dir(self.0.path())
            .args(words)
            .env_remove("SALSA_ISA")
            .env("SALSA_DEVICE", "cpu")
            .env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Runs a command that must succeed.
    pub(crate) fn done(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Runs a command line that must succeed.
    pub(crate) fn salsa(&self, line: &str) -> Output {
        self.done(&mut self.command(&line.split_whitespace().collect::<Vec<_>>()))
    }

    /// The weights of a checkpoint.
    pub(crate) fn weights(&self, name: &str) -> Vec<f32> {
        Checkpoint::open(&self.path(name)).unwrap().read_weights().unwrap()
    }

    /// The bytes of a file.
    pub(crate) fn bytes(&self, name: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// `metrics.jsonl` of a stage, line by line.
    pub(crate) fn metrics(&self, stage: &str) -> Vec<Value> {
        let text = String::from_utf8(self.bytes(Path::new(stage).join("metrics.jsonl"))).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Every file and folder under `name` that must be equal in every run: without timings and what is derived from
    /// them.
    pub(crate) fn tree(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let mut tree = BTreeMap::new();
        collect(&self.path(name), "", &mut tree);
        tree
    }
}

fn collect(dir: &Path, prefix: &str, tree: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        let key = format!("{prefix}{name}");
        if entry.path().is_dir() {
            collect(&entry.path(), &format!("{key}/"), tree);
            tree.insert(key + "/", Vec::new());
        } else if name == "summary.json" {
            let mut summary: Value = serde_json::from_slice(&fs::read(entry.path()).unwrap()).unwrap();
            assert!(summary.as_object_mut().unwrap().remove("seconds").is_some());
            tree.insert(key, summary.to_string().into_bytes());
        } else if !["timings.json", "report.html"].contains(&name.as_str()) && !name.starts_with("events.out.tfevents")
        {
            tree.insert(key, fs::read(entry.path()).unwrap());
        }
    }
}

/// Panics with the names of differing files.
pub(crate) fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    let differing: Vec<&String> = names.into_iter().filter(|name| a.get(*name) != b.get(*name)).collect();
    assert!(differing.is_empty(), "these differ: {differing:?}");
}
