//! A decoder-only transformer of the Llama family, as data.

mod options;
mod rope;

pub use self::options::{BlockNorms, LayerOptions, NormSpan, Options, Rotary};
pub use self::rope::{Rope, RopeScaling};
use crate::error::ModelError;
use crate::pool;
use crate::random::Random;
use std::ops::Range;

/// The shape and the options of a model. Field names follow Hugging Face's `config.json` where it has one.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSpec {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers per head; need not be `hidden_size / heads`.
    pub head_dim: usize,
    /// The model's context, in tokens.
    pub max_positions: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// The gate of the MLP.
    pub activation: Activation,
    /// The multiplier in RMSNorm.
    pub norm: NormWeight,
    /// Embeddings are multiplied by this (1; Gemma: the root of the hidden size).
    pub embedding_scale: f32,
    /// Query, key and value projections have biases (Qwen2).
    pub qkv_bias: bool,
    /// Queries and keys pass an RMSNorm per head before rotation (Qwen3).
    pub qk_norm: bool,
    /// In layers with a window, a token sees at most this many tokens, itself included (Mistral).
    pub sliding_window: Option<usize>,
    /// What other families add to this form.
    pub options: Options,
    /// The language-model head is the embedding.
    pub tied_embeddings: bool,
    /// The head.
    pub head: Head,
}

/// The gate of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// The tanh form of GELU.
    GeluTanh,
}

/// The multiplier in RMSNorm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormWeight {
    /// The weight.
    Plain,
    /// One plus the weight (Gemma).
    OnePlus,
}

/// The head on top of the trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// Log-probs of tokens.
    LanguageModel,
    /// One number per row: a reward model or a critic.
    Scalar,
    /// Both, over one trunk.
    LanguageModelWithValue,
}

impl Head {
    /// Whether it gives log-probs.
    pub fn has_language_model(self) -> bool {
        self != Head::Scalar
    }
    /// Whether it gives one number per row.
    pub fn has_scalar(self) -> bool {
        self != Head::LanguageModel
    }
}

/// A named tensor inside the flat parameter buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorView {
    /// Hugging Face's name, such as `model.layers.0.self_attn.q_proj.weight`.
    pub name: String,
    /// Its shape: `[out, in]` for matrices.
    pub shape: Vec<usize>,
    /// Its range in the buffer.
    pub range: Range<usize>,
}

impl ModelSpec {
    /// The tensors in the order of the flat buffer, without gaps. Projections that read the same input (query, key,
    /// value; gate, up) are adjacent and together form one matrix.
    pub fn tensors(&self) -> Vec<TensorView> {
        let mut list = Tensors::default();
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        let (query, key) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        list.add("model.embed_tokens.weight", &[self.vocab_size, hidden]);
        let options = &self.options;
        for layer in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| list.add(&format!("model.layers.{layer}.{name}"), shape);
            if options.norms != BlockNorms::After {
                add("input_layernorm.weight", &[hidden]);
            }
            if options.fused_projections {
                add("self_attn.qkv_proj.weight", &[query + 2 * key, hidden]);
            } else {
                add("self_attn.q_proj.weight", &[query, hidden]);
                add("self_attn.k_proj.weight", &[key, hidden]);
                add("self_attn.v_proj.weight", &[key, hidden]);
            }
            if self.qkv_bias {
                add("self_attn.q_proj.bias", &[query]);
                add("self_attn.k_proj.bias", &[key]);
                add("self_attn.v_proj.bias", &[key]);
            }
            if self.qk_norm {
                let [queries, keys] = match options.qk_norm_span {
                    NormSpan::Head => [self.head_dim; 2],
                    NormSpan::Projection => [query, key],
                };
                add("self_attn.q_norm.weight", &[queries]);
                add("self_attn.k_norm.weight", &[keys]);
            }
            add("self_attn.o_proj.weight", &[hidden, query]);
            if options.output_bias {
                add("self_attn.o_proj.bias", &[hidden]);
            }
            add("post_attention_layernorm.weight", &[hidden]);
            if options.norms == BlockNorms::Both {
                add("pre_feedforward_layernorm.weight", &[hidden]);
            }
            if options.fused_projections {
                add("mlp.gate_up_proj.weight", &[2 * wide, hidden]);
            } else {
                add("mlp.gate_proj.weight", &[wide, hidden]);
                add("mlp.up_proj.weight", &[wide, hidden]);
            }
            add("mlp.down_proj.weight", &[hidden, wide]);
            if options.norms != BlockNorms::Before {
                add("post_feedforward_layernorm.weight", &[hidden]);
            }
        }
        list.add("model.norm.weight", &[hidden]);
        if self.head.has_language_model() && !self.tied_embeddings {
            list.add("lm_head.weight", &[self.vocab_size, hidden]);
        }
        if self.head.has_scalar() {
            list.add("score.weight", &[1, hidden]);
        }
        list.views
    }

    /// The number of parameters.
    pub fn parameters(&self) -> usize {
        self.tensors().last().map_or(0, |tensor| tensor.range.end)
    }

    /// The same trunk with another head.
    pub fn with_head(&self, head: Head) -> ModelSpec {
        ModelSpec { head, ..self.clone() }
    }

    /// What is particular to a layer.
    pub fn layer(&self, layer: usize) -> LayerOptions {
        self.options.layers.get(layer).copied().unwrap_or_default()
    }

    /// Numbers of a head that are rotated: the first ones.
    pub fn rotary_dim(&self) -> usize {
        self.options.rotary_dim.unwrap_or(self.head_dim)
    }

    /// Whether a token's angles depend on its position alone. Where they depend on the length of its sequence too, its
    /// log-prob while a response is sampled is not that in the whole response.
    pub fn has_fixed_angles(&self) -> bool {
        self.rope.is_fixed() && self.options.local_rope.as_ref().is_none_or(Rope::is_fixed)
    }

    /// Checks that the shape is valid.
    ///
    /// # Errors
    ///
    /// Names the first violated relation.
    pub fn validate(&self) -> Result<(), ModelError> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_positions),
        ];
        let fail = |message: String| Err(ModelError::Spec(message));
        if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return fail(format!("{name} is 0"));
        }
        if !self.heads.is_multiple_of(self.kv_heads) || self.heads / self.kv_heads > 64 {
            return fail(format!(
                "num_attention_heads {} must be a multiple of num_key_value_heads {}, at most 64 times as many",
                self.heads, self.kv_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return fail(format!("head_dim {} is odd; rotary positions turn pairs", self.head_dim));
        }
        if self.vocab_size > u32::MAX as usize || self.max_positions > u32::MAX as usize {
            return fail("vocab_size and max_position_embeddings must fit 32 bits".into());
        }
        if self.sliding_window == Some(0) {
            return fail("sliding_window is 0; leave it out for full attention".into());
        }
        self.options.validate(self).map_err(ModelError::Spec)?;
        for rope in [Some(&self.rope), self.options.local_rope.as_ref()].into_iter().flatten() {
            rope.validate(self.rotary_dim()).map_err(ModelError::Spec)?;
        }
        if !(self.rms_norm_eps.is_finite() && self.rms_norm_eps >= 0.0) {
            return fail(format!("rms_norm_eps {} is not a small positive number", self.rms_norm_eps));
        }
        Ok(())
    }

    /// Initial weights: matrices `N(0, 0.02)` as in transformers, norms at identity, biases zero, the scalar head
    /// `N(0, 1 / sqrt(hidden + 1))`. Each tensor has its own random stream, so shapes can change independently.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut weights = vec![0f32; self.parameters()];
        let (tensors, mut rest, mut parts) = (self.tensors(), &mut weights[..], Vec::new());
        for tensor in &tensors {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(tensor.range.len());
            parts.push((tensor, part));
            rest = after;
        }
        pool::each(parts, |index, (tensor, part)| {
            self.init_tensor(tensor, part, &mut Random::new(seed, index as u64));
        });
        weights
    }

    /// The values of one of [`ModelSpec::tensors`] in `init(seed)`.
    pub fn initial(&self, tensor: usize, seed: u64) -> Vec<f32> {
        let view = &self.tensors()[tensor];
        let mut numbers = vec![0f32; view.range.len()];
        self.init_tensor(view, &mut numbers, &mut Random::new(seed, tensor as u64));
        numbers
    }

    pub(crate) fn init_tensor(&self, tensor: &TensorView, out: &mut [f32], random: &mut Random) {
        let deviation = match tensor.name.as_str() {
            "score.weight" => 1.0 / ((self.hidden_size + 1) as f64).sqrt(),
            name if name.ends_with(".bias") => 0.0,
            _ if tensor.shape.len() == 1 => {
                return out.fill(if self.norm == NormWeight::Plain { 1.0 } else { 0.0 });
            }
            _ => 0.02,
        };
        random.normals(deviation, out);
    }

    /// The weights of this model in the layout of `target`, which has the same trunk. Tensors that only `target` has (a
    /// new head) are those of `target.init(seed)`.
    pub fn convert(&self, weights: &[f32], target: &ModelSpec, seed: u64) -> Vec<f32> {
        assert_eq!(weights.len(), self.parameters(), "the weights do not fit this shape");
        let mine: std::collections::BTreeMap<String, TensorView> =
            self.tensors().into_iter().map(|t| (t.name.clone(), t)).collect();
        let mut out = vec![0f32; target.parameters()];
        for (index, tensor) in target.tensors().iter().enumerate() {
            let part = &mut out[tensor.range.clone()];
            match mine.get(&tensor.name) {
                Some(source) if source.shape == tensor.shape => part.copy_from_slice(&weights[source.range.clone()]),
                _ => target.init_tensor(tensor, part, &mut Random::new(seed, index as u64)),
            }
        }
        out
    }
}

/// Builds a list of consecutive tensors.
#[derive(Default)]
pub(crate) struct Tensors {
    pub(crate) views: Vec<TensorView>,
    len: usize,
}

impl Tensors {
    pub(crate) fn add(&mut self, name: &str, shape: &[usize]) {
        let start = self.len;
        self.len += shape.iter().product::<usize>();
        self.views.push(TensorView { name: name.to_string(), shape: shape.to_vec(), range: start..self.len });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    #[test]
    fn the_count_is_that_of_the_pencil() {
        // vocab 3, hidden 4, wide 5, 1 layer, 2 heads of 2, 1 key head.
        let spec = ModelSpec {
            vocab_size: 3,
            hidden_size: 4,
            intermediate_size: 5,
            layers: 1,
            heads: 2,
            kv_heads: 1,
            head_dim: 2,
            ..tiny()
        };
        let layer = 4 + (4 + 2 + 2) * 4 + 4 * 4 + 4 + 3 * 4 * 5;
        assert_eq!(spec.parameters(), 3 * 4 + layer + 4 + 3 * 4);
        assert_eq!(ModelSpec { tied_embeddings: true, ..spec.clone() }.parameters(), spec.parameters() - 12);
        assert_eq!(spec.with_head(Head::Scalar).parameters(), spec.parameters() - 12 + 4);
    }

    #[test]
    fn a_new_head_leaves_the_trunk_alone() {
        let spec = tiny();
        let weights = spec.init(1);
        let target = spec.with_head(Head::LanguageModelWithValue);
        let converted = spec.convert(&weights, &target, 9);
        assert_eq!(converted[..weights.len()], weights);
        assert_eq!(target.convert(&converted, &spec, 0), weights);
        assert!(converted[weights.len()..].iter().all(|w| *w != 0.0));
    }

    #[test]
    fn bad_shapes_are_named() {
        let error = |spec: ModelSpec| spec.validate().unwrap_err().to_string();
        assert!(error(ModelSpec { kv_heads: 3, ..tiny() }).contains("num_key_value_heads 3"));
        assert!(error(ModelSpec { head_dim: 3, ..tiny() }).contains("head_dim 3"));
        assert!(error(ModelSpec { layers: 0, ..tiny() }).contains("num_hidden_layers"));
        assert!(error(ModelSpec { sliding_window: Some(0), ..tiny() }).contains("sliding_window"));
    }
}
