//! The backward pass: the forward pass in reverse, operation by operation.

use super::forward::{Activations, LayerTape, Rotation, Tape};
use super::{LayerPlaces, Transformer};
use crate::backend::Backend;
use crate::batch::{Batch, OutputGradient};

impl<B: Backend> Transformer<B> {
    /// Adds the gradient with respect to every weight to `gradients`.
    pub(super) fn backward_into(&self, tape: Tape<B>, d: &OutputGradient<'_>, gradients: &mut [f32]) {
        let Tape { batch, rotation, layers, last, .. } = &tape;
        let (backend, places) = (&self.backend, &self.places);
        let d_hidden = self.heads_backward(&tape, d, gradients);
        let mut d_x = backend.zeros(batch.rows() * self.spec.hidden_size);
        backend.rms_norm_backward(
            &d_hidden,
            last,
            &tape.inverse,
            &self.parameters.norm,
            self.spec.norm,
            &mut d_x,
            &mut gradients[places.norm.clone()],
        );
        for index in (0..layers.len()).rev() {
            let places = &places.layers[index];
            d_x = match &layers[index] {
                LayerTape::Full(kept) => self.block_backward(index, places, kept, d_x, batch, rotation, gradients),
                LayerTape::Input(x) => {
                    let attend = |fused: &B::Buffer| self.attention(fused, batch);
                    let (_, kept) = self.block(&self.parameters.layers[index], x.clone(), rotation, attend);
                    self.block_backward(index, places, &kept, d_x, batch, rotation, gradients)
                }
            };
        }
        let (hidden, scale) = (self.spec.hidden_size, self.spec.embedding_scale);
        backend.embed_backward(&d_x, batch.tokens(), hidden, scale, &mut gradients[places.embedding.clone()]);
    }

    /// From the heads to the normed hidden states.
    fn heads_backward(&self, tape: &Tape<B>, d: &OutputGradient<'_>, gradients: &mut [f32]) -> B::Buffer {
        let (backend, hidden, query) = (&self.backend, self.spec.hidden_size, &tape.query);
        let mut d_hidden = backend.zeros(tape.batch.rows() * hidden);
        if let Some(rows) = &tape.heads.logprob_hidden {
            assert_eq!(d.d_logprobs.len(), query.rows.len(), "one gradient for each log-prob");
            let place = self.places.head.clone().expect("the forward pass read this head");
            let head = self.parameters.head.as_ref().expect("the forward pass read this head");
            let log_sums = &tape.heads.log_sums;
            let d_weight = &mut gradients[place];
            let query_part = query.logprob_query();
            let d_rows = backend.token_stats_backward(d.d_logprobs, rows, head, query_part, log_sums, Some(d_weight));
            backend.scatter_add(&mut d_hidden, hidden, &query.rows, &d_rows);
        }
        if let Some(rows) = &tape.heads.value_hidden {
            assert_eq!(d.d_values.len(), query.value_rows.len(), "one gradient for each value");
            let place = self.places.score.clone().expect("the forward pass read this head");
            let score = self.parameters.score.as_ref().expect("the forward pass read this head");
            let d_rows = backend.scalar_head_backward(d.d_values, rows, score, &mut gradients[place]);
            backend.scatter_add(&mut d_hidden, hidden, &query.value_rows, &d_rows);
        }
        d_hidden
    }

    /// From the gradient with respect to a block's output to that with respect to its input.
    fn block_backward(
        &self,
        index: usize,
        places: &LayerPlaces,
        kept: &Activations<B>,
        mut d_x: B::Buffer,
        batch: &Batch,
        rotation: &Rotation,
        gradients: &mut [f32],
    ) -> B::Buffer {
        let (backend, spec) = (&self.backend, &self.spec);
        let layer = &self.parameters.layers[index];
        let (hidden, wide, shape) = (spec.hidden_size, spec.intermediate_size, spec.attention_shape());

        // MLP: out = middle + down(gated(gate_up(norm(middle)))).
        let act = backend.gated(&kept.gate_up, wide, spec.activation);
        backend.linear_backward_weight(&d_x, &act, hidden, wide, &mut gradients[places.down.clone()]);
        drop(act);
        let d_act = backend.linear_backward_input(&d_x, &layer.down);
        let d_gate_up = backend.gated_backward(&d_act, &kept.gate_up, wide, spec.activation);
        drop(d_act);
        let (h, _) = self.norm(&kept.middle, &layer.post_norm);
        backend.linear_backward_weight(&d_gate_up, &h, 2 * wide, hidden, &mut gradients[places.gate_up.clone()]);
        drop(h);
        let d_h = backend.linear_backward_input(&d_gate_up, &layer.gate_up);
        drop(d_gate_up);
        let d_post = &mut gradients[places.post_norm.clone()];
        backend.rms_norm_backward(
            &d_h,
            &kept.middle,
            &kept.middle_inverse,
            &layer.post_norm,
            spec.norm,
            &mut d_x,
            d_post,
        );

        // Attention: middle = input + output(attention(rotary(qkv(norm(input))))).
        let d_output = &mut gradients[places.output.clone()];
        backend.linear_backward_weight(&d_x, &kept.attended, hidden, shape.output(), d_output);
        let d_attended = backend.linear_backward_input(&d_x, &layer.output);
        let mut d_fused = backend.attention_backward(&d_attended, &kept.fused, batch.cu_seqlens(), &shape);
        drop(d_attended);
        self.projections_backward(index, places, kept, &mut d_fused, rotation, gradients);
        let (h, _) = self.norm(&kept.input, &layer.input_norm);
        backend.linear_backward_weight(&d_fused, &h, shape.fused(), hidden, &mut gradients[places.qkv.clone()]);
        drop(h);
        let d_h = backend.linear_backward_input(&d_fused, &layer.qkv);
        let d_input = &mut gradients[places.input_norm.clone()];
        backend.rms_norm_backward(
            &d_h,
            &kept.input,
            &kept.input_inverse,
            &layer.input_norm,
            spec.norm,
            &mut d_x,
            d_input,
        );
        d_x
    }

    /// Back through rotation, norms of heads and biases, in place.
    fn projections_backward(
        &self,
        index: usize,
        places: &LayerPlaces,
        kept: &Activations<B>,
        d_fused: &mut B::Buffer,
        rotation: &Rotation,
        gradients: &mut [f32],
    ) {
        let (backend, shape) = (&self.backend, self.spec.attention_shape());
        let layer = &self.parameters.layers[index];
        backend.rotary_backward(d_fused, &rotation.positions, &rotation.table, &shape);
        if let (Some(raw), Some(query), Some(key)) = (&kept.raw, &layer.query_norm, &layer.key_norm) {
            let (queries, keys) = (0..shape.heads, shape.heads..shape.heads + shape.kv_heads);
            let mut step = |heads, inverse: &[f32], weight, place: &Option<std::ops::Range<usize>>| {
                let place = place.clone().expect("a norm of heads has a place");
                let d_weight = &mut gradients[place];
                backend.head_norm_backward(d_fused, &raw.fused, inverse, &shape, heads, weight, d_weight);
            };
            step(queries, &raw.query_inverse, query, &places.query_norm);
            step(keys, &raw.key_inverse, key, &places.key_norm);
        }
        if let Some(place) = &places.qkv_bias {
            backend.add_bias_backward(d_fused, &mut gradients[place.clone()]);
        }
    }
}
