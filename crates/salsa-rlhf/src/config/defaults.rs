//! Finds the keys of a configuration that hold their default, so that leaving them out changes nothing.
use std::collections::BTreeSet;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::paths::below;

/// One step of a path into a value.
#[derive(Clone)]
enum Step {
    Key(String),
    Item(usize),
}

/// The places of all keys, including nested ones, that can be left out without changing the configuration.
pub(super) fn of<C: Serialize + DeserializeOwned>(config: &C) -> serde_json::Result<BTreeSet<String>> {
    let whole = serde_json::to_value(config)?;
    let mut keys = Vec::new();
    collect(&whole, "", &mut Vec::new(), &mut keys);
    keys.retain(|(_, steps)| {
        let mut without = whole.clone();
        remove(&mut without, steps);
        C::deserialize(without).and_then(serde_json::to_value).is_ok_and(|read| read == whole)
    });
    Ok(keys.into_iter().map(|(place, _)| place).collect())
}

/// Collects every key of a mapping with its place and path.
fn collect(value: &Value, place: &str, steps: &mut Vec<Step>, keys: &mut Vec<(String, Vec<Step>)>) {
    let mut enter = |step: Step, place: String, value: &Value| {
        let is_key = matches!(step, Step::Key(_));
        steps.push(step);
        if is_key {
            keys.push((place.clone(), steps.clone()));
        }
        collect(value, &place, steps, keys);
        steps.pop();
    };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, field)| enter(Step::Key(key.clone()), below(place, key), field));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, item)| enter(Step::Item(i), format!("{place}[{i}]"), item));
        }
        _ => {}
    }
}

fn remove(value: &mut Value, steps: &[Step]) {
    match (steps, value) {
        ([Step::Key(key)], Value::Object(fields)) => drop(fields.shift_remove(key)),
        ([Step::Key(key), rest @ ..], Value::Object(fields)) => {
            fields.get_mut(key).into_iter().for_each(|field| remove(field, rest));
        }
        ([Step::Item(i), rest @ ..], Value::Array(items)) => {
            items.get_mut(*i).into_iter().for_each(|item| remove(item, rest));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        seed: u64,
        name: String,
    }

    #[derive(Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Config {
        steps: u64,
        inner: Option<Inner>,
        sets: Vec<Inner>,
        arms: BTreeMap<String, u64>,
        #[serde(flatten)]
        common: Inner,
    }

    #[test]
    fn a_key_is_at_its_default_if_the_configuration_reads_the_same_without_it() {
        let inner = |seed| Inner { seed, name: String::new() };
        let config = Config {
            steps: 3,
            inner: Some(inner(1)),
            sets: vec![inner(0), inner(2)],
            arms: [("a".to_owned(), 0)].into(),
            common: inner(0),
        };
        let found: Vec<String> = of(&config).unwrap().into_iter().collect();
        assert_eq!(found, ["inner.name", "name", "seed", "sets[0].name", "sets[0].seed", "sets[1].name"]);
        assert_eq!(of(&Config::default()).unwrap().len(), 6, "all keys, those of no mapping apart");
    }
}
