//! The supported architectures. A file of `family/` holds everything specific to one of them: its names, its options,
//! the defaults that transformers uses for missing config keys, and the keys to write.
use std::fmt;

use anyhow::{Context, Result, bail};
use salsa_engine::{Head, ModelSpec, NormWeight};
use serde_json::{Map, Value};

use super::{config, save_config};

mod gemma;
mod gemma2;
mod gemma3;
mod granite;
mod layers;
mod llama;
mod mistral;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;

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
    /// `gemma2`: Gemma with norms after attention and MLP, capped scores and logits, windows in every second layer.
    Gemma2,
    /// `gemma3_text`: Gemma with norms after attention and MLP, normalised queries and keys, windows and a rope of
    /// their own in five of six layers.
    Gemma3,
    /// `olmo2`: norms only after attention and MLP, queries and keys normalised over all heads.
    Olmo2,
    /// `granite` (3): scaled embeddings, scores, residuals and logits.
    Granite,
    /// `smollm3`: no rotary positions in every fourth layer.
    SmolLm3,
    /// `phi3`, which is also Phi-3.5 and Phi-4: fused projections, partial rotary positions, LongRoPE.
    Phi3,
}

/// The specifics of a family.
pub(super) struct Description {
    /// The `model_type` of `config.json`.
    pub(super) model_type: &'static str,
    /// The prefix of its class names: `Llama` in `LlamaForCausalLM`.
    pub(super) class_prefix: &'static str,
    /// That of its class for sequence classification, if it is another one.
    pub(super) reward_prefix: Option<&'static str>,
    /// The defaults of transformers' config class.
    pub(super) defaults: Defaults,
    /// Keys that must not be true in its configs, and the model part they would add.
    pub(super) unsupported: &'static [(&'static str, &'static str)],
    /// Keys of options that only some families have, and that are refused elsewhere.
    pub(super) own_keys: &'static [&'static str],
    pub(super) norm: NormWeight,
    /// Embeddings are multiplied by the root of the hidden size.
    pub(super) scaled_embeddings: bool,
    pub(super) qkv_bias: bool,
    /// Whether `attention_bias` of its configs gives all projections of attention a bias.
    pub(super) optional_bias: bool,
    pub(super) qk_norm: bool,
    /// Whether its head dimension may differ from hidden size over heads.
    pub(super) free_head_dim: bool,
    /// The activation that a config names.
    pub(super) activation: fn(&Value) -> Option<&str>,
    /// Reads what is specific to it from a config.
    pub(super) read: fn(&Value, &mut ModelSpec) -> Result<()>,
    /// Adds its specific keys to a config.
    pub(super) write: fn(&ModelSpec, &mut Map<String, Value>),
}

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
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) activation: &'static str,
    pub(super) tied_embeddings: bool,
}

impl Family {
    /// All families, the basic one first.
    pub const ALL: [Family; 11] = [
        Family::Llama,
        Family::Mistral,
        Family::Gemma,
        Family::Qwen2,
        Family::Qwen3,
        Family::Gemma2,
        Family::Gemma3,
        Family::Olmo2,
        Family::Granite,
        Family::SmolLm3,
        Family::Phi3,
    ];

    /// The specifics of this family.
    pub(super) fn description(self) -> &'static Description {
        match self {
            Family::Llama => &llama::DESCRIPTION,
            Family::Mistral => &mistral::DESCRIPTION,
            Family::Gemma => &gemma::DESCRIPTION,
            Family::Qwen2 => &qwen2::DESCRIPTION,
            Family::Qwen3 => &qwen3::DESCRIPTION,
            Family::Gemma2 => &gemma2::DESCRIPTION,
            Family::Gemma3 => &gemma3::DESCRIPTION,
            Family::Olmo2 => &olmo2::DESCRIPTION,
            Family::Granite => &granite::DESCRIPTION,
            Family::SmolLm3 => &smollm3::DESCRIPTION,
            Family::Phi3 => &phi3::DESCRIPTION,
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

    /// The name of its class for a model with this head.
    pub(super) fn class(self, head: Head) -> String {
        let Description { class_prefix, reward_prefix, .. } = self.description();
        match head {
            Head::Scalar => format!("{}ForSequenceClassification", reward_prefix.unwrap_or(class_prefix)),
            Head::LanguageModel | Head::LanguageModelWithValue => format!("{class_prefix}ForCausalLM"),
        }
    }

    /// Refuses a model that this family would read as another one.
    pub(super) fn check(self, spec: &ModelSpec) -> Result<()> {
        let refuse = |what: &str| bail!("this model cannot be saved as {self}, because of {what}");
        if !self.description().free_head_dim && !spec.hidden_size.is_multiple_of(spec.heads) {
            return refuse("a hidden size that is no multiple of its heads");
        }
        let written = Value::Object(save_config::shape(self, spec));
        let (_, read) = config::parse(&written).with_context(|| format!("this model cannot be saved as {self}"))?;
        let read = read.with_head(spec.head);
        let wrong = [
            (spec.norm != read.norm, "its norms"),
            (spec.embedding_scale != read.embedding_scale, "the scale of its embeddings"),
            (spec.qkv_bias != read.qkv_bias, "its query, key and value biases"),
            (spec.qk_norm != read.qk_norm, "its query and key norms"),
            (spec.sliding_window != read.sliding_window, "its sliding window"),
            (spec.rope != read.rope, "its rotary positions"),
            (spec.options != read.options, "its options"),
            (*spec != read, "its shape"),
        ];
        wrong.iter().find(|(differs, _)| *differs).map_or(Ok(()), |(_, what)| refuse(what))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.model_type())
    }
}
