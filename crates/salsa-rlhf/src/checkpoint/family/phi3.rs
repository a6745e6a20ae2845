//! Phi-3, Phi-3.5 and Phi-4: fused projections, rotary positions of a part of each head, LongRoPE.
use anyhow::{Result, ensure};
use salsa_engine::{ModelSpec, RopeScaling};
use serde_json::{Map, Value, json};

use super::{super::config::number, super::rope, Defaults, Description, layers, llama};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "phi3",
    class_prefix: "Phi3",
    defaults: Defaults {
        vocab_size: 32_064,
        hidden_size: 3072,
        intermediate_size: 8192,
        max_positions: 4096,
        rms_norm_eps: 1e-5,
        ..llama::DEFAULTS
    },
    unsupported: &[
        ("attention_bias", "biases in attention"),
        ("mlp_bias", "biases in the feed-forward part"),
        ("lm_head_bias", "a bias of the language-model head"),
    ],
    own_keys: &["partial_rotary_factor"],
    optional_bias: false,
    read,
    write,
    ..llama::DESCRIPTION
};

fn read(config: &Value, spec: &mut ModelSpec) -> Result<()> {
    spec.options.fused_projections = true;
    spec.sliding_window = layers::window(config, None)?;
    let part = match number(rope::newest(config).1, "partial_rotary_factor")? {
        Some(part) => part,
        None => number(config, "partial_rotary_factor")?.unwrap_or(1.0),
    };
    ensure!(part > 0.0 && part <= 1.0, "partial_rotary_factor is {part}: expected a part of 1");
    let turned = (spec.head_dim as f64 * part) as usize;
    spec.options.rotary_dim = (turned != spec.head_dim).then_some(turned);
    Ok(())
}

fn write(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let part = part(spec.rotary_dim(), spec.head_dim);
    rope::write(&spec.rope, config);
    config["rope_parameters"]["partial_rotary_factor"] = json!(part);
    config.insert("partial_rotary_factor".to_owned(), json!(part));
    config.insert("sliding_window".to_owned(), json!(spec.sliding_window));
    if let RopeScaling::LongRope { short, long, original_max_positions, attention_factor } = &spec.rope.scaling {
        config.insert("original_max_position_embeddings".to_owned(), json!(original_max_positions));
        let ratio = spec.max_positions as f64 / *original_max_positions as f64;
        if rope::long_attention_factor(ratio, *original_max_positions) == *attention_factor {
            // transformers 4 takes these three keys and no others.
            let older = json!({ "type": "longrope", "short_factor": short, "long_factor": long });
            config.insert("rope_scaling".to_owned(), older);
        }
    }
}

/// The part that makes `turned` of `all` numbers when it is multiplied and rounded down.
fn part(turned: usize, all: usize) -> f64 {
    let part = turned as f64 / all as f64;
    if (all as f64 * part) as usize == turned { part } else { part.next_up() }
}
