//! Rotary positions in `config.json`: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5.

use anyhow::{Result, anyhow, bail, ensure};
use salsa_engine::{ModelSpec, Rope, RopeScaling};
use serde_json::{Map, Value, json};

use super::config::number;

const DEFAULT_THETA: f64 = 10_000.0;
/// Frequencies are computed in float32, which overflows or underflows far beyond these limits.
const LARGEST_THETA: f64 = 1e30;
const FACTORS: std::ops::RangeInclusive<f64> = 1e-3..=1e9;

/// Reads either form. Where both exist, `rope_scaling` takes precedence, as in transformers 5.
pub(super) fn parse(config: &Value) -> Result<Rope> {
    let older = &config["rope_scaling"];
    let (key, table) =
        if older.is_null() { ("rope_parameters", &config["rope_parameters"]) } else { ("rope_scaling", older) };
    let within = |error: anyhow::Error| anyhow!("{key}: {error}");
    if !table.is_null() && !table.is_object() {
        bail!("{key} is {table}: expected an object");
    }
    if let Some((layer, _)) = table.as_object().and_then(|t| t.iter().find(|(_, value)| value.is_object())) {
        bail!("{key} has its own values for {layer}: one rotation for all layers is supported");
    }
    let theta = match number(table, "rope_theta").map_err(within)? {
        Some(theta) => theta,
        None => number(config, "rope_theta")?.unwrap_or(DEFAULT_THETA),
    };
    if !(1.0..=LARGEST_THETA).contains(&theta) {
        bail!("rope_theta is {theta}: expected 1 to {LARGEST_THETA:e}");
    }
    if let Some(part) = number(table, "partial_rotary_factor").map_err(within)?.filter(|part| *part != 1.0) {
        bail!("{key}: partial_rotary_factor is {part}: only whole heads can be rotated");
    }
    Ok(Rope { theta, scaling: scaling(table).map_err(within)? })
}

fn scaling(table: &Value) -> Result<RopeScaling> {
    let kind = table["rope_type"].as_str().or_else(|| table["type"].as_str()).unwrap_or("default");
    let positive = |key: &str| {
        let value = number(table, key)?.ok_or_else(|| anyhow!("{key} is missing, which rope type {kind:?} needs"))?;
        if value > 0.0 { Ok(value) } else { Err(anyhow!("{key} is {value}: expected a positive number")) }
    };
    let ratio = |key: &str| {
        let value = positive(key)?;
        ensure!(FACTORS.contains(&value), "{key} is {value}: expected {} to {:e}", FACTORS.start(), FACTORS.end());
        Ok(value)
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: ratio("factor")? }),
        "llama3" => {
            let positions = positive("original_max_position_embeddings")?;
            if positions.fract() != 0.0 || positions > 1e12 {
                bail!("original_max_position_embeddings is {positions}: expected a whole number");
            }
            let (low_freq_factor, high_freq_factor) = (ratio("low_freq_factor")?, ratio("high_freq_factor")?);
            if low_freq_factor >= high_freq_factor {
                bail!("low_freq_factor {low_freq_factor} must be below high_freq_factor {high_freq_factor}");
            }
            Ok(RopeScaling::Llama3 {
                factor: ratio("factor")?,
                low_freq_factor,
                high_freq_factor,
                original_max_positions: positions as usize,
            })
        }
        other => bail!("rope type {other:?} is not supported; supported are default, linear and llama3"),
    }
}

/// The context of a model with linear scaling and `max_position_embeddings: written` in its config.
pub(super) fn scaled_context(written: usize, factor: f64) -> usize {
    (written as f64 * factor.max(1.0)) as usize
}

/// Writes the context so that it is read back as the same: `max_position_embeddings`, without the factor of linear
/// scaling, and `max_sequence_length` where the two do not determine it.
pub(super) fn write_context(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let RopeScaling::Linear { factor } = spec.rope.scaling else {
        config.insert("max_position_embeddings".into(), json!(spec.max_positions));
        return;
    };
    let written = (spec.max_positions as f64 / factor.max(1.0)).ceil() as usize;
    config.insert("max_position_embeddings".into(), json!(written));
    if scaled_context(written, factor) != spec.max_positions {
        config.insert("max_sequence_length".into(), json!(spec.max_positions));
    }
}

/// Writes both spellings into a config.
pub(super) fn write(rope: &Rope, config: &mut Map<String, Value>) {
    let older = match rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
    };
    let mut newer = if older.is_null() { json!({ "rope_type": "default" }) } else { older.clone() };
    newer["rope_theta"] = json!(rope.theta);
    config.insert("rope_theta".into(), json!(rope.theta));
    config.insert("rope_scaling".into(), older);
    config.insert("rope_parameters".into(), newer);
}
