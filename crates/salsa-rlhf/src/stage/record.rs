//! `stage.json`: what made a directory, so that the same work is not done twice and other work is not mistaken for it.
use std::{fs, io, path::Path};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inputs::Input;

/// What a stage was told, what it read and, once done, what came out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the stage's kind.
    pub stage: String,
    /// Version of the program.
    pub version: String,
    /// Every value of its configuration.
    pub config: Value,
    /// What it read.
    pub inputs: Vec<Input>,
    /// What it reports; null while it is not done.
    pub results: Value,
}

impl Record {
    /// A record of work to do.
    pub fn new(stage: &str, config: Value, inputs: Vec<Input>) -> Record {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Record { stage: stage.to_owned(), version, config, inputs, results: Value::Null }
    }

    /// The record at `path`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read or is not a record.
    pub fn read(path: &Path) -> anyhow::Result<Option<Record>> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        match serde_json::from_slice(&text) {
            Ok(record) => Ok(Some(record)),
            Err(error) => bail!("{} is not a stage record ({error}); remove its directory", path.display()),
        }
    }

    /// The first thing in which `now` differs from this record, in words.
    ///
    /// The output directory and the version do not count, and an input counts by its bytes, not by its path: a run
    /// directory may be moved.
    pub fn difference(&self, now: &Record) -> Option<String> {
        if self.stage != now.stage {
            return Some(format!("it was made by `{}`, not `{}`", self.stage, now.stage));
        }
        let (then, now) = (Comparable::new(self), Comparable::new(now));
        difference("", &then.config, &now.config).or_else(|| {
            let changed = now.inputs.iter().find(|input| !then.inputs.iter().any(|old| old.sha256 == input.sha256))?;
            Some(format!("{} has changed since", changed.path.display()))
        })
    }
}

/// A configuration in which the names of inputs give way to what they are.
struct Comparable<'a> {
    config: Value,
    inputs: &'a [Input],
}

impl<'a> Comparable<'a> {
    fn new(record: &'a Record) -> Comparable<'a> {
        let mut config = record.config.clone();
        if let Value::Object(config) = &mut config {
            config.shift_remove("output_dir");
            config.shift_remove("output");
        }
        name_by_order(&mut config, &record.inputs);
        Comparable { config, inputs: &record.inputs }
    }
}

/// Writes the position of an input in place of its path. The bytes are compared apart, to be able to say which changed.
fn name_by_order(value: &mut Value, inputs: &[Input]) {
    match value {
        Value::String(text) => {
            if let Some(position) = inputs.iter().position(|input| input.path == Path::new(text.as_str())) {
                *value = Value::String(format!("input {position}"));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| name_by_order(item, inputs)),
        Value::Object(fields) => fields.values_mut().for_each(|field| name_by_order(field, inputs)),
        _ => {}
    }
}

fn difference(path: &str, then: &Value, now: &Value) -> Option<String> {
    match (then, now) {
        (Value::Object(then), Value::Object(now)) => {
            let keys = now.keys().chain(then.keys().filter(|key| !now.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (then.get(key), now.get(key)) {
                    (Some(then), Some(now)) => difference(&path, then, now),
                    (Some(then), None) => Some(format!("{path} was {then} and is gone")),
                    (None, now) => Some(format!("{path} was not set and is {} now", now.unwrap_or(&Value::Null))),
                }
            })
        }
        _ if then == now => None,
        _ => Some(format!("{path} was {then} and is {now} now")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(config: Value, inputs: &[(&str, &str)]) -> Record {
        let inputs = inputs.iter().map(|(path, sha256)| Input { path: path.into(), sha256: sha256.to_string() });
        Record::new("sft", config, inputs.collect())
    }

    #[test]
    fn the_first_difference_is_told() {
        let then = record(json!({"seed": 1, "reference": {"kind": "sft", "beta": 0.1}}), &[]);
        let differs = |config| then.difference(&record(config, &[]));
        assert_eq!(differs(json!({"reference": {"beta": 0.1, "kind": "sft"}, "seed": 1})), None);
        let told = differs(json!({"seed": 2, "reference": {"kind": "sft", "beta": 0.2}})).unwrap();
        assert_eq!(told, "seed was 1 and is 2 now");
        let told = differs(json!({"seed": 1, "reference": {"kind": "sft", "beta": 0.2}})).unwrap();
        assert_eq!(told, "reference.beta was 0.1 and is 0.2 now");
        assert_eq!(differs(json!({"seed": 1})).unwrap(), "reference was {\"kind\":\"sft\",\"beta\":0.1} and is gone");
        let other = Record { stage: "dpo".into(), ..then.clone() };
        assert_eq!(then.difference(&other).unwrap(), "it was made by `sft`, not `dpo`");
    }

    #[test]
    fn inputs_count_by_their_bytes_and_their_place() {
        let then = record(json!({"model": "a", "output_dir": "x"}), &[("a", "11")]);
        assert_eq!(then.difference(&record(json!({"model": "b/a", "output_dir": "y"}), &[("b/a", "11")])), None);
        let told = then.difference(&record(json!({"model": "a"}), &[("a", "22")])).unwrap();
        assert_eq!(told, "a has changed since");
        let two = record(json!({"a": "x", "b": "y"}), &[("x", "1"), ("y", "2")]);
        let swapped = record(json!({"a": "y", "b": "x"}), &[("x", "1"), ("y", "2")]);
        assert!(two.difference(&swapped).is_some());
    }
}
