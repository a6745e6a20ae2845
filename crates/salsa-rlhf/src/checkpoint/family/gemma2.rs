//! Gemma 2: norms after attention and MLP too, capped scores and logits, windows in every second layer.
use anyhow::{Result, ensure};
use salsa_engine::{BlockNorms, ModelSpec, Rotary};
use serde_json::{Map, Value, json};

use super::{super::config::number, super::save_config::shortest, Defaults, Description, gemma, layers};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 256_000,
    hidden_size: 2304,
    intermediate_size: 9216,
    layers: 26,
    heads: 8,
    kv_heads: Some(4),
    ..gemma::DESCRIPTION.defaults
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "gemma2",
    class_prefix: "Gemma2",
    defaults: DEFAULTS,
    own_keys: &["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"],
    read: |config, spec| {
        read_common(config, spec)?;
        spec.options.attention_softcap = softcap(config, "attn_logit_softcapping", Some(50.0))?;
        spec.options.logit_softcap = softcap(config, "final_logit_softcapping", Some(30.0))?;
        let sliding = layers::sliding(config, spec.layers, |layer| layer % 2 == 0)?;
        layers::set(spec, sliding.into_iter().map(|windowed| (windowed, Rotary::Main)));
        Ok(())
    },
    write: |spec, config| {
        write_common(spec, config);
        config
            .insert("attn_logit_softcapping".to_owned(), spec.options.attention_softcap.map_or(Value::Null, shortest));
        config.insert("layer_types".to_owned(), layers::types(spec));
    },
    ..gemma::DESCRIPTION
};

/// What Gemma 2 and 3 share.
pub(super) fn read_common(config: &Value, spec: &mut ModelSpec) -> Result<()> {
    let scalar = number(config, "query_pre_attn_scalar")?.unwrap_or(256.0);
    ensure!(scalar > 0.0, "query_pre_attn_scalar is {scalar}: expected a positive number");
    spec.options.attention_scale = Some(scale(scalar));
    spec.options.norms = BlockNorms::Both;
    spec.sliding_window = layers::window(config, Some(4096))?;
    Ok(())
}

/// A cap; null means none.
pub(super) fn softcap(config: &Value, key: &str, default: Option<f32>) -> Result<Option<f32>> {
    let cap = if config.get(key).is_some() { number(config, key)?.map(|cap| cap as f32) } else { default };
    ensure!(cap.is_none_or(|cap| cap > 0.0), "{key} is {}: expected a positive number or null", config[key]);
    Ok(cap)
}

/// The factor of attention scores.
fn scale(scalar: f64) -> f32 {
    scalar.powf(-0.5) as f32
}

pub(super) fn write_common(spec: &ModelSpec, config: &mut Map<String, Value>) {
    gemma::write(spec, config);
    // transformers takes whole numbers only; another scale is not this family's.
    let own = spec.options.attention_scale.unwrap_or(1.0 / (spec.head_dim as f32).sqrt());
    let scalar = f64::from(own).powi(-2).round();
    if scale(scalar) == own {
        config.insert("query_pre_attn_scalar".to_owned(), json!(scalar as u64));
    }
    config.insert("sliding_window".to_owned(), json!(spec.sliding_window));
    config.insert("final_logit_softcapping".to_owned(), spec.options.logit_softcap.map_or(Value::Null, shortest));
}
