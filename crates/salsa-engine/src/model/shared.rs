//! Sequences that begin alike: their common rows are computed once, outside attention.
//!
//! All operations but attention treat each row alone, so a row that several sequences have in common needs computing
//! once. Attention reads whole sequences: the projections are laid out in full before it, and the first copy of each
//! row is taken from its result. Backward, the gradients of the copies of a projection are added in their order.

use super::Transformer;
use super::forward::Activations;
use super::rotation::Place;
use crate::backend::Backend;
use crate::batch::{Batch, Shared};
use std::borrow::Cow;

impl<B: Backend> Transformer<B> {
    /// The distinct rows of a batch, if it has fewer of them and the backend shares them. Where angles depend on the
    /// length of a sequence, equal tokens are not equal rows.
    fn shared<'b>(&self, batch: &'b Batch) -> Option<&'b Shared> {
        batch.shared().filter(|_| self.base.backend.shares_prefixes() && self.spec.has_fixed_angles())
    }

    /// The number of rows that are computed.
    pub(super) fn rows(&self, batch: &Batch) -> usize {
        self.tokens(batch).len()
    }

    /// The tokens of the rows that are computed.
    pub(super) fn tokens<'b>(&self, batch: &'b Batch) -> &'b [u32] {
        self.shared(batch).map_or(batch.tokens(), |shared| &shared.tokens)
    }

    /// The places of the rows that are computed.
    pub(super) fn places(&self, batch: &Batch) -> Vec<Place> {
        let place = |length: u32| (0..length).map(move |position| Place { position, length });
        match self.shared(batch) {
            // Their angles are the same in a sequence of any length.
            Some(shared) => shared.positions.iter().map(|&at| Place { position: at, length: at + 1 }).collect(),
            None => batch.lengths().flat_map(place).collect(),
        }
    }

    /// Where rows of a batch are among those that are computed.
    pub(super) fn rows_of<'r>(&self, batch: &Batch, rows: &'r [u32]) -> Cow<'r, [u32]> {
        match self.shared(batch) {
            Some(shared) => rows.iter().map(|&row| shared.row_of[row as usize]).collect(),
            None => rows.into(),
        }
    }

    /// Attention inside each sequence of a batch: the output of the rows that are computed, and the statistics of all.
    pub(super) fn attention(&self, layer: usize, fused: &B::Buffer, batch: &Batch) -> (B::Buffer, B::Buffer) {
        let (backend, shape) = (&self.base.backend, self.spec.attention_shape(layer));
        let Some(shared) = self.shared(batch) else {
            return backend.attention(fused, batch.cu_seqlens(), &shape);
        };
        let fused = backend.gather(fused, shape.fused(), &shared.row_of);
        let (attended, softmax) = backend.attention(&fused, batch.cu_seqlens(), &shape);
        (backend.gather(&attended, shape.output(), &shared.first), softmax)
    }

    /// The gradient with respect to the projections, from that of the output of [`Transformer::attention`].
    pub(super) fn attention_backward(
        &self,
        layer: usize,
        d: B::Buffer,
        kept: &Activations<B>,
        batch: &Batch,
    ) -> B::Buffer {
        let (backend, shape) = (&self.base.backend, self.spec.attention_shape(layer));
        let backward = |d: &B::Buffer, attended: &B::Buffer, fused: &B::Buffer| {
            backend.attention_backward(d, (attended, &kept.softmax), fused, batch.cu_seqlens(), &shape)
        };
        let Some(shared) = self.shared(batch) else {
            return backward(&d, &kept.attended, &kept.fused);
        };
        let (width, fused_width) = (shape.output(), shape.fused());
        let mut d_full = backend.zeros(batch.rows() * width);
        backend.scatter_add(&mut d_full, width, &shared.first, &d);
        drop(d);
        let attended = backend.gather(&kept.attended, width, &shared.row_of);
        let fused = backend.gather(&kept.fused, fused_width, &shared.row_of);
        let d_full = backward(&d_full, &attended, &fused);
        let mut d_fused = backend.zeros(shared.tokens.len() * fused_width);
        backend.scatter_add(&mut d_fused, fused_width, &shared.row_of, &d_full);
        d_fused
    }
}
