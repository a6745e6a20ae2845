//! Configuration: defaults, then a YAML or JSON file, then `--key value` flags, each overriding the previous.
//!
//! A stage's configuration is one struct with `Default`, `Serialize` and `Deserialize` (`#[serde(default)]`, no
//! `skip_serializing`, no `serde(alias)`): its serialised default *is* the list of valid keys. Keys keep TRL's spelling
//! where TRL has one, `-` and `_` are equal, and the other common names of `names` are accepted. A key that does not
//! exist is an error that names the nearest one that does; a value of the wrong type is an error that names the key.
//! Constraints across values are checked by each stage's `validate`.
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use layers::Layers;
use serde::{Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::input;

mod defaults;
mod foreign;
mod layers;
pub(crate) mod names;
pub(crate) mod paths;
mod places;
pub(crate) mod schema;
pub(crate) mod wording;

/// An error of the command line itself: the program ends with exit code 2 instead of 1.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Where a value was written, for error messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a file, under a key path such as `stages.sft-a` (empty: at the top).
    File {
        /// The file.
        path: PathBuf,
        /// The mapping inside it.
        prefix: String,
    },
    /// On the command line.
    CommandLine,
}

impl Origin {
    /// A file's top level.
    pub fn file(path: &Path) -> Origin {
        Origin::File { path: path.to_owned(), prefix: String::new() }
    }

    /// Prefixes `error` with this place; the command line adds nothing.
    pub fn within(&self, error: anyhow::Error) -> anyhow::Error {
        match self {
            Origin::File { path, prefix } if prefix.is_empty() => error.context(path.display().to_string()),
            Origin::File { path, prefix } => error.context(format!("{}: {prefix}", path.display())),
            Origin::CommandLine => error,
        }
    }

    fn key(&self, key: &str) -> String {
        match self {
            Origin::File { path, prefix } if prefix.is_empty() => format!("{}: {key}", path.display()),
            Origin::File { path, prefix } => format!("{}: {prefix}.{key}", path.display()),
            Origin::CommandLine => format!("--{key}"),
        }
    }

    fn error(&self, message: String) -> anyhow::Error {
        match self {
            Origin::File { .. } => anyhow!(message),
            Origin::CommandLine => anyhow!(Usage(message)),
        }
    }
}

/// Loads the configuration `T`: its defaults, overridden by the keys of `file`, overridden by `overrides`.
///
/// An override is a key (a dotted path reaches into nested mappings) and a value in YAML's notation; if the key takes a
/// string, the text is used verbatim. A repeated key forms a list.
///
/// # Errors
/// An unreadable file, an unknown key, a key given twice under two names, a value of the wrong type. Mistakes in
/// `overrides` are [`Usage`] errors.
pub fn load<T>(file: Option<&Path>, overrides: &[(String, String)]) -> anyhow::Result<T>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut layers = Layers::<T>::new();
    if let Some(path) = file {
        layers.mapping(&read_mapping(path)?, &Origin::file(path))?;
    }
    layers.flags(overrides)?;
    layers.finish()
}

/// Builds the configuration `T` from its defaults, overridden by a mapping that was already read.
///
/// # Errors
/// As [`load`].
pub fn from_mapping<T>(given: &Map<String, Value>, origin: &Origin) -> anyhow::Result<T>
where
    T: Serialize + DeserializeOwned + Default,
{
    from_mapping_and_flags(given, origin, &[])
}

/// Builds the configuration `T` from its defaults, overridden by a mapping that was already read, overridden by
/// `overrides`.
///
/// # Errors
/// As [`load`].
pub fn from_mapping_and_flags<T>(
    given: &Map<String, Value>,
    origin: &Origin,
    overrides: &[(String, String)],
) -> anyhow::Result<T>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut layers = Layers::<T>::new();
    layers.mapping(given, origin)?;
    layers.flags(overrides)?;
    layers.finish()
}

/// Reads a YAML or JSON file that holds one mapping.
///
/// # Errors
/// A missing or unreadable file, a syntax error (with its line), anything but a mapping.
pub fn read_mapping(path: &Path) -> anyhow::Result<Map<String, Value>> {
    let text = input::read_to_string(path)?;
    match parse(&text).map_err(|message| anyhow!("{}: {message}", path.display()))? {
        Value::Object(mapping) => Ok(mapping),
        Value::Null => Ok(Map::new()),
        _ => bail!("{}: expected `key: value` lines, found a single value", path.display()),
    }
}

/// Parses one YAML (or JSON, its subset) document.
///
/// # Errors
/// A syntax error, with its line.
pub fn parse(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|error| wording::one_line(&error.without_snippet().to_string()))
}

/// Sets `value` at a dotted path, creating mappings as needed.
///
/// # Errors
/// If a value on the path is not a mapping.
pub fn set_path(root: &mut Map<String, Value>, path: &str, value: Value) -> anyhow::Result<()> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    if head.is_empty() || rest == Some("") {
        bail!("{path:?} is not a key path; write it as a.b.c");
    }
    let key = names::existing(root, head);
    let Some(rest) = rest else {
        root.insert(key, value);
        return Ok(());
    };
    let below = root.entry(key).or_insert(Value::Null);
    if below.is_null() {
        *below = Value::Object(Map::new());
    }
    match below {
        Value::Object(below) => set_path(below, rest, value),
        other => bail!("{head} is {other}, not a mapping, so it has no key {rest:?}"),
    }
}

/// Serialises a 32-bit number in its shortest form: 0.7, not the nearest 64-bit number.
///
/// # Errors
/// Any error of the serializer.
pub fn shortest<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(number.to_string().parse().expect("a number's text is a number"))
}

#[cfg(test)]
mod tests;
