//! `config.json` to [`ModelSpec`], in the spellings of transformers 4 and 5.

use anyhow::{Result, anyhow, bail};
use salsa_engine::{Activation, Head, ModelSpec, Options, Rope, RopeScaling};
use serde_json::Value;

use super::{family::Family, names::Named, rope};

/// Far above any published model; larger values mean a damaged or hostile config.
const LARGEST_DIMENSION: usize = 1 << 26;
const MOST_LAYERS: usize = 10_000;
const MOST_PARAMETERS: u128 = 1 << 44;
const PARTIAL: &str = "partial_rotary_factor";
/// The reward-model classes of OpenRLHF, current and earliest; transformers has neither name.
const OPENRLHF_REWARD_MODELS: [&str; 2] = ["RewardModel", "LLMForSequenceRegression"];

/// The family and the shape that a config describes.
pub(crate) fn parse(config: &Value) -> Result<(Family, ModelSpec)> {
    if !config.is_object() {
        bail!("it is no JSON object");
    }
    let family = family(config)?;
    refuse_unsupported(config, family)?;
    let parts = family.description();
    let defaults = &parts.defaults;
    let size = |key: &str, default: usize| Ok::<_, anyhow::Error>(size(config, key)?.unwrap_or(default));
    let heads = size("num_attention_heads", defaults.heads)?;
    let hidden_size = size("hidden_size", defaults.hidden_size)?;
    let head_dim = match (explicit(config, "head_dim"), defaults.head_dim) {
        (true, _) => size("head_dim", 1)?,
        (false, Some(default)) => default,
        (false, None) if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
        (false, None) => {
            bail!("hidden_size {hidden_size} is no multiple of num_attention_heads {heads}, and head_dim is not given")
        }
    };
    let kv_heads = match (config.get("num_key_value_heads"), defaults.kv_heads) {
        (None, Some(default)) => default,
        _ => size("num_key_value_heads", heads)?,
    };
    let layers = size("num_hidden_layers", defaults.layers)?;
    let rope = rope::parse(config, family)?;
    let biases = parts.optional_bias && flag(config, "attention_bias")? == Some(true);
    let mut spec = ModelSpec {
        vocab_size: size("vocab_size", defaults.vocab_size)?,
        hidden_size,
        intermediate_size: size("intermediate_size", defaults.intermediate_size)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        max_positions: context(config, &rope, size("max_position_embeddings", defaults.max_positions)?)?,
        rms_norm_eps: number(config, "rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps) as f32,
        rope,
        activation: activation(config, family)?,
        norm: parts.norm,
        embedding_scale: if parts.scaled_embeddings { (hidden_size as f32).sqrt() } else { 1.0 },
        qkv_bias: parts.qkv_bias || biases,
        qk_norm: parts.qk_norm,
        sliding_window: None,
        options: Options { output_bias: biases, ..Options::default() },
        tied_embeddings: flag(config, "tie_word_embeddings")?.unwrap_or(defaults.tied_embeddings),
        head: named(config, family)?.head(),
    };
    refuse_absurd(&spec)?;
    (parts.read)(config, &mut spec)?;
    refuse_window(&spec)?;
    Ok((family, spec))
}

fn family(config: &Value) -> Result<Family> {
    let known = || Family::ALL.map(Family::model_type).join(", ");
    let name = config["model_type"].as_str().ok_or_else(|| anyhow!("model_type is missing: one of {}", known()))?;
    Family::of_model_type(name)
        .ok_or_else(|| anyhow!("model_type {name:?} is not supported; supported are {}", known()))
}

/// Refuses options that would change what the model computes.
fn refuse_unsupported(config: &Value, family: Family) -> Result<()> {
    let on = |key: &str| flag(config, key).map(|value| value == Some(true));
    if config["quantization_config"]
        .as_object()
        .map_or(explicit(config, "quantization_config"), |keys| !keys.is_empty())
    {
        bail!("quantization_config: quantized weights cannot be trained; use the checkpoint they were made from");
    }
    for (key, part) in family.description().unsupported {
        if on(key)? {
            bail!("{key} is true: {family} models with {part} are not supported");
        }
    }
    if on("use_bidirectional_attention")? {
        bail!("use_bidirectional_attention is true: only causal attention is supported");
    }
    let own = |key: &&str| family.description().own_keys.contains(key);
    for key in ["attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"] {
        if explicit(config, key) && !own(&key) {
            bail!("{key} is set: it is not supported in {family} models");
        }
    }
    if let Some(part) = number(config, "partial_rotary_factor")?.filter(|part| *part != 1.0 && !own(&PARTIAL)) {
        bail!("{PARTIAL} is {part}: in {family} models only whole heads can be rotated");
    }
    Ok(())
}

fn activation(config: &Value, family: Family) -> Result<Activation> {
    let parts = family.description();
    match (parts.activation)(config).unwrap_or(parts.defaults.activation) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" => Ok(Activation::GeluTanh),
        other => bail!("hidden_act {other:?} is not supported; supported are silu and gelu_pytorch_tanh"),
    }
}

/// The context. With YaRN it is at least `factor` times the original one. With linear and dynamic scaling it is
/// `factor` times `max_position_embeddings`, or `max_sequence_length` (Vicuna) where that is given.
fn context(config: &Value, rope: &Rope, written: usize) -> Result<usize> {
    let factor = match rope.scaling {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => factor,
        RopeScaling::Yarn { factor, original_max_positions, .. } => {
            return Ok(written.max(rope::scaled_context(original_max_positions, factor)));
        }
        RopeScaling::None | RopeScaling::Llama3 { .. } | RopeScaling::LongRope { .. } => return Ok(written),
    };
    match size(config, "max_sequence_length")? {
        Some(longest) => Ok(longest),
        None => Ok(rope::scaled_context(written, factor)),
    }
}

/// The head according to the class names in a config.
pub(super) fn named(config: &Value, family: Family) -> Result<Named> {
    let [language_model, reward_model] = [Head::LanguageModel, Head::Scalar].map(|head| family.class(head));
    let class = match &config["architectures"] {
        Value::Null => return Ok(Named::None),
        Value::Array(names) => names.first().and_then(Value::as_str),
        _ => None,
    };
    let class = class.ok_or_else(|| anyhow!("architectures is no list of class names"))?;
    if class == language_model {
        Ok(Named::LanguageModel)
    } else if class == reward_model || OPENRLHF_REWARD_MODELS.contains(&class) {
        one_label(config)?;
        Ok(Named::Reward)
    } else {
        bail!(
            "architectures names {class}; supported are {language_model}, {reward_model} and OpenRLHF's {}",
            OPENRLHF_REWARD_MODELS.join(" and ")
        )
    }
}

pub(super) fn one_label(config: &Value) -> Result<()> {
    let named = config["id2label"].as_object().map(serde_json::Map::len);
    match named.or(size(config, "num_labels")?) {
        None | Some(1) => Ok(()),
        Some(n) => bail!("the model has {n} labels: a reward model has one"),
    }
}

fn refuse_absurd(spec: &ModelSpec) -> Result<()> {
    let dimensions = [
        ("vocab_size", spec.vocab_size),
        ("hidden_size", spec.hidden_size),
        ("intermediate_size", spec.intermediate_size),
        ("num_attention_heads", spec.heads),
        ("num_key_value_heads", spec.kv_heads),
        ("head_dim", spec.head_dim),
    ];
    for (key, value) in dimensions {
        if value == 0 || value > LARGEST_DIMENSION {
            bail!("{key} is {value}: expected 1 to {LARGEST_DIMENSION}");
        }
    }
    if spec.layers == 0 || spec.layers > MOST_LAYERS {
        bail!("num_hidden_layers is {}: expected 1 to {MOST_LAYERS}", spec.layers);
    }
    refuse_positions("max_position_embeddings", spec.max_positions)?;
    if !(spec.rms_norm_eps > 0.0 && spec.rms_norm_eps < 1.0) {
        bail!("rms_norm_eps is {}: expected a small positive number", spec.rms_norm_eps);
    }
    let width = |a: usize, b: usize| a as u128 * b as u128;
    let layer = 2 * width(spec.hidden_size, 1) * width(spec.heads + spec.kv_heads, spec.head_dim)
        + 3 * width(spec.hidden_size, spec.intermediate_size);
    let total = 2 * width(spec.vocab_size, spec.hidden_size) + layer * spec.layers as u128;
    if total > MOST_PARAMETERS {
        bail!("its dimensions make {total} parameters: the file is damaged");
    }
    Ok(())
}

fn refuse_window(spec: &ModelSpec) -> Result<()> {
    spec.sliding_window.map_or(Ok(()), |window| refuse_positions("sliding_window", window))
}

fn refuse_positions(key: &str, value: usize) -> Result<()> {
    let most = u32::MAX as usize;
    if value == 0 || value > most {
        bail!("{key} is {value}: expected 1 to {most}");
    }
    Ok(())
}

/// Whether a key exists and is not `null`.
fn explicit(config: &Value, key: &str) -> bool {
    !config[key].is_null()
}

pub(super) fn size(config: &Value, key: &str) -> Result<Option<usize>> {
    let value = &config[key];
    if value.is_null() {
        return Ok(None);
    }
    let whole = value.as_u64().and_then(|n| usize::try_from(n).ok());
    whole.map(Some).ok_or_else(|| anyhow!("{key} is {value}: expected a whole number"))
}

pub(super) fn number(config: &Value, key: &str) -> Result<Option<f64>> {
    let value = &config[key];
    if value.is_null() {
        return Ok(None);
    }
    let finite = value.as_f64().filter(|x| x.is_finite());
    finite.map(Some).ok_or_else(|| anyhow!("{key} is {value}: expected a number"))
}

pub(super) fn flag(config: &Value, key: &str) -> Result<Option<bool>> {
    match &config[key] {
        Value::Null => Ok(None),
        Value::Bool(value) => Ok(Some(*value)),
        other => bail!("{key} is {other}: expected true or false"),
    }
}
