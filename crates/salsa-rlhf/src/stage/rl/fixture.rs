//! Models and prompts of the tests of reinforcement learning.
use std::path::Path;

use serde_json::{Value, json};

use crate::stage::{
    fixture::{self, quiet},
    supervised::{
        arguments::TrainingArguments,
        reward::{self, RewardConfig},
    },
};

/// A base, a reward model on it and prompts.
pub(super) fn models(dir: &Path) {
    let base = fixture::base(dir);
    let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
    fixture::write_lines(&dir.join("prompts.jsonl"), &prompts);
    let config = RewardConfig {
        model_name_or_path: base.into(),
        dataset: fixture::preferences(&dir.join("pairs.jsonl")),
        output_dir: dir.join("reward"),
        learning_rate: 0.02,
        max_length: 96,
        training: TrainingArguments { max_steps: 4, ..TrainingArguments::default() },
        ..RewardConfig::default()
    };
    reward::run(&config, &quiet()).unwrap();
}
