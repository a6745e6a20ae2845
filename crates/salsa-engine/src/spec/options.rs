//! What families add to the basic form of a model.

use super::{ModelSpec, Rope};

/// What a model has beyond the basic form. The default is that form: Llama's.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// The norms of a block.
    pub norms: BlockNorms,
    /// What one norm of queries or keys spans, where [`ModelSpec::qk_norm`] is on.
    pub qk_norm_span: NormSpan,
    /// The output projection of attention has a bias.
    pub output_bias: bool,
    /// Query, key and value are one stored matrix, `qkv_proj`; gate and up are another, `gate_up_proj` (Phi-3).
    pub fused_projections: bool,
    /// Attention scores are multiplied by this; `None` for `1 / sqrt(head_dim)`.
    pub attention_scale: Option<f32>,
    /// Scaled attention scores `s` become `cap * tanh(s / cap)` (Gemma 2).
    pub attention_softcap: Option<f32>,
    /// Logits `l` become `cap * tanh(l / cap)`, before the temperature (Gemma 2).
    pub logit_softcap: Option<f32>,
    /// Logits are divided by this (Granite).
    pub logit_divisor: f32,
    /// What attention and MLP add to the residual stream is multiplied by this (Granite).
    pub residual_scale: f32,
    /// Numbers of a head that are rotated, the first ones (Phi-3); `None` for all.
    pub rotary_dim: Option<usize>,
    /// The rotation of layers with [`Rotary::Local`] (Gemma 3).
    pub local_rope: Option<Rope>,
    /// What differs between layers, one for each; empty if all are [`LayerOptions::default`].
    pub layers: Vec<LayerOptions>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            norms: BlockNorms::Before,
            qk_norm_span: NormSpan::Head,
            output_bias: false,
            fused_projections: false,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            logit_divisor: 1.0,
            residual_scale: 1.0,
            rotary_dim: None,
            local_rope: None,
            layers: Vec::new(),
        }
    }
}

/// Where a block has norms: `x + attention(.)`, then `+ mlp(.)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockNorms {
    /// Of what attention and MLP read (Llama).
    Before,
    /// Of what they read and of what they add (Gemma 2 and 3).
    Both,
    /// Of what they add (OLMo 2).
    After,
}

/// What one norm of queries or keys spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormSpan {
    /// A head; all heads share the weight (Qwen3).
    Head,
    /// All heads together (OLMo 2).
    Projection,
}

/// What is particular to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerOptions {
    /// Whether [`ModelSpec::sliding_window`] applies.
    pub windowed: bool,
    /// Its rotary positions.
    pub rotary: Rotary,
}

impl Default for LayerOptions {
    fn default() -> LayerOptions {
        LayerOptions { windowed: true, rotary: Rotary::Main }
    }
}

/// The rotary positions of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// [`ModelSpec::rope`].
    Main,
    /// [`Options::local_rope`].
    Local,
    /// None: the layer knows no positions (SmolLM3).
    None,
}

impl Options {
    /// The first violated relation.
    pub(super) fn validate(&self, spec: &ModelSpec) -> Result<(), String> {
        let scales = [
            ("attention scale", self.attention_scale),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
            ("logits_scaling", Some(self.logit_divisor)),
            ("residual_multiplier", Some(self.residual_scale)),
        ];
        for (name, value) in scales {
            if let Some(value) = value.filter(|value| !(value.is_normal() && *value > 0.0)) {
                return Err(format!("{name} {value} is not a positive number"));
            }
        }
        if !(self.layers.is_empty() || self.layers.len() == spec.layers) {
            return Err(format!(
                "{} layers are described, but num_hidden_layers is {}",
                self.layers.len(),
                spec.layers
            ));
        }
        if self.local_rope.is_none() && self.layers.iter().any(|layer| layer.rotary == Rotary::Local) {
            return Err("a layer has local rotary positions, but there are none".into());
        }
        if self.fused_projections && (spec.qkv_bias || spec.qk_norm) {
            return Err("a fused qkv_proj has neither biases nor norms".into());
        }
        match self.rotary_dim {
            Some(dim) if dim == 0 || dim > spec.head_dim || !dim.is_multiple_of(2) => {
                Err(format!("{dim} numbers of a head of {} cannot be rotated", spec.head_dim))
            }
            _ => Ok(()),
        }
    }
}
