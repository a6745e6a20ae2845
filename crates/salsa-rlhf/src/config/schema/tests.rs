use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::stage::{kind::Kind, table::STAGES};

fn schemas() -> impl Iterator<Item = (&'static Kind, Value)> {
    STAGES.iter().map(|kind| (kind, (kind.schema)()))
}

/// Calls `look` with every nested schema and its place.
fn walk(schema: &Value, place: &str, look: &mut dyn FnMut(&Value, &str)) {
    look(schema, place);
    for keyword in ["properties", "definitions"] {
        for (name, below) in schema[keyword].as_object().into_iter().flatten() {
            walk(below, &format!("{place}.{name}"), look);
        }
    }
    for keyword in ["anyOf", "oneOf", "allOf"] {
        schema[keyword].as_array().into_iter().flatten().for_each(|form| walk(form, place, look));
    }
    for keyword in ["items", "additionalProperties"] {
        schema.get(keyword).into_iter().for_each(|below| walk(below, place, look));
    }
}

#[test]
fn the_keys_are_those_that_a_file_may_have_under_every_name() {
    for (kind, schema) in schemas() {
        let keys = (kind.defaults)();
        let known: BTreeSet<&str> = schema["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        let names = names::SYNONYMS.iter().copied().flatten().copied().chain(keys.keys().map(String::as_str));
        let taken: BTreeSet<&str> = names.filter(|name| names::resolve(name, &keys).is_ok()).collect();
        assert_eq!(known, taken, "{}", kind.name);
        assert_eq!(schema["additionalProperties"], false, "{}", kind.name);
    }
}

#[test]
fn a_name_that_trl_gives_a_key_has_the_meaning_of_the_key() {
    let (_, schema) = schemas().find(|(kind, _)| kind.name == "ppo").unwrap();
    let properties = &schema["properties"];
    assert_eq!(properties["beta"]["default"], 0.05);
    let meaning = properties["kl_coef"]["description"].as_str().unwrap();
    assert_eq!(properties["beta"]["description"], format!("Another name of `kl_coef`. {meaning}"));
    let pattern = schema["patternProperties"].as_object().unwrap().keys().next().unwrap();
    assert!(pattern.contains("|kl[-_]coef|") && !pattern.contains("|beta|"), "{pattern}");
}

#[test]
fn every_key_and_every_choice_says_what_it_is() {
    let mut count = 0;
    for (kind, schema) in schemas() {
        let mut bare = Vec::new();
        let mut look = |schema: &Value, place: &str| {
            let says = |schema: &Value| {
                let text = schema["description"].as_str().unwrap_or_default();
                text.split_whitespace().count() >= 3 && text.ends_with(['.', ')']) && !text.contains("[`")
            };
            for (key, property) in schema["properties"].as_object().into_iter().flatten() {
                count += 1;
                if !says(property) && property.get("const").is_none() {
                    bare.push(format!("{place}.{key}"));
                }
            }
            for choice in schema["oneOf"].as_array().into_iter().flatten().filter(|form| form.get("title").is_none()) {
                if !says(choice) {
                    bare.push(format!("{place}: {choice}"));
                }
            }
        };
        walk(&schema, kind.name, &mut look);
        assert!(bare.is_empty(), "say what these are, in a sentence: {bare:#?}");
    }
    assert!(count > 300, "only {count} keys found");
}

#[test]
fn no_mapping_takes_a_key_that_nobody_knows() {
    for (kind, schema) in schemas() {
        walk(&schema, kind.name, &mut |schema, place| {
            if schema.get("properties").is_some() {
                assert_eq!(schema["additionalProperties"], false, "{place}");
            }
            assert!(schema.get("format").is_none(), "{place}");
        });
    }
}

#[test]
fn types_of_one_name_are_one_type() {
    let mut known: BTreeMap<String, Value> = BTreeMap::new();
    for (kind, schema) in schemas() {
        for (name, definition) in schema["definitions"].as_object().into_iter().flatten() {
            let first = known.entry(name.clone()).or_insert_with(|| definition.clone());
            assert_eq!(first, definition, "{}: {name}", kind.name);
        }
    }
    assert!(known.contains_key("DataSource"));
}

/// The choices of a key, in every spelling.
fn choices(schema: &Value, root: &Value) -> BTreeSet<String> {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.strip_prefix("#/definitions/")) {
        return choices(&root["definitions"][name], root);
    }
    let own = schema.get("const").into_iter().chain(schema["enum"].as_array().into_iter().flatten());
    let own = own.filter_map(Value::as_str).map(str::to_owned);
    let forms = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|keyword| schema[keyword].as_array()).flatten();
    own.chain(forms.flat_map(|form| choices(form, root))).collect()
}

#[test]
fn the_choices_are_those_that_are_taken() {
    let mut count = 0;
    for (kind, schema) in schemas() {
        for key in (kind.defaults)().keys() {
            let known = choices(&schema["properties"][key], &schema);
            let refused = |value: &str| {
                let planned = (kind.load)(None, &[(key.clone(), value.to_owned())]);
                planned.err().map(|error| format!("{error:#}")).filter(|error| error.starts_with(&format!("--{key}: ")))
            };
            for choice in &known {
                assert_eq!(refused(choice), None, "{}", kind.name);
            }
            let message = refused("no-such-choice").unwrap_or_default();
            let Some((_, valid)) = message.split_once("is not a choice here (valid: ") else { continue };
            let valid: BTreeSet<String> = valid.split(')').next().unwrap().split(", ").map(str::to_owned).collect();
            assert_eq!(known, valid, "{}: {key}", kind.name);
            count += 1;
        }
    }
    assert!(count > 15, "only {count} keys with choices found");
}
