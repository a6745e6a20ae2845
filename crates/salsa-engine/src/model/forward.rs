//! The forward pass, block by block, keeping what the backward pass reads.

use super::Transformer;
use super::base::Parameters;
use super::rotation::Rotation;
use crate::backend::{Backend, LogprobQuery};
use crate::batch::{Batch, Output, Query};
use crate::lora::Group;
use crate::model::Recompute;
use std::borrow::Cow;

/// Values kept by the forward pass for the backward pass.
pub struct Tape<B: Backend> {
    pub(super) batch: Batch,
    pub(super) query: Query,
    pub(super) rotation: Rotation<B>,
    pub(super) layers: Vec<LayerTape<B>>,
    /// The residual stream before the last norm.
    pub(super) last: B::Buffer,
    pub(super) inverse: B::Buffer,
    pub(super) heads: HeadsTape<B>,
}

/// Values kept of one block.
pub(super) enum LayerTape<B: Backend> {
    /// Only the input: the block is recomputed in the backward pass.
    Input(B::Buffer),
    /// All inner values.
    Full(Activations<B>),
}

/// The inner values of a block. Norm outputs and gate products are cheap and recomputed.
pub(super) struct Activations<B: Backend> {
    pub input: B::Buffer,
    pub input_inverse: Option<B::Buffer>,
    /// Queries, keys and values before the norms of heads, if there are any.
    pub raw: Option<RawHeads<B>>,
    /// Rotated queries and keys, and values.
    pub fused: B::Buffer,
    pub attended: B::Buffer,
    /// The statistics returned by attention.
    pub softmax: B::Buffer,
    /// The residual stream between attention and MLP.
    pub attention_added: Option<Added<B>>,
    pub middle: B::Buffer,
    pub middle_inverse: Option<B::Buffer>,
    pub gate_up: B::Buffer,
    pub mlp_added: Option<Added<B>>,
    /// The adapter's scaled `x A^T` of each product, in the order of [`Group::ALL`].
    pub reduced: [Option<B::Buffer>; 4],
}

/// What attention or the MLP adds to the residual stream, before its norm.
pub(super) struct Added<B: Backend> {
    pub raw: B::Buffer,
    pub inverse: B::Buffer,
}

pub(super) struct RawHeads<B: Backend> {
    pub fused: B::Buffer,
    pub query_inverse: B::Buffer,
    pub key_inverse: B::Buffer,
}

/// The rows read by the heads.
pub(super) struct HeadsTape<B: Backend> {
    pub logprob_hidden: Option<B::Buffer>,
    pub log_sums: Vec<f32>,
    pub value_hidden: Option<B::Buffer>,
}

impl<B: Backend> Transformer<B> {
    /// A query as the language-model head reads it.
    pub(super) fn logprob_query<'a>(&self, query: &'a Query) -> LogprobQuery<'a> {
        let softcap = self.spec.options.logit_softcap;
        LogprobQuery { targets: &query.targets, temperature: query.temperature, softcap }
    }

    /// Turns hidden states into those that the language-model head reads; also the gradient of the latter into that of
    /// the former.
    pub(super) fn for_head(&self, hidden: &mut B::Buffer) {
        self.base.backend.scale(hidden, 1.0 / self.spec.options.logit_divisor);
    }

    /// The given rows, as the language-model head reads them.
    pub(super) fn head_rows(&self, hidden: &B::Buffer, rows: &[u32]) -> B::Buffer {
        let mut rows = self.base.backend.gather(hidden, self.spec.hidden_size, rows);
        self.for_head(&mut rows);
        rows
    }

    pub(super) fn embed(&self, tokens: &[u32]) -> B::Buffer {
        let (backend, scale) = (&self.base.backend, self.spec.embedding_scale);
        match &self.base.parameters {
            Parameters { embedding: Some(table), .. } => backend.embed(table, tokens, self.spec.hidden_size, scale),
            Parameters { head: Some(head), .. } => backend.embed_packed(head, tokens, scale),
            _ => unreachable!("a base has its embedding, or a head with the same numbers"),
        }
    }

    pub(super) fn norm(&self, x: &B::Buffer, weight: &B::Buffer) -> (B::Buffer, B::Buffer) {
        self.base.backend.rms_norm(x, weight, self.spec.norm, self.spec.rms_norm_eps)
    }

    /// What attention or the MLP reads: the normed residual stream, where there is such a norm.
    pub(super) fn read<'x>(
        &self,
        x: &'x B::Buffer,
        weight: &Option<B::Buffer>,
    ) -> (Cow<'x, B::Buffer>, Option<B::Buffer>) {
        let Some(weight) = weight else { return (Cow::Borrowed(x), None) };
        let (normed, inverse) = self.norm(x, weight);
        (Cow::Owned(normed), Some(inverse))
    }

    /// `residual + scale * norm(x W^T + bias)`, with those of the three that the model has. Also returns the adapter's
    /// scaled `x A^T`.
    fn add_to(
        &self,
        layer: usize,
        group: Group,
        x: &B::Buffer,
        residual: &B::Buffer,
    ) -> (B::Buffer, Option<B::Buffer>, Option<Added<B>>) {
        let (backend, scale) = (&self.base.backend, self.spec.options.residual_scale);
        let (bias, norm) = self.base.parameters.layers[layer].added(group);
        if bias.is_none() && norm.is_none() && scale == 1.0 {
            let (out, z) = self.product(layer, group, x, Some(residual));
            return (out, z, None);
        }
        let (mut raw, z) = self.product(layer, group, x, None);
        if let Some(bias) = bias {
            backend.add_bias(&mut raw, bias);
        }
        let (mut out, added) = match norm {
            None => (raw, None),
            Some(weight) => {
                let (normed, inverse) = self.norm(&raw, weight);
                (normed, Some(Added { raw, inverse }))
            }
        };
        backend.scale(&mut out, scale);
        backend.add(&mut out, residual, self.spec.hidden_size);
        (out, z, added)
    }

    /// The normed hidden state of every row.
    pub(super) fn final_hidden(&self, batch: &Batch) -> B::Buffer {
        let rotation = self.rotation(&self.places(batch));
        let mut x = self.embed(self.tokens(batch));
        for layer in 0..self.spec.layers {
            x = self.block(layer, x, &rotation, |fused| self.attention(layer, fused, batch)).0;
        }
        self.norm(&x, &self.base.parameters.norm).0
    }

    /// A forward pass that keeps what [`Transformer::backward_into`] needs.
    pub(super) fn forward_tape(&self, batch: &Batch, query: &Query, recompute: Recompute) -> (Output, Tape<B>) {
        self.check_query(batch, query);
        let rotation = self.rotation(&self.places(batch));
        let mut x = self.embed(self.tokens(batch));
        let mut layers = Vec::with_capacity(self.spec.layers);
        for layer in 0..self.spec.layers {
            let kept = (recompute == Recompute::PerLayer).then(|| x.clone());
            let (out, activations) = self.block(layer, x, &rotation, |fused| self.attention(layer, fused, batch));
            layers.push(kept.map_or(LayerTape::Full(activations), LayerTape::Input));
            x = out;
        }
        let (hidden, inverse) = self.norm(&x, &self.base.parameters.norm);
        let (output, heads) = self.read_heads(&hidden, batch, query);
        let tape = Tape { batch: batch.clone(), query: query.clone(), rotation, layers, last: x, inverse, heads };
        (output, tape)
    }

    /// `x + attend(norm(x))`, then `+ mlp(norm(.))`; norms stand where [`crate::BlockNorms`] says. Training, prefill and
    /// decoding differ only in `attend`.
    pub(super) fn block(
        &self,
        layer: usize,
        x: B::Buffer,
        rotation: &Rotation<B>,
        attend: impl FnOnce(&B::Buffer) -> (B::Buffer, B::Buffer),
    ) -> (B::Buffer, Activations<B>) {
        let (backend, parameters) = (&self.base.backend, &self.base.parameters.layers[layer]);
        let (h, input_inverse) = self.read(&x, &parameters.input_norm);
        let (fused, z_qkv, raw) = self.projections(layer, &h, rotation);
        drop(h);
        let (attended, softmax) = attend(&fused);
        let (middle, z_output, attention_added) = self.add_to(layer, Group::Output, &attended, &x);
        let (h, middle_inverse) = self.read(&middle, &parameters.mlp_norm);
        let (gate_up, z_gate_up) = self.product(layer, Group::GateUp, &h, None);
        let act = backend.gated(&gate_up, self.spec.intermediate_size, self.spec.activation);
        let (out, z_down, mlp_added) = self.add_to(layer, Group::Down, &act, &middle);
        drop(h);
        let reduced = [z_qkv, z_output, z_gate_up, z_down];
        (
            out,
            Activations {
                input: x,
                input_inverse,
                raw,
                fused,
                attended,
                softmax,
                attention_added,
                middle,
                middle_inverse,
                gate_up,
                mlp_added,
                reduced,
            },
        )
    }

    /// Returns the rotated queries and keys, and values; and the adapter's scaled `x A^T`.
    pub(super) fn projections(
        &self,
        layer: usize,
        h: &B::Buffer,
        rotation: &Rotation<B>,
    ) -> (B::Buffer, Option<B::Buffer>, Option<RawHeads<B>>) {
        let (backend, shape) = (&self.base.backend, self.spec.attention_shape(layer));
        let (kind, eps) = (self.spec.norm, self.spec.rms_norm_eps);
        let (mut fused, reduced) = self.product(layer, Group::Qkv, h, None);
        let turns = rotation.of(self.spec.layer(layer).rotary);
        let layer = &self.base.parameters.layers[layer];
        if let Some(bias) = &layer.qkv_bias {
            backend.add_bias(&mut fused, bias);
        }
        let mut raw = None;
        if let (Some(query), Some(key)) = (&layer.query_norm, &layer.key_norm) {
            let before = fused.clone();
            let query_inverse = backend.head_norm(&mut fused, &shape, 0..shape.heads, query, kind, eps);
            let keys = shape.heads..shape.heads + shape.kv_heads;
            let key_inverse = backend.head_norm(&mut fused, &shape, keys, key, kind, eps);
            raw = Some(RawHeads { fused: before, query_inverse, key_inverse });
        }
        if let Some(turns) = turns {
            backend.rotary(&mut fused, &turns.rows, &turns.angles, &shape);
        }
        (fused, reduced, raw)
    }

    /// Evaluates the query on the normed hidden states.
    pub(super) fn read_heads(&self, hidden: &B::Buffer, batch: &Batch, query: &Query) -> (Output, HeadsTape<B>) {
        let mut output = Output::default();
        let mut tape = HeadsTape { logprob_hidden: None, log_sums: Vec::new(), value_hidden: None };
        if let (false, Some(head)) = (query.rows.is_empty(), self.head()) {
            let rows = self.head_rows(hidden, &self.rows_of(batch, &query.rows));
            let stats = self.base.backend.token_stats(&[(&rows, head, 1.0)], self.logprob_query(query));
            (output.logprobs, output.entropies, tape.log_sums) = (stats.logprobs, stats.entropies, stats.log_sums);
            tape.logprob_hidden = Some(rows);
        }
        if let (false, Some(score)) = (query.value_rows.is_empty(), self.score()) {
            let rows = self.base.backend.gather(hidden, self.spec.hidden_size, &self.rows_of(batch, &query.value_rows));
            output.values = self.base.backend.scalar_head(&rows, score);
            tape.value_hidden = Some(rows);
        }
        (output, tape)
    }
}
