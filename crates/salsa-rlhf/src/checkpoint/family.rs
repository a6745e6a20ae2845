//! The architectures that are read and written, and what transformers takes for keys left out of their configs.

use std::fmt;

use salsa_engine::{ModelSpec, NormWeight};

/// An architecture, as Hugging Face names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `llama`: also many others that are saved as Llama.
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

/// The values of transformers' config classes.
pub(super) struct Defaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    /// `None`: as many as heads.
    pub kv_heads: Option<usize>,
    /// `None`: hidden size divided by heads.
    pub head_dim: Option<usize>,
    pub max_positions: usize,
    pub activation: &'static str,
    pub tied_embeddings: bool,
    /// Of the key `sliding_window`.
    pub sliding_window: Option<usize>,
}

impl Family {
    /// All of them.
    pub const ALL: [Family; 5] = [Family::Llama, Family::Mistral, Family::Gemma, Family::Qwen2, Family::Qwen3];

    /// The `model_type` of `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Gemma => "gemma",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }

    /// The family of a `model_type`, if it is one of these.
    pub fn of_model_type(name: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.model_type() == name)
    }

    /// The first family that has everything `spec` has, for models that do not come from a checkpoint.
    pub fn for_spec(spec: &ModelSpec) -> Family {
        if spec.norm == NormWeight::OnePlus {
            Family::Gemma
        } else if spec.qk_norm {
            Family::Qwen3
        } else if spec.qkv_bias {
            Family::Qwen2
        } else if spec.sliding_window.is_some() {
            Family::Mistral
        } else {
            Family::Llama
        }
    }

    /// How class names of this family begin: `Llama` in `LlamaForCausalLM`.
    pub(super) fn class_prefix(self) -> &'static str {
        match self {
            Family::Llama => "Llama",
            Family::Mistral => "Mistral",
            Family::Gemma => "Gemma",
            Family::Qwen2 => "Qwen2",
            Family::Qwen3 => "Qwen3",
        }
    }

    pub(super) fn defaults(self) -> Defaults {
        let qwen = Defaults {
            vocab_size: 151_936,
            hidden_size: 4096,
            intermediate_size: 22_016,
            layers: 32,
            heads: 32,
            kv_heads: Some(32),
            head_dim: None,
            max_positions: 32_768,
            activation: "silu",
            tied_embeddings: false,
            sliding_window: Some(4096),
        };
        let llama = Defaults {
            vocab_size: 32_000,
            intermediate_size: 11_008,
            kv_heads: None,
            max_positions: 2048,
            sliding_window: None,
            ..qwen
        };
        match self {
            Family::Llama => llama,
            Family::Mistral => Defaults {
                intermediate_size: 14_336,
                kv_heads: Some(8),
                max_positions: 131_072,
                sliding_window: Some(4096),
                ..llama
            },
            Family::Gemma => Defaults {
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
                sliding_window: None,
            },
            Family::Qwen2 => qwen,
            Family::Qwen3 => Defaults { head_dim: Some(128), ..qwen },
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
