//! The supported architectures. A file of `family/` holds everything specific to one of them: its names, its options,
//! the defaults that transformers uses for missing config keys, and the keys to write.
use std::fmt;

use anyhow::{Result, bail};
use salsa_engine::{ModelSpec, NormWeight};
use serde_json::{Map, Value};

mod gemma;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;

/// An architecture, by its Hugging Face name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `llama`, and many others saved as Llama.
    Llama,
    /// `mistral`: Llama with a sliding attention window.
    Mistral,
    /// `gemma` (the first generation): norms of 1 + weight, scaled and tied embeddings, GELU.
    Gemma,
    /// `qwen2` and 2.5: biases on query, key and value.
    Qwen2,
    /// `qwen3`: normalised queries and keys.
    Qwen3,
}

/// The specifics of a family.
pub(super) struct Description {
    /// The `model_type` of `config.json`.
    pub(super) model_type: &'static str,
    /// The prefix of its class names: `Llama` in `LlamaForCausalLM`.
    pub(super) class_prefix: &'static str,
    /// The defaults of transformers' config class.
    pub(super) defaults: Defaults,
    /// Keys that must not be true in its configs, and the model part they would add.
    pub(super) unsupported: &'static [(&'static str, &'static str)],
    pub(super) norm: NormWeight,
    /// Embeddings are multiplied by the root of the hidden size.
    pub(super) scaled_embeddings: bool,
    pub(super) qkv_bias: bool,
    pub(super) qk_norm: bool,
    /// Whether its head dimension may differ from hidden size over heads.
    pub(super) free_head_dim: bool,
    /// Reads the attention window from its configs; `None` for a family without windows.
    pub(super) window: Option<ReadWindow>,
    /// The activation that a config names.
    pub(super) activation: fn(&Value) -> Option<&str>,
    /// Adds its specific keys to a config.
    pub(super) write: fn(&ModelSpec, &mut Map<String, Value>),
}

/// Returns the window of every layer from a config, its `sliding_window` (or the default) and its number of layers.
type ReadWindow = fn(&Value, Option<usize>, usize) -> Result<Option<usize>>;

/// The defaults of transformers' config classes.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    /// `None`: the number of heads.
    pub(super) kv_heads: Option<usize>,
    /// `None`: hidden size divided by heads.
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) activation: &'static str,
    pub(super) tied_embeddings: bool,
    /// Default of the key `sliding_window`.
    pub(super) sliding_window: Option<usize>,
}

impl Family {
    /// All families, the basic one first.
    pub const ALL: [Family; 5] = [Family::Llama, Family::Mistral, Family::Gemma, Family::Qwen2, Family::Qwen3];

    /// The specifics of this family.
    pub(super) fn description(self) -> &'static Description {
        match self {
            Family::Llama => &llama::DESCRIPTION,
            Family::Mistral => &mistral::DESCRIPTION,
            Family::Gemma => &gemma::DESCRIPTION,
            Family::Qwen2 => &qwen2::DESCRIPTION,
            Family::Qwen3 => &qwen3::DESCRIPTION,
        }
    }

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        self.description().model_type
    }

    /// The family of a `model_type`, if it is one of these.
    pub fn of_model_type(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// The first family with all features of `spec`, for models that do not come from a checkpoint.
    pub fn for_spec(spec: &ModelSpec) -> Family {
        Family::ALL.into_iter().find(|family| family.check(spec).is_ok()).unwrap_or(Family::Llama)
    }

    /// The factor of the embeddings of a model of this width.
    pub(super) fn embedding_scale(self, hidden_size: usize) -> f32 {
        if self.description().scaled_embeddings { (hidden_size as f32).sqrt() } else { 1.0 }
    }

    /// Refuses a model whose weights this family would compute differently.
    pub(super) fn check(self, spec: &ModelSpec) -> Result<()> {
        let Description { norm, qkv_bias, qk_norm, free_head_dim, window, .. } = self.description();
        let split_heads = !free_head_dim && !spec.hidden_size.is_multiple_of(spec.heads);
        let wrong = [
            (spec.norm != *norm, "its norms"),
            (spec.embedding_scale != self.embedding_scale(spec.hidden_size), "the scale of its embeddings"),
            (spec.qkv_bias != *qkv_bias, "its query, key and value biases"),
            (spec.qk_norm != *qk_norm, "its query and key norms"),
            (spec.sliding_window.is_some() && window.is_none(), "its sliding window"),
            (split_heads, "a hidden size that is no multiple of its heads"),
        ];
        match wrong.iter().find(|(differs, _)| *differs) {
            Some((_, what)) => bail!("this model cannot be saved as {self}, because of {what}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
