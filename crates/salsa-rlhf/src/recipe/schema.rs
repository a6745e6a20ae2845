//! The JSON schema of a recipe file.
use serde_json::{Map, Value, json};

use crate::{
    config::{names, schema::take_hyphens},
    stage::kind::Kind,
};

/// Name of the definition of a string with a variable in it.
const VARIABLE: &str = "variable";

/// The schema of a recipe with stages of these kinds: covers what [`super::Recipe::new`] can check without files and
/// without the names of stages and variables.
pub(crate) fn of(kinds: &[Kind]) -> Value {
    let mut definitions = Map::new();
    for kind in kinds {
        let mut stage = stage(kind);
        if let Some(Value::Object(types)) = stage.as_object_mut().and_then(|stage| stage.remove("definitions")) {
            definitions.extend(types);
        }
        definitions.insert(kind.name.to_owned(), stage);
    }
    let types = definitions.clone();
    definitions.values_mut().for_each(|schema| allow_variables(schema, &types));
    definitions.insert(VARIABLE.to_owned(), variable());
    definitions.insert("stage".to_owned(), any_stage(kinds));
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of salsa",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "minLength": 1, "description": "Its name. Absent: that of the file."},
            "out": {
                "type": "string", "minLength": 1,
                "description": "The directory of the run, seen from the recipe's. Absent: runs/NAME, seen from the current one."
            },
            "seed": {
                "type": ["integer", "null"], "minimum": 0, "description": "The seed of every stage that gives none."
            },
            "vars": {
                "type": ["object", "null"],
                "description": "Values by names of your own, for `${vars.NAME}` below; each may use those above it."
            },
            "stages": {
                "type": "object", "minProperties": 1, "additionalProperties": {"$ref": "#/definitions/stage"},
                "propertyNames": {"pattern": "^[^./\\\\\\s][^/\\\\\\s]*$"},
                "description": "The stages by names of your own, in the order in which they run."
            }
        },
        "definitions": definitions
    })
}

/// The schema of a stage of one kind; its name determines its directory.
fn stage(kind: &Kind) -> Value {
    let mut schema = (kind.schema)();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.remove("title");
    }
    if let Some(keys) = schema["properties"].as_object_mut() {
        keys.retain(|key, _| kind.product.key().is_none_or(|place| !names::are_same(key, place)));
        keys.insert("kind".to_owned(), json!({"const": kind.name}));
    }
    take_hyphens(&mut schema);
    schema
}

/// The schema of any stage, selected by its `kind`.
fn any_stage(kinds: &[Kind]) -> Value {
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
    let case = |name: &&str| {
        json!({
            "if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
            "then": {"$ref": format!("#/definitions/{name}")}
        })
    };
    json!({
        "type": "object",
        "required": ["kind"],
        "properties": {
            "kind": {"enum": names, "description": "What the stage does. `salsa KIND --help` lists the keys it has then."}
        },
        "allOf": names.iter().map(case).collect::<Vec<Value>>()
    })
}

fn variable() -> Value {
    json!({"type": "string", "pattern": "\\$\\{", "description": "A value with a variable in it, such as `${vars.NAME}`."})
}

/// Allows a string with a variable in it in place of any value.
fn allow_variables(schema: &mut Value, types: &Map<String, Value>) {
    let Some(schema) = schema.as_object_mut() else { return };
    for (keyword, below) in schema {
        match (keyword.as_str(), below) {
            ("anyOf" | "oneOf" | "allOf", Value::Array(forms)) => {
                forms.iter_mut().for_each(|form| allow_variables(form, types));
            }
            ("properties", Value::Object(values)) => values.values_mut().for_each(|value| or_variable(value, types)),
            ("items", Value::Array(values)) => values.iter_mut().for_each(|value| or_variable(value, types)),
            ("items" | "additionalProperties", value) => or_variable(value, types),
            _ => {}
        }
    }
}

/// `value`, or a string with a variable in it.
fn or_variable(value: &mut Value, types: &Map<String, Value>) {
    allow_variables(value, types);
    if takes_text(value, types) {
        return;
    }
    let Some(old) = value.as_object_mut() else { return };
    let mut new = Map::new();
    for keyword in ["description", "default"] {
        new.extend(old.remove(keyword).map(|said| (keyword.to_owned(), said)));
    }
    new.insert("anyOf".to_owned(), json!([old, {"$ref": format!("#/definitions/{VARIABLE}")}]));
    *value = new.into();
}

/// Whether any text is valid. A constant counts as such and stays unchanged, as editors select by the constant of
/// `kind`.
fn takes_text(schema: &Value, types: &Map<String, Value>) -> bool {
    let all = |forms: &Value| forms.as_array().is_some_and(|forms| forms.iter().all(|form| takes_text(form, types)));
    let any = |forms: &Value| forms.as_array().is_some_and(|forms| forms.iter().any(|form| takes_text(form, types)));
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/definitions/")) {
        return types.get(name).is_some_and(|schema| takes_text(schema, types));
    }
    let is_text = match &schema["type"] {
        Value::String(kind) => kind == "string",
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
        _ => false,
    };
    let is_free = schema.get("enum").is_none() && schema.get("pattern").is_none();
    schema.get("const").is_some() || (is_text && is_free) || any(&schema["anyOf"]) || all(&schema["allOf"])
}

#[cfg(test)]
mod tests;
