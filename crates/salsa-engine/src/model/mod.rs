//! The transformer itself, written once against [`Backend`].

mod adapter;
mod backward;
mod base;
mod decode;
mod forward;
mod parallel;
mod rank;
mod rotation;
mod shared;
mod trainable;

pub use base::Base;
pub use decode::{Decoding, Event, Finish, Prompt, Response, Sampling, Ticket};
pub use forward::Tape;
pub use trainable::{AdamW, Moment, OptimizerState, Recompute, TrainableTransformer};

use crate::backend::Backend;
use crate::backend::planned::Planned;
use crate::batch::{Batch, Output, Query};
use crate::error::ModelError;
use crate::lora::LoraSpec;
use crate::spec::{Head, ModelSpec};
use crate::weights::Weights;
use adapter::Adapter;
use std::sync::Arc;

/// A model whose weights do not change: forward passes and generation. Its [`Base`] may be shared with others.
pub struct Transformer<B: Backend> {
    base: Arc<Base<B>>,
    /// The base's shape with this model's head.
    spec: ModelSpec,
    adapter: Option<Adapter<B>>,
}

impl Transformer<Planned> {
    /// A model of this shape, with an adapter if `lora` is given, without numbers, for planning memory.
    pub fn planned(spec: &ModelSpec, lora: Option<&LoraSpec>, backend: &Planned) -> Self {
        let base = Arc::new(Base::planned(spec.clone(), backend.clone()));
        let adapter = |lora: &LoraSpec| Adapter::new(spec, lora, backend, &vec![0.0; lora.parameters(spec)]);
        Transformer { spec: spec.clone(), base, adapter: lora.map(adapter) }
    }
}

impl<B: Backend> Transformer<B> {
    /// A model from its flat weights, in the layout of [`ModelSpec::tensors`].
    ///
    /// # Errors
    ///
    /// As [`Base::new`].
    pub fn new<W: Weights + ?Sized>(spec: ModelSpec, weights: &W, backend: B) -> Result<Self, ModelError> {
        Ok(Transformer::bare(Arc::new(Base::new(spec, weights, backend)?)))
    }

    /// The device that holds and computes the model.
    pub fn backend(&self) -> &B {
        &self.base.backend
    }

    /// The base as a model: no adapter, its own head.
    pub fn bare(base: Arc<Base<B>>) -> Self {
        Transformer { spec: base.spec.clone(), base, adapter: None }
    }

    /// A base with an adapter, and with the scalar head that is part of the adapter's weights if `head` has one.
    /// `weights` are in the layout of [`LoraSpec::tensors`] for the base's shape with `head`.
    ///
    /// # Errors
    ///
    /// When the base has no language-model head and `head` has one, the adapter is impossible, the count is wrong, or a
    /// weight is not finite.
    pub fn on(base: Arc<Base<B>>, head: Head, lora: &LoraSpec, weights: &[f32]) -> Result<Self, ModelError> {
        let spec = base.spec.with_head(head);
        if head.has_language_model() && !base.spec.head.has_language_model() {
            return Err(ModelError::Spec("the base has no language-model head".into()));
        }
        lora.validate_for(&spec)?;
        base::check(&lora.tensors(&spec), weights)?;
        let adapter = Adapter::new(&spec, lora, &base.backend, weights);
        Ok(Transformer { base, spec, adapter: Some(adapter) })
    }

    /// Another adapter of the same shape on the same base, with `head`.
    ///
    /// # Errors
    ///
    /// As [`Transformer::on`], and if this model has no adapter.
    pub fn sibling(&self, head: Head, weights: &[f32]) -> Result<Self, ModelError> {
        let lora = self.lora().ok_or_else(|| ModelError::Spec("the model has no adapter".into()))?;
        Transformer::on(self.base.clone(), head, lora, weights)
    }

    /// Whether two models share one base in memory.
    pub fn shares_base(&self, other: &Transformer<B>) -> bool {
        Arc::ptr_eq(&self.base, &other.base)
    }

    /// Replaces the weights by others of the same shape.
    ///
    /// # Errors
    ///
    /// When the count is wrong or a weight is not finite; the model is then unchanged.
    ///
    /// # Panics
    ///
    /// If the model has an adapter, or shares its base.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<(), ModelError> {
        base::check(&self.spec.tensors(), weights)?;
        assert!(self.adapter.is_none(), "the weights of a model with an adapter are those of its base");
        Arc::get_mut(&mut self.base).expect("no other model stands on this base").refresh(&base::Fresh::Host(weights));
        Ok(())
    }

    /// The model's shape.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// The adapter's shape, if there is one.
    pub fn lora(&self) -> Option<&LoraSpec> {
        self.adapter.as_ref().map(|adapter| &adapter.spec)
    }

    /// The language-model head, if this model has one.
    fn head(&self) -> Option<&B::Matrix> {
        self.base.parameters.head.as_ref().filter(|_| self.spec.head.has_language_model())
    }

    /// The scalar head: its own, or the base's.
    fn score(&self) -> Option<&B::Buffer> {
        let own = self.adapter.as_ref().and_then(|adapter| adapter.score.as_ref());
        own.or(self.base.parameters.score.as_ref()).filter(|_| self.spec.head.has_scalar())
    }

    /// Log-probs, entropies and values at the queried rows. Keeps nothing for a backward pass.
    ///
    /// ```
    /// use salsa_engine::*;
    /// let model = Model::new(tiny(), &tiny().init(1), Device::default())?;
    /// let (mut batch, mut query) = (Batch::new(), Query::default());
    /// let rows = batch.push(&[1, 2, 3]);
    /// query.push_logprobs(rows, &[1, 2, 3], 1);      // after one token of context: log p(2 | 1), log p(3 | 1, 2)
    /// let output = model.forward(&batch, &query);
    /// assert_eq!(output.logprobs.len(), 2);
    /// assert!((output.logprobs[0] + 11f32.ln()).abs() < 0.1); // random weights: nearly uniform over 11 tokens
    ///
    /// // A reward model has a scalar head, read where it is asked for: here at the last token.
    /// let spec = tiny().with_head(Head::Scalar);
    /// let reward_model = Model::new(spec.clone(), &spec.init(1), Device::default())?;
    /// let score = reward_model.forward(&batch, &Query { value_rows: vec![2], ..Query::default() }).values[0];
    /// assert!(score.is_finite());
    /// # Ok::<(), ModelError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// If a token is outside the vocabulary, a row outside the batch, or the model lacks a queried head.
    pub fn forward(&self, batch: &Batch, query: &Query) -> Output {
        self.check_query(batch, query);
        let hidden = self.final_hidden(batch);
        self.read_heads(&hidden, batch, query).0
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
        assert!(query.rows.is_empty() || self.head().is_some(), "this model has no language-model head");
        assert!(query.value_rows.is_empty() || self.score().is_some(), "this model has no scalar head");
    }
}

/// Log-probs under the normalised geometric mean of several models, `p(v) ~ prod_i p_i(v)^w_i`: the softmax of the
/// weighted sum of their logits. Values are not computed.
///
/// ```
/// use salsa_engine::*;
/// let model = Model::new(tiny(), &tiny().init(1), Device::default())?;
/// let (mut batch, mut query) = (Batch::new(), Query::default());
/// let rows = batch.push(&[1, 2, 3]);
/// query.push_logprobs(rows, &[1, 2, 3], 1);
/// // The mean of a model with itself is the model.
/// let mean = geometric_logprobs(&[&model, &model], &[0.25, 0.75], &batch, &query).logprobs;
/// let own = model.forward(&batch, &query).logprobs;
/// assert!((mean[0] - own[0]).abs() < 1e-6 && (mean[1] - own[1]).abs() < 1e-6);
/// # Ok::<(), ModelError>(())
/// ```
///
/// # Panics
///
/// As [`Transformer::forward`], and if there are no models, the number of weights differs, or vocabularies or caps of
/// logits differ.
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
    let gather = |m: &&Transformer<B>| m.head_rows(&m.final_hidden(batch), &m.rows_of(batch, &query.rows));
    let hidden: Vec<B::Buffer> = models.iter().map(gather).collect();
    let heads: Vec<_> = models
        .iter()
        .zip(&hidden)
        .zip(weights)
        .map(|((m, hidden), &weight)| (hidden, m.head().expect("checked above"), weight))
        .collect();
    let softcap = first.spec.options.logit_softcap;
    assert!(models.iter().all(|m| m.spec.options.logit_softcap == softcap), "the models cap their logits differently");
    let stats = first.base.backend.token_stats(&heads, first.logprob_query(query));
    Output { logprobs: stats.logprobs, entropies: stats.entropies, values: Vec::new() }
}
