//! mergekit files, as published and as written by users.
use super::*;
use crate::config;

fn read(yaml: &str) -> Result<Value, String> {
    let Value::Object(mapping) = config::parse(yaml).unwrap() else { panic!("{yaml}") };
    convert(&mapping).map(|converted| Value::Object(converted.soup)).map_err(|error| format!("{error:#}"))
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
    let source = |yaml: &str| read(&format!("{TWO}merge_method: linear\n{yaml}")).unwrap()["tokenizer_source"].clone();
    assert_eq!(source("tokenizer: {source: base}"), "a");
    assert_eq!(source("tokenizer: {source: {model: {path: c}}}"), "c");
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
        "method": "ties", "weights": [1.0, 2.0], "density": 0.5, "base_model": "base", "scale": 0.8, "models": ["a", "b"],
    });
    assert_eq!(soup.unwrap(), expected);
}

#[test]
fn filters_gradients_and_densities_of_each_model() {
    let soup = read(
        "models:\n- {model: a, parameters: {weight: [{filter: mlp, value: [0, 1]}], density: 0.1}}\n\
         - {model: b, parameters: {density: [0.2, 0.9]}}\nmerge_method: dare_ties\nbase_model: c\n\
         parameters: {weight: [{filter: norm, value: 3}, {value: 0.5}], lambda: [1, 0.5]}",
    );
    let common = json!([{"filter": "norm", "value": 3.0}, {"value": 0.5}]);
    let expected = json!({
        "method": "dare_ties",
        "weights": [[{"filter": "mlp", "value": [0.0, 1.0]}, {"filter": "norm", "value": 3.0}, {"value": 0.5}], common],
        "densities": [0.1, [0.2, 0.9]],
        "base_model": "c", "scale": [1.0, 0.5], "models": ["a", "b"],
    });
    assert_eq!(soup.unwrap(), expected);
}

/// The example of mergekit's README.
#[test]
fn one_slice_of_all_layers() {
    let soup = read(
        "slices:\n- sources: [{model: b, layer_range: [0, 32]}, {model: a, layer_range: [0, 32]}]\n\
         merge_method: slerp\nbase_model: a\ndtype: bfloat16\nparameters:\n  t:\n  - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}\n  \
         - {filter: mlp, value: [1, 0.5, 0.7, 0.3, 0]}\n  - value: 0.5",
    );
    let t = json!([
        {"filter": "self_attn", "value": [0.0, 0.5, 0.3, 0.7, 1.0]}, {"filter": "mlp", "value": [1.0, 0.5, 0.7, 0.3, 0.0]}, {"value": 0.5}
    ]);
    assert_eq!(soup.unwrap(), json!({"method": "slerp", "t": t, "models": ["a", "b"], "dtype": "bfloat16"}));
    let own = read(
        "slices: [{sources: [{model: a, layer_range: [0, 2]}], base_model: b, parameters: {t: [{filter: mlp, value: 1}]}}]\n\
         merge_method: slerp\nbase_model: c\nparameters: {t: 0.5}",
    );
    let t = json!([{"filter": "mlp", "value": 1.0}, {"value": 0.5}]);
    assert_eq!(own.unwrap(), json!({"method": "slerp", "t": t, "models": ["b", "a"]}));
}

#[test]
fn a_linear_merge_counts_its_base() {
    let soup = read("models: [{model: a}]\nmerge_method: linear\nbase_model: b\nparameters: {weight: 1}").unwrap();
    assert_eq!((&soup["models"], &soup["weights"]), (&json!(["a", "b"]), &json!([1.0, 1.0])));
}

#[test]
fn what_is_not_supported_is_named() {
    let refused = |yaml: &str| read(yaml).unwrap_err();
    let linear = format!("{TWO}merge_method: linear\n");
    for (yaml, message) in [
        (format!("{linear}slices: []"), "models and slices are both given"),
        (
            "merge_method: linear\nslices: [{sources: []}, {sources: []}]".to_owned(),
            "slices: mergekit's slices is not supported but",
        ),
        (
            "merge_method: linear\nslices: [{sources: [{model: a, layer_range: [2, 4]}]}]".to_owned(),
            "slices[0].sources[0].layer_range is [2, 4]",
        ),
        (
            "merge_method: linear\nslices: [{sources: [], residual_weight: 1}]".to_owned(),
            "slices[0].residual_weight: not supported",
        ),
        (format!("{linear}modules: {{}}"), "modules: mergekit's modules is not supported"),
        (format!("{linear}chat_template: exaone"), "chat_template is \"exaone\"; supported are auto, chatml, llama3"),
        (
            format!("{linear}tokenizer: {{source: base, tokens: {{a: {{source: b}}}}}}"),
            "tokenizer.tokens: not supported",
        ),
        (
            "merge_method: slerp\nslices: [{sources: [{model: a, layer_range: [0, -1]}]}]".to_owned(),
            "slices[0].sources[0].layer_range is [0, -1], which are no layers",
        ),
        (
            "merge_method: slerp\nslices: [{sources: [{model: a, layer_range: [0]}]}]".to_owned(),
            "slices[0].sources[0].layer_range is missing, or not two whole numbers",
        ),
        (
            format!("{TWO}merge_method: nuslerp\nbase_model: b"),
            "models: a nuslerp takes 2 models besides its base, not 1",
        ),
        (format!("{TWO}merge_method: model_stock"), "base_model is missing"),
        (format!("{TWO}merge_method: passthrough"), "models: a passthrough takes 1 model, not 2"),
        (
            "models: [{model: a}]\nmerge_method: passthrough\nbase_model: c".to_owned(),
            "base_model: a passthrough takes one model",
        ),
        (format!("{TWO}merge_method: karcher\nparameters: {{tol: [1, 2]}}"), "parameters.tol is [1,2]"),
        (format!("{linear}tokenizer: {{}}"), "tokenizer.source is missing"),
        (format!("{linear}tokenizer: base"), "tokenizer is no mapping"),
        (format!("{linear}tokenizer: {{source: base}}\ntokenizer_source: base"), "tokenizer_source and tokenizer"),
        (format!("{linear}base_model: c"), "base_model: in a linear merge it is one more model"),
        (format!("{linear}parameters: {{t: [0, x]}}"), "parameters.t: \"x\" is no number"),
        (format!("{linear}parameters: {{gamma: 1}}"), "parameters.gamma: not supported"),
        (format!("{linear}parameters: {{normalize: 1}}"), "parameters.normalize is 1; give true or false"),
        (format!("{TWO}merge_method: della"), "merge_method della is not supported"),
        (format!("{TWO}merge_method: ties"), "base_model is missing"),
        (format!("{TWO}merge_method: slerp\nbase_model: c"), "base_model: in a slerp it must be one of the two"),
        (format!("{TWO}merge_method: dare_ties\nbase_model: c\nparameters: {{rescale: false}}"), "parameters.rescale"),
        (
            "merge_method: linear\nmodels: [{model: a, parameters: {weight: [{filter: mlp, value: 1, layer: 2}]}}]"
                .to_owned(),
            "models[0].parameters.weight: filter 1: a filter has no key \"layer\"",
        ),
        ("merge_method: linear\nmodels: [{model: a}]".to_owned(), "models[0].parameters.weight is missing (a)"),
    ] {
        let error = refused(&yaml);
        assert!(error.starts_with(message), "{error}");
    }
}

#[test]
fn ours_and_theirs_are_told_apart() {
    let is_one = |yaml: &str| matches!(config::parse(yaml).unwrap(), Value::Object(mapping) if super::is_one(&mapping));
    assert!(is_one(TWO) && is_one("slices: []"));
    assert!(!is_one("models: [a, b]\nmerge_method: linear"));
}

#[test]
fn methods_whose_weights_are_angles() {
    let soup = read(
        "models: [{model: base}, {model: a}, {model: b}]\nmerge_method: model_stock\nbase_model: base\n\
         parameters: {filter_wise: true}",
    );
    let expected = json!({"method": "model_stock", "base_model": "base", "filter_wise": true, "models": ["a", "b"]});
    assert_eq!(soup.unwrap(), expected);
    let soup = read(
        "models: [{model: a}, {model: b}]\nmerge_method: karcher\nbase_model: c\n\
         parameters: {max_iter: 20, tol: 1.0e-6, normalize: true}",
    );
    let expected = json!({"method": "karcher", "max_iter": 20, "tol": 1e-6, "models": ["a", "b", "c"]});
    assert_eq!(soup.unwrap(), expected);
    let nuslerp = |parameters: &str| {
        let soup = read(&format!("{TWO}merge_method: nuslerp\nbase_model: c\nparameters: {{{parameters}}}")).unwrap();
        (soup["weights"].clone(), soup["nuslerp_flatten"] == true, soup["nuslerp_row_wise"] == true)
    };
    assert_eq!(nuslerp(""), (json!([0.3, 0.7]), true, false));
    assert_eq!(nuslerp("nuslerp_row_wise: true"), (json!([0.3, 0.7]), true, false));
    assert_eq!(nuslerp("nuslerp_row_wise: true, nuslerp_flatten: false"), (json!([0.3, 0.7]), false, true));
    let scale = "models: [{model: a, parameters: {scale: [{filter: mlp, value: 0.5}]}}]\nmerge_method: passthrough";
    let expected = json!({"method": "passthrough", "scale": [{"filter": "mlp", "value": 0.5}], "models": ["a"]});
    assert_eq!(read(scale).unwrap(), expected);
}

#[test]
fn keys_on_top_that_mergekit_does_not_know_are_passed_over_and_told() {
    let yaml = format!("half: &half {{weight: 1}}\nnormalize: true\ndtypes: float32\n{TWO}merge_method: linear");
    let Value::Object(mapping) = config::parse(&yaml).unwrap() else { panic!("{yaml}") };
    let converted = convert(&mapping).unwrap();
    assert_eq!(converted.soup.get("normalize"), None);
    let [half, normalize, dtypes] = &converted.passed_over[..] else { panic!("{:?}", converted.passed_over) };
    assert!(half.starts_with("half has no effect: mergekit knows no such key"), "{half}");
    assert!(normalize.contains("it belongs under `parameters`"), "{normalize}");
    assert!(dtypes.ends_with("if dtype is meant, correct it"), "{dtypes}");
}

#[test]
fn templates_tokenizers_and_adapters_are_taken() {
    let linear = |more: &str| read(&format!("{TWO}merge_method: linear\n{more}")).unwrap();
    for template in ["auto", "chatml", "llama3", "alpaca", "mistral", "{{ messages }}"] {
        assert_eq!(linear(&format!("chat_template: \"{template}\""))["chat_template"], template);
    }
    for union in ["tokenizer_source: union", "tokenizer: {source: union, tokens: {}}"] {
        assert_eq!(linear(union).get("tokenizer_source"), None);
    }
    let soup = read(
        "models:\n- {model: base+lora, parameters: {weight: 1}}\n\
         - {model: {model: {path: base}, lora: {path: other}}, parameters: {weight: 1}}\nmerge_method: linear",
    );
    assert_eq!(soup.unwrap()["models"], json!(["base+lora", "base+other"]));
}
