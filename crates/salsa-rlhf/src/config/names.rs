//! Names of configuration keys: which are the same, which is meant, which nobody needs.
use serde_json::{Map, Value};

/// Checks a name that a user gives and that becomes a part of a path: that of a stage, an arm, a set of prompts. `key` says
/// where it is given.
///
/// # Errors
/// If it holds anything but letters, digits, `-`, `_` and `.`, begins with a dot, is empty or longer than 64 bytes.
pub fn check_component(key: &str, name: &str) -> anyhow::Result<()> {
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

/// Names that people use for the same thing, TRL's first. Whichever of a group a stage has as its key, the others reach it.
pub const SYNONYMS: &[&[&str]] = &[
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

/// TRL keys that have no counterpart, the key that a stage must have for the answer to hold (empty: none), and what to do
/// instead; the first that holds is given.
const ABSENT: &[(&str, &str, &str)] = &[
    ("resume_from_checkpoint", "", "leave it out: the same command resumes by itself"),
    ("report_to", "", "leave it out: metrics.jsonl and TensorBoard event files are always written"),
    ("logging_dir", "", "leave it out: event files are written to the output directory"),
    ("run_name", "", "leave it out: a run is known by its output directory"),
    ("push_to_hub", "", "leave it out: upload the output directory, it has Hugging Face's layout"),
    ("max_steps", "total_episodes", "say total_episodes: responses in all, batch_size of them per update"),
    (
        "num_train_epochs",
        "total_episodes",
        "say total_episodes: responses in all; one per prompt is a pass over the data",
    ),
    (
        "mini_batch_size",
        "num_mini_batches",
        "say num_mini_batches: optimizer steps per pass, each on its share of batch_size",
    ),
    (
        "gradient_accumulation_steps",
        "num_mini_batches",
        "leave it out: batch_size says how many responses an update has, per_device_train_batch_size the micro-batch",
    ),
    ("local_rollout_forward_batch_size", "decode_slots", "say decode_slots: responses generated at once"),
    ("stop_token", "", "leave it out: a response ends at the model's own end tokens (eos_token_id)"),
    ("stop_token_id", "", "leave it out: a response ends at the model's own end tokens (eos_token_id)"),
    ("warmup_ratio", "warmup_steps", "say warmup_steps: updates over which the learning rate rises"),
    ("dataset_train_split", "dataset", "say dataset.split, beside dataset.path"),
    ("dataset_test_split", "eval_dataset", "say eval_dataset.split, beside eval_dataset.path"),
    ("dataset_num_proc", "", "leave it out: all cores are used"),
    ("bf16", "dtype", "say dtype: bf16 (or auto, or f32)"),
    ("fp16", "dtype", "say dtype: bf16 (or auto, or f32); products in 16-bit IEEE numbers are not supported"),
    ("optim", "", "leave it out: the optimizer is AdamW"),
    ("save_total_limit", "", "leave it out: the newest two checkpoints are kept, and none once the stage is done"),
    (
        "overwrite_output_dir",
        "",
        "leave it out: nothing that is done is overwritten; remove the directory to make it anew",
    ),
    ("save_strategy", "save_steps", "leave it out: save_steps alone decides"),
    ("eval_strategy", "eval_steps", "leave it out: eval_steps alone decides"),
    ("eval_strategy", "", "leave it out: this stage does not evaluate while it works"),
    ("logging_strategy", "logging_steps", "leave it out: logging_steps alone decides"),
    ("logging_strategy", "total_episodes", "leave it out: every update is logged"),
    ("lora_task_type", "", "leave it out: the stage decides it"),
    ("lora_modules_to_save", "", "leave it out: a reward model's head is trained with the adapter, nothing else is"),
    ("use_dora", "", "leave it out: plain LoRA and rsLoRA (use_rslora) are supported"),
    ("trust_remote_code", "", "leave it out: no code of a model is ever run"),
];

/// The key of `keys` that `name` means.
///
/// # Errors
/// A hint for the reader if there is none.
pub fn resolve(name: &str, keys: &Map<String, Value>) -> Result<String, String> {
    let name = plain(name);
    if keys.contains_key(&name) {
        return Ok(name);
    }
    let synonym = synonyms(&name).find(|other| keys.contains_key(*other));
    if let Some(key) = synonym {
        return Ok(key.to_owned());
    }
    let holds = |needed: &str| needed.is_empty() || keys.contains_key(needed);
    if let Some((.., remedy)) = ABSENT.iter().find(|(absent, needed, _)| *absent == name && holds(needed)) {
        return Err((*remedy).to_owned());
    }
    let known = keys.keys().map(String::as_str);
    let reachable =
        SYNONYMS.iter().filter(|group| group.iter().any(|name| keys.contains_key(*name))).copied().flatten();
    match nearest(&name, known.clone().chain(reachable.copied())) {
        Some(near) => Err(format!("did you mean {near:?}?")),
        None => Err(hint(&name, known)),
    }
}

/// The other names by which `key` of `keys` is reached, TRL's first.
pub fn others<'a>(key: &'a str, keys: &'a Map<String, Value>) -> impl Iterator<Item = &'static str> + 'a {
    let mut names: Vec<&str> = Vec::new();
    for name in synonyms(key) {
        if !keys.contains_key(name) && !names.contains(&name) && resolve(name, keys).as_deref() == Ok(key) {
            names.push(name);
        }
    }
    names.into_iter()
}

/// Whether two names are the same setting.
pub fn are_same(a: &str, b: &str) -> bool {
    let (a, b) = (plain(a), plain(b));
    a == b || synonyms(&a).any(|synonym| synonym == b)
}

/// `-` and `_` are equal.
pub fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// `key`, or the key of `mapping` that differs from it in `-` and `_` only.
pub fn existing(mapping: &Map<String, Value>, key: &str) -> String {
    if mapping.contains_key(key) {
        return key.to_owned();
    }
    mapping.keys().find(|known| plain(known) == plain(key)).cloned().unwrap_or_else(|| key.to_owned())
}

/// What to say about a name that is not among `known`: the nearest one, else all of them.
pub fn hint<'a>(name: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => {
            let known: Vec<&str> = known.collect();
            if known.is_empty() { "there is none here".to_owned() } else { format!("valid: {}", known.join(", ")) }
        }
    }
}

/// The most similar of `known`, if it is similar at all.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |other: &str| strsim::normalized_damerau_levenshtein(&plain(name), &plain(other));
    let scored = known.map(|other| (likeness(other), other)).filter(|(score, _)| *score >= 0.6);
    // Of equals the first: the order of the struct, not of the comparison.
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
