//! The JSON schema of a configuration: its keys under all their names, their types and defaults, and the doc comments
//! of the fields. It is used by `--help` and editors only, and generated on demand.
use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::names;

/// Schema keyword of the heading of a group of keys: in the schema of the first of them.
pub(crate) const HEADING: &str = "x-heading";

/// Schema keyword of an enum for other spellings of its choices: those of `serde(alias)`, which schemars does not see.
const ALIASES: &str = "x-aliases";

/// The schema of a mapping for the configuration `T`: accepts exactly the keys that [`super::load`] accepts from a
/// file.
///
/// Draft 7, which editors support best.
pub(crate) fn of<T: JsonSchema + Serialize + Default>() -> Value {
    let settings = SchemaSettings::draft07().with_transform(RecursiveTransform(tidy));
    let mut schema = settings.into_generator().into_root_schema_for::<T>().to_value();
    let defaults = match serde_json::to_value(T::default()) {
        Ok(Value::Object(defaults)) => defaults,
        other => panic!("a configuration must serialise to a mapping, got {other:?}"),
    };
    let properties = schema["properties"].as_object_mut().expect("a configuration is a struct");
    for (key, property) in properties.iter_mut() {
        property["default"] = defaults[key].clone();
    }
    let others: Vec<(String, Value)> =
        defaults.keys().flat_map(|key| others(key, &properties[key], &defaults)).collect();
    properties.extend(others);
    take_hyphens(&mut schema);
    schema
}

/// Accepts `-` for `_` in the keys of a stage; the value of a key with `-` is not checked.
pub(crate) fn take_hyphens(schema: &mut Value) {
    let keys = schema["properties"].as_object().expect("this is a schema of an object").keys();
    let keys: Vec<String> = keys.filter(|key| key.contains('_')).map(|key| key.replace('_', "[-_]")).collect();
    if !keys.is_empty() {
        schema["patternProperties"] = json!({format!("^({})$", keys.join("|")): true});
    }
}

/// The same setting under its other names.
fn others(key: &str, property: &Value, keys: &Map<String, Value>) -> Vec<(String, Value)> {
    let named = |name: &'static str| {
        let mut property = property.clone();
        let meaning = property["description"].as_str().unwrap_or_default();
        property["description"] = format!("Another name of `{key}`. {meaning}").into();
        (name.to_owned(), property)
    };
    names::others(key, keys).map(named).collect()
}

/// Removes Rust's number formats, adds other spellings of choices, and rejects unknown keys.
fn tidy(schema: &mut Schema) {
    schema.remove("format");
    if let (Some(others), Some(Value::Array(choices))) = (schema.remove(ALIASES), schema.get_mut("oneOf")) {
        choices.push(json!({"enum": others, "description": "Other spellings of the same."}));
    }
    if schema.get("properties").is_some() && schema.get("additionalProperties").is_none() {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
}

#[cfg(test)]
mod tests;
