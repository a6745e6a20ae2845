//! What all processes of a run must have been started with.
use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use salsa_engine::comm::{self, Comm};
use serde_json::{Map, Value};

use super::inputs::Input;
use crate::config::paths::{Places, below};

/// Checks that all processes have the values of `config`, apart from those without effect, and the same bytes in its
/// inputs.
///
/// # Errors
/// In all processes: whose values or files differ from those of the first, and where; or if an input cannot be read.
pub(crate) fn check(ranks: &dyn Comm, config: &Value, places: &Places) -> anyhow::Result<()> {
    if ranks.size() == 1 {
        return Ok(());
    }
    let mut inputs = Map::new();
    for path in places.paths(config) {
        inputs.insert(path.display().to_string(), Input::read(&path)?.sha256.into());
    }
    let mine = Value::Array(vec![config.clone(), inputs.into()]);
    let first = serde_json::to_vec(&mine).context("JSON")?;
    let first: Value = serde_json::from_slice(&ranks.broadcast_all(0, first)?).context("JSON of process 0")?;
    let found = difference(&places.no_effect, "", &first[0], &mine[0])
        .or_else(|| difference(&BTreeSet::new(), "SHA-256 of", &first[1], &mine[1]));
    let found = found.map(|found| format!("on process {} ({}) {found}", ranks.rank(), comm::host()));
    let all = ranks.gather_all(found.unwrap_or_default().as_bytes())?;
    let differing = all.iter().find(|text| !text.is_empty());
    let differing = String::from_utf8_lossy(differing.map_or(&[], Vec::as_slice));
    ensure!(differing.is_empty(), "the processes were not started alike: {differing} on process 0");
    Ok(())
}

/// The first value at which `mine` differs from `first`.
fn difference(no_effect: &BTreeSet<String>, place: &str, first: &Value, mine: &Value) -> Option<String> {
    match (first, mine) {
        (Value::Object(first), Value::Object(mine)) => {
            let keys = mine.keys().chain(first.keys().filter(|key| !mine.contains_key(*key)));
            keys.into_iter().find_map(|key| {
                let place = if place.ends_with(" of") { format!("{place} {key}") } else { below(place, key) };
                let value = |object: &Map<String, Value>| object.get(key).cloned().unwrap_or_default();
                difference(no_effect, &place, &value(first), &value(mine))
            })
        }
        _ if first == mine || no_effect.contains(place) => None,
        _ => Some(format!("{place} is {mine}, but {first}")),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, thread};

    use salsa_engine::comm::in_process;
    use serde_json::json;

    use super::*;
    use crate::config::paths::PathKind;

    /// What each of two processes is told when the second one has this configuration.
    fn said(first: &Value, second: &Value) -> Vec<String> {
        let start = |comm: comm::InProcess| {
            let config = if comm.rank() == 0 { first.clone() } else { second.clone() };
            let places = Places {
                inputs: [("data".to_owned(), PathKind::Data)].into(),
                no_effect: ["save_steps".to_owned()].into(),
                ..Places::default()
            };
            thread::spawn(move || check(&comm, &config, &places).map_or_else(|e| format!("{e:#}"), |()| String::new()))
        };
        let threads: Vec<_> = in_process(2).into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }

    #[test]
    fn the_first_value_or_file_that_differs_is_named_on_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).display().to_string();
        fs::write(path("a"), "1").unwrap();
        let config = |rate: f64, save_steps: u64| json!({"data": path("a"), "rate": rate, "save_steps": save_steps});
        assert_eq!(said(&config(0.1, 5), &config(0.1, 9)), ["", ""]);
        let expected = format!(
            "the processes were not started alike: on process 1 ({}) rate is 0.2, but 0.1 on process 0",
            comm::host()
        );
        assert_eq!(said(&config(0.1, 5), &config(0.2, 5)), [expected.clone(), expected]);
    }

    #[test]
    fn other_bytes_under_the_same_name_are_a_difference() {
        let one = json!({"/data/x.jsonl": "ab"});
        let found = difference(&BTreeSet::new(), "SHA-256 of", &one, &json!({"/data/x.jsonl": "cd"}));
        assert_eq!(found.unwrap(), "SHA-256 of /data/x.jsonl is \"cd\", but \"ab\"");
        assert!(!Path::new("/data/x.jsonl").exists());
    }
}
