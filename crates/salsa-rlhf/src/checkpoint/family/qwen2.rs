//! Qwen2 and Qwen2.5: biases on query, key and value; windows, which few models enable.
use anyhow::Result;
use salsa_engine::{ModelSpec, Rotary};
use serde_json::{Map, Value, json};

use super::{
    super::config::{flag, size},
    Defaults, Description, layers, llama,
};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 151_936,
    intermediate_size: 22_016,
    kv_heads: Some(32),
    max_positions: 32_768,
    ..llama::DEFAULTS
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "qwen2",
    class_prefix: "Qwen2",
    defaults: DEFAULTS,
    unsupported: &[],
    qkv_bias: true,
    free_head_dim: true,
    optional_bias: false,
    read,
    write,
    ..llama::DESCRIPTION
};

/// Layers from `max_window_layers` on have windows, or those that `layer_types` names.
pub(super) fn read(config: &Value, spec: &mut ModelSpec) -> Result<()> {
    if flag(config, "use_sliding_window")? != Some(true) {
        return Ok(());
    }
    spec.sliding_window = layers::window(config, Some(4096))?;
    let first = size(config, "max_window_layers")?.unwrap_or(28);
    let sliding = layers::sliding(config, spec.layers, |layer| layer >= first)?;
    layers::set(spec, sliding.into_iter().map(|windowed| (windowed, Rotary::Main)));
    Ok(())
}

pub(super) fn write(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let windowed = |layer: &usize| spec.sliding_window.is_some() && spec.layer(*layer).windowed;
    let first = (0..spec.layers).find(windowed).unwrap_or(spec.layers);
    config.insert("use_sliding_window".to_owned(), json!(spec.sliding_window.is_some()));
    config.insert("sliding_window".to_owned(), json!(spec.sliding_window));
    config.insert("max_window_layers".to_owned(), json!(first));
    if !spec.options.layers.is_empty() {
        config.insert("layer_types".to_owned(), layers::types(spec));
    }
}
