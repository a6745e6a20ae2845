//! Rotary positions in `config.json`: `rope_theta` and `rope_scaling` of transformers 4, `rope_parameters` of 5.

use anyhow::{Result, anyhow, bail, ensure};
use salsa_engine::{ModelSpec, Rope, RopeScaling};
use serde_json::{Map, Value, json};

use super::config::{flag, number, size};
use super::family::Family;

const FULL: &str = "full_attention";
/// The context before scaling of Phi-3, where the config does not say it.
const PHI3_ORIGINAL: usize = 4096;
/// Frequencies are computed in float32, which overflows or underflows far beyond these limits.
const LARGEST_THETA: f64 = 1e30;
const FACTORS: std::ops::RangeInclusive<f64> = 1e-3..=1e9;

/// The newest table with rotary positions, and its key. Where both exist, `rope_scaling` takes precedence, as in
/// transformers 5.
pub(super) fn newest(config: &Value) -> (&'static str, &Value) {
    let older = &config["rope_scaling"];
    if older.is_null() { ("rope_parameters", &config["rope_parameters"]) } else { ("rope_scaling", older) }
}

/// Reads either form.
pub(super) fn parse(config: &Value, family: Family) -> Result<Rope> {
    let defaults = &family.description().defaults;
    let default = number(config, "rope_theta")?.unwrap_or(defaults.rope_theta);
    let (mut key, mut table) = newest(config);
    if family == Family::Gemma3 {
        // A table for each kind of layer; scaling in the older form is that of global layers.
        let own = &config["rope_parameters"][FULL];
        let theta = number(own, "rope_theta").map_err(|error| anyhow!("rope_parameters: {error}"))?.unwrap_or(default);
        (key, table) = if config["rope_scaling"].is_null() { ("rope_parameters", own) } else { (key, table) };
        return from_table(key, table, config, theta);
    }
    if let Some((layer, _)) = table.as_object().and_then(|t| t.iter().find(|(_, value)| value.is_object())) {
        bail!("{key} has its own values for {layer}: one rotation for all layers is supported in {family} models");
    }
    let part = number(table, "partial_rotary_factor").map_err(|error| anyhow!("{key}: {error}"))?;
    if let Some(part) = part.filter(|part| *part != 1.0 && family != Family::Phi3) {
        bail!("{key}: partial_rotary_factor is {part}: in {family} models only whole heads can be rotated");
    }
    let mut renamed = table.clone();
    if family == Family::Phi3 && ["su", "yarn"].contains(&kind_of(table)) {
        // The names of earlier versions.
        renamed["rope_type"] = json!("longrope");
        table = &renamed;
    }
    let original = &config["original_max_position_embeddings"];
    if family == Family::Phi3 && original.is_null() && kind_of(table) == "longrope" {
        let config = json!({
            "original_max_position_embeddings": PHI3_ORIGINAL,
            "max_position_embeddings": size(config, "max_position_embeddings")?.unwrap_or(defaults.max_positions),
        });
        return from_table(key, table, &config, default);
    }
    from_table(key, table, config, default)
}

/// Reads a table; `theta` is the default of its base.
pub(super) fn from_table(key: &str, table: &Value, config: &Value, theta: f64) -> Result<Rope> {
    let within = |error: anyhow::Error| anyhow!("{key}: {error}");
    if !table.is_null() && !table.is_object() {
        bail!("{key} is {table}: expected an object");
    }
    let theta = number(table, "rope_theta").map_err(within)?.unwrap_or(theta);
    if !(1.0..=LARGEST_THETA).contains(&theta) {
        bail!("rope_theta is {theta}: expected 1 to {LARGEST_THETA:e}");
    }
    Ok(Rope { theta, scaling: Scaling { table, config }.parse().map_err(within)? })
}

fn kind_of(table: &Value) -> &str {
    table["rope_type"].as_str().or_else(|| table["type"].as_str()).unwrap_or("default")
}

/// A table and the config around it.
struct Scaling<'a> {
    table: &'a Value,
    config: &'a Value,
}

impl Scaling<'_> {
    fn parse(&self) -> Result<RopeScaling> {
        match kind_of(self.table) {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: self.ratio("factor")? }),
            "llama3" => self.llama3(),
            "yarn" => self.yarn(),
            "longrope" => self.longrope(),
            "dynamic" => {
                let original_max_positions = self.positions()?;
                Ok(RopeScaling::Dynamic { factor: self.ratio("factor")?, original_max_positions })
            }
            other => bail!(
                "rope type {other:?} is not supported; supported are default, linear, dynamic, yarn, longrope and llama3"
            ),
        }
    }

    fn llama3(&self) -> Result<RopeScaling> {
        if self.config["original_max_position_embeddings"].is_null() {
            self.positive("original_max_position_embeddings")?;
        }
        let (low_freq_factor, high_freq_factor) = (self.ratio("low_freq_factor")?, self.ratio("high_freq_factor")?);
        if low_freq_factor >= high_freq_factor {
            bail!("low_freq_factor {low_freq_factor} must be below high_freq_factor {high_freq_factor}");
        }
        Ok(RopeScaling::Llama3 {
            factor: self.ratio("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_positions: self.original()?,
        })
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let original_max_positions = self.original()?;
        let factor = self.factor(original_max_positions)?;
        let scales = [self.optional("mscale")?, self.optional("mscale_all_dim")?];
        let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
        let usual = match scales {
            [Some(one), Some(all)] => scale(one) / scale(all),
            _ => scale(1.0),
        };
        let beta = |key: &str, default: f64| Ok::<_, anyhow::Error>(self.optional(key)?.unwrap_or(default));
        let (beta_fast, beta_slow) = (beta("beta_fast", 32.0)?, beta("beta_slow", 1.0)?);
        ensure!(beta_fast >= beta_slow, "beta_fast {beta_fast} must not be below beta_slow {beta_slow}");
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor: self.attention_factor(usual)?,
            original_max_positions,
            truncate: flag(self.table, "truncate")?.unwrap_or(true),
        })
    }

    fn longrope(&self) -> Result<RopeScaling> {
        let original_max_positions = self.original()?;
        let usual = long_attention_factor(self.factor(original_max_positions)?, original_max_positions);
        Ok(RopeScaling::LongRope {
            short: self.factors("short_factor")?,
            long: self.factors("long_factor")?,
            attention_factor: self.attention_factor(usual)?,
            original_max_positions,
        })
    }

    /// The factor or, without one, the ratio of the context to the original one.
    fn factor(&self, original: usize) -> Result<f64> {
        match &self.table["factor"] {
            Value::Null => Ok(self.positions()? as f64 / original as f64),
            _ => self.ratio("factor"),
        }
    }

    fn attention_factor(&self, usual: f64) -> Result<f64> {
        match &self.table["attention_factor"] {
            Value::Null => Ok(usual),
            _ => self.ratio("attention_factor"),
        }
    }

    fn factors(&self, key: &str) -> Result<Vec<f64>> {
        let list = self.table[key].as_array().ok_or_else(|| anyhow!("{key} is no list of numbers"))?;
        let one = |value: &Value| match value.as_f64() {
            Some(value) if FACTORS.contains(&value) => Ok(value),
            _ => bail!("{key} has {value}: expected {} to {:e}", FACTORS.start(), FACTORS.end()),
        };
        list.iter().map(one).collect()
    }

    /// The context before scaling. A key of the config takes precedence over one of the table, as in transformers.
    fn original(&self) -> Result<usize> {
        const KEY: &str = "original_max_position_embeddings";
        let outer = number(self.config, KEY)?;
        let Some(positions) = (if outer.is_some() { outer } else { number(self.table, KEY)? }) else {
            return self.positions();
        };
        if positions.fract() != 0.0 || !(1.0..=1e12).contains(&positions) {
            bail!("{KEY} is {positions}: expected a whole number");
        }
        Ok(positions as usize)
    }

    /// `max_position_embeddings`.
    fn positions(&self) -> Result<usize> {
        let positions = size(self.config, "max_position_embeddings")?;
        positions.filter(|positions| *positions > 0).ok_or_else(|| {
            anyhow!("max_position_embeddings is missing or 0, which rope type {:?} needs", kind_of(self.table))
        })
    }

    /// A positive number; zero counts as absent, as in transformers.
    fn optional(&self, key: &str) -> Result<Option<f64>> {
        match number(self.table, key)?.filter(|value| *value != 0.0) {
            Some(value) if !FACTORS.contains(&value) => {
                bail!("{key} is {value}: expected {} to {:e}", FACTORS.start(), FACTORS.end())
            }
            value => Ok(value),
        }
    }

    fn positive(&self, key: &str) -> Result<f64> {
        let kind = kind_of(self.table);
        let value =
            number(self.table, key)?.ok_or_else(|| anyhow!("{key} is missing, which rope type {kind:?} needs"))?;
        if value > 0.0 { Ok(value) } else { Err(anyhow!("{key} is {value}: expected a positive number")) }
    }

    fn ratio(&self, key: &str) -> Result<f64> {
        let value = self.positive(key)?;
        ensure!(FACTORS.contains(&value), "{key} is {value}: expected {} to {:e}", FACTORS.start(), FACTORS.end());
        Ok(value)
    }
}

/// LongRoPE's usual factor of queries and keys, for a context `factor` times the original one.
pub(super) fn long_attention_factor(factor: f64, original: usize) -> f64 {
    if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() }
}

/// The context of a model with linear scaling and `max_position_embeddings: written` in its config.
pub(super) fn scaled_context(written: usize, factor: f64) -> usize {
    (written as f64 * factor.max(1.0)) as usize
}

/// Writes the context so that it is read back as the same: `max_position_embeddings`, without the factor of linear or
/// dynamic scaling, and `max_sequence_length` where the two do not determine it.
pub(super) fn write_context(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let (written, scaled) = match spec.rope.scaling {
        RopeScaling::Linear { factor } => {
            let written = (spec.max_positions as f64 / factor.max(1.0)).ceil() as usize;
            (written, scaled_context(written, factor))
        }
        RopeScaling::Dynamic { factor, original_max_positions } => {
            (original_max_positions, scaled_context(original_max_positions, factor))
        }
        _ => (spec.max_positions, spec.max_positions),
    };
    config.insert("max_position_embeddings".into(), json!(written));
    if scaled != spec.max_positions {
        config.insert("max_sequence_length".into(), json!(spec.max_positions));
    }
}

/// Writes both spellings into a config.
pub(super) fn write(rope: &Rope, config: &mut Map<String, Value>) {
    let newer = table(rope);
    let mut older = newer.clone();
    older.as_object_mut().expect("a table is an object").shift_remove("rope_theta");
    config.insert("rope_theta".into(), json!(rope.theta));
    let older = if rope.scaling == RopeScaling::None { Value::Null } else { older };
    config.insert("rope_scaling".into(), older);
    config.insert("rope_parameters".into(), newer);
}

/// The table of transformers 5.
pub(super) fn table(rope: &Rope) -> Value {
    let mut table = match &rope.scaling {
        RopeScaling::None => json!({ "rope_type": "default" }),
        RopeScaling::Linear { factor } => json!({ "rope_type": "linear", "factor": factor }),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_positions, truncate } => {
            json!({
                "rope_type": "yarn",
                "factor": factor,
                "beta_fast": beta_fast,
                "beta_slow": beta_slow,
                "attention_factor": attention_factor,
                "original_max_position_embeddings": original_max_positions,
                "truncate": truncate,
            })
        }
        RopeScaling::LongRope { short, long, attention_factor, original_max_positions } => json!({
            "rope_type": "longrope",
            "short_factor": short,
            "long_factor": long,
            "attention_factor": attention_factor,
            "original_max_position_embeddings": original_max_positions,
        }),
        RopeScaling::Dynamic { factor, .. } => json!({ "rope_type": "dynamic", "factor": factor }),
    };
    table["rope_theta"] = json!(rope.theta);
    table
}
