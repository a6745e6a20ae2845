//! What differs between layers, in the spellings of `config.json`.
use anyhow::{Result, anyhow, ensure};
use salsa_engine::{LayerOptions, ModelSpec, Rotary};
use serde_json::{Value, json};

use super::super::config::size;

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// `sliding_window`, or the default where the key is absent; null means none.
pub(super) fn window(config: &Value, default: Option<usize>) -> Result<Option<usize>> {
    if config.get("sliding_window").is_some() { size(config, "sliding_window") } else { Ok(default) }
}

/// Which layers have windows: those that `layer_types` names or, without it, those of `otherwise`.
pub(super) fn sliding(config: &Value, layers: usize, otherwise: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
    let types = match &config["layer_types"] {
        Value::Null => return Ok((0..layers).map(otherwise).collect()),
        Value::Array(types) => types,
        other => return Err(anyhow!("layer_types is {other}: expected a list")),
    };
    ensure!(types.len() == layers, "layer_types has {} layers, num_hidden_layers is {layers}", types.len());
    let one = |kind: &Value| match kind.as_str() {
        Some(SLIDING) => Ok(true),
        Some(FULL) => Ok(false),
        _ => Err(anyhow!("layer_types names {kind}; supported are {FULL} and {SLIDING}")),
    };
    types.iter().map(one).collect()
}

/// Sets windows and rotary positions of all layers, in the one form for models that compute the same.
pub(super) fn set(spec: &mut ModelSpec, layers: impl Iterator<Item = (bool, Rotary)>) {
    let mut layers: Vec<_> = layers.map(|(windowed, rotary)| LayerOptions { windowed, rotary }).collect();
    if !layers.iter().any(|layer| layer.windowed) {
        spec.sliding_window = None;
    }
    if spec.sliding_window.is_none() {
        layers.iter_mut().for_each(|layer| layer.windowed = true);
    }
    let differ = layers.iter().any(|layer| *layer != LayerOptions::default());
    spec.options.layers = if differ { layers } else { Vec::new() };
}

/// `layer_types` by windows.
pub(super) fn types(spec: &ModelSpec) -> Value {
    let one = |layer| if spec.sliding_window.is_some() && spec.layer(layer).windowed { SLIDING } else { FULL };
    json!((0..spec.layers).map(one).collect::<Vec<_>>())
}

/// `layer_types` by rotary positions.
pub(super) fn types_by_rope(spec: &ModelSpec) -> Value {
    let one = |layer| if spec.layer(layer).rotary == Rotary::Local { SLIDING } else { FULL };
    json!((0..spec.layers).map(one).collect::<Vec<_>>())
}
