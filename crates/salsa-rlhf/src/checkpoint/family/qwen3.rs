//! Qwen3: queries and keys are normalised head by head; otherwise Qwen2 without biases.
use serde_json::json;

use super::{Defaults, Description, llama, qwen2};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "qwen3",
    class_prefix: "Qwen3",
    defaults: Defaults { head_dim: Some(128), ..qwen2::DEFAULTS },
    unsupported: &[],
    qk_norm: true,
    free_head_dim: true,
    read: qwen2::read,
    write: |spec, config| {
        qwen2::write(spec, config);
        config.insert("attention_bias".to_owned(), json!(spec.options.output_bias));
    },
    ..llama::DESCRIPTION
};
