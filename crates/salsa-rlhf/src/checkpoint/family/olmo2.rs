//! OLMo 2: norms only of what attention and MLP add; queries and keys are normalised over all heads.
use salsa_engine::{BlockNorms, NormSpan};
use serde_json::json;

use super::{Defaults, Description, llama};

pub(super) const DESCRIPTION: Description = Description {
    model_type: "olmo2",
    class_prefix: "Olmo2",
    defaults: Defaults { vocab_size: 50_304, rms_norm_eps: 1e-5, ..llama::DEFAULTS },
    unsupported: &[],
    qk_norm: true,
    read: |_, spec| {
        spec.options.norms = BlockNorms::After;
        spec.options.qk_norm_span = NormSpan::Projection;
        Ok(())
    },
    write: |spec, config| drop(config.insert("attention_bias".to_owned(), json!(spec.options.output_bias))),
    ..llama::DESCRIPTION
};
