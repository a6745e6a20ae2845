//! The metadata of a file to `config.json`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::architecture::Architecture;
use super::reader::Gguf;
use super::rope_factors::{self, ROPE_FACTORS};

/// The config of the model in a file.
pub(super) fn config(gguf: &Gguf, architecture: &Architecture) -> Result<Map<String, Value>> {
    let metadata = gguf.metadata();
    let key = |name: &str| format!("{}.{name}", architecture.name);
    let size = |name: &str| metadata.size_of_all(&key(name));
    let required = |name: &str| size(name)?.with_context(|| format!("{} is missing", key(name)));
    let (hidden, heads) = (required("embedding_length")?, required("attention.head_count")?);
    let head_dim = match size("attention.key_length")?.or(size("rope.dimension_count")?) {
        Some(dim) => dim,
        None if heads > 0 && hidden % heads == 0 => hidden / heads,
        None => bail!("{} {hidden} is no multiple of {} {heads}", key("embedding_length"), key("attention.head_count")),
    };
    for (name, part) in [("attention.value_length", "values"), ("rope.dimension_count", "rotated parts")] {
        let other = size(name)?.filter(|other| *other != head_dim);
        ensure!(other.is_none(), "{} is not {head_dim}: heads with other {part} are not supported", key(name));
    }
    if size("expert_count")?.is_some_and(|count| count > 0) {
        bail!("{} is set: mixtures of experts are not supported", key("expert_count"));
    }
    let epsilon = metadata.float(&key("attention.layer_norm_rms_epsilon"))?;
    let (_, embedding) = gguf.tensor("token_embd.weight").context("the tensor token_embd.weight is missing")?;
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| drop(config.insert(name.to_owned(), value));
    set("model_type", json!(architecture.model_types[0]));
    set("vocab_size", json!(embedding.shape[0]));
    set("hidden_size", json!(hidden));
    set("intermediate_size", json!(required("feed_forward_length")?));
    set("num_hidden_layers", json!(required("block_count")?));
    set("num_attention_heads", json!(heads));
    set("num_key_value_heads", json!(size("attention.head_count_kv")?.unwrap_or(heads)));
    set("head_dim", json!(head_dim));
    set("max_position_embeddings", json!(required("context_length")?));
    set(
        "rms_norm_eps",
        json!(epsilon.with_context(|| format!("{} is missing", key("attention.layer_norm_rms_epsilon")))?),
    );
    set("rope_theta", json!(metadata.float(&key("rope.freq_base"))?.unwrap_or(10_000.0)));
    set("tie_word_embeddings", json!(gguf.tensor("output.weight").is_none()));
    for extra in architecture.extra {
        let name = key(extra.key);
        let number = match metadata.0.get(&name) {
            Some(super::value::Value::Whole(_)) => metadata.size(&name)?.map(|size| json!(size)),
            _ => metadata.float(&name)?.map(|number| json!(number)),
        };
        number.into_iter().for_each(|number| set(extra.config, number));
    }
    let scaling = scaling(gguf, architecture, &config)?;
    config.extend(scaling.map(|scaling| ("rope_scaling".to_owned(), scaling)));
    Ok(config)
}

/// The scaling of rotary positions: by keys, or by the factors of Llama 3 in a tensor.
fn scaling(gguf: &Gguf, architecture: &Architecture, config: &Map<String, Value>) -> Result<Option<Value>> {
    let key = |name: &str| format!("{}.rope.{name}", architecture.name);
    let factor = match gguf.metadata().float(&key("scaling.factor"))? {
        Some(factor) => Some(factor),
        None => gguf.metadata().float(&key("scale_linear"))?,
    };
    let by_keys = match gguf.metadata().text(&key("scaling.type"))? {
        None | Some("none") => factor.filter(|factor| *factor != 1.0 && *factor != 0.0),
        Some("linear") => Some(factor.with_context(|| format!("{} is missing", key("scaling.factor")))?),
        Some(other) => bail!("{} is {other:?}: supported are none and linear", key("scaling.type")),
    };
    let Some((part, tensor)) = gguf.tensor(ROPE_FACTORS) else {
        return Ok(by_keys.map(|factor| json!({ "rope_type": "linear", "factor": factor })));
    };
    ensure!(by_keys.is_none(), "{ROPE_FACTORS} is there and {} too: one is supported", key("scaling.factor"));
    let theta = config["rope_theta"].as_f64().unwrap_or_default();
    rope_factors::recognise(part, tensor, theta, config["head_dim"].as_u64().unwrap_or_default() as usize).map(Some)
}
