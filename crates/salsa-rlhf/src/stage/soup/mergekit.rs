//! mergekit's YAML: `models`, or one slice of all layers, with filters and gradients.
use std::path::Path;

use anyhow::{Context, anyhow, bail, ensure};
use serde_json::{Map, Value, json};

use super::setting::Setting;
use crate::{chat::named, input};

const KEYS: [&str; 11] = [
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
];
const METHODS: [&str; 10] = [
    "linear",
    "slerp",
    "nuslerp",
    "karcher",
    "ties",
    "dare_linear",
    "dare_ties",
    "task_arithmetic",
    "model_stock",
    "passthrough",
];
/// Parameters that may vary by tensor.
const NUMBERS: [&str; 5] = ["weight", "density", "t", "lambda", "scale"];
const SWITCHES: [&str; 6] = ["normalize", "int8_mask", "rescale", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise"];
/// Parameters that are the same for all tensors and have the same name here.
const CONSTANTS: [&str; 2] = ["max_iter", "tol"];
const OF_A_MODEL: [&str; 3] = ["weight", "density", "scale"];

/// A mergekit file converted to Salsa's keys.
#[derive(Debug)]
pub(crate) struct Converted {
    /// The configuration, in the keys of [`super::SoupConfig`].
    pub soup: Map<String, Value>,
    /// A line for each key that mergekit, and so this program, ignores.
    pub passed_over: Vec<String>,
}

/// Whether a mapping is a mergekit configuration instead of Salsa's.
pub(crate) fn is_one(mapping: &Map<String, Value>) -> bool {
    let has = |key: &str| mapping.contains_key(key);
    let models = mapping.get("models").and_then(Value::as_array);
    has("slices") || has("modules") || models.is_some_and(|models| models.iter().any(Value::is_object))
}

/// Converts a mergekit configuration to the keys of [`super::SoupConfig`].
///
/// A model's own parameter takes precedence over the slice's, and that over the common one; if no filter matches, the
/// next applies. `dtype` sets only the type of the result, since arithmetic is always in float32; `out_dtype` takes
/// precedence. `int8_mask` saves memory in mergekit and changes nothing. Top-level keys unknown to mergekit are
/// ignored, as mergekit does, so that they can hold YAML anchors; each is reported.
///
/// # Errors
/// If something is not supported (several slices, other methods, other nested keys); the error names it.
pub(crate) fn convert(given: &Map<String, Value>) -> anyhow::Result<Converted> {
    let unknown = given.keys().filter(|key| !KEYS.contains(&key.as_str()));
    let passed_over = unknown.map(|key| passed_over(key)).collect();
    Ok(Converted { soup: soup(given)?, passed_over })
}

fn passed_over(key: &str) -> String {
    let parameters = [&NUMBERS[..], &SWITCHES, &CONSTANTS].concat();
    if parameters.contains(&key) {
        return format!("{key} has no effect on top, as in mergekit: it belongs under `parameters`");
    }
    let near = KEYS.into_iter().find(|known| strsim::damerau_levenshtein(known, key) <= 2);
    let hint = near.map(|known| format!("; if {known} is meant, correct it")).unwrap_or_default();
    format!("{key} has no effect: mergekit knows no such key and passes over it, and so does salsa{hint}")
}

fn soup(given: &Map<String, Value>) -> anyhow::Result<Map<String, Value>> {
    ensure!(
        !given.contains_key("modules"),
        "modules: mergekit's modules is not supported; of a model with one module, write its models or slices on top"
    );
    let method = text(given, "merge_method")?.ok_or_else(|| anyhow!("merge_method is missing"))?;
    if !METHODS.contains(&method.as_str()) {
        bail!("merge_method {method} is not supported; supported are {}", METHODS.join(", "));
    }
    let mut shared = Parameters::read(given, "", &common())?;
    let mut base = text(given, "base_model")?;
    let mut models = match (given.get("models"), given.get("slices")) {
        (Some(_), Some(_)) => bail!("models and slices are both given; mergekit takes one of them"),
        (None, Some(slices)) => slice(slices, &mut shared, &mut base)?,
        _ => models(given, "models", "models", &shared)?,
    };
    add_base(&method, base.as_deref(), &shared, &mut models)?;
    let mut soup = Map::from_iter([("method".to_owned(), json!(method))]);
    let number = |key: &str| shared.number(key).cloned();
    match method.as_str() {
        "slerp" => {
            let base = base.clone().ok_or_else(|| anyhow!("base_model is missing: a slerp begins there"))?;
            ensure!(models.len() == 2, "models: a slerp takes 2 models, not {}", models.len());
            let position = models.iter().position(|model| model.path == base);
            ensure!(position.is_some(), "base_model: in a slerp it must be one of the two models");
            models.rotate_left(position.unwrap_or_default());
            soup.insert("t".to_owned(), json!(number("t").ok_or_else(|| anyhow!("parameters.t is missing"))?));
        }
        "linear" => weights(&models, &mut soup)?,
        "karcher" => soup.extend(shared.constants.clone()),
        "passthrough" => {
            ensure!(models.len() == 1, "models: a passthrough takes 1 model, not {}", models.len());
            if let Some(scale) = &models[0].scale {
                soup.insert("scale".to_owned(), json!(scale));
            }
        }
        "nuslerp" => {
            if let Some(base) = &base {
                models.retain(|model| model.path != *base);
                soup.insert("base_model".to_owned(), json!(base));
            }
            ensure!(models.len() == 2, "models: a nuslerp takes 2 models besides its base, not {}", models.len());
            weights(&models, &mut soup)?;
            let flatten = shared.switch("nuslerp_flatten").unwrap_or(true);
            soup.insert("nuslerp_flatten".to_owned(), json!(flatten));
            // mergekit uses this key only without the other.
            let row_wise = shared.switch("nuslerp_row_wise").filter(|_| !flatten).unwrap_or(false);
            soup.insert("nuslerp_row_wise".to_owned(), json!(row_wise));
        }
        "model_stock" => {
            let base = base.clone().ok_or_else(|| anyhow!("base_model is missing: {method} needs it"))?;
            models.retain(|model| model.path != base);
            soup.insert("base_model".to_owned(), json!(base));
            soup.insert("filter_wise".to_owned(), json!(shared.switch("filter_wise").unwrap_or(false)));
        }
        _ => {
            let base = base.clone().ok_or_else(|| anyhow!("base_model is missing: {method} needs it"))?;
            models.retain(|model| model.path != base);
            weights(&models, &mut soup)?;
            if method != "task_arithmetic" {
                densities(&models, &mut soup);
            }
            soup.insert("base_model".to_owned(), json!(base));
            rescale(&method, &shared)?;
            if let Some(scale) = number("lambda") {
                soup.insert("scale".to_owned(), json!(scale));
            }
        }
    }
    if let Some(normalize) = shared.switch("normalize").filter(|_| divides(&method)) {
        soup.insert("normalize".to_owned(), json!(normalize));
    }
    soup.insert("models".to_owned(), models.iter().map(|model| json!(model.path)).collect());
    if let Some(dtype) = text(given, "out_dtype")?.or(text(given, "dtype")?) {
        soup.insert("dtype".to_owned(), json!(dtype));
    }
    if let Some(template) = text(given, "chat_template")? {
        soup.insert("chat_template".to_owned(), json!(chat_template(&template)?));
    }
    if let Some(source) = tokenizer(given, base.as_deref(), &models)? {
        soup.insert("tokenizer_source".to_owned(), json!(source));
    }
    Ok(soup)
}

/// Whether a method can divide by the sum of weights: for others mergekit ignores `normalize`.
fn divides(method: &str) -> bool {
    matches!(method, "linear" | "ties" | "dare_linear" | "dare_ties" | "task_arithmetic")
}

/// The names of common `parameters`, as opposed to those of one model.
fn common() -> Vec<&'static str> {
    [&NUMBERS[..], &SWITCHES, &CONSTANTS].concat()
}

/// Accepts names and Jinja texts; for unknown names mergekit reports "Invalid chat template".
fn chat_template(given: &str) -> anyhow::Result<&str> {
    let known = given == "auto" || named::NAMES.contains(&given);
    ensure!(
        known || given.contains('{'),
        "chat_template is {given:?}; supported are auto, {} and the text of a Jinja template",
        named::NAMES.join(", ")
    );
    Ok(given)
}

/// One of `models`, or of a slice's `sources`.
struct Model {
    path: String,
    weight: Option<Setting>,
    density: Option<Setting>,
    scale: Option<Setting>,
}

/// A checked mapping `parameters`.
#[derive(Default)]
struct Parameters {
    numbers: Vec<(String, Setting)>,
    switches: Vec<(String, bool)>,
    constants: Vec<(String, Value)>,
}

impl Parameters {
    fn read(owner: &Map<String, Value>, place: &str, known: &[&str]) -> anyhow::Result<Parameters> {
        let given = match owner.get("parameters") {
            None | Some(Value::Null) => return Ok(Parameters::default()),
            Some(Value::Object(given)) => given,
            Some(_) => bail!("{place}parameters is no mapping"),
        };
        let mut parameters = Parameters::default();
        for (key, value) in given {
            let place = format!("{place}parameters.{key}");
            ensure!(known.contains(&key.as_str()), "{place}: not supported; supported are {}", known.join(", "));
            if SWITCHES.contains(&key.as_str()) {
                let Value::Bool(switch) = value else { bail!("{place} is {value}; give true or false") };
                parameters.switches.push((key.clone(), *switch));
            } else if CONSTANTS.contains(&key.as_str()) {
                ensure!(value.is_number(), "{place} is {value}; give one number for all tensors");
                parameters.constants.push((key.clone(), value.clone()));
            } else {
                parameters.numbers.push((key.clone(), Setting::read(value).context(place)?));
            }
        }
        Ok(parameters)
    }

    fn number(&self, key: &str) -> Option<&Setting> {
        self.numbers.iter().find(|(name, _)| name == key).map(|(_, setting)| setting)
    }

    fn switch(&self, key: &str) -> Option<bool> {
        self.switches.iter().find(|(name, _)| name == key).map(|(_, switch)| *switch)
    }

    /// This value, with `next`'s as fallback if no filter matches.
    fn number_or(&self, key: &str, next: &Parameters) -> Option<Setting> {
        match (self.number(key).cloned(), next.number(key).cloned()) {
            (Some(own), Some(next)) => Some(own.or(next)),
            (own, next) => own.or(next),
        }
    }

    /// Merges both; this one takes precedence.
    fn over(self, next: Parameters) -> Parameters {
        let mut numbers: Vec<(String, Setting)> = Vec::new();
        for (key, _) in self.numbers.iter().chain(&next.numbers) {
            if numbers.iter().all(|(known, _)| known != key) {
                numbers.extend(self.number_or(key, &next).map(|setting| (key.clone(), setting)));
            }
        }
        // The first entry of a name is the one that is found.
        let switches = self.switches.into_iter().chain(next.switches).collect();
        let constants = next.constants.into_iter().chain(self.constants).collect();
        Parameters { numbers, switches, constants }
    }
}

fn models(owner: &Map<String, Value>, key: &str, place: &str, shared: &Parameters) -> anyhow::Result<Vec<Model>> {
    let list = owner.get(key).and_then(Value::as_array).ok_or_else(|| anyhow!("{place} is missing"))?;
    let known: &[&str] =
        if key == "sources" { &["model", "parameters", "layer_range"] } else { &["model", "parameters"] };
    let model = |(i, entry): (usize, &Value)| {
        let entry = entry.as_object().ok_or_else(|| anyhow!("{place}[{i}] is no mapping with `model:`"))?;
        let place = format!("{place}[{i}].");
        if let Some(key) = entry.keys().find(|key| !known.contains(&key.as_str())) {
            bail!("{place}{key}: not supported; supported are {}", known.join(" and "));
        }
        let path = path(entry.get("model").unwrap_or(&Value::Null))
            .ok_or_else(|| anyhow!("{place}model is missing, or no path"))?;
        let own = Parameters::read(entry, &place, &OF_A_MODEL)?;
        let number = |key: &str| own.number_or(key, shared);
        Ok(Model { path, weight: number("weight"), density: number("density"), scale: number("scale") })
    };
    list.iter().enumerate().map(model).collect()
}

/// Reads `slices` if it is one slice of all layers, which is equivalent to `models`.
fn slice(slices: &Value, shared: &mut Parameters, base: &mut Option<String>) -> anyhow::Result<Vec<Model>> {
    let list = slices.as_array().ok_or_else(|| anyhow!("slices is no list"))?;
    let [Value::Object(slice)] = &list[..] else {
        bail!("slices: mergekit's slices is not supported but for one slice of all layers; this has {}", list.len())
    };
    let known = ["sources", "base_model", "parameters"];
    if let Some(key) = slice.keys().find(|key| !known.contains(&key.as_str())) {
        bail!("slices[0].{key}: not supported; supported are {}", known.join(", "));
    }
    let own = Parameters::read(slice, "slices[0].", &common())?;
    *shared = own.over(std::mem::take(shared));
    *base = text(slice, "base_model")?.or(base.take());
    let models = models(slice, "sources", "slices[0].sources", shared)?;
    let sources = slice.get("sources").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    for (i, (source, model)) in sources.iter().zip(&models).enumerate() {
        let place = format!("slices[0].sources[{i}].layer_range");
        let range: Option<Vec<i64>> =
            source["layer_range"].as_array().and_then(|ends| ends.iter().map(Value::as_i64).collect());
        let Some([from, to]) = range.as_deref() else { bail!("{place} is missing, or not two whole numbers") };
        // An unreadable model fails with its own error when it is opened.
        let layers = layers(Path::new(&model.path)).unwrap_or(*to);
        let all = if layers > 0 { format!(" (all layers are [0, {layers}])") } else { String::new() };
        ensure!(
            *from >= 0 && *to > *from,
            "{place} is [{from}, {to}], which are no layers: it goes from the first one to behind the last one, and counts \
             none from the end{all}"
        );
        ensure!(
            *from == 0 && *to == layers,
            "{place} is [{from}, {to}] of {layers} layers; a slice of a part of the layers is not supported"
        );
    }
    Ok(models)
}

fn layers(model: &Path) -> Option<i64> {
    let config: Value = serde_json::from_slice(&input::read(&model.join("config.json")).ok()?).ok()?;
    config["num_hidden_layers"].as_i64()
}

/// mergekit counts the base among the models, even if it is not listed there.
fn add_base(method: &str, base: Option<&str>, shared: &Parameters, models: &mut Vec<Model>) -> anyhow::Result<()> {
    let Some(base) = base.filter(|base| models.iter().all(|model| model.path != *base)) else { return Ok(()) };
    match method {
        "linear" => {
            let weight = shared.number("weight").cloned();
            ensure!(
                weight.is_some(),
                "base_model: in a linear merge it is one more model and has no weight; name it under models, or leave it out"
            );
            models.push(Model { path: base.to_owned(), weight, density: None, scale: None });
        }
        "karcher" => models.push(Model { path: base.to_owned(), weight: None, density: None, scale: None }),
        "slerp" if models.len() == 1 => {
            models.push(Model { path: base.to_owned(), weight: None, density: None, scale: None });
        }
        "passthrough" => {
            bail!("base_model: a passthrough takes one model, which mergekit counts the base as too; leave it out")
        }
        _ => {}
    }
    Ok(())
}

fn weights(models: &[Model], soup: &mut Map<String, Value>) -> anyhow::Result<()> {
    let weight = |(i, model): (usize, &Model)| {
        let weight = model.weight.as_ref();
        weight.map(|w| json!(w)).ok_or_else(|| anyhow!("models[{i}].parameters.weight is missing ({})", model.path))
    };
    let weights = models.iter().enumerate().map(weight).collect::<anyhow::Result<Vec<_>>>()?;
    soup.insert("weights".to_owned(), Value::Array(weights));
    Ok(())
}

fn densities(models: &[Model], soup: &mut Map<String, Value>) {
    let density = |model: &Model| json!(model.density.clone().unwrap_or(Setting::number(1.0)));
    let densities: Vec<Value> = models.iter().map(density).collect();
    match densities.first().filter(|first| densities.iter().all(|density| density == *first)) {
        Some(first) => soup.insert("density".to_owned(), first.clone()),
        None => soup.insert("densities".to_owned(), Value::Array(densities)),
    };
}

/// Checks `rescale`: Salsa has DARE as published, which rescales, and TIES as published, which does not.
fn rescale(method: &str, shared: &Parameters) -> anyhow::Result<()> {
    let Some(rescale) = shared.switch("rescale") else { return Ok(()) };
    ensure!(rescale == method.starts_with("dare"), "parameters.rescale: {rescale} is not supported with {method}");
    Ok(())
}

fn tokenizer(given: &Map<String, Value>, base: Option<&str>, models: &[Model]) -> anyhow::Result<Option<String>> {
    let (place, source) = match (given.get("tokenizer_source"), given.get("tokenizer")) {
        (None | Some(Value::Null), None | Some(Value::Null)) => return Ok(None),
        (Some(source), None | Some(Value::Null)) => ("tokenizer_source", source),
        (None | Some(Value::Null), Some(Value::Object(block))) => {
            let is_empty = |value: &Value| value.is_null() || value.as_object().is_some_and(Map::is_empty);
            if let Some((key, _)) = block.iter().find(|(key, value)| *key != "source" && !is_empty(value)) {
                bail!("tokenizer.{key}: not supported; supported is source");
            }
            ("tokenizer.source", block.get("source").ok_or_else(|| anyhow!("tokenizer.source is missing"))?)
        }
        (None | Some(Value::Null), Some(_)) => bail!("tokenizer is no mapping; write tokenizer: {{source: base}}"),
        _ => bail!("tokenizer_source and tokenizer are both given; mergekit takes one of them"),
    };
    let source = path(source).ok_or_else(|| anyhow!("{place} is {source}; give base, union or a path"))?;
    if source == "union" {
        // All tokenizers must be equal, so any of them is the union.
        return Ok(None);
    }
    let first = models.first().map(|model| model.path.as_str());
    Ok(if source == "base" { base.or(first).map(str::to_owned) } else { Some(source) })
}

fn text(given: &Map<String, Value>, key: &str) -> anyhow::Result<Option<String>> {
    match given.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => path(value).map(Some).ok_or_else(|| anyhow!("{key} is {value}; expected text")),
    }
}

/// `dir`, `dir+adapter`, or `{model: {path: dir}, lora: {path: adapter}}`, an alternative form in mergekit.
fn path(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) if fields.len() == 2 => {
            let (model, adapter) = (path(fields.get("model")?)?, fields.get("lora")?);
            Some(if adapter.is_null() { model } else { format!("{model}+{}", path(adapter)?) })
        }
        Value::Object(fields) if fields.len() == 1 => path(fields.get("model").or(fields.get("path"))?),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
