//! Tests of the checkpoint directory.

mod config_spellings;
mod hostile;
mod peft;
mod round_trip;

use std::fs;
use std::path::Path;

use salsa_engine::{Activation, NormWeight, Rope, RopeScaling};
use serde_json::json;

use super::*;

/// A small model of each family.
fn tiny(family: Family) -> ModelSpec {
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
        tied_embeddings: gemma,
        head: Head::LanguageModel,
    }
}

/// Numbers that bfloat16 and float16 hold exactly.
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
