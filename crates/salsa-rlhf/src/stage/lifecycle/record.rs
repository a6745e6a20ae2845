//! `stage.json`: the origin of a directory, so that finished work is not repeated and other work is not mistaken for
//! it.
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::bail;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::inputs::Input;
use crate::{
    config::paths::{Places, below, visit_strings},
    input,
};

/// The configuration, the inputs and, once done, the results of a stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Name of the stage's kind.
    pub stage: String,
    /// Version of the program.
    pub version: String,
    /// All values of its configuration.
    pub config: Value,
    /// Its inputs.
    pub inputs: Vec<Input>,
    /// Its results; null if it is not done.
    pub results: Value,
    /// The roles of the configuration's values; a record that was read from a file has none.
    #[serde(skip)]
    pub places: Places,
    /// Inputs that another stage has yet to write, so their bytes are unknown: they never count as a difference.
    #[serde(skip)]
    pub later: Vec<PathBuf>,
}

impl Record {
    /// A record of work not done yet.
    pub fn new(stage: &str, config: Value, places: Places, inputs: Vec<Input>) -> Record {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Record { stage: stage.to_owned(), version, config, inputs, results: Value::Null, places, later: Vec::new() }
    }

    /// The record at `path`; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read or is not a record.
    pub fn read(path: &Path) -> anyhow::Result<Option<Record>> {
        let Some(text) = input::read_if_any(path)? else { return Ok(None) };
        match serde_json::from_slice(&text) {
            Ok(record) => Ok(Some(record)),
            Err(error) => bail!("{} is not a stage record ({error}); remove its directory", path.display()),
        }
    }

    /// Describes the first difference between this record and `now`.
    ///
    /// The output directory, the version and values of no effect are ignored. A key missing in this record counts as
    /// its default, since it did not exist then. An input is compared by its place in the configuration and by its
    /// bytes, not by its path: a run directory may be moved, but two inputs cannot be exchanged.
    pub fn difference(&self, now: &Record) -> Option<String> {
        if self.stage != now.stage {
            return Some(format!("it was made by `{}`, not `{}`", self.stage, now.stage));
        }
        let keys = |record: &Record| {
            let mut config = record.config.clone();
            if let Value::Object(config) = &mut config {
                config.shift_remove("output_dir");
                config.shift_remove("output");
            }
            config
        };
        let (then, places) = (self.inputs_by_place(&now.places), &now.places);
        Comparison { then, now: now.inputs_by_place(places), places, later: &now.later }.difference(
            "",
            &keys(self),
            &keys(now),
        )
    }

    /// The inputs by their places in the configuration.
    fn inputs_by_place(&self, places: &Places) -> HashMap<String, &Input> {
        let mut inputs = HashMap::new();
        visit_strings(&mut self.config.clone(), "", &mut |place, text| {
            let is_input = places.inputs.contains_key(place);
            let input = self.inputs.iter().find(|input| is_input && input.path == Path::new(text));
            inputs.extend(input.map(|input| (place.to_owned(), input)));
            Ok(None)
        })
        .expect("this visit cannot fail");
        inputs
    }
}

/// The inputs of two records, by the places of the later one.
struct Comparison<'a> {
    then: HashMap<String, &'a Input>,
    now: HashMap<String, &'a Input>,
    places: &'a Places,
    later: &'a [PathBuf],
}

impl Comparison<'_> {
    fn difference(&self, place: &str, then: &Value, now: &Value) -> Option<String> {
        match (then, now) {
            (Value::Object(then), Value::Object(now)) => {
                let keys = now.keys().chain(then.keys().filter(|key| !now.contains_key(*key)));
                keys.into_iter().find_map(|key| {
                    let place = below(place, key);
                    if self.places.no_effect.contains(&place) {
                        return None;
                    }
                    match (then.get(key), now.get(key)) {
                        (Some(then), Some(now)) => self.difference(&place, then, now),
                        (Some(then), None) => Some(format!("{place} was {then} and is gone")),
                        (None, Some(_)) if self.places.at_default.contains(&place) => None,
                        (None, now) => Some(format!("{place} was not set and is {} now", now.unwrap_or(&Value::Null))),
                    }
                })
            }
            (Value::Array(then), Value::Array(now)) if then.len() == now.len() => {
                let mut items = then.iter().zip(now).enumerate();
                items.find_map(|(i, (then, now))| self.difference(&format!("{place}[{i}]"), then, now))
            }
            (Value::String(_), Value::String(now)) if self.is_later(place, now) => None,
            (Value::String(then), Value::String(now)) => match (self.then.get(place), self.now.get(place)) {
                (Some(was), Some(is)) if is.is_still(was) => None,
                (Some(was), Some(is)) if then == now => Some(format!(
                    "{now} has changed since: its SHA-256 was {:.8}… and is {:.8}… now",
                    was.sha256, is.sha256
                )),
                (Some(_), Some(_)) => Some(format!("{place} was {then} and is {now} now")),
                (None, Some(_)) if then == now => Some(format!("whether {now} has changed since is not recorded")),
                _ if then == now => None,
                _ => Some(format!("{place} was {then:?} and is {now:?} now")),
            },
            _ if then == now || is_longer_form(then, now) => None,
            _ => Some(format!("{place} was {then} and is {now} now")),
        }
    }

    /// Whether an input has yet to be written.
    fn is_later(&self, place: &str, path: &str) -> bool {
        self.places.inputs.contains_key(place) && self.later.iter().any(|later| later == Path::new(path))
    }
}

/// Whether `then` is the 64-bit form of the 32-bit number that `now` is the shortest form of: older versions wrote
/// 0.699999988079071 for 0.7.
pub(in crate::stage) fn is_longer_form(then: &Value, now: &Value) -> bool {
    let [(Some(was), was_written), (Some(is), is_written)] =
        [then, now].map(|number| (number.as_f64(), number.to_string()))
    else {
        return false;
    };
    then.is_f64() && was == f64::from(is as f32) && was_written.len() > is_written.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::paths::PathKind;
    use serde_json::{Map, json};

    fn record(config: Value, inputs: &[(&str, &str)]) -> Record {
        let inputs = inputs.iter().map(|(path, sha256)| Input {
            path: path.into(),
            sha256: sha256.to_string(),
            with_path_of_base: None,
        });
        let mut places = Places::default();
        visit_strings(&mut config.clone(), "", &mut |place, _| {
            let root = place.split(['.', '[']).next().unwrap();
            if ["model", "models", "dataset", "eval_dataset", "arms", "reward_model_path"].contains(&root) {
                places.inputs.insert(place.to_owned(), PathKind::Data);
            }
            Ok(None)
        })
        .unwrap();
        places.no_effect.insert("training.save_steps".to_owned());
        Record::new("sft", config, places, inputs.collect())
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
    fn a_number_counts_as_itself_in_its_longer_form() {
        let then = record(json!({"temperature": f64::from(0.7_f32)}), &[]);
        let differs = |number: f64| then.difference(&record(json!({"temperature": number}), &[]));
        assert_eq!(differs(0.7), None);
        let told = differs(0.700_001).unwrap();
        assert_eq!(told, "temperature was 0.699999988079071 and is 0.700001 now");
        for (then, now) in
            [(json!(0.7), json!(0.7 + 1e-9)), (json!(0.5), json!(0.5 + 1e-9)), (json!(1 << 24), json!((1 << 24) + 1))]
        {
            let then = record(json!({"x": then}), &[]);
            assert!(then.difference(&record(json!({"x": now}), &[])).is_some(), "others count to their last digit");
        }
    }

    #[test]
    fn what_changes_no_result_does_not_count() {
        let then = record(json!({"training": {"save_steps": 1, "seed": 1}}), &[]);
        let differs = |training: Value| then.difference(&record(json!({"training": training}), &[]));
        assert_eq!(differs(json!({"save_steps": 2, "seed": 1})), None);
        assert_eq!(differs(json!({"seed": 1})), None, "a record of a version that had the key");
        assert_eq!(differs(json!({"save_steps": 2, "seed": 2})).unwrap(), "training.seed was 1 and is 2 now");
    }

    #[test]
    fn a_key_that_did_not_exist_then_counts_as_its_default() {
        for kind in crate::stage::table::STAGES {
            let now = (kind.defaults)();
            let places = (kind.places)(&now.clone().into()).unwrap();
            let record = |config: Map<String, Value>, places: &Places| {
                Record::new(kind.name, config.into(), places.clone(), Vec::new())
            };
            for key in now.keys() {
                let mut before = now.clone();
                before.shift_remove(key);
                let before = record(before, &Places::default());
                assert_eq!(before.difference(&record(now.clone(), &places)), None, "{}: {key}", kind.name);
            }
        }
        let kind = crate::stage::table::find("sft").unwrap();
        let mut now = (kind.defaults)();
        now["packing"] = true.into();
        let places = (kind.places)(&now.clone().into()).unwrap();
        let mut before = now.clone();
        before.shift_remove("packing");
        let before = Record::new("sft", before.into(), Places::default(), Vec::new());
        let told = before.difference(&Record::new("sft", now.into(), places, Vec::new())).unwrap();
        assert_eq!(told, "packing was not set and is true now");
    }

    #[test]
    fn inputs_count_by_their_bytes() {
        let then = record(json!({"model": "a", "output_dir": "x"}), &[("a", "11")]);
        assert_eq!(then.difference(&record(json!({"model": "b/a", "output_dir": "y"}), &[("b/a", "11")])), None);
        let told = then.difference(&record(json!({"model": "a"}), &[("a", "22")])).unwrap();
        assert!(told.starts_with("a has changed since: its SHA-256 was "), "{told}");
        let told = then.difference(&record(json!({"model": "b"}), &[("b", "22")])).unwrap();
        assert_eq!(told, "model was a and is b now");
    }

    #[test]
    fn an_input_that_is_still_to_be_written_is_no_difference() {
        let then = record(json!({"model": "a", "seed": 1}), &[("a", "11")]);
        let now =
            |seed: u64| Record { later: vec!["run/a".into()], ..record(json!({"model": "run/a", "seed": seed}), &[]) };
        assert_eq!(then.difference(&now(1)), None);
        assert_eq!(then.difference(&now(2)).unwrap(), "seed was 1 and is 2 now");
    }

    #[test]
    fn inputs_count_by_their_place() {
        let differs = |then: Value, now: Value| {
            let inputs = [("x", "1"), ("y", "2"), ("moved/x", "1"), ("moved/y", "2")];
            record(then, &inputs).difference(&record(now, &inputs))
        };
        for (then, now, told) in [
            (
                json!({"models": ["x", "y"], "weights": [0.9, 0.1]}),
                json!({"models": ["y", "x"], "weights": [0.9, 0.1]}),
                "models[0] was x and is y now",
            ),
            (
                json!({"dataset": {"path": "x"}, "eval_dataset": "y"}),
                json!({"dataset": {"path": "y"}, "eval_dataset": "x"}),
                "dataset.path was x and is y now",
            ),
            (json!({"arms": {"a": "x", "b": "y"}}), json!({"arms": {"a": "y", "b": "x"}}), "arms.a was x and is y now"),
            (json!({"models": ["x", "x"]}), json!({"models": ["x", "y"]}), "models[1] was x and is y now"),
            // An input that was already used in another place.
            (
                json!({"model": "x", "reward_model_path": "y"}),
                json!({"model": "x", "reward_model_path": "x"}),
                "reward_model_path was y and is x now",
            ),
            (json!({"models": ["x"]}), json!({"models": ["x", "y"]}), "models was [\"x\"] and is [\"x\",\"y\"] now"),
            // The name of an arm is no path, even if an input has the same name.
            (json!({"model": "x", "arm": "x"}), json!({"model": "x", "arm": "y"}), "arm was \"x\" and is \"y\" now"),
        ] {
            assert_eq!(differs(then, now).as_deref(), Some(told));
        }
        assert_eq!(differs(json!({"models": ["x", "y"]}), json!({"models": ["moved/x", "moved/y"]})), None);
        assert_eq!(differs(json!({"models": ["x", "moved/x"]}), json!({"models": ["x", "x"]})), None);
    }
}
