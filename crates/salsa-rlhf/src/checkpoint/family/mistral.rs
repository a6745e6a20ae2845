//! Mistral: Llama with a sliding attention window in every layer.
use serde_json::json;

use super::{Defaults, Description, llama};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "mistral",
    class_prefix: "Mistral",
    defaults: Defaults { intermediate_size: 14_336, kv_heads: Some(8), max_positions: 131_072, ..llama::DEFAULTS },
    unsupported: &[],
    free_head_dim: true,
    optional_bias: false,
    read: |config, spec| {
        spec.sliding_window = super::layers::window(config, Some(4096))?;
        Ok(())
    },
    write: |spec, config| drop(config.insert("sliding_window".to_owned(), json!(spec.sliding_window))),
    ..llama::DESCRIPTION
};
