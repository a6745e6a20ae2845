//! Qwen2 and Qwen2.5: biases on query, key and value; windows, which few models enable.
use anyhow::{Result, bail};
use salsa_engine::ModelSpec;
use serde_json::{Map, Value, json};

use super::{
    super::config::{flag, size},
    Defaults, Description, llama,
};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    kv_heads: Some(32),
    max_positions: 32_768,
    sliding_window: Some(4096),
    ..llama::DEFAULTS
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "qwen2",
    class_prefix: "Qwen2",
    defaults: DEFAULTS,
    unsupported: &[],
    qkv_bias: true,
    free_head_dim: true,
    window: Some(window),
    write,
    ..llama::DESCRIPTION
};

/// The window, if every layer has it.
pub(super) fn window(config: &Value, window: Option<usize>, layers: usize) -> Result<Option<usize>> {
    if flag(config, "use_sliding_window")? != Some(true) || window.is_none() {
        return Ok(None);
    }
    let sliding = match &config["layer_types"] {
        Value::Array(types) => types.iter().filter(|t| *t == "sliding_attention").count(),
        _ => layers.saturating_sub(size(config, "max_window_layers")?.unwrap_or(28)),
    };
    match sliding {
        0 => Ok(None),
        n if n == layers => Ok(window),
        n => bail!("use_sliding_window: {n} of {layers} layers have a sliding window; all or none is supported"),
    }
}

pub(super) fn write(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let windowed = spec.sliding_window.is_some();
    config.insert("use_sliding_window".to_owned(), json!(windowed));
    config.insert("sliding_window".to_owned(), json!(spec.sliding_window));
    config.insert("max_window_layers".to_owned(), json!(if windowed { 0 } else { spec.layers }));
}
