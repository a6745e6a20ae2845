//! Gemma, the first generation: norms of 1 + weight, embeddings scaled and tied, GELU.
use salsa_engine::{Activation, ModelSpec, NormWeight};
use serde_json::{Map, Value, json};

use super::{Defaults, Description, llama};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "gemma",
    class_prefix: "Gemma",
    defaults: Defaults {
        vocab_size: 256_000,
        hidden_size: 3072,
        intermediate_size: 24_576,
        layers: 28,
        heads: 16,
        kv_heads: Some(16),
        head_dim: Some(256),
        max_positions: 8192,
        activation: "gelu_pytorch_tanh",
        tied_embeddings: true,
        ..llama::DEFAULTS
    },
    unsupported: &[],
    norm: NormWeight::OnePlus,
    scaled_embeddings: true,
    free_head_dim: true,
    // Early files have `gelu` and mean its tanh approximation; the later `hidden_activation` takes precedence.
    activation: |config| match config["hidden_activation"].as_str().or_else(|| config["hidden_act"].as_str()) {
        Some("gelu") => Some("gelu_pytorch_tanh"),
        name => name,
    },
    write,
    ..llama::DESCRIPTION
};

/// `hidden_activation` takes precedence over `hidden_act` in Gemma's configs.
pub(super) fn write(spec: &ModelSpec, config: &mut Map<String, Value>) {
    let activation = match spec.activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    };
    config.insert("attention_bias".to_owned(), json!(spec.options.output_bias));
    config.insert("hidden_activation".to_owned(), json!(activation));
}
