//! Keys and values of the sequences being decoded, and attention of one new token to them.

use super::attention::{Columns, normalize, score_stride};
use super::gemm::{Panels, gemm_here};
use super::isa::isa;
use super::kernel::{Kernel, Store, prefetch};
use super::view::View;
use super::{Buffer, Dtype, pack};
use crate::backend::AttentionShape;
use crate::pool;
use std::ops::Range;

/// One layer's keys and values, in the panels that tile products read; a word holds one f32 or two bfloat16
/// numbers: keys `[slot][kv_head][position / width][word of head_dim][width]`, values
/// `[slot][kv_head][head_dim / width][word of positions][width]`.
pub struct Cache {
    keys: Buffer,
    values: Buffer,
    dtype: Dtype,
    /// Positions of a slot: whole panels.
    capacity: usize,
    shape: AttentionShape,
    width: usize,
}

impl Cache {
    pub(super) fn new(dtype: Dtype, slots: usize, capacity: usize, shape: &AttentionShape) -> Cache {
        let [keys, values] = Cache::numbers(dtype, slots, capacity, shape).map(Buffer::zeros);
        Cache { keys, values, ..Cache::empty(dtype, capacity, shape) }
    }

    /// Words of the keys and of the values of `slots` slots.
    pub(crate) fn numbers(dtype: Dtype, slots: usize, capacity: usize, shape: &AttentionShape) -> [usize; 2] {
        let cache = Cache::empty(dtype, capacity, shape);
        [cache.head_keys(), cache.head_values()].map(|head| slots * shape.kv_heads * head)
    }

    fn empty(dtype: Dtype, capacity: usize, shape: &AttentionShape) -> Cache {
        let width = Kernel::of(isa(), dtype).width;
        let (keys, values) = (Buffer::default(), Buffer::default());
        Cache { keys, values, dtype, capacity: capacity.next_multiple_of(width), shape: *shape, width }
    }

    /// Words of a key.
    fn key_words(&self) -> usize {
        self.shape.head_dim.div_ceil(self.dtype.terms())
    }
    /// Words of a key head of a slot.
    fn head_keys(&self) -> usize {
        self.capacity * self.key_words()
    }
    /// Words of a panel of values.
    fn value_panel(&self) -> usize {
        self.capacity / self.dtype.terms() * self.width
    }
    fn head_values(&self) -> usize {
        self.shape.head_dim.div_ceil(self.width) * self.value_panel()
    }
    /// Where head `head` of slot `slot` begins among the keys, and among the values.
    fn starts(&self, slot: usize, head: usize) -> (usize, usize) {
        let index = slot * self.shape.kv_heads + head;
        (index * self.head_keys(), index * self.head_values())
    }

    /// Stores the keys and values of `(row, slot, position)`: threads take slots.
    pub(super) fn store(&mut self, fused: &[f32], entries: &[(usize, usize, usize)]) {
        let latest = entries.iter().map(|entry| entry.2).max().unwrap_or(0);
        assert!(latest < self.capacity, "the cache has room for {} tokens", self.capacity);
        let heads = self.shape.kv_heads;
        let (slot_keys, slot_values) = (heads * self.head_keys(), heads * self.head_values());
        let (mut all_keys, mut all_values) = (std::mem::take(&mut self.keys), std::mem::take(&mut self.values));
        let slots = all_keys.chunks_mut(slot_keys).zip(all_values.chunks_mut(slot_values));
        let store = |slot: usize, (keys, values): (&mut [f32], &mut [f32])| {
            for &(row, _, position) in entries.iter().filter(|entry| entry.1 == slot) {
                self.store_token(&fused[row * self.shape.fused()..][..self.shape.fused()], position, keys, values);
            }
        };
        if entries.len() * self.shape.fused() < 1 << 12 {
            slots.enumerate().for_each(|(slot, parts)| store(slot, parts));
        } else {
            pool::each(slots, store);
        }
        (self.keys, self.values) = (all_keys, all_values);
    }

    fn store_token(&self, row: &[f32], position: usize, keys: &mut [f32], values: &mut [f32]) {
        let (dim, width, terms) = (self.shape.head_dim, self.width, self.dtype.terms());
        for head in 0..self.shape.kv_heads {
            let key = &row[self.shape.key_at(head)..][..dim];
            let value = &row[self.shape.value_at(head)..][..dim];
            let (first_key, first_value) = self.starts(0, head);
            let at = first_key + position / width * self.key_words() * width + position % width;
            for (word, key) in key.chunks(terms).enumerate() {
                keys[at + word * width] = match self.dtype {
                    Dtype::F32 => key[0],
                    Dtype::Bf16 => pack::pair(key[0], key.get(1).copied().unwrap_or(0.0)),
                };
            }
            let at = first_value + position / terms * width;
            for (p, part) in value.chunks(width).enumerate() {
                let at = at + p * self.value_panel();
                let words = &mut values[at..at + part.len()];
                match self.dtype {
                    Dtype::F32 => words.copy_from_slice(part),
                    // Zero the place of the next position: it is multiplied by a probability of zero.
                    Dtype::Bf16 if position.is_multiple_of(2) => {
                        words.iter_mut().zip(part).for_each(|(word, &x)| *word = pack::pair(x, 0.0));
                    }
                    Dtype::Bf16 => {
                        words.iter_mut().zip(part).for_each(|(word, &x)| *word = pack::with_high(*word, x));
                    }
                }
            }
        }
    }

    pub(super) fn copy(&mut self, from: usize, to: usize, len: usize) {
        for head in 0..self.shape.kv_heads {
            let used = len.div_ceil(self.width) * self.key_words() * self.width;
            let ((source, from_values), (target, to_values)) = (self.starts(from, head), self.starts(to, head));
            self.keys.copy_within(source..source + used, target);
            let used = len.div_ceil(self.dtype.terms()) * self.width;
            for part in (0..self.head_values()).step_by(self.value_panel()) {
                let source = from_values + part;
                self.values.copy_within(source..source + used, to_values + part);
            }
        }
    }

    pub(super) fn attention(&self, fused: &[f32], entries: &[(usize, usize)]) -> Buffer {
        let shape = &self.shape;
        let mut out = Buffer::uninitialized(entries.len() * shape.output());
        let target = Columns::new(&mut out, shape.output());
        let work: usize = entries.iter().map(|e| (e.1 + 1) * shape.output()).sum();
        let count = entries.len() * shape.kv_heads;
        let place = |i: usize| (i / shape.kv_heads, i % shape.kv_heads);
        let attend = |heads: Range<usize>| {
            for i in heads.clone() {
                let next = heads.contains(&(i + 1)).then(|| place(i + 1));
                self.attend(fused, place(i), next, entries, &target);
            }
        };
        if work < 1 << 15 {
            attend(0..count);
        } else {
            let run = count.div_ceil(4 * pool::threads());
            pool::run(count.div_ceil(run), |task| attend(task * run..count.min((task + 1) * run)));
        }
        out
    }

    /// Attention of one key head of a row. A long past is not in the CPU cache: keys and values of `next` are
    /// prefetched meanwhile.
    fn attend(
        &self,
        fused: &[f32],
        (row, kv_head): (usize, usize),
        next: Option<(usize, usize)>,
        entries: &[(usize, usize)],
        out: &Columns,
    ) {
        let shape = &self.shape;
        let (dim, group) = (shape.head_dim, shape.group());
        let (slot, position) = entries[row];
        let seen = position + 1;
        let (keys, values) = self.starts(slot, kv_head);
        let used = seen.div_ceil(self.dtype.terms()) * self.width;
        for panel in self.values[values..values + self.head_values()].chunks(self.value_panel()) {
            prefetch(&panel[..used]);
        }
        let keys = Panels {
            data: &self.keys[keys..keys + self.head_keys()],
            panel_stride: self.key_words() * self.width,
            dtype: self.dtype,
        };
        let values = Panels {
            data: &self.values[values..values + self.head_values()],
            panel_stride: self.value_panel(),
            dtype: self.dtype,
        };
        let queries = View::rows(&fused[row * shape.fused() + shape.query_at(kv_head * group)..], dim);
        let wide = score_stride(seen);
        let mut scores = Buffer::uninitialized(group * wide);
        gemm_here((group, seen, dim), queries, keys, &mut scores, wide, Store::Replace);
        if let Some((row, kv_head)) = next {
            let (slot, position) = entries[row];
            let (keys, _) = self.starts(slot, kv_head);
            let used = (position + 1).div_ceil(self.width) * self.key_words() * self.width;
            prefetch(&self.keys[keys..keys + used]);
        }
        let mut result = Buffer::uninitialized(group * dim);
        let mut sums = [0f32; 64];
        assert!(group <= sums.len(), "more than 64 query heads share a key head");
        for (g, total) in sums[..group].iter_mut().enumerate() {
            let scores = &mut scores[g * wide..(g + 1) * wide];
            *total = shape.softmax(scores, shape.first_key(position), seen);
        }
        gemm_here((group, dim, seen), View::rows(&scores, wide), values, &mut result, dim, Store::Replace);
        for g in 0..group {
            // SAFETY: only this call has this row and this head.
            let out = unsafe { out.part(row, shape.query_at(kv_head * group + g), dim) };
            normalize(&result[g * dim..(g + 1) * dim], sums[g], out);
        }
    }
}
