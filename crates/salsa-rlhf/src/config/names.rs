//! Names of configuration keys: synonyms, nearest matches, validity.
use serde_json::{Map, Value};

use super::foreign;

/// The longest list of valid names in a message; for longer lists there is `--help`.
const MOST_NAMES: usize = 12;

/// Checks a user-given name that becomes part of a path: of a stage, an arm, a set of prompts. `key` is its place in
/// error messages.
///
/// # Errors
/// If it holds anything but letters, digits, `-`, `_` and `.`, begins with a dot, is empty or longer than 64 bytes.
pub(crate) fn check_component(key: &str, name: &str) -> anyhow::Result<()> {
    let is_allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fault = match name {
        "" => "is empty",
        _ if name.starts_with('.') => "begins with a dot",
        _ if name.len() > 64 => "is longer than 64 bytes",
        _ if !name.chars().all(is_allowed) => "holds other characters than letters, digits, -, _ and .",
        _ => return Ok(()),
    };
    anyhow::bail!("{key}: the name {name:?} {fault}; it becomes a part of a file name, so choose another")
}

/// Groups of equivalent names, TRL's first. A stage that has one name of a group as its key accepts the others.
pub(crate) const SYNONYMS: &[&[&str]] = &[
    &["model_name_or_path", "model", "sft_model_path", "policy"],
    &["reward_model_path", "reward_model"],
    &["dataset_name", "dataset", "train_dataset", "datasets"],
    &["eval_dataset", "eval_dataset_name"],
    &["output_dir", "output", "out"],
    &["kl_coef", "beta", "init_kl_coef"],
    &["lam", "lambda", "gae_lambda"],
    &["cliprange", "clip_ratio"],
    &["cliprange_value", "clip_value"],
    &["vf_coef", "value_coef"],
    &["num_ppo_epochs", "ppo_epochs", "epochs"],
    &["num_train_epochs", "epochs"],
    &["response_length", "max_new_tokens", "max_completion_length"],
    &["max_length", "max_seq_length"],
    &["per_device_train_batch_size", "batch_size", "train_batch_size"],
    &["per_device_eval_batch_size", "eval_batch_size"],
    &["learning_rate", "lr"],
    &["lr_scheduler_type", "lr_scheduler"],
    &["center_rewards_coefficient", "center_rewards"],
    &["save_dtype", "dtype", "torch_dtype", "out_dtype"],
    &["method", "merge_method"],
    &["base_model", "base"],
    &["gradient_checkpointing", "recompute"],
    &["chat_template", "chat_template_path"],
];

/// Resolves `name` to a key of `keys`.
///
/// # Errors
/// A hint for the user if there is no such key.
pub(crate) fn resolve(name: &str, keys: &Map<String, Value>) -> Result<String, String> {
    let name = plain(name);
    if keys.contains_key(&name) {
        return Ok(name);
    }
    let synonym = synonyms(&name).find(|other| keys.contains_key(*other));
    if let Some(key) = synonym {
        return Ok(key.to_owned());
    }
    if let Some(remedy) = foreign::remedy(&name, |needed| keys.contains_key(needed)) {
        return Err(remedy.to_owned());
    }
    let known = keys.keys().map(String::as_str);
    let reachable =
        SYNONYMS.iter().filter(|group| group.iter().any(|name| keys.contains_key(*name))).copied().flatten();
    match nearest(&name, known.clone().chain(reachable.copied())) {
        Some(near) => Err(format!("did you mean {near:?}?")),
        None => Err(hint(&name, known)),
    }
}

/// Why a flag of another tool can be ignored; `None` if it cannot.
pub(crate) fn ignored(name: &str) -> Option<&'static str> {
    foreign::ignored(&plain(name))
}

/// The other accepted names of `key`, TRL's first.
pub(crate) fn others<'a>(key: &'a str, keys: &'a Map<String, Value>) -> impl Iterator<Item = &'static str> + 'a {
    let mut names: Vec<&str> = Vec::new();
    for name in synonyms(key) {
        if !keys.contains_key(name) && !names.contains(&name) && resolve(name, keys).as_deref() == Ok(key) {
            names.push(name);
        }
    }
    names.into_iter()
}

/// Whether two names denote the same setting.
pub(crate) fn are_same(a: &str, b: &str) -> bool {
    let (a, b) = (plain(a), plain(b));
    a == b || synonyms(&a).any(|synonym| synonym == b)
}

/// Normalises `-` to `_`.
pub(crate) fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// `key`, or the key of `mapping` that differs from it in `-` and `_` only.
pub(crate) fn existing(mapping: &Map<String, Value>, key: &str) -> String {
    if mapping.contains_key(key) {
        return key.to_owned();
    }
    mapping.keys().find(|known| plain(known) == plain(key)).cloned().unwrap_or_else(|| key.to_owned())
}

/// A hint about a name that is not among `known`: the nearest one, else all of them if they are few.
pub(crate) fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => {
            let known: Vec<&str> = known.collect();
            match known.len() {
                0 => "there is none here".to_owned(),
                n if n <= MOST_NAMES => format!("valid: {}", known.join(", ")),
                n => format!("none of the {n} here is like it; --help lists them"),
            }
        }
    }
}

/// The most similar of `known`, if it can be a typo: at most one letter in four differs, or one letter in all, or one
/// is a prefix of the other.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let name = plain(name);
    let likeness = |other: &str| strsim::normalized_damerau_levenshtein(&name, &plain(other));
    let begins =
        |other: &str| name.len() >= 4 && other.len() >= 4 && (other.starts_with(&name) || name.starts_with(other));
    let scored = known.map(|other| (likeness(other), other));
    let is_one_slip = |other: &str| name.len() >= 3 && strsim::damerau_levenshtein(&name, &plain(other)) <= 1;
    let scored = scored
        .filter(|(score, other)| *score >= 0.75 || is_one_slip(other) || (*score >= 0.5 && begins(&plain(other))));
    // Ties go to the first in the order of the struct.
    scored
        .fold(None, |best: Option<(f64, &str)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        })
        .map(|(_, name)| name)
}

fn synonyms(name: &str) -> impl Iterator<Item = &'static str> {
    SYNONYMS.iter().filter(move |group| group.contains(&name)).copied().flatten().copied()
}
