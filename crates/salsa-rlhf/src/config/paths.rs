//! Roles of a configuration's fields for a stage: input paths, values that affect no result, everything else.
//!
//! The role of a field is its type, so that no list of key names has to be kept in sync with the structs: [`ModelPath`]
//! and [`DataPath`] are inputs, [`NoEffect`] holds a value that affects no result. [`Places::of`] finds them all by
//! serialising the configuration, which reaches every field of a record.
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    path::{Path, PathBuf},
};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

use super::{defaults, places};
use crate::chat;

/// The target of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathKind {
    /// A model directory.
    Model,
    /// A data file or folder.
    Data,
}

/// Schema keyword of an input: `model` or `data`.
pub(crate) const INPUT: &str = "x-input";

/// Schema keyword of a key that affects no result.
pub(crate) const CHANGES_NO_RESULT: &str = "x-changes-no-result";

pub(super) const MODEL: &str = "ModelPath";
pub(super) const DATA: &str = "DataPath";
pub(super) const NO_EFFECT: &str = "NoEffect";

macro_rules! input_path {
    ($(#[$meta:meta])* $name:ident, $word:literal) => {
        $(#[$meta])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(PathBuf);

        impl $name {
            /// The empty path: the key was not given.
            pub fn new() -> $name {
                $name::default()
            }
        }

        impl<T: Into<PathBuf>> From<T> for $name {
            fn from(path: T) -> $name {
                $name(path.into())
            }
        }

        impl Deref for $name {
            type Target = Path;

            fn deref(&self) -> &Path {
                &self.0
            }
        }

        impl AsRef<Path> for $name {
            fn as_ref(&self) -> &Path {
                &self.0
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "string", INPUT: $word})
            }
        }
    };
}

input_path! {
    /// A model directory that a stage reads.
    ModelPath, "model"
}

input_path! {
    /// A data file or folder that a stage reads.
    DataPath, "data"
}

/// A chat template: the name of a built-in one, or a file, which is then an input.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct TemplateChoice(String);

impl Serialize for TemplateChoice {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_str() {
            text if text.is_empty() || chat::is_name_or_text(text) => serializer.serialize_str(text),
            file => serializer.serialize_newtype_struct(DATA, file),
        }
    }
}

impl<T: Into<String>> From<T> for TemplateChoice {
    fn from(choice: T) -> TemplateChoice {
        TemplateChoice(choice.into())
    }
}

impl Deref for TemplateChoice {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

/// A value that affects no result, such as how often a checkpoint is written: after a change, a finished stage stays
/// done and an unfinished one can be resumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoEffect<T>(pub T);

impl<T> Deref for NoEffect<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> From<T> for NoEffect<T> {
    fn from(value: T) -> NoEffect<T> {
        NoEffect(value)
    }
}

impl<T: JsonSchema> JsonSchema for NoEffect<T> {
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = T::json_schema(generator);
        schema.insert(CHANGES_NO_RESULT.to_owned(), true.into());
        schema
    }
}

/// The values of a configuration that are inputs, that affect no result and that are defaults, by their place, such as
/// `arms.ppo.models[0]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Places {
    /// The inputs.
    pub inputs: BTreeMap<String, PathKind>,
    /// Values that affect no result.
    pub no_effect: BTreeSet<String>,
    /// Keys that hold their default. A stage record that lacks such a key was written before the key existed, and means
    /// this value.
    pub at_default: BTreeSet<String>,
}

/// Called with an input: kind, place and text; may return a replacement.
pub(crate) type Visit<'a> = dyn FnMut(PathKind, &str, &str) -> anyhow::Result<Option<Value>> + 'a;

impl Places {
    /// The places of a configuration.
    ///
    /// # Errors
    /// If it cannot be serialised.
    pub fn of<C: Serialize + DeserializeOwned>(config: &C) -> anyhow::Result<Places> {
        Ok(Places { at_default: defaults::of(config)?, ..places::of(config)? })
    }

    /// Calls `visit` with every input, in the order of the keys, and applies the replacements it returns.
    ///
    /// # Errors
    /// The first error of `visit`.
    pub fn visit(&self, config: &mut Value, visit: &mut Visit<'_>) -> anyhow::Result<()> {
        visit_strings(config, "", &mut |place, text| match self.inputs.get(place) {
            Some(kind) => visit(*kind, place, text),
            None => Ok(None),
        })
    }

    /// All paths that a stage with this configuration reads, without duplicates, in the order of the keys.
    pub fn paths(&self, config: &Value) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = Vec::new();
        let mut copy = config.clone();
        self.visit(&mut copy, &mut |_, _, text| {
            let path = PathBuf::from(text);
            if !paths.contains(&path) {
                paths.push(path);
            }
            Ok(None)
        })
        .expect("this visit cannot fail");
        paths
    }
}

/// Calls `visit` with every non-empty string and its place (`anchors.sft_a`). `visit` may return a replacement, which
/// is not visited.
///
/// # Errors
/// The first error of `visit`.
pub(crate) fn visit_strings(
    value: &mut Value,
    place: &str,
    visit: &mut dyn FnMut(&str, &str) -> anyhow::Result<Option<Value>>,
) -> anyhow::Result<()> {
    match value {
        Value::String(text) if !text.is_empty() => {
            if let Some(new) = visit(place, text)? {
                *value = new;
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                visit_strings(item, &format!("{place}[{i}]"), visit)?;
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                visit_strings(field, &below(place, name), visit)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// The place of a key in the mapping at `place`.
pub(crate) fn below(place: &str, key: &str) -> String {
    if place.is_empty() { key.to_owned() } else { format!("{place}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[derive(Serialize, Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case")]
    enum Reference {
        Soup { models: Vec<ModelPath> },
    }

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum Source {
        Path(DataPath),
        Part { path: DataPath, split: String },
        Several(Vec<Source>),
    }

    #[derive(Serialize, Deserialize)]
    struct Common {
        save_steps: NoEffect<u64>,
        chat_template: TemplateChoice,
    }

    #[derive(Serialize, Deserialize)]
    struct Config {
        judge: ModelPath,
        absent: Option<DataPath>,
        pair: (ModelPath, ModelPath),
        dataset: Source,
        reference: Reference,
        arms: BTreeMap<String, ModelPath>,
        baseline: String,
        #[serde(flatten)]
        common: Common,
    }

    #[test]
    fn inputs_are_found_by_their_types_wherever_they_are_nested() {
        let part = Source::Part { path: "a".into(), split: "train".into() };
        let config = Config {
            judge: "j".into(),
            absent: None,
            pair: ("x".into(), ModelPath::new()),
            dataset: Source::Several(vec![part, Source::Path("b".into())]),
            reference: Reference::Soup { models: vec!["x".into(), "y".into()] },
            arms: [("ppo".to_owned(), "p".into())].into(),
            baseline: "ppo".into(),
            common: Common { save_steps: 5.into(), chat_template: "mine.jinja".into() },
        };
        let places = Places::of(&config).unwrap();
        let value = serde_json::to_value(&config).unwrap();
        let found: Vec<String> = places.paths(&value).iter().map(|path| path.display().to_string()).collect();
        assert_eq!(found, ["j", "x", "a", "b", "y", "p", "mine.jinja"]);
        assert_eq!(places.no_effect, ["save_steps".to_owned()].into());
        let mut data: Vec<&str> = Vec::new();
        data.extend(places.inputs.iter().filter(|(_, kind)| **kind == PathKind::Data).map(|(place, _)| place.as_str()));
        assert_eq!(data, ["chat_template", "dataset[0].path", "dataset[1]"]);
        assert_eq!(value["judge"], json!("j"), "a record shows plain values");
        assert_eq!(value["save_steps"], json!(5));
        for template in ["chatml", "llama3", "auto", "{{ messages }}"] {
            let built_in = Common { save_steps: 5.into(), chat_template: template.into() };
            assert!(Places::of(&built_in).unwrap().inputs.is_empty(), "{template}");
        }
    }
}
