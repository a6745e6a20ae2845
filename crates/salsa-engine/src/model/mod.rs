//! The transformer itself, written once against [`Backend`].

mod backward;
mod decode;
mod forward;
mod sampler;
mod trainable;

pub use decode::{Finish, Prompt, Response, Sampling};
pub use forward::Tape;
pub use trainable::{AdamW, OptimizerState, Recompute, TrainableTransformer};

use crate::backend::{AttentionShape, Backend, RotaryTable};
use crate::batch::{Batch, Output, Query};
use crate::error::ModelError;
use crate::spec::{Head, ModelSpec};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A model whose weights do not change: forward passes and generation.
pub struct Transformer<B: Backend> {
    spec: ModelSpec,
    backend: B,
    parameters: Parameters<B>,
    places: Places,
    rotary: Mutex<Arc<RotaryTable>>,
}

/// The weights in the form in which operations read them.
struct Parameters<B: Backend> {
    embedding: B::Buffer,
    layers: Vec<LayerParameters<B>>,
    norm: B::Buffer,
    head: Option<B::Matrix>,
    score: Option<B::Buffer>,
}

struct LayerParameters<B: Backend> {
    input_norm: B::Buffer,
    qkv: B::Matrix,
    qkv_bias: Option<B::Buffer>,
    query_norm: Option<B::Buffer>,
    key_norm: Option<B::Buffer>,
    output: B::Matrix,
    post_norm: B::Buffer,
    gate_up: B::Matrix,
    down: B::Matrix,
}

/// Where the weights lie in the flat buffer.
#[derive(Clone, Debug)]
struct Places {
    embedding: Range<usize>,
    layers: Vec<LayerPlaces>,
    norm: Range<usize>,
    /// The language-model head's own matrix or, tied, the embedding.
    head: Option<Range<usize>>,
    score: Option<Range<usize>>,
}

#[derive(Clone, Debug)]
struct LayerPlaces {
    input_norm: Range<usize>,
    qkv: Range<usize>,
    qkv_bias: Option<Range<usize>>,
    query_norm: Option<Range<usize>>,
    key_norm: Option<Range<usize>>,
    output: Range<usize>,
    post_norm: Range<usize>,
    gate_up: Range<usize>,
    down: Range<usize>,
}

impl Places {
    fn of(spec: &ModelSpec) -> Places {
        let all: BTreeMap<String, Range<usize>> = spec.tensors().into_iter().map(|t| (t.name, t.range)).collect();
        let layer = |layer: usize| {
            let get = |name: &str| all.get(&format!("model.layers.{layer}.{name}")).cloned();
            let must = |name: &str| get(name).expect("`tensors` lists it for every layer");
            let span = |first: &str, last: &str| must(first).start..must(last).end;
            LayerPlaces {
                input_norm: must("input_layernorm.weight"),
                qkv: span("self_attn.q_proj.weight", "self_attn.v_proj.weight"),
                qkv_bias: spec.qkv_bias.then(|| span("self_attn.q_proj.bias", "self_attn.v_proj.bias")),
                query_norm: get("self_attn.q_norm.weight"),
                key_norm: get("self_attn.k_norm.weight"),
                output: must("self_attn.o_proj.weight"),
                post_norm: must("post_attention_layernorm.weight"),
                gate_up: span("mlp.gate_proj.weight", "mlp.up_proj.weight"),
                down: must("mlp.down_proj.weight"),
            }
        };
        let embedding = all["model.embed_tokens.weight"].clone();
        let tied = (spec.tied_embeddings && spec.head != Head::Scalar).then(|| embedding.clone());
        Places {
            layers: (0..spec.layers).map(layer).collect(),
            norm: all["model.norm.weight"].clone(),
            head: all.get("lm_head.weight").cloned().or(tied),
            score: all.get("score.weight").cloned(),
            embedding,
        }
    }
}

impl<B: Backend> Parameters<B> {
    fn new(spec: &ModelSpec, places: &Places, backend: &B, weights: &[f32]) -> Parameters<B> {
        let (hidden, wide) = (spec.hidden_size, spec.intermediate_size);
        let shape = spec.attention_shape();
        let part = |range: &Range<usize>| &weights[range.clone()];
        let layer = |p: &LayerPlaces| LayerParameters {
            input_norm: backend.upload(part(&p.input_norm)),
            qkv: backend.matrix(part(&p.qkv), shape.fused(), hidden),
            qkv_bias: p.qkv_bias.as_ref().map(|range| backend.upload(part(range))),
            query_norm: p.query_norm.as_ref().map(|range| backend.upload(part(range))),
            key_norm: p.key_norm.as_ref().map(|range| backend.upload(part(range))),
            output: backend.matrix(part(&p.output), hidden, shape.output()),
            post_norm: backend.upload(part(&p.post_norm)),
            gate_up: backend.matrix(part(&p.gate_up), 2 * wide, hidden),
            down: backend.matrix(part(&p.down), hidden, wide),
        };
        Parameters {
            embedding: backend.upload(part(&places.embedding)),
            layers: places.layers.iter().map(layer).collect(),
            norm: backend.upload(part(&places.norm)),
            head: places.head.as_ref().map(|range| backend.matrix(part(range), spec.vocab_size, hidden)),
            score: places.score.as_ref().map(|range| backend.upload(part(range))),
        }
    }

    /// Takes over new weights of the same shape.
    fn refresh(&mut self, places: &Places, backend: &B, weights: &[f32]) {
        let part = |range: &Range<usize>| &weights[range.clone()];
        let copy = |buffer: &mut B::Buffer, range: &Range<usize>| *buffer = backend.upload(part(range));
        let copy_if = |buffer: &mut Option<B::Buffer>, range: &Option<Range<usize>>| {
            if let (Some(buffer), Some(range)) = (buffer, range) {
                copy(buffer, range);
            }
        };
        copy(&mut self.embedding, &places.embedding);
        copy(&mut self.norm, &places.norm);
        copy_if(&mut self.score, &places.score);
        if let (Some(head), Some(range)) = (&mut self.head, &places.head) {
            backend.refresh(head, part(range));
        }
        for (layer, p) in self.layers.iter_mut().zip(&places.layers) {
            copy(&mut layer.input_norm, &p.input_norm);
            copy(&mut layer.post_norm, &p.post_norm);
            copy_if(&mut layer.qkv_bias, &p.qkv_bias);
            copy_if(&mut layer.query_norm, &p.query_norm);
            copy_if(&mut layer.key_norm, &p.key_norm);
            backend.refresh(&mut layer.qkv, part(&p.qkv));
            backend.refresh(&mut layer.output, part(&p.output));
            backend.refresh(&mut layer.gate_up, part(&p.gate_up));
            backend.refresh(&mut layer.down, part(&p.down));
        }
    }
}

impl ModelSpec {
    fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            window: self.sliding_window,
        }
    }
}

/// Checks a flat weight buffer against a shape.
fn check(spec: &ModelSpec, weights: &[f32]) -> Result<(), ModelError> {
    spec.validate()?;
    let expected = spec.parameters();
    if weights.len() != expected {
        return Err(ModelError::WeightCount { expected, found: weights.len() });
    }
    let Some(at) = weights.iter().position(|w| !w.is_finite()) else { return Ok(()) };
    let tensor = spec.tensors().into_iter().find(|t| t.range.contains(&at)).expect("tensors cover the buffer");
    Err(ModelError::NonFinite { index: at - tensor.range.start, tensor: tensor.name, value: weights[at] })
}

impl<B: Backend> Transformer<B> {
    /// A model from its flat weights, laid out as [`ModelSpec::tensors`] says.
    ///
    /// # Errors
    ///
    /// When the shape is impossible, the count is wrong, or a weight is not finite.
    pub fn new(spec: ModelSpec, weights: Vec<f32>) -> Result<Self, ModelError>
    where
        B: Default,
    {
        check(&spec, &weights)?;
        Ok(Transformer::unchecked(spec, &weights, B::default()))
    }

    fn unchecked(spec: ModelSpec, weights: &[f32], backend: B) -> Self {
        let places = Places::of(&spec);
        let parameters = Parameters::new(&spec, &places, &backend, weights);
        Transformer { spec, backend, parameters, places, rotary: Mutex::default() }
    }

    /// Takes over other weights of the same shape, in the place of the old ones.
    ///
    /// # Errors
    ///
    /// When the count is wrong or a weight is not finite; the model then stays as it was.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<(), ModelError> {
        check(&self.spec, weights)?;
        self.parameters.refresh(&self.places, &self.backend, weights);
        Ok(())
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Cosines and sines for at least `positions` positions.
    fn rotary_table(&self, positions: usize) -> Arc<RotaryTable> {
        let half = self.spec.head_dim / 2;
        let mut table = self.rotary.lock().expect("no code panics while it holds the table");
        if table.cos.len() < positions * half {
            let frequencies = self.spec.rope.frequencies(self.spec.head_dim);
            let angles = (0..positions.next_power_of_two())
                .flat_map(|position| frequencies.iter().map(move |frequency| f64::from(position as f32 * frequency)));
            let (sin, cos) = angles.map(|angle| (angle.sin() as f32, angle.cos() as f32)).unzip();
            *table = Arc::new(RotaryTable { half, cos, sin });
        }
        table.clone()
    }

    /// Log-probs, entropies and values at the places asked for. Keeps nothing.
    ///
    /// # Panics
    ///
    /// If a token is outside the vocabulary, a row outside the batch, or the model lacks the head that is asked for.
    pub fn forward(&self, batch: &Batch, query: &Query) -> Output {
        self.check_query(batch, query);
        let hidden = self.final_hidden(batch);
        self.read_heads(&hidden, query).0
    }

    fn check_query(&self, batch: &Batch, query: &Query) {
        let vocabulary = self.spec.vocab_size as u32;
        let outside = batch.tokens().iter().chain(&query.targets).find(|&&token| token >= vocabulary);
        assert!(outside.is_none(), "token {} is outside the vocabulary of {vocabulary}", outside.copied().unwrap_or(0));
        let rows = batch.rows() as u32;
        assert!(
            query.rows.iter().chain(&query.value_rows).all(|&row| row < rows),
            "a queried row is outside the batch"
        );
        assert_eq!(query.rows.len(), query.targets.len(), "each queried row has one target");
        assert!(query.temperature > 0.0, "the softmax needs a positive temperature");
        assert!(query.rows.is_empty() || self.parameters.head.is_some(), "this model has no language-model head");
        assert!(query.value_rows.is_empty() || self.parameters.score.is_some(), "this model has no scalar head");
    }
}

/// Log-probs under the normalised geometric mean of several models, `p(v) ~ prod_i p_i(v)^w_i`: the softmax of the
/// weighted sum of their logits. Values are not computed.
///
/// # Panics
///
/// As [`Transformer::forward`], and if there are no models, or not one weight for each, or vocabularies differ.
pub fn geometric_logprobs<B: Backend>(
    models: &[&Transformer<B>],
    weights: &[f32],
    batch: &Batch,
    query: &Query,
) -> Output {
    assert!(!models.is_empty() && models.len() == weights.len(), "one weight for each of at least one model");
    let first = models[0];
    let vocabulary = first.spec.vocab_size;
    assert!(models.iter().all(|m| m.spec.vocab_size == vocabulary), "the models' vocabularies differ");
    models.iter().for_each(|m| m.check_query(batch, query));
    let gather = |m: &&Transformer<B>| m.backend.gather(&m.final_hidden(batch), m.spec.hidden_size, &query.rows);
    let hidden: Vec<B::Buffer> = models.iter().map(gather).collect();
    let heads: Vec<_> = models
        .iter()
        .zip(&hidden)
        .zip(weights)
        .map(|((m, hidden), &weight)| (hidden, m.parameters.head.as_ref().expect("checked above"), weight))
        .collect();
    let stats = first.backend.token_stats(&heads, query.logprob_query());
    Output { logprobs: stats.logprobs, entropies: stats.entropies, values: Vec::new() }
}
