//! Applies given values over defaults one key at a time, so that an error can name its key.
use std::marker::PhantomData;

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Origin, names, parse, set_path, wording};

/// The values so far; they form a valid `T` after every accepted step.
pub(super) struct Layers<T> {
    keys: Map<String, Value>,
    values: Map<String, Value>,
    given: Vec<(String, Origin, Value)>,
    kind: PhantomData<T>,
}

/// All values that the command line gives for one key.
struct Flag<'a> {
    name: String,
    /// The name that the first of its values was given under.
    written: &'a str,
    /// The rest of a dotted path (if any), and the text.
    values: Vec<(Option<&'a str>, &'a str)>,
}

/// One interpretation of a given value.
struct Reading {
    /// The new value of the key.
    value: Value,
    /// The part of it that was given; the rest was set before.
    given: Value,
}

impl Reading {
    fn whole(value: Value) -> Reading {
        Reading { given: value.clone(), value }
    }
}

impl<T: Serialize + DeserializeOwned + Default> Layers<T> {
    /// The defaults.
    pub(super) fn new() -> Layers<T> {
        let keys = match serde_json::to_value(T::default()) {
            Ok(Value::Object(keys)) => keys,
            other => panic!("a configuration must serialise to a mapping, got {other:?}"),
        };
        Layers { values: keys.clone(), keys, given: Vec::new(), kind: PhantomData }
    }

    /// Applies the keys of a mapping.
    pub(super) fn mapping(&mut self, given: &Map<String, Value>, origin: &Origin) -> anyhow::Result<()> {
        let mut seen: Vec<(String, &str)> = Vec::new();
        let resolved =
            given.iter().map(|(key, _)| names::resolve(key, &self.keys).map_err(|hint| (key.as_str(), hint)));
        let resolved = all_known(resolved, origin)?;
        for (name, (key, value)) in resolved.into_iter().zip(given) {
            if let Some((_, first)) = seen.iter().find(|(earlier, _)| *earlier == name) {
                let place = origin.key(key);
                return Err(origin.error(format!("{place}: the same setting is already given as {first:?}; keep one")));
            }
            self.accept(&name, key, numbers(value).map(Reading::whole).collect(), origin)?;
            seen.push((name, key));
        }
        Ok(())
    }

    /// Applies command-line flags.
    pub(super) fn flags(&mut self, overrides: &[(String, String)]) -> anyhow::Result<()> {
        let origin = Origin::CommandLine;
        for flag in self.group(overrides)? {
            let readings = match flag.values.iter().any(|(rest, _)| rest.is_some()) {
                true => self.nested_readings(&flag).map_err(|error| {
                    let place = origin.key(flag.written);
                    origin.error(format!("{place}: {error:#}"))
                })?,
                false => readings(&flag),
            };
            let accepted = self.accept(&flag.name, flag.written, readings, &origin);
            let times = flag.values.iter().filter(|(rest, _)| rest.is_none()).count();
            accepted.map_err(|error| match times {
                0 | 1 => error,
                _ => origin.error(format!("--{} is given {times} times; it takes one value", flag.written)),
            })?;
        }
        Ok(())
    }

    /// Returns the configuration; fails if a nested key was dropped.
    pub(super) fn finish(self) -> anyhow::Result<T> {
        let config: T = serde_json::from_value(Value::Object(self.values)).context("configuration")?;
        let kept = serde_json::to_value(&config).context("configuration")?;
        match self.given.iter().find_map(|(name, origin, given)| Some((origin, lost(given, &kept[name], name)?))) {
            Some((origin, (path, hint))) => Err(unknown(origin, &path, &hint)),
            None => Ok(config),
        }
    }

    fn group<'a>(&self, overrides: &'a [(String, String)]) -> anyhow::Result<Vec<Flag<'a>>> {
        let mut flags: Vec<Flag<'a>> = Vec::new();
        let parts = |written: &'a str| match written.split_once('.') {
            Some((root, rest)) => (root, Some(rest)),
            None => (written, None),
        };
        let resolved = overrides.iter().filter_map(|(written, text)| {
            let (root, rest) = parts(written);
            match names::resolve(root, &self.keys) {
                Ok(name) => Some(Ok((name, root, rest, text.as_str()))),
                Err(hint) => match self.in_other_words(root, text) {
                    Some((name, text)) => Some(Ok((name, root, rest, text))),
                    None => match names::ignored(root) {
                        Some(reason) => {
                            eprintln!("--{root} is ignored: {reason}");
                            None
                        }
                        None => Some(Err((root, hint))),
                    },
                },
            }
        });
        for (name, root, rest, text) in all_known(resolved, &Origin::CommandLine)? {
            match flags.iter_mut().find(|flag| flag.name == name) {
                Some(flag) if flag.written != root && rest.is_none() => {
                    // Under another name it is no further item of a list, but the same setting once more.
                    if flag.values != [(None, text)] {
                        return Err(Origin::CommandLine
                            .error(format!("--{root} is another name of --{}; give one of them", flag.written)));
                    }
                }
                Some(flag) => flag.values.push((rest, text)),
                None => flags.push(Flag { name, written: root, values: vec![(rest, text)] }),
            }
        }
        Ok(flags)
    }

    /// A flag that stands for a value of another key: `--no_packing` for `--packing false`, `--bf16 true` for
    /// `--dtype bf16`.
    fn in_other_words<'a>(&self, flag: &str, text: &'a str) -> Option<(String, &'a str)> {
        if let Some(name) = self.negated(flag, text) {
            return Some((name, "false"));
        }
        let is_precision =
            names::plain(flag) == "bf16" && self.keys.contains_key("dtype") && self.keys["dtype"] == "auto";
        match text {
            "true" | "True" if is_precision => Some(("dtype".to_owned(), "bf16")),
            "false" | "False" if is_precision => Some(("dtype".to_owned(), "f32")),
            _ => None,
        }
    }

    /// Treats `--no_packing` as `--packing false`.
    fn negated(&self, flag: &str, text: &str) -> Option<String> {
        let positive = names::plain(flag).strip_prefix("no_")?.to_owned();
        let name = names::resolve(&positive, &self.keys).ok()?;
        (self.keys[&name].is_boolean() && text == "true").then_some(name)
    }

    /// Dotted flags are merged into the current value; if that is no mapping or has another `kind`, they replace it.
    fn nested_readings(&self, flag: &Flag<'_>) -> anyhow::Result<Vec<Reading>> {
        let set = &self.values[&flag.name];
        let given = nested(flag, Value::Null)?;
        let is_other_kind = given.get("kind").is_some_and(|kind| set.get("kind").is_some_and(|set| set != kind));
        let beside = nested(flag, set.clone()).ok().filter(|_| !is_other_kind);
        let beside = beside.map(|value| Reading { value, given: given.clone() });
        Ok(beside.into_iter().chain([Reading::whole(given)]).collect())
    }

    /// Accepts the first reading with which the whole is still a valid `T`.
    fn accept(&mut self, name: &str, key: &str, readings: Vec<Reading>, origin: &Origin) -> anyhow::Result<()> {
        let mut complaint = None;
        for Reading { value, given } in readings {
            let mut values = self.values.clone();
            values.insert(name.to_owned(), value);
            match serde_json::from_value::<T>(Value::Object(values.clone())) {
                Ok(_) => {
                    self.values = values;
                    self.given.push((name.to_owned(), origin.clone(), given));
                    return Ok(());
                }
                Err(error) => complaint = complaint.or(Some(wording::plain(&error.to_string()))),
            }
        }
        Err(origin.error(format!("{}: {}", origin.key(key), complaint.unwrap_or_default())))
    }
}

/// The interpretations of a flag's text, likeliest first: YAML, plain text, items between commas, a list of one; if
/// repeated, a list of either.
fn readings(flag: &Flag<'_>) -> Vec<Reading> {
    let typed: Vec<Value> = flag.values.iter().map(|(_, text)| typed(text)).collect();
    let texts: Vec<Value> = flag.values.iter().map(|(_, text)| (*text).into()).collect();
    let mut all = Vec::new();
    if let ([typed], [text]) = (&typed[..], &texts[..]) {
        all.extend(numbers(typed));
        all.push(text.clone());
        let items: Vec<&str> = flag.values[0].1.split(',').collect();
        if items.len() > 1 && items.iter().all(|item| !item.trim().is_empty()) && typed.is_string() {
            all.push(items.iter().map(|item| self::typed(item.trim())).collect());
        }
    }
    all.extend([Value::Array(typed), Value::Array(texts)]);
    all.into_iter().map(Reading::whole).collect()
}

/// `start` with the values of `--name.rest value` set; a path with several values gets a list.
fn nested(flag: &Flag<'_>, start: Value) -> anyhow::Result<Value> {
    let mut root = Map::from_iter([(flag.name.clone(), start)]);
    let mut paths: Vec<(Option<&str>, Vec<Value>)> = Vec::new();
    for (rest, text) in &flag.values {
        match paths.iter_mut().find(|(known, _)| known == rest) {
            Some((_, values)) => values.push(typed(text)),
            None => paths.push((*rest, vec![typed(text)])),
        }
    }
    for (rest, mut values) in paths {
        let path = rest.map_or(flag.name.clone(), |rest| format!("{}.{rest}", flag.name));
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        set_path(&mut root, &path, value)?;
    }
    Ok(root.remove(&flag.name).unwrap_or_default())
}

fn typed(text: &str) -> Value {
    parse(text).unwrap_or_else(|_| text.into())
}

/// Yields the value, and its integer form if it is a whole number such as `1e5`, which serde refuses for an integer.
fn numbers(value: &Value) -> impl Iterator<Item = Value> {
    let whole = value.as_f64().filter(|number| value.is_f64() && number.fract() == 0.0 && number.abs() < 9e15);
    [Some(value.clone()), whole.map(|number| Value::from(number as i64))].into_iter().flatten()
}

/// How the hint about a list in the place of a mapping begins.
const NO_MAPPING: &str = "expected a mapping";

/// The first nested key that the struct did not keep, with a hint: serde silently drops unknown keys of structs without
/// `deny_unknown_fields`.
fn lost(given: &Value, kept: &Value, path: &str) -> Option<(String, String)> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(key, value)| match kept.get(key) {
            Some(kept) => lost(value, kept, &format!("{path}.{key}")),
            None => Some((format!("{path}.{key}"), names::hint(key, kept.keys().map(String::as_str)))),
        }),
        (Value::Array(given), Value::Array(kept)) => {
            given.iter().zip(kept).enumerate().find_map(|(i, (given, kept))| lost(given, kept, &format!("{path}[{i}]")))
        }
        // serde takes the items of a list for the fields of a struct, in their order.
        (Value::Array(_), Value::Object(kept)) => {
            let keys: Vec<&str> = kept.keys().map(String::as_str).collect();
            Some((path.to_owned(), format!("{NO_MAPPING} with the keys {}, got a list", keys.join(", "))))
        }
        _ => None,
    }
}

/// Returns all resolved keys, or one error that names every unknown key once.
fn all_known<'a, N>(
    resolved: impl Iterator<Item = Result<N, (&'a str, String)>>,
    origin: &Origin,
) -> anyhow::Result<Vec<N>> {
    let (mut known, mut unknown): (Vec<N>, Vec<(&str, String)>) = (Vec::new(), Vec::new());
    for key in resolved {
        match key {
            Ok(name) => known.push(name),
            Err((key, _)) if unknown.iter().any(|(seen, _)| *seen == key) => {}
            Err(key) => unknown.push(key),
        }
    }
    match &unknown[..] {
        [] => Ok(known),
        [(key, hint)] => Err(self::unknown(origin, key, hint)),
        all => Err(all_unknown(origin, all)),
    }
}

/// The error for several unknown keys: one line, a hint for each.
fn all_unknown(origin: &Origin, keys: &[(&str, String)]) -> anyhow::Error {
    let (kind, dashes) = match origin {
        Origin::File { .. } => ("keys", ""),
        Origin::CommandLine => ("options", "--"),
    };
    let keys: Vec<String> = keys.iter().map(|(key, hint)| format!("{dashes}{key} ({hint})")).collect();
    origin.within(origin.error(format!("{} unknown {kind}: {}", keys.len(), keys.join(", "))))
}

fn unknown(origin: &Origin, key: &str, hint: &str) -> anyhow::Error {
    if hint.starts_with(NO_MAPPING) {
        return origin.error(format!("{}: {hint}", origin.key(key)));
    }
    origin.error(match origin {
        Origin::File { .. } => format!("{}: unknown key; {hint}", origin.key(key)),
        Origin::CommandLine => format!("unknown option --{key}; {hint}"),
    })
}
