//! SmolLM3: Llama without rotary positions in every fourth layer.
use anyhow::{Result, anyhow, ensure};
use salsa_engine::{ModelSpec, Rotary};
use serde_json::{Value, json};

use super::{
    super::config::{flag, size},
    Defaults, Description, layers, llama,
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "smollm3",
    class_prefix: "SmolLM3",
    defaults: Defaults {
        vocab_size: 128_256,
        hidden_size: 2048,
        layers: 36,
        heads: 16,
        kv_heads: Some(4),
        max_positions: 32_768,
        rope_theta: 2e6,
        tied_embeddings: true,
        ..llama::DEFAULTS
    },
    read,
    write: |spec, config| {
        (llama::DESCRIPTION.write)(spec, config);
        let turns: Vec<u8> = (0..spec.layers).map(|i| u8::from(spec.layer(i).rotary != Rotary::None)).collect();
        config.insert("no_rope_layers".to_owned(), json!(turns));
        config.insert("use_sliding_window".to_owned(), json!(spec.sliding_window.is_some()));
        config.insert("sliding_window".to_owned(), json!(spec.sliding_window));
        config.insert("layer_types".to_owned(), layers::types(spec));
    },
    ..llama::DESCRIPTION
};

fn read(config: &Value, spec: &mut ModelSpec) -> Result<()> {
    let turns = turns(config, spec.layers)?;
    if flag(config, "use_sliding_window")? == Some(true) {
        spec.sliding_window = layers::window(config, None)?;
    }
    let has_window = spec.sliding_window.is_some();
    let sliding = layers::sliding(config, spec.layers, |layer| has_window && !turns[layer])?;
    let rotary = |turns| if turns { Rotary::Main } else { Rotary::None };
    layers::set(spec, sliding.into_iter().zip(turns.into_iter().map(rotary)));
    Ok(())
}

/// Which layers have rotary positions: `no_rope_layers` is 1 where they do.
fn turns(config: &Value, layers: usize) -> Result<Vec<bool>> {
    let list = match &config["no_rope_layers"] {
        Value::Null => {
            let interval = size(config, "no_rope_layer_interval")?.unwrap_or(4);
            ensure!(interval > 0, "no_rope_layer_interval is 0: expected a distance of layers");
            return Ok((0..layers).map(|layer| (layer + 1) % interval != 0).collect());
        }
        Value::Array(list) if list.len() >= layers => &list[..layers],
        other => return Err(anyhow!("no_rope_layers is {other}: expected a list of 0 and 1 for {layers} layers")),
    };
    let one = |value: &Value| match value.as_u64() {
        Some(value @ 0..=1) => Ok(value == 1),
        _ => Err(anyhow!("no_rope_layers has {value}: expected 0 or 1")),
    };
    list.iter().map(one).collect()
}
