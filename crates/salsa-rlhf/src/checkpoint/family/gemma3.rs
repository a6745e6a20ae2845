//! Gemma 3, the text model: normalised queries and keys; five of six layers have a window and a rope of their own.
use anyhow::{Result, bail};
use salsa_engine::{ModelSpec, Rope, RopeScaling, Rotary};
use serde_json::{Map, Value, json};

use super::{
    super::config::{number, size},
    super::rope,
    Defaults, Description, gemma, gemma2, layers,
};

const GLOBAL: &str = "full_attention";
const LOCAL: &str = "sliding_attention";
const LOCAL_THETA: f64 = 10_000.0;
const PATTERN: usize = 6;

pub(super) const DESCRIPTION: Description = Description {
    model_type: "gemma3_text",
    class_prefix: "Gemma3",
    reward_prefix: Some("Gemma3Text"),
    defaults: Defaults { vocab_size: 262_208, max_positions: 131_072, rope_theta: 1e6, ..gemma2::DEFAULTS },
    own_keys: &["final_logit_softcapping", "query_pre_attn_scalar"],
    qk_norm: true,
    read,
    write,
    ..gemma::DESCRIPTION
};

fn read(config: &Value, spec: &mut ModelSpec) -> Result<()> {
    gemma2::read_common(config, spec)?;
    spec.options.logit_softcap = gemma2::softcap(config, "final_logit_softcapping", None)?;
    spec.options.local_rope = Some(local_rope(config)?);
    let pattern = size(config, "sliding_window_pattern")?.unwrap_or(PATTERN);
    if pattern == 0 {
        bail!("sliding_window_pattern is 0: expected the distance of layers without a window");
    }
    let sliding = layers::sliding(config, spec.layers, |layer| (layer + 1) % pattern != 0)?;
    let rotary = |windowed| if windowed { Rotary::Local } else { Rotary::Main };
    layers::set(spec, sliding.into_iter().map(|windowed| (windowed, rotary(windowed))));
    Ok(())
}

/// Without a table of its own, `rope_local_base_freq`; its frequencies are never scaled there.
fn local_rope(config: &Value) -> Result<Rope> {
    let theta = number(config, "rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    match &config["rope_parameters"][LOCAL] {
        Value::Null => rope::from_table("rope_local_base_freq", &Value::Null, config, theta),
        table => rope::from_table("rope_parameters", table, config, theta),
    }
}

fn write(spec: &ModelSpec, config: &mut Map<String, Value>) {
    gemma2::write_common(spec, config);
    let types = layers::types_by_rope(spec);
    // The spelling of older versions, where it can say the same.
    let local = |layer: usize| types[layer] == LOCAL;
    let says = |pattern: &usize| (0..spec.layers).all(|layer| local(layer) == ((layer + 1) % pattern != 0));
    if let Some(pattern) = [PATTERN].into_iter().chain(1..=spec.layers).find(says) {
        config.insert("sliding_window_pattern".to_owned(), json!(pattern));
    }
    config.insert("layer_types".to_owned(), types);
    let local = spec.options.local_rope.clone().unwrap_or(Rope { theta: LOCAL_THETA, scaling: RopeScaling::None });
    rope::write(&spec.rope, config);
    config.insert("rope_local_base_freq".to_owned(), json!(local.theta));
    let tables = json!({ GLOBAL: rope::table(&spec.rope), LOCAL: rope::table(&local) });
    config.insert("rope_parameters".to_owned(), tables);
}
