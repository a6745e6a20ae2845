//! mergekit's YAML, as far as one number per model goes.
use anyhow::{anyhow, bail, ensure};
use serde_json::{Map, Value, json};

const KEYS: [&str; 7] =
    ["merge_method", "models", "base_model", "parameters", "dtype", "out_dtype", "tokenizer_source"];
const METHODS: [&str; 6] = ["linear", "slerp", "ties", "dare_linear", "dare_ties", "task_arithmetic"];
const SHARED: [&str; 7] = ["weight", "density", "normalize", "t", "lambda", "int8_mask", "rescale"];
const OF_A_MODEL: [&str; 2] = ["weight", "density"];

/// Whether a mapping is a mergekit configuration and not one of ours.
pub fn is_one(mapping: &Map<String, Value>) -> bool {
    let has = |key: &str| mapping.contains_key(key);
    let models = mapping.get("models").and_then(Value::as_array);
    has("slices") || has("modules") || models.is_some_and(|models| models.iter().any(Value::is_object))
}

/// The same soup in the keys of [`super::SoupConfig`].
///
/// `dtype` asks only for the type of the result here, the arithmetic is in float32 in any case; `out_dtype` goes before
/// it. `int8_mask` saves memory in mergekit and changes nothing.
///
/// # Errors
/// What is not supported (slices, gradients, filters, other methods) is named.
pub fn convert(given: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    if let Some(key) = given.keys().find(|key| !KEYS.contains(&key.as_str())) {
        bail!("{key}: mergekit's {key} is not supported; supported are {}", KEYS.join(", "));
    }
    let method = text(given, "merge_method")?.ok_or_else(|| anyhow!("merge_method is missing"))?;
    if !METHODS.contains(&method.as_str()) {
        bail!("merge_method {method} is not supported; supported are {}", METHODS.join(", "));
    }
    let shared = parameters(given, "", &SHARED)?;
    let base = text(given, "base_model")?;
    let mut models = models(given, &shared)?;
    let mut soup = Map::from_iter([("method".to_owned(), json!(method))]);
    match method.as_str() {
        "slerp" => {
            let base = base.clone().ok_or_else(|| anyhow!("base_model is missing: a slerp begins there"))?;
            ensure!(models.len() == 2, "models: a slerp takes 2 models, not {}", models.len());
            let position = models.iter().position(|model| model.path == base);
            ensure!(position.is_some(), "base_model: in a slerp it must be one of the two models");
            models.rotate_left(position.unwrap_or_default());
            let t = shared.get("t").ok_or_else(|| anyhow!("parameters.t is missing"))?;
            soup.insert("t".to_owned(), t.clone());
        }
        "linear" => weights(&models, &mut soup)?,
        _ => {
            let base = base.clone().ok_or_else(|| anyhow!("base_model is missing: {method} needs it"))?;
            models.retain(|model| model.path != base);
            weights(&models, &mut soup)?;
            if method != "task_arithmetic" {
                density(&models, &mut soup)?;
            }
            soup.insert("base_model".to_owned(), json!(base));
            rescale(&method, &shared)?;
        }
    }
    for (theirs, ours) in [("normalize", "normalize"), ("lambda", "scale")] {
        if let Some(value) = shared.get(theirs).filter(|_| method != "slerp" && (ours != "scale" || method != "linear"))
        {
            soup.insert(ours.to_owned(), value.clone());
        }
    }
    soup.insert("models".to_owned(), models.iter().map(|model| json!(model.path)).collect());
    if let Some(dtype) = text(given, "out_dtype")?.or(text(given, "dtype")?) {
        soup.insert("dtype".to_owned(), json!(dtype));
    }
    if let Some(source) = tokenizer(given, base.as_deref(), &models)? {
        soup.insert("tokenizer_source".to_owned(), json!(source));
    }
    Ok(soup)
}

/// One of `models`.
struct Model {
    path: String,
    weight: Option<Value>,
    density: Option<Value>,
}

fn models(given: &Map<String, Value>, shared: &Map<String, Value>) -> anyhow::Result<Vec<Model>> {
    let list = given.get("models").and_then(Value::as_array).ok_or_else(|| anyhow!("models is missing"))?;
    let model = |(i, entry): (usize, &Value)| {
        let place = format!("models[{i}].");
        let entry = entry.as_object().ok_or_else(|| anyhow!("models[{i}] is no mapping with `model:`"))?;
        if let Some(key) = entry.keys().find(|key| !["model", "parameters"].contains(&key.as_str())) {
            bail!("{place}{key}: not supported; supported are model and parameters");
        }
        let path = path(entry.get("model").unwrap_or(&Value::Null))
            .ok_or_else(|| anyhow!("{place}model is missing, or no path"))?;
        let own = parameters(entry, &place, &OF_A_MODEL)?;
        let value = |key: &str| own.get(key).or(shared.get(key)).cloned();
        Ok(Model { path, weight: value("weight"), density: value("density") })
    };
    list.iter().enumerate().map(model).collect()
}

/// The checked mapping `parameters`: every value one number, or one yes or no.
fn parameters(owner: &Map<String, Value>, place: &str, known: &[&str]) -> anyhow::Result<Map<String, Value>> {
    let parameters = match owner.get("parameters") {
        None | Some(Value::Null) => return Ok(Map::new()),
        Some(Value::Object(parameters)) => parameters,
        Some(_) => bail!("{place}parameters is no mapping"),
    };
    for (key, value) in parameters {
        let place = format!("{place}parameters.{key}");
        ensure!(known.contains(&key.as_str()), "{place}: not supported; supported are {}", known.join(", "));
        let is_switch = ["normalize", "int8_mask", "rescale"].contains(&key.as_str());
        match value {
            Value::Array(list) if list.iter().any(Value::is_object) => {
                bail!("{place}: filters are not supported; give one number")
            }
            Value::Array(_) => bail!("{place}: gradients are not supported; give one number"),
            Value::Object(_) => bail!("{place}: filters are not supported; give one number"),
            Value::Bool(_) if is_switch => {}
            Value::Number(_) if !is_switch => {}
            other => bail!("{place} is {other}; give {}", if is_switch { "true or false" } else { "one number" }),
        }
    }
    Ok(parameters.clone())
}

fn weights(models: &[Model], soup: &mut Map<String, Value>) -> anyhow::Result<()> {
    let weight = |(i, model): (usize, &Model)| {
        model.weight.clone().ok_or_else(|| anyhow!("models[{i}].parameters.weight is missing ({})", model.path))
    };
    let weights = models.iter().enumerate().map(weight).collect::<anyhow::Result<Vec<_>>>()?;
    soup.insert("weights".to_owned(), Value::Array(weights));
    Ok(())
}

fn density(models: &[Model], soup: &mut Map<String, Value>) -> anyhow::Result<()> {
    let first = models.first().and_then(|model| model.density.clone());
    if let Some(i) = models.iter().position(|model| model.density != first) {
        bail!("models[{i}].parameters.density: a density of its own for each model is not supported; give one for all");
    }
    soup.insert("density".to_owned(), first.unwrap_or(json!(1.0)));
    Ok(())
}

/// Ours is DARE as published, which rescales, and TIES as published, which does not.
fn rescale(method: &str, shared: &Map<String, Value>) -> anyhow::Result<()> {
    let Some(rescale) = shared.get("rescale").and_then(Value::as_bool) else { return Ok(()) };
    ensure!(rescale == method.starts_with("dare"), "parameters.rescale: {rescale} is not supported with {method}");
    Ok(())
}

fn tokenizer(given: &Map<String, Value>, base: Option<&str>, models: &[Model]) -> anyhow::Result<Option<String>> {
    let source = match given.get("tokenizer_source") {
        None | Some(Value::Null) => return Ok(None),
        Some(source) => path(source).ok_or_else(|| anyhow!("tokenizer_source is {source}; give base or a path"))?,
    };
    ensure!(source != "union", "tokenizer_source: union is not supported; give base or the path of a model");
    let first = models.first().map(|model| model.path.as_str());
    Ok(if source == "base" { base.or(first).map(str::to_owned) } else { Some(source) })
}

fn text(given: &Map<String, Value>, key: &str) -> anyhow::Result<Option<String>> {
    match given.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => path(value).map(Some).ok_or_else(|| anyhow!("{key} is {value}; expected text")),
    }
}

/// `dir`, or `{model: {path: dir}}` as mergekit also writes it.
fn path(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) if fields.len() == 1 => path(fields.get("model").or(fields.get("path"))?),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn read(yaml: &str) -> Result<Value, String> {
        let Value::Object(mapping) = config::parse(yaml).unwrap() else { panic!("{yaml}") };
        convert(&mapping).map(Value::Object).map_err(|error| format!("{error:#}"))
    }

    const TWO: &str = "models:\n- {model: a, parameters: {weight: 0.3}}\n- {model: b, parameters: {weight: 0.7}}\n";

    #[test]
    fn a_linear_merge() {
        let soup = read(&format!(
            "{TWO}merge_method: linear\nparameters: {{normalize: false}}\ndtype: float32\nout_dtype: bfloat16\ntokenizer_source: base"
        ));
        let expected = json!({
            "method": "linear", "weights": [0.3, 0.7], "normalize": false, "models": ["a", "b"], "dtype": "bfloat16",
            "tokenizer_source": "a",
        });
        assert_eq!(soup.unwrap(), expected);
    }

    #[test]
    fn a_slerp_begins_at_its_base() {
        let soup = read("models: [{model: a}, {model: b}]\nmerge_method: slerp\nbase_model: b\nparameters: {t: 0.2}");
        assert_eq!(soup.unwrap(), json!({"method": "slerp", "t": 0.2, "models": ["b", "a"]}));
    }

    #[test]
    fn the_base_is_no_ingredient_of_a_task_merge() {
        let soup = read(
            "models:\n- model: base\n- {model: a, parameters: {weight: 1.0, density: 0.5}}\n- {model: b, parameters: {weight: 2}}\n\
             merge_method: ties\nbase_model: {model: {path: base}}\nparameters: {density: 0.5, lambda: 0.8, int8_mask: true}",
        );
        let expected = json!({
            "method": "ties", "weights": [1.0, 2], "density": 0.5, "base_model": "base", "scale": 0.8, "models": ["a", "b"],
        });
        assert_eq!(soup.unwrap(), expected);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refused = |yaml: &str| read(yaml).unwrap_err();
        let linear = format!("{TWO}merge_method: linear\n");
        for (yaml, message) in [
            (format!("{linear}slices: []"), "slices: mergekit's slices is not supported"),
            (format!("{linear}tokenizer_source: union"), "tokenizer_source: union is not supported"),
            (format!("{linear}parameters: {{t: [0, 1]}}"), "parameters.t: gradients are not supported"),
            (format!("{linear}parameters: {{gamma: 1}}"), "parameters.gamma: not supported"),
            (format!("{linear}parameters: {{normalize: 1}}"), "parameters.normalize is 1; give true or false"),
            (format!("{TWO}merge_method: della"), "merge_method della is not supported"),
            (format!("{TWO}merge_method: ties"), "base_model is missing"),
            (format!("{TWO}merge_method: slerp\nbase_model: c"), "base_model: in a slerp it must be one of the two"),
            (format!("{TWO}merge_method: dare_ties\nbase_model: c\nparameters: {{rescale: false}}"), "parameters.rescale"),
            (
                "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1}, {value: 0}]}}]".to_owned(),
                "models[0].parameters.weight: filters are not supported",
            ),
            ("merge_method: linear\nmodels: [{model: a}]".to_owned(), "models[0].parameters.weight is missing (a)"),
            (
                "merge_method: ties\nbase_model: c\nmodels: [{model: a, parameters: {weight: 1, density: 0.1}}, {model: b, parameters: {weight: 1}}]"
                    .to_owned(),
                "models[1].parameters.density",
            ),
        ] {
            let error = refused(&yaml);
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn ours_and_theirs_are_told_apart() {
        let is_one =
            |yaml: &str| matches!(config::parse(yaml).unwrap(), Value::Object(mapping) if super::is_one(&mapping));
        assert!(is_one(TWO) && is_one("slices: []"));
        assert!(!is_one("models: [a, b]\nmerge_method: linear"));
    }
}
