//! Causal grouped-query attention: forward, backward, and one token at a time from a cache.
//!
//! Scores and outputs are tile products with keys and values in panels, so a query row gets the same bits whether it is
//! computed in a block of many rows (training) or alone (decoding): the summation over keys runs in the same order, and
//! the masked keys of a block only add zeros.

use rayon::prelude::*;

use super::Buffer;
use super::gemm::{Packed, Panels, View, gemm_here};
use super::isa::{isa, multiversion};
use super::kernel::{Kernel, Store};
use super::math::{dot, exp, max, sum};
use crate::backend::AttentionShape;

/// Query rows whose scores are in memory at once.
const BLOCK: usize = 48;

/// One key head of one sequence: the unit of parallel work.
#[derive(Clone, Copy)]
struct Task {
    start: usize,
    len: usize,
    kv_head: usize,
}

fn tasks(cu_seqlens: &[usize], shape: &AttentionShape) -> Vec<Task> {
    let sequences = cu_seqlens.windows(2).map(|w| (w[0], w[1] - w[0]));
    sequences.flat_map(|(start, len)| (0..shape.kv_heads).map(move |kv_head| Task { start, len, kv_head })).collect()
}

/// Offsets of the heads in a fused row.
impl AttentionShape {
    fn query_at(&self, head: usize) -> usize {
        head * self.head_dim
    }
    fn key_at(&self, head: usize) -> usize {
        (self.heads + head) * self.head_dim
    }
    fn value_at(&self, head: usize) -> usize {
        (self.heads + self.kv_heads + head) * self.head_dim
    }
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
    /// The first key that the query at `position` sees.
    fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// A pointer to rows of which every task writes its own columns.
struct Columns {
    at: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: tasks write disjoint parts: their own rows (sequence) and columns (head).
unsafe impl Sync for Columns {}

impl Columns {
    fn new(buffer: &mut [f32], stride: usize) -> Columns {
        Columns { at: buffer.as_mut_ptr(), len: buffer.len(), stride }
    }

    /// `width` numbers of row `row` from column `column` on.
    ///
    /// # Safety
    ///
    /// No other thread may hold the same part.
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        let from = row * self.stride + column;
        assert!(column + width <= self.stride && from + width <= self.len);
        // SAFETY: in bounds by the assertion, unique by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(from), width) }
    }
}

pub(super) fn forward(fused: &[f32], cu_seqlens: &[usize], shape: &AttentionShape) -> Buffer {
    let rows = fused.len() / shape.fused();
    let mut out = Buffer::stale(rows * shape.output());
    let target = Columns::new(&mut out, shape.output());
    tasks(cu_seqlens, shape).into_par_iter().for_each(|task| forward_task(fused, task, shape, &target));
    out
}

fn forward_task(fused: &[f32], task: Task, shape: &AttentionShape, out: &Columns) {
    let (stride, dim) = (shape.fused(), shape.head_dim);
    let rows = &fused[task.start * stride..(task.start + task.len) * stride];
    let keys = Packed::new(View::rows(&rows[shape.key_at(task.kv_head)..], stride).t(), dim, task.len);
    let values = Packed::new(View::rows(&rows[shape.value_at(task.kv_head)..], stride), task.len, dim);
    let mut scores = Buffer::stale(BLOCK * task.len);
    let mut block_out = Buffer::stale(BLOCK * dim);
    for head in task.kv_head * shape.group()..(task.kv_head + 1) * shape.group() {
        for first in (0..task.len).step_by(BLOCK) {
            let count = BLOCK.min(task.len - first);
            let seen = first + count;
            let queries = View::rows(&rows[first * stride + shape.query_at(head)..], stride);
            gemm_here((count, seen, dim), queries, keys.panels(), &mut scores, seen, Store::Replace);
            let sums: [f32; BLOCK] = std::array::from_fn(|r| {
                if r >= count {
                    return 1.0;
                }
                let row = &mut scores[r * seen..(r + 1) * seen];
                softmax_row(row, shape.first_key(first + r), first + r + 1, shape.scale()).1
            });
            gemm_here(
                (count, dim, seen),
                View::rows(&scores, seen),
                values.panels(),
                &mut block_out,
                dim,
                Store::Replace,
            );
            for r in 0..count {
                // SAFETY: this task alone has this sequence and this head.
                let out = unsafe { out.part(task.start + first + r, shape.query_at(head), dim) };
                normalize(&block_out[r * dim..(r + 1) * dim], sums[r], out);
            }
        }
    }
}

multiversion! {
    /// Scores to unnormalised probabilities `exp(scale * (score - max))` of the keys `from..to`, zero for the others.
    /// Returns the scaled maximum and the sum of the numbers left in the row.
    fn softmax_row(row: &mut [f32], from: usize, to: usize, scale: f32) -> (f32, f32) {
        row[..from].fill(0.0);
        row[to..].fill(0.0);
        let seen = &mut row[from..to];
        let top = max(seen) * scale;
        for score in seen.iter_mut() {
            *score = exp(*score * scale - top);
        }
        (top, sum(seen))
    }
}

multiversion! {
    fn normalize(x: &[f32], total: f32, out: &mut [f32]) {
        let inverse = 1.0 / total;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * inverse;
        }
    }
}

pub(super) fn backward(d_out: &[f32], fused: &[f32], cu_seqlens: &[usize], shape: &AttentionShape) -> Buffer {
    let mut d_fused = Buffer::stale(fused.len());
    let target = Columns::new(&mut d_fused, shape.fused());
    tasks(cu_seqlens, shape).into_par_iter().for_each(|task| backward_task(d_out, fused, task, shape, &target));
    d_fused
}

/// With `p = softmax(scale q k^T)`, `o = p v`:
///
/// ```text
/// d_v = p^T d_o,   d_p = d_o v^T,   d_s = p * (d_p - rowsum(p * d_p)) * scale,   d_q = d_s k,   d_k = d_s^T q
/// ```
///
/// Probabilities are computed again, block by block.
fn backward_task(d_out: &[f32], fused: &[f32], task: Task, shape: &AttentionShape, d_fused: &Columns) {
    let (stride, dim, width) = (shape.fused(), shape.head_dim, shape.output());
    let rows = &fused[task.start * stride..(task.start + task.len) * stride];
    let key_rows = View::rows(&rows[shape.key_at(task.kv_head)..], stride);
    let value_rows = View::rows(&rows[shape.value_at(task.kv_head)..], stride);
    let keys_t = Packed::new(key_rows.t(), dim, task.len);
    let values_t = Packed::new(value_rows.t(), dim, task.len);
    let keys = Packed::new(key_rows, task.len, dim);
    let mut probabilities = Buffer::stale(BLOCK * task.len);
    let mut d_scores = Buffer::stale(BLOCK * task.len);
    let mut d_query = Buffer::stale(BLOCK * dim);
    let mut d_keys = Buffer::zeros(task.len * dim);
    let mut d_values = Buffer::zeros(task.len * dim);
    let (mut packed_query, mut packed_out) = (Packed::default(), Packed::default());
    for head in task.kv_head * shape.group()..(task.kv_head + 1) * shape.group() {
        for first in (0..task.len).step_by(BLOCK) {
            let count = BLOCK.min(task.len - first);
            let seen = first + count;
            let queries = View::rows(&rows[first * stride + shape.query_at(head)..], stride);
            let d_block = View::rows(&d_out[(task.start + first) * width + shape.query_at(head)..], width);
            gemm_here((count, seen, dim), queries, keys_t.panels(), &mut probabilities, seen, Store::Replace);
            gemm_here((count, seen, dim), d_block, values_t.panels(), &mut d_scores, seen, Store::Replace);
            for r in 0..count {
                let p = &mut probabilities[r * seen..(r + 1) * seen];
                let (from, to) = (shape.first_key(first + r), first + r + 1);
                let (_, total) = softmax_row(p, from, to, shape.scale());
                score_gradient(p, &mut d_scores[r * seen..(r + 1) * seen], from, to, total, shape.scale());
            }
            packed_out.pack(d_block, count, dim);
            packed_query.pack(queries, count, dim);
            let (p, d_s) = (View::rows(&probabilities, seen), View::rows(&d_scores, seen));
            gemm_here((seen, dim, count), p.t(), packed_out.panels(), &mut d_values, dim, Store::Add);
            gemm_here((seen, dim, count), d_s.t(), packed_query.panels(), &mut d_keys, dim, Store::Add);
            gemm_here((count, dim, seen), d_s, keys.panels(), &mut d_query, dim, Store::Replace);
            for r in 0..count {
                // SAFETY: this task alone has this sequence and this head.
                let out = unsafe { d_fused.part(task.start + first + r, shape.query_at(head), dim) };
                out.copy_from_slice(&d_query[r * dim..(r + 1) * dim]);
            }
        }
    }
    for t in 0..task.len {
        // SAFETY: this task alone has this sequence and this key head.
        let (d_key, d_value) = unsafe {
            let row = task.start + t;
            (d_fused.part(row, shape.key_at(task.kv_head), dim), d_fused.part(row, shape.value_at(task.kv_head), dim))
        };
        d_key.copy_from_slice(&d_keys[t * dim..(t + 1) * dim]);
        d_value.copy_from_slice(&d_values[t * dim..(t + 1) * dim]);
    }
}

multiversion! {
    /// Normalises the probabilities of one row and turns `d_p` into `d_s` in place.
    fn score_gradient(p: &mut [f32], d: &mut [f32], from: usize, to: usize, total: f32, scale: f32) {
        d[..from].fill(0.0);
        d[to..].fill(0.0);
        let inverse = 1.0 / total;
        for p in &mut p[from..to] {
            *p *= inverse;
        }
        let (p, d) = (&p[from..to], &mut d[from..to]);
        let mean = dot(p, d);
        for (d, p) in d.iter_mut().zip(p) {
            *d = p * (*d - mean) * scale;
        }
    }
}

/// Keys and values of the sequences being decoded, for one layer, in the panels that tile products read:
/// keys `[slot][kv_head][position / width][head_dim][width]`, values `[slot][kv_head][head_dim / width][position][width]`.
pub struct Cache {
    keys: Buffer,
    values: Buffer,
    capacity: usize,
    shape: AttentionShape,
    width: usize,
}

impl Cache {
    pub(super) fn new(slots: usize, capacity: usize, shape: &AttentionShape) -> Cache {
        let width = Kernel::of(isa()).width;
        let capacity = capacity.next_multiple_of(width);
        let mut cache = Cache { keys: Buffer::default(), values: Buffer::default(), capacity, shape: *shape, width };
        cache.keys = Buffer::zeros(slots * cache.slot_keys());
        cache.values = Buffer::zeros(slots * cache.slot_values());
        cache
    }

    pub(super) fn fused(&self) -> usize {
        self.shape.fused()
    }

    fn head_keys(&self) -> usize {
        self.capacity * self.shape.head_dim
    }
    fn head_values(&self) -> usize {
        self.capacity * self.shape.head_dim.next_multiple_of(self.width)
    }
    fn slot_keys(&self) -> usize {
        self.shape.kv_heads * self.head_keys()
    }
    fn slot_values(&self) -> usize {
        self.shape.kv_heads * self.head_values()
    }

    pub(super) fn store(&mut self, row: &[f32], slot: usize, position: usize) {
        assert!(position < self.capacity, "the cache has room for {} tokens", self.capacity);
        let (dim, width) = (self.shape.head_dim, self.width);
        for head in 0..self.shape.kv_heads {
            let key = &row[self.shape.key_at(head)..][..dim];
            let value = &row[self.shape.value_at(head)..][..dim];
            let at =
                slot * self.slot_keys() + head * self.head_keys() + position / width * dim * width + position % width;
            for (i, &x) in key.iter().enumerate() {
                self.keys[at + i * width] = x;
            }
            let at = slot * self.slot_values() + head * self.head_values() + position * width;
            for (p, part) in value.chunks(width).enumerate() {
                let at = at + p * self.capacity * width;
                self.values[at..at + part.len()].copy_from_slice(part);
            }
        }
    }

    pub(super) fn copy(&mut self, from: usize, to: usize, len: usize) {
        let (dim, width) = (self.shape.head_dim, self.width);
        for head in 0..self.shape.kv_heads {
            let used = len.next_multiple_of(width) * dim;
            let at = |slot| slot * self.slot_keys() + head * self.head_keys();
            let (source, target) = (at(from), at(to));
            self.keys.copy_within(source..source + used, target);
            for part in 0..dim.div_ceil(width) {
                let at = |slot| slot * self.slot_values() + head * self.head_values() + part * self.capacity * width;
                let (source, target) = (at(from), at(to));
                self.values.copy_within(source..source + len * width, target);
            }
        }
    }

    pub(super) fn attention(&self, fused: &[f32], entries: &[(usize, usize)]) -> Buffer {
        let shape = &self.shape;
        let mut out = Buffer::stale(entries.len() * shape.output());
        let target = Columns::new(&mut out, shape.output());
        let work: usize = entries.iter().map(|e| (e.1 + 1) * shape.output()).sum();
        let one = |i: usize| self.attend(fused, i / shape.kv_heads, i % shape.kv_heads, entries, &target);
        let count = entries.len() * shape.kv_heads;
        if work < 1 << 18 {
            (0..count).for_each(one);
        } else {
            (0..count).into_par_iter().with_min_len(count.div_ceil(4 * rayon::current_num_threads())).for_each(one);
        }
        out
    }

    fn attend(&self, fused: &[f32], row: usize, kv_head: usize, entries: &[(usize, usize)], out: &Columns) {
        let shape = &self.shape;
        let (dim, group) = (shape.head_dim, shape.group());
        let (slot, position) = entries[row];
        let seen = position + 1;
        let keys = Panels {
            data: &self.keys[slot * self.slot_keys() + kv_head * self.head_keys()..][..self.head_keys()],
            panel_stride: dim * self.width,
        };
        let values = Panels {
            data: &self.values[slot * self.slot_values() + kv_head * self.head_values()..][..self.head_values()],
            panel_stride: self.capacity * self.width,
        };
        let queries = View::rows(&fused[row * shape.fused() + shape.query_at(kv_head * group)..], dim);
        let mut scores = Buffer::stale(group * seen);
        gemm_here((group, seen, dim), queries, keys, &mut scores, seen, Store::Replace);
        let mut result = Buffer::stale(group * dim);
        let mut sums = [0f32; 64];
        assert!(group <= sums.len(), "more than 64 query heads share a key head");
        for (g, total) in sums[..group].iter_mut().enumerate() {
            let scores = &mut scores[g * seen..(g + 1) * seen];
            *total = softmax_row(scores, shape.first_key(position), seen, shape.scale()).1;
        }
        gemm_here((group, dim, seen), View::rows(&scores, seen), values, &mut result, dim, Store::Replace);
        for g in 0..group {
            // SAFETY: this call alone has this row and this head.
            let out = unsafe { out.part(row, shape.query_at(kv_head * group + g), dim) };
            normalize(&result[g * dim..(g + 1) * dim], sums[g], out);
        }
    }
}
