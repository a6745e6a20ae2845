//! The backward pass: the forward pass in reverse, operation by operation.

use super::Transformer;
use super::forward::{Activations, Added, LayerTape, Tape};
use super::rotation::Rotation;
use crate::backend::{Backend, Part};
use crate::batch::{Batch, OutputGradient};
use crate::lora::Group;
use std::borrow::Cow;
use std::ops::Range;

/// The trained parameters, and the destination of their gradient.
pub(super) enum Sink<'a, F> {
    /// All weights of the base: the gradient in the layout of the flat master weights.
    All { gradients: &'a mut F },
    /// The adapter with its head; the base is frozen, and no gradient of its weights is computed.
    Adapter { gradients: &'a mut F },
}

impl<F> Sink<'_, F> {
    /// The destination of the gradient of a base tensor, if it is trained.
    fn base(&mut self, place: &Range<usize>) -> Option<Part<'_, F>> {
        match self {
            Sink::All { gradients } => Some(Part::new(gradients, place.clone())),
            Sink::Adapter { .. } => None,
        }
    }
}

/// The batch of a backward pass.
struct Pass<'a, B: Backend> {
    batch: &'a Batch,
    rotation: &'a Rotation<B>,
}

/// A norm's weight, inverse norms, and place in the flat gradient; all or none.
type Normed<'a, B> = (&'a Option<<B as Backend>::Buffer>, &'a Option<<B as Backend>::Buffer>, &'a Option<Range<usize>>);

impl<B: Backend> Transformer<B> {
    /// Adds the gradient with respect to all trained parameters.
    pub(super) fn backward_into(&self, mut tape: Tape<B>, d: &OutputGradient<'_>, sink: &mut Sink<'_, B::Flat>) {
        let mut layers = std::mem::take(&mut tape.layers);
        let Tape { batch, rotation, last, .. } = &tape;
        let (backend, places, pass) = (&self.base.backend, &self.base.places, Pass { batch, rotation });
        let d_hidden = self.heads_backward(&tape, d, sink);
        let mut d_x = backend.zeros(self.rows(batch) * self.spec.hidden_size);
        backend.rms_norm_backward(
            &d_hidden,
            last,
            &tape.inverse,
            &self.base.parameters.norm,
            self.spec.norm,
            &mut d_x,
            sink.base(&places.norm),
        );
        // The arrays of a block are free for those below it.
        while let Some(layer) = layers.pop() {
            let index = layers.len();
            let kept = match layer {
                LayerTape::Full(kept) => kept,
                LayerTape::Input(x) => self.block(index, x, rotation, |fused| self.attention(index, fused, batch)).1,
            };
            d_x = self.block_backward(index, &kept, d_x, &pass, sink);
        }
        if let Some(d_table) = sink.base(&places.embedding) {
            let (hidden, scale) = (self.spec.hidden_size, self.spec.embedding_scale);
            backend.embed_backward(&d_x, self.tokens(batch), hidden, scale, d_table);
        }
    }

    /// Returns the gradient with respect to the normed hidden states, from that of the heads' outputs.
    fn heads_backward(&self, tape: &Tape<B>, d: &OutputGradient<'_>, sink: &mut Sink<'_, B::Flat>) -> B::Buffer {
        let (backend, hidden, query) = (&self.base.backend, self.spec.hidden_size, &tape.query);
        let mut d_hidden = backend.zeros(self.rows(&tape.batch) * hidden);
        if let Some(rows) = &tape.heads.logprob_hidden {
            assert_eq!(d.d_logprobs.len(), query.rows.len(), "one gradient for each log-prob");
            let head = self.head().expect("the forward pass read this head");
            let (log_sums, asked) = (&tape.heads.log_sums, self.logprob_query(query));
            let d_weight = sink.base(self.base.places.head.as_ref().expect("the forward pass read this head"));
            let mut d_rows = backend.token_stats_backward(d.d_logprobs, rows, head, asked, log_sums, d_weight);
            self.for_head(&mut d_rows);
            backend.scatter_add(&mut d_hidden, hidden, &self.rows_of(&tape.batch, &query.rows), &d_rows);
        }
        if let Some(rows) = &tape.heads.value_hidden {
            assert_eq!(d.d_values.len(), query.value_rows.len(), "one gradient for each value");
            let score = self.score().expect("the forward pass read this head");
            let own = self.adapter.as_ref().and_then(|adapter| adapter.score_place.clone());
            let d_weight = match (sink, own) {
                (Sink::Adapter { gradients }, Some(place)) => Some(Part::new(*gradients, place)),
                (sink, _) => sink.base(self.base.places.score.as_ref().expect("the forward pass read this head")),
            };
            let d_rows = backend.scalar_head_backward(d.d_values, rows, score, d_weight);
            backend.scatter_add(&mut d_hidden, hidden, &self.rows_of(&tape.batch, &query.value_rows), &d_rows);
        }
        d_hidden
    }

    /// Returns the gradient with respect to a block's input, from that of its output. In the lowest block with anything
    /// trained the result may be unfinished; it is not used.
    fn block_backward(
        &self,
        index: usize,
        kept: &Activations<B>,
        mut d_x: B::Buffer,
        pass: &Pass<'_, B>,
        sink: &mut Sink<'_, B::Flat>,
    ) -> B::Buffer {
        let (backend, spec) = (&self.base.backend, &self.spec);
        let (layer, places) = (&self.base.parameters.layers[index], &self.base.places.layers[index]);
        let lowest = self.lowest(index, sink);

        // MLP: out = middle + norm(down(gated(gate_up(norm(middle))))).
        let d_added = self.added_backward(index, Group::Down, &kept.mlp_added, &d_x, sink);
        let act = || Cow::Owned(backend.gated(&kept.gate_up, spec.intermediate_size, spec.activation));
        let d_z = self.weight_backward(index, Group::Down, &d_added, (act, kept), sink);
        if lowest == Some(Group::Down) {
            return d_x;
        }
        let d_act = self.input_backward(index, Group::Down, &d_added, d_z);
        drop(d_added);
        let d_gate_up = backend.gated_backward(&d_act, &kept.gate_up, spec.intermediate_size, spec.activation);
        drop(d_act);
        let h = || self.read(&kept.middle, &layer.mlp_norm).0;
        let d_z = self.weight_backward(index, Group::GateUp, &d_gate_up, (h, kept), sink);
        if lowest == Some(Group::GateUp) {
            return d_x;
        }
        let d_h = self.input_backward(index, Group::GateUp, &d_gate_up, d_z);
        drop(d_gate_up);
        let norm = (&layer.mlp_norm, &kept.middle_inverse, &places.mlp_norm);
        self.read_backward(&d_h, &kept.middle, norm, &mut d_x, sink);
        drop(d_h);

        // Attention: middle = input + norm(output(attention(rotary(qkv(norm(input)))))).
        let d_added = self.added_backward(index, Group::Output, &kept.attention_added, &d_x, sink);
        let attended = || Cow::Borrowed(&kept.attended);
        let d_z = self.weight_backward(index, Group::Output, &d_added, (attended, kept), sink);
        if lowest == Some(Group::Output) {
            return d_x;
        }
        let d_attended = self.input_backward(index, Group::Output, &d_added, d_z);
        drop(d_added);
        let mut d_fused = self.attention_backward(index, d_attended, kept, pass.batch);
        self.projections_backward(index, kept, &mut d_fused, pass.rotation, sink);
        let h = || self.read(&kept.input, &layer.input_norm).0;
        let d_z = self.weight_backward(index, Group::Qkv, &d_fused, (h, kept), sink);
        if lowest == Some(Group::Qkv) {
            return d_x;
        }
        let d_h = self.input_backward(index, Group::Qkv, &d_fused, d_z);
        let norm = (&layer.input_norm, &kept.input_inverse, &places.input_norm);
        self.read_backward(&d_h, &kept.input, norm, &mut d_x, sink);
        d_x
    }

    /// Adds the gradient through what attention or the MLP reads to `d_x`.
    fn read_backward(
        &self,
        d_h: &B::Buffer,
        x: &B::Buffer,
        (weight, inverse, place): Normed<'_, B>,
        d_x: &mut B::Buffer,
        sink: &mut Sink<'_, B::Flat>,
    ) {
        let backend = &self.base.backend;
        let (Some(weight), Some(inverse), Some(place)) = (weight, inverse, place) else {
            return backend.add(d_x, d_h, self.spec.hidden_size);
        };
        backend.rms_norm_backward(d_h, x, inverse, weight, self.spec.norm, d_x, sink.base(place));
    }

    /// Returns the gradient with respect to a product's result, from that of the residual stream it is added to.
    fn added_backward<'x>(
        &self,
        index: usize,
        group: Group,
        added: &Option<Added<B>>,
        d_x: &'x B::Buffer,
        sink: &mut Sink<'_, B::Flat>,
    ) -> Cow<'x, B::Buffer> {
        let (backend, scale) = (&self.base.backend, self.spec.options.residual_scale);
        let (_, norm) = self.base.parameters.layers[index].added(group);
        let (bias_place, norm_place) = self.base.places.layers[index].added(group);
        let mut d = Cow::Borrowed(d_x);
        if scale != 1.0 {
            backend.scale(d.to_mut(), scale);
        }
        if let (Some(added), Some(weight), Some(place)) = (added, norm, norm_place) {
            let mut d_raw = backend.zeros(backend.len(&added.raw));
            let d_weight = sink.base(place);
            backend.rms_norm_backward(&d, &added.raw, &added.inverse, weight, self.spec.norm, &mut d_raw, d_weight);
            d = Cow::Owned(d_raw);
        }
        if let Some(d_bias) = bias_place.and_then(|place| sink.base(place)) {
            backend.add_bias_backward(&d, d_bias);
        }
        d
    }

    /// The lowest product of a block with anything trained, if the backward pass can stop there.
    fn lowest(&self, index: usize, sink: &Sink<'_, B::Flat>) -> Option<Group> {
        let adapter = self.adapter.as_ref().filter(|_| index == 0 && matches!(sink, Sink::Adapter { .. }));
        adapter.and_then(|adapter| adapter.lowest())
    }

    /// Adds the gradients of the trained parameters of a product; `x` computes its input from `kept` if it is needed.
    /// Returns the gradient that [`Transformer::input_backward`] takes as `d_z`.
    fn weight_backward<'x>(
        &self,
        index: usize,
        group: Group,
        d_y: &B::Buffer,
        (x, kept): (impl FnOnce() -> Cow<'x, B::Buffer>, &Activations<B>),
        sink: &mut Sink<'_, B::Flat>,
    ) -> Option<B::Buffer> {
        match sink {
            Sink::All { gradients } => {
                let (place, [out, input]) = (self.base.places.layers[index].matrix(group), group.shape(&self.spec));
                self.base.backend.linear_backward_weight(d_y, &x(), out, input, Part::new(gradients, place));
                None
            }
            Sink::Adapter { gradients } => {
                let (factors, z) = self.factors(index, group).zip(kept.reduced[group as usize].as_ref())?;
                Some(self.factors_backward(factors, d_y, (&x(), z), gradients))
            }
        }
    }

    /// Returns the gradient with respect to the input of a product.
    fn input_backward(&self, index: usize, group: Group, d_y: &B::Buffer, d_z: Option<B::Buffer>) -> B::Buffer {
        let matrix = self.base.parameters.layers[index].matrix(group);
        match (self.factors(index, group), d_z) {
            (Some(factors), Some(d_z)) => {
                self.base.backend.linear_low_rank_backward_input(d_y, matrix, &d_z, factors.back())
            }
            _ => self.base.backend.linear_backward_input(d_y, matrix),
        }
    }

    /// Backward through rotation, norms of heads and biases, in place.
    fn projections_backward(
        &self,
        index: usize,
        kept: &Activations<B>,
        d_fused: &mut B::Buffer,
        rotation: &Rotation<B>,
        sink: &mut Sink<'_, B::Flat>,
    ) {
        let (backend, shape, kind) = (&self.base.backend, self.spec.attention_shape(index), self.spec.norm);
        let (layer, places) = (&self.base.parameters.layers[index], &self.base.places.layers[index]);
        if let Some(turns) = rotation.of(self.spec.layer(index).rotary) {
            backend.rotary_backward(d_fused, &turns.rows, &turns.angles, &shape);
        }
        if let (Some(raw), Some(query), Some(key)) = (&kept.raw, &layer.query_norm, &layer.key_norm) {
            let (queries, keys) = (0..shape.heads, shape.heads..shape.heads + shape.kv_heads);
            let mut step = |heads, inverse: &B::Buffer, weight, place: &Option<Range<usize>>| {
                let d_weight = sink.base(place.as_ref().expect("a norm of heads has a place"));
                backend.head_norm_backward(d_fused, &raw.fused, inverse, &shape, heads, weight, kind, d_weight);
            };
            step(queries, &raw.query_inverse, query, &places.query_norm);
            step(keys, &raw.key_inverse, key, &places.key_norm);
        }
        if let Some(d_bias) = places.qkv_bias.as_ref().and_then(|place| sink.base(place)) {
            backend.add_bias_backward(d_fused, d_bias);
        }
    }
}
