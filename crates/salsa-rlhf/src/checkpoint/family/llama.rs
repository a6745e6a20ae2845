//! Llama, and models saved as Llama (SmolLM2, Vicuna, TinyLlama and many more): the basic form of this architecture.
use salsa_engine::NormWeight;
use serde_json::json;

use super::{Defaults, Description};

pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    layers: 32,
    heads: 32,
    kv_heads: None,
    head_dim: None,
    max_positions: 2048,
    activation: "silu",
    tied_embeddings: false,
    sliding_window: None,
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "llama",
    class_prefix: "Llama",
    defaults: DEFAULTS,
    unsupported: &[("attention_bias", "biases in attention"), ("mlp_bias", "biases in the feed-forward part")],
    norm: NormWeight::Plain,
    scaled_embeddings: false,
    qkv_bias: false,
    qk_norm: false,
    free_head_dim: false,
    window: None,
    activation: |config| config["hidden_act"].as_str(),
    write: |_, config| {
        config.insert("attention_bias".to_owned(), json!(false));
        config.insert("mlp_bias".to_owned(), json!(false));
    },
};
