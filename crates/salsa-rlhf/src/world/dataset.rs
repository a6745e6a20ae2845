//! The world's data sets: preference pairs, their labels, and the files of a toy project.

use std::fs;
use std::path::Path;

use anyhow::Context;
use salsa_engine::random::Random;
use serde_json::{Value, json};

use super::cook::demonstration;
use super::gold::gold_reward;
use super::prose::pretrain_text;
use super::split::{Split, distinct, prompts};
use crate::atomic;

/// The temperature of the Bradley-Terry labels: about one label in eight is wrong.
pub const LABEL_TEMPERATURE: f64 = 0.075;

/// Two answers to one prompt, as a labeller sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// The answer that was preferred.
    pub chosen: String,
    /// The other one.
    pub rejected: String,
}

/// Which of two answers a labeller prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// The first answer.
    First,
    /// The second answer.
    Second,
}

/// Numbers of records written by [`write()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Pieces of prose in `pretrain.jsonl`.
    pub pretrain: usize,
    /// Demonstrations in `sft.jsonl`.
    pub sft: usize,
    /// Pairs in `preferences.jsonl`.
    pub preferences: usize,
    /// Prompts in `prompts_train.jsonl`.
    pub prompts_train: usize,
    /// Prompts in `prompts_validation.jsonl`.
    pub prompts_validation: usize,
    /// Prompts in `prompts_test.jsonl`.
    pub prompts_test: usize,
    /// Prompts in `prompts_ood.jsonl`.
    pub prompts_ood: usize,
}

/// A noisy label for two answers with these gold rewards (Bradley and Terry, 1952).
///
/// ```text
/// P(First) = 1 / (1 + exp(-(gold_first - gold_second) / LABEL_TEMPERATURE))
/// ```
pub fn label(gold_first: f64, gold_second: f64, rng: &mut Random) -> Label {
    let first = 1.0 / (1.0 + (-(gold_first - gold_second) / LABEL_TEMPERATURE).exp());
    if rng.uniform() < first { Label::First } else { Label::Second }
}

/// Two demonstrations of unequal gold reward, labelled by [`label`].
pub fn preference(prompt: &str, rng: &mut Random) -> Preference {
    loop {
        let (first, second) = (demonstration(prompt, rng), demonstration(prompt, rng));
        let (gold_first, gold_second) = (gold_reward(prompt, &first).total, gold_reward(prompt, &second).total);
        if gold_first == gold_second {
            continue;
        }
        return match label(gold_first, gold_second, rng) {
            Label::First => Preference { chosen: first, rejected: second },
            Label::Second => Preference { chosen: second, rejected: first },
        };
    }
}

/// Writes the files of a toy project into `dir`, creating it if necessary. The same seed gives the same bytes.
///
/// ```text
/// pretrain.jsonl           {"text": ...}
/// sft.jsonl                {"messages": [user, assistant]}
/// preferences.jsonl        {"prompt": [user], "chosen": [assistant], "rejected": [assistant]}
/// prompts_SPLIT.jsonl      {"prompt": [user]}      for train, validation, test and ood
/// ```
///
/// Demonstrations, preferences and training prompts are three independent draws of distinct prompts of [`Split::Train`].
///
/// # Errors
/// When the directory or a file cannot be written.
pub fn write(dir: &Path, sizes: &Sizes, seed: u64) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create the folder {} for the toy world", dir.display()))?;

    let prose = pretrain_text(sizes.pretrain, seed).into_iter().map(|text| json!({ "text": text }));
    write_lines(&dir.join("pretrain.jsonl"), prose)?;

    let mut rng = Random::new(seed, 32);
    let asked = distinct(Split::Train, sizes.sft, &mut rng);
    let demonstrations = asked.iter().map(|prompt| {
        let answer = demonstration(prompt, &mut rng);
        json!({ "messages": [message("user", prompt), message("assistant", &answer)] })
    });
    write_lines(&dir.join("sft.jsonl"), demonstrations)?;

    let mut rng = Random::new(seed, 33);
    let asked = distinct(Split::Train, sizes.preferences, &mut rng);
    let preferences = asked.iter().map(|prompt| {
        let Preference { chosen, rejected } = preference(prompt, &mut rng);
        json!({
            "prompt": [message("user", prompt)],
            "chosen": [message("assistant", &chosen)],
            "rejected": [message("assistant", &rejected)],
        })
    });
    write_lines(&dir.join("preferences.jsonl"), preferences)?;

    for (split, name, n) in [
        (Split::Train, "prompts_train.jsonl", sizes.prompts_train),
        (Split::Validation, "prompts_validation.jsonl", sizes.prompts_validation),
        (Split::Test, "prompts_test.jsonl", sizes.prompts_test),
        (Split::Ood, "prompts_ood.jsonl", sizes.prompts_ood),
    ] {
        let lines = prompts(split, n, seed).into_iter().map(|prompt| json!({ "prompt": [message("user", &prompt)] }));
        write_lines(&dir.join(name), lines)?;
    }
    Ok(())
}

/// A message of a conversation, as data files hold it.
pub(crate) fn message(role: &str, content: &str) -> Value {
    json!({ "role": role, "content": content })
}

/// Writes a file of JSON lines.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn write_lines(path: &Path, mut lines: impl Iterator<Item = Value>) -> anyhow::Result<()> {
    atomic::write_with(path, |file| Ok(lines.try_for_each(|line| writeln!(file, "{line}"))?))
}
