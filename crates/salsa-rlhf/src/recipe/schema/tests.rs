use std::{fs, path::Path};

use super::*;
use crate::{config, stage::table::STAGES};

/// The errors of a value, for the keywords that our schemas use; panics at any other keyword.
fn faults(value: &Value, schema: &Value, root: &Value, place: &str) -> Vec<String> {
    let Some(keywords) = schema.as_object() else {
        return if schema == false { vec![format!("{place} is not allowed")] } else { Vec::new() };
    };
    if let Some(path) = keywords.get("$ref") {
        let path = path.as_str().unwrap().strip_prefix('#').unwrap();
        return faults(value, root.pointer(path).expect("a reference leads to a schema"), root, place);
    }
    let mut found = Vec::new();
    for (keyword, said) in keywords {
        found.extend(match keyword.as_str() {
            "$schema"
            | "title"
            | "description"
            | "default"
            | "definitions"
            | "x-heading"
            | "x-input"
            | "x-changes-no-result"
            | "then" => Vec::new(),
            // Handled with `properties`.
            "patternProperties" | "additionalProperties" => Vec::new(),
            "propertyNames" => Vec::new(),
            "type" => fault(!is_of(value, said), place, &format!("is no {said}")),
            "const" => fault(value != said, place, &format!("is not {said}")),
            "enum" => fault(!said.as_array().unwrap().contains(value), place, &format!("is none of {said}")),
            "minimum" => fault(value.as_f64() < said.as_f64() && value.is_number(), place, "is too small"),
            "minLength" => fault(value == "", place, "is empty"),
            "minItems" => fault(value == &json!([]), place, "is empty"),
            "maxItems" => fault(
                value.as_array().is_some_and(|all| all.len() as u64 > said.as_u64().unwrap()),
                place,
                "is too long",
            ),
            "minProperties" => fault(value == &json!({}), place, "is empty"),
            "pattern" => fault(!fits(value, said.as_str().unwrap()), place, &format!("does not fit {said}")),
            "required" => {
                let keys = said.as_array().unwrap().iter().filter_map(Value::as_str);
                let missing = keys.filter(|key| value.as_object().is_some_and(|value| !value.contains_key(*key)));
                missing.map(|key| format!("{place}.{key} is missing")).collect()
            }
            "properties" => keys(value, keywords, root, place),
            "items" => items(value, said, root, place),
            "allOf" => said.as_array().unwrap().iter().flat_map(|schema| faults(value, schema, root, place)).collect(),
            "anyOf" | "oneOf" => {
                let forms = said.as_array().unwrap();
                let fitting = forms.iter().filter(|form| faults(value, form, root, place).is_empty()).count();
                let is_right = if keyword == "oneOf" { fitting == 1 } else { fitting > 0 };
                fault(!is_right, place, &format!("fits {fitting} of the forms"))
            }
            "if" if faults(value, said, root, place).is_empty() => faults(value, &keywords["then"], root, place),
            "if" => Vec::new(),
            other => panic!("{place}: the keyword {other} is new"),
        });
    }
    if !keywords.contains_key("properties") && keywords.get("additionalProperties").is_some() {
        found.extend(keys(value, keywords, root, place));
    }
    found
}

fn fault(is_one: bool, place: &str, what: &str) -> Vec<String> {
    if is_one { vec![format!("{place} {what}")] } else { Vec::new() }
}

fn is_of(value: &Value, kind: &Value) -> bool {
    match kind.as_str() {
        None => kind.as_array().unwrap().iter().any(|kind| is_of(value, kind)),
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("string") => value.is_string(),
        Some("number") => value.is_number(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        Some("array") => value.is_array(),
        Some("object") => value.is_object(),
        Some(other) => panic!("there is no type {other}"),
    }
}

/// Matches the few patterns that our schemas have.
fn fits(value: &Value, pattern: &str) -> bool {
    let Some(text) = value.as_str() else { return true };
    match pattern {
        "\\$\\{" => text.contains("${"),
        "^cuda:[0-9]+$" => text.strip_prefix("cuda:").is_some_and(|number| number.parse::<u32>().is_ok()),
        _ => text.to_uppercase().ends_with("B"),
    }
}

fn keys(value: &Value, keywords: &Map<String, Value>, root: &Value, place: &str) -> Vec<String> {
    let pattern = keywords.get("patternProperties").and_then(|patterns| patterns.as_object()?.keys().next());
    let other = |key: &str| {
        let names = pattern.and_then(|pattern| pattern.strip_prefix("^(")?.strip_suffix(")$"));
        names.is_some_and(|names| names.split('|').any(|name| name.replace("[-_]", "_") == key.replace('-', "_")))
    };
    let of_key = |(key, value): (&String, &Value)| {
        let place = format!("{place}.{key}");
        match (keywords.get("properties").and_then(|keys| keys.get(key)), keywords.get("additionalProperties")) {
            (Some(schema), _) => faults(value, schema, root, &place),
            (None, Some(schema)) if !other(key) => faults(value, schema, root, &place),
            _ => Vec::new(),
        }
    };
    value.as_object().into_iter().flatten().flat_map(of_key).collect()
}

fn items(value: &Value, said: &Value, root: &Value, place: &str) -> Vec<String> {
    let schema = |i: usize| said.as_array().map_or(Some(said), |schemas| schemas.get(i));
    let items = value.as_array().into_iter().flatten().enumerate();
    items.filter_map(|(i, item)| Some(faults(item, schema(i)?, root, &format!("{place}[{i}]")))).flatten().collect()
}

fn faults_of(text: &str) -> Vec<String> {
    let schema = of(STAGES);
    faults(&config::parse(text).unwrap(), &schema, &schema, "recipe")
}

#[test]
fn the_recipes_of_this_program_and_of_its_documents_fit() {
    let tree = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut texts = vec![];
    for entry in fs::read_dir(tree.join("recipes")).unwrap() {
        texts.push(fs::read_to_string(entry.unwrap().path()).unwrap());
    }
    let document = fs::read_to_string(tree.join("docs/recipes.md")).unwrap();
    texts.push(document.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap().to_owned());
    // A study names a recipe.
    texts.retain(|text| !text.contains("\nrecipe:"));
    assert!(texts.len() >= 3);
    for text in texts {
        assert!(text.contains("\nstages:"));
        assert_eq!(faults_of(&text), [] as [&str; 0], "{text}");
    }
}

#[test]
fn mistakes_are_found_where_they_are() {
    let stage = |keys: &str| faults_of(&format!("stages: {{a: {{{keys}}}}}"));
    assert_eq!(faults_of("stages: {}"), ["recipe.stages is empty"]);
    assert_eq!(faults_of("nam: x\nstages: {a: {kind: kitchen}}"), ["recipe.nam is not allowed"]);
    assert_eq!(stage("seed: 1"), ["recipe.stages.a.kind is missing"]);
    assert_eq!(stage("kind: kitchen, output_dir: x"), ["recipe.stages.a.output_dir is not allowed"]);
    assert_eq!(stage("kind: score, out: x"), ["recipe.stages.a.out is not allowed"]);
    assert_eq!(stage("kind: sft, learning_rat: 1"), ["recipe.stages.a.learning_rat is not allowed"]);
    assert_eq!(stage("kind: sft, seed: -1"), ["recipe.stages.a.seed fits 0 of the forms"]);
    assert_eq!(stage("kind: ppo, kl_estimator: exact"), ["recipe.stages.a.kl_estimator fits 0 of the forms"]);
    assert_eq!(
        stage("kind: ppo, reference: {kind: soup, modls: [x]}"),
        ["recipe.stages.a.reference fits 0 of the forms"]
    );
    assert_eq!(stage("kind: sft, dataset: {path: x, spli: train}"), ["recipe.stages.a.dataset fits 0 of the forms"]);
    assert!(stage("kind: sftt")[0].starts_with("recipe.stages.a.kind is none of "));
}

#[test]
fn what_a_recipe_may_say_fits() {
    for keys in [
        "kind: sft, model: base, lr: 1e-5, max-steps: 1e3, dataset: [a, {path: b, split: train}]",
        "kind: sft, seed: \"${vars.seed}\", packing: \"${vars.packing}\", lr_scheduler: constant_with_warmup",
        "kind: sft, dtype: bfloat16, save_dtype: fp16, device: \"cuda:1\", max_shard_size: 5GB",
        "kind: sft, lora_target_modules: [q_proj], use_peft: true, eval_dataset: null",
        "kind: ppo, reference: \"${vars.reference}\", kl_target: null, anchors: {x: {models: [a, b]}}",
        "kind: ppo, reference: {kind: sync, every: \"${vars.every}\", mixup: 0.5}, model: {models: [a]}",
        "kind: soup, models: [a, b], weights: [0.5, [0, 1]], t: [{filter: mlp, value: 1}, {value: [0, 1]}]",
        "kind: evaluate, comparisons: [[a, b]], datasets: [{name: x, dataset: d, max_prompts: \"${vars.n}\"}]",
    ] {
        assert_eq!(faults_of(&format!("seed: 1\nstages: {{a: {{{keys}}}}}")), [] as [&str; 0], "{keys}");
    }
}
