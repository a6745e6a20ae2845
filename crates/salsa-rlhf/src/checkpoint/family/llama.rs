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
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    activation: "silu",
    tied_embeddings: false,
};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "llama",
    class_prefix: "Llama",
    reward_prefix: None,
    defaults: DEFAULTS,
    unsupported: &[("mlp_bias", "biases in the feed-forward part")],
    own_keys: &[],
    norm: NormWeight::Plain,
    scaled_embeddings: false,
    qkv_bias: false,
    optional_bias: true,
    qk_norm: false,
    free_head_dim: false,
    activation: |config| config["hidden_act"].as_str(),
    read: |_, _| Ok(()),
    write: |spec, config| {
        config.insert("attention_bias".to_owned(), json!(spec.options.output_bias));
        config.insert("mlp_bias".to_owned(), json!(false));
    },
};
