//! [`ModelSpec`] to `config.json` and `generation_config.json`, for transformers 4 and 5.

use anyhow::Result;
use salsa_engine::{Activation, Head, ModelSpec};
use serde_json::{Map, Value, json};

use super::{SpecialTokens, dtype::Dtype, family::Family, rope};

/// The config of a model.
pub(super) fn config(
    family: Family,
    spec: &ModelSpec,
    tokens: &SpecialTokens,
    dtype: Dtype,
) -> Result<Map<String, Value>> {
    family.check(spec)?;
    let mut config = shape(family, spec);
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_string(), value));
    set("bos_token_id", json!(tokens.bos));
    set("eos_token_id", eos(tokens));
    set("pad_token_id", json!(pad(spec.head, tokens)));
    if spec.head == Head::Scalar {
        set("id2label", json!({ "0": "LABEL_0" }));
        set("label2id", json!({ "LABEL_0": 0 }));
        set("num_labels", json!(1));
    }
    set("torch_dtype", json!(dtype.config_name()));
    set("dtype", json!(dtype.config_name()));
    // Last, as they always were.
    for key in ROTARY {
        if let Some(value) = config.shift_remove(key) {
            config.insert(key.to_owned(), value);
        }
    }
    Ok(config)
}

/// Keys of rotary positions.
const ROTARY: [&str; 3] = ["rope_theta", "rope_scaling", "rope_parameters"];

/// What the config says of the model's shape.
pub(super) fn shape(family: Family, spec: &ModelSpec) -> Map<String, Value> {
    let activation = match spec.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_string(), value));
    set("architectures", json!([family.class(spec.head)]));
    set("model_type", json!(family.model_type()));
    set("vocab_size", json!(spec.vocab_size));
    set("hidden_size", json!(spec.hidden_size));
    set("intermediate_size", json!(spec.intermediate_size));
    set("num_hidden_layers", json!(spec.layers));
    set("num_attention_heads", json!(spec.heads));
    set("num_key_value_heads", json!(spec.kv_heads));
    set("head_dim", json!(spec.head_dim));
    set("hidden_act", json!(activation));
    rope::write_context(spec, &mut config);
    let mut set = |key: &str, value: Value| drop(config.insert(key.to_string(), value));
    set("rms_norm_eps", shortest(spec.rms_norm_eps));
    set("tie_word_embeddings", json!(spec.tied_embeddings));
    set("initializer_range", json!(0.02));
    set("attention_dropout", json!(0.0));
    set("use_cache", json!(true));
    rope::write(&spec.rope, &mut config);
    (family.description().write)(spec, &mut config);
    config
}

/// The settings that transformers reads for generation.
pub(super) fn generation_config(tokens: &SpecialTokens) -> Value {
    json!({ "bos_token_id": tokens.bos, "eos_token_id": eos(tokens), "pad_token_id": tokens.pad })
}

fn eos(tokens: &SpecialTokens) -> Value {
    match tokens.eos[..] {
        [] => Value::Null,
        [one] => json!(one),
        _ => json!(tokens.eos),
    }
}

/// transformers reads a score at the last token that is not padding, so the end token of a sequence must not be
/// padding. Without a padding token it reads the last token, and refuses a batch instead of reading it wrongly.
fn pad(head: Head, tokens: &SpecialTokens) -> Option<u32> {
    match head {
        Head::Scalar => tokens.pad.filter(|pad| !tokens.eos.contains(pad)),
        _ => tokens.pad,
    }
}

/// The float32 as its shortest decimal number.
pub(super) fn shortest(x: f32) -> Value {
    x.to_string().parse::<f64>().map_or(Value::Null, |x| json!(x))
}
