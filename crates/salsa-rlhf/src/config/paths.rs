//! Which values of a configuration are paths that the stage reads.
use std::path::PathBuf;

use serde_json::Value;

use super::names::plain;
use crate::chat;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A model directory.
    Model,
    /// A data file or folder.
    Data,
}

/// Keys whose strings are model directories, alone or in lists.
const MODELS: &[&str] = &[
    "model_name_or_path",
    "tokenizer_name_or_path",
    "model",
    "models",
    "sft_model_path",
    "policy",
    "reward_model_path",
    "reward_model",
    "value_model",
    "critic_model",
    "ref_model",
    "ref_model_name_or_path",
    "ingredients",
    "base",
    "base_model",
    "tokenizer_source",
    "adapters",
];

/// Keys whose mappings have names of the reader's choice, with model directories as values.
const MODEL_MAPS: &[&str] = &["anchors", "arms", "runs"];

/// Keys whose strings are data files or folders, alone or in lists.
const DATA: &[&str] = &[
    "dataset_name",
    "dataset",
    "datasets",
    "train_dataset",
    "eval_dataset",
    "eval_dataset_name",
    "path",
    "prompts",
    "eval_prompts",
    "input",
    "inputs",
    "answers",
    "preferences",
    "questions",
];

/// What is called with the kind of a string (if its key holds paths), its place and itself; may give another value for it.
pub type Visit<'a> = dyn FnMut(Option<PathKind>, &str, &str) -> anyhow::Result<Option<Value>> + 'a;

/// Calls `visit` with every non-empty string: its kind, if its key holds paths, its place (`anchors.sft_a`), and itself.
/// `visit` may put another value in its place, which is not visited.
///
/// # Errors
/// The first error of `visit`.
pub fn visit_strings(value: &mut Value, key: &str, place: &str, visit: &mut Visit<'_>) -> anyhow::Result<()> {
    match value {
        Value::String(text) if !text.is_empty() => {
            if let Some(new) = visit(kind(key, text), place, text)? {
                *value = new;
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                visit_strings(item, key, &format!("{place}[{i}]"), visit)?;
            }
        }
        Value::Object(fields) => {
            let is_map = MODEL_MAPS.contains(&key);
            // `baseline` is a file beside `answers`, but the name of an arm beside `arms`.
            let has_answers = fields.contains_key("answers");
            for (name, field) in fields.iter_mut() {
                let inner = match name.as_str() {
                    _ if is_map && field.is_string() => key.to_owned(),
                    "baseline" if has_answers => "answers".to_owned(),
                    _ => plain(name),
                };
                let place = if place.is_empty() { name.clone() } else { format!("{place}.{name}") };
                visit_strings(field, &inner, &place, visit)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Every path that a stage with this configuration reads, once each, in the order of the keys.
pub fn inputs(config: &Value) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let mut copy = config.clone();
    visit_strings(&mut copy, "", "", &mut |kind, _, text| {
        let path = PathBuf::from(text);
        if kind.is_some() && !paths.contains(&path) {
            paths.push(path);
        }
        Ok(None)
    })
    .expect("this visit cannot fail");
    paths
}

fn kind(key: &str, text: &str) -> Option<PathKind> {
    if key == "chat_template" {
        // A file, unless it is the name of a template that is built in, or a template.
        (!chat::is_name_or_text(text)).then_some(PathKind::Data)
    } else {
        kind_of_key(key)
    }
}

/// What the strings of this key lead to, whatever they are.
pub fn kind_of_key(key: &str) -> Option<PathKind> {
    if MODELS.contains(&key) || MODEL_MAPS.contains(&key) {
        Some(PathKind::Model)
    } else if DATA.contains(&key) {
        Some(PathKind::Data)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn inputs_are_found_wherever_they_are_nested() {
        let config = json!({
            "model_name_or_path": "m", "output_dir": "out", "eval_dataset": null, "learning_rate": 1.0,
            "dataset": [{"path": "a.jsonl", "split": "train"}, "b.jsonl"],
            "reference": {"kind": "soup", "models": ["x", "y"], "weights": [0.5, 0.5]},
            "anchors": {"sft_a": "x", "soup": "s"},
            "arms": {"ppo": {"model": "p", "label": "PPO"}, "base": "m"},
            "prompts": "", "baseline": "base"
        });
        let found: Vec<String> = inputs(&config).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["m", "a.jsonl", "b.jsonl", "x", "y", "s", "p"]);
        for template in ["chatml", "llama3", "auto", "{{ messages }}"] {
            assert_eq!(inputs(&json!({"chat_template": template})), [] as [PathBuf; 0]);
        }
        assert_eq!(inputs(&json!({"chat_template": "mine.jinja"})), [PathBuf::from("mine.jinja")]);
        assert_eq!(inputs(&json!({"answers": "a", "baseline": "b"})), [PathBuf::from("a"), PathBuf::from("b")]);
    }
}
