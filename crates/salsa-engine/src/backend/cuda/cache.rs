//! Keys and values of sequences being decoded, and attention of new tokens to them.

use super::attention::window;
use super::buffer::{Buffer, Words};
use super::card::{Argument, Card, Launch};
use super::kind::Kind;
use super::rows::kernel;
use crate::backend::AttentionShape;
use std::sync::Arc;

/// Tokens that a block attends to: `SPLIT` of the kernels.
const SPLIT: usize = 256;
/// Threads of a block of attention: `32 * WARPS` of the kernels.
const THREADS: u32 = 128;

/// Keys and values of one layer, `[slot, kv_head, capacity, head_dim]` each, in the type of products.
pub struct Cache {
    keys: Buffer,
    values: Buffer,
    capacity: usize,
    shape: AttentionShape,
}

impl Cache {
    pub(super) fn new(card: &Arc<Card>, slots: usize, capacity: usize, shape: &AttentionShape, kind: Kind) -> Cache {
        let len = slots * shape.kv_heads * capacity * shape.head_dim;
        Cache { keys: card.room(len, kind), values: card.room(len, kind), capacity, shape: *shape }
    }

    /// Stores keys and values of the rows of `fused` as tokens at `positions` of the sequences in `slots`.
    pub(super) fn store(&mut self, card: &Arc<Card>, fused: &Buffer, rows: &Words, slots: &Words, positions: &Words) {
        let (shape, kind) = (self.shape, self.keys.kind());
        assert_eq!(fused.kind(), kind, "a cache has the numbers of the fused rows");
        let threads = (shape.kv_heads * shape.head_dim / 8).next_multiple_of(32).min(256) as u32;
        let launch = Launch { blocks: [rows.len() as u32, 1, 1], threads, shared: 0 };
        let arguments: [&dyn Argument; 9] = [
            &self.keys.pointer_mut(),
            &self.values.pointer_mut(),
            &fused.pointer(),
            &rows.pointer(),
            &slots.pointer(),
            &positions.pointer(),
            &(shape.heads as i32),
            &(shape.kv_heads as i32),
            &(self.capacity as i32),
        ];
        card.launch_for(shape.head_dim, kernel!("cache_store", kind), launch, &arguments);
    }

    /// Copies the first `len` tokens of one sequence to another.
    pub(super) fn copy(&mut self, card: &Arc<Card>, from: usize, to: usize, len: usize) {
        let token = self.shape.head_dim * self.keys.kind().bytes();
        let slot = self.shape.kv_heads * self.capacity * token;
        for part in [&mut self.keys, &mut self.values] {
            let start = part.pointer_mut();
            let [from, to] = [from, to].map(|which| (start + (which * slot) as u64, self.capacity * token));
            card.copy_rows(from, to, len * token, self.shape.kv_heads);
        }
    }

    /// Attention of row `e` of `fused`, token `positions[e]` of the sequence in `slots[e]`, to the tokens up to and
    /// including itself, all of which are stored. No sequence is longer than `longest`.
    pub(super) fn attention(
        &self,
        card: &Arc<Card>,
        fused: &Buffer,
        slots: &Words,
        positions: &Words,
        longest: usize,
    ) -> Buffer {
        let (shape, kind, entries) = (self.shape, self.keys.kind(), slots.len());
        let mut out = card.room(entries * shape.output(), kind);
        let (group, splits) = (shape.heads / shape.kv_heads, longest.div_ceil(SPLIT).max(1));
        let at_once = match (group, shape.head_dim) {
            (1, _) => 1,
            (_, ..=128) => 4,
            _ => 2,
        };
        let parts = if splits > 1 { entries * shape.heads * splits } else { 0 };
        let (mut partial, mut marks) = (card.room(parts * shape.head_dim, Kind::F32), card.room(2 * parts, Kind::F32));
        let window = window(&shape);
        let scale = 1.0 / (shape.head_dim as f32).sqrt();
        let blocks = [entries as u32, (shape.kv_heads * group.div_ceil(at_once)) as u32, splits as u32];
        let name =
            if at_once == 1 { kernel!("cached_attention", kind) } else { kernel!("cached_attention_grouped", kind) };
        let (out_at, partial_at, marks_at) = (out.pointer_mut(), partial.pointer_mut(), marks.pointer_mut());
        card.launch_for(
            shape.head_dim,
            name,
            Launch { blocks, threads: THREADS, shared: 0 },
            &[
                &out_at,
                &partial_at,
                &marks_at,
                &self.keys.pointer(),
                &self.values.pointer(),
                &fused.pointer(),
                &slots.pointer(),
                &positions.pointer(),
                &(shape.heads as i32),
                &(shape.kv_heads as i32),
                &(self.capacity as i32),
                &window,
                &scale,
            ],
        );
        if splits > 1 {
            let threads = shape.head_dim.next_multiple_of(32) as u32;
            let launch = Launch { blocks: [(entries * shape.heads) as u32, 1, 1], threads, shared: 0 };
            let arguments: [&dyn Argument; 4] = [&out_at, &partial_at, &marks_at, &(splits as i32)];
            card.launch_for(shape.head_dim, kernel!("combine_splits", kind), launch, &arguments);
        }
        out
    }
}
