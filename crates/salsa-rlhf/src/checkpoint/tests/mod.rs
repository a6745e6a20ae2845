//! Tests of the checkpoint directory.

mod config_spellings;
mod families;
mod foreign;
mod hostile;
mod peft;
mod round_trip;

use std::fs;
use std::path::Path;

use salsa_engine::{Activation, Head, NormWeight, Options, Rope, RopeScaling};
use serde_json::json;

use super::*;

/// Families whose models are spelled out.
const BASIC: [Family; 5] = [Family::Llama, Family::Mistral, Family::Gemma, Family::Qwen2, Family::Qwen3];

/// A small model of each family.
fn tiny(family: Family) -> ModelSpec {
    if !BASIC.contains(&family) {
        let config = json!({
            "model_type": family.model_type(), "vocab_size": 11, "hidden_size": 12, "intermediate_size": 7,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6,
            "max_position_embeddings": 64, "sliding_window": 8, "sliding_window_pattern": 2,
            "no_rope_layer_interval": 2, "query_pre_attn_scalar": if family == Family::Gemma2 { Some(24) } else { None },
            "residual_multiplier": 0.5, "logits_scaling": 2.0, "attention_multiplier": 0.25,
        });
        return config::parse(&config).unwrap().1;
    }
    let gemma = family == Family::Gemma;
    ModelSpec {
        vocab_size: 11,
        hidden_size: 12,
        intermediate_size: 7,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: if gemma || family == Family::Qwen3 { 4 } else { 6 },
        max_positions: 64,
        rms_norm_eps: 1e-6,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: if gemma { Activation::GeluTanh } else { Activation::Silu },
        norm: if gemma { NormWeight::OnePlus } else { NormWeight::Plain },
        embedding_scale: if gemma { 12f32.sqrt() } else { 1.0 },
        qkv_bias: family == Family::Qwen2,
        qk_norm: family == Family::Qwen3,
        sliding_window: (family == Family::Mistral).then_some(8),
        options: Options::default(),
        tied_embeddings: gemma,
        head: Head::LanguageModel,
    }
}

/// Numbers that bfloat16 and float16 represent exactly.
fn weights(spec: &ModelSpec) -> Vec<f32> {
    (0..spec.parameters()).map(|i| ((i * 37 + 11) % 253) as f32 / 64.0 - 2.0).collect()
}

fn tokens() -> SpecialTokens {
    SpecialTokens { bos: Some(1), eos: vec![2, 3], pad: Some(0) }
}

fn options(family: Family, dtype: Dtype) -> SaveOptions {
    SaveOptions::new(family, tokens(), dtype)
}

fn save_tiny(dir: &Path, family: Family, head: Head) -> (ModelSpec, Vec<f32>) {
    let spec = tiny(family).with_head(head);
    let weights = weights(&spec);
    save(dir, &spec, &weights, &Companions::none(), &[], &options(family, Dtype::F32)).unwrap();
    (spec, weights)
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    edit(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn refusal(dir: &Path) -> String {
    match Checkpoint::open(dir).and_then(|checkpoint| checkpoint.read_weights()) {
        Ok(_) => panic!("it was not refused"),
        Err(error) => format!("{error:#}"),
    }
}

fn assert_has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
}

const MODEL: &str = "model.safetensors";

/// A safetensors file with this header, followed by `data` zero bytes.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

/// Edits the header of a saved file, keeping its numbers.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let mut out = raw(&header.to_string(), 0);
    out.extend(&bytes[8 + length..]);
    fs::write(path, out).unwrap();
}

/// Appends a tensor of zeros.
fn add_tensor(dir: &Path, name: &str, shape: &[usize]) {
    let path = dir.join(MODEL);
    let size = 4 * shape.iter().product::<usize>();
    let end = fs::read(&path).unwrap().len();
    edit_header(&path, |header| {
        let last = header.as_object().unwrap().values().filter_map(|t| t["data_offsets"][1].as_u64()).max().unwrap();
        header[name] = json!({ "dtype": "F32", "shape": shape, "data_offsets": [last, last + size as u64] });
    });
    let mut bytes = fs::read(&path).unwrap();
    assert!(bytes.len() >= end);
    bytes.resize(bytes.len() + size, 0);
    fs::write(&path, bytes).unwrap();
}

/// Renames a tensor in a header.
fn rename(header: &mut Value, from: &str, to: &str) {
    let tensors = header.as_object_mut().unwrap();
    let entry = tensors.remove(from).unwrap();
    tensors.insert(to.to_string(), entry);
}
