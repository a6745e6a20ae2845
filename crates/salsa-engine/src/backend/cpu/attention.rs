//! Causal grouped-query attention inside sequences: forward and backward. One token at a time: [`super::cache`].
//!
//! Scores and outputs are tile products with keys and values in panels, so a query row gets the same bits whether it is
//! computed in a block of many rows (training) or alone (decoding): the summation over keys runs in the same order, and
//! the masked keys of a block only add zeros.

use super::gemm::{Packed, gemm_here};
use super::isa::multiversion;
use super::kernel::{Store, prefetch};
use super::math::{LANES, exp, fold, max};
use super::rows::{cap, cap_backward};
use super::view::View;
use super::{Buffer, Dtype};
use crate::backend::AttentionShape;
use crate::pool;

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
    pub(super) fn query_at(&self, head: usize) -> usize {
        head * self.head_dim
    }
    pub(super) fn key_at(&self, head: usize) -> usize {
        (self.heads + head) * self.head_dim
    }
    pub(super) fn value_at(&self, head: usize) -> usize {
        (self.heads + self.kv_heads + head) * self.head_dim
    }
    pub(super) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
    /// Turns the raw scores of a row into unnormalised probabilities for the keys `from..to`, see [`softmax_row`].
    pub(super) fn softmax(&self, row: &mut [f32], from: usize, to: usize) -> f32 {
        match self.softcap {
            None => softmax_row(row, from, to, self.scale),
            Some(softcap) => {
                cap(&mut row[from..to], self.scale, softcap);
                softmax_row(row, from, to, 1.0)
            }
        }
    }
    /// The first key that the query at `position` sees.
    pub(super) fn first_key(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// A pointer to rows; every task writes its own columns of them.
pub(super) struct Columns {
    at: *mut f32,
    len: usize,
    stride: usize,
}

// SAFETY: tasks write disjoint parts: their own rows (sequence) and columns (head).
unsafe impl Sync for Columns {}

impl Columns {
    pub(super) fn new(buffer: &mut [f32], stride: usize) -> Columns {
        Columns { at: buffer.as_mut_ptr(), len: buffer.len(), stride }
    }

    /// Returns `width` numbers of row `row`, starting at column `column`.
    ///
    /// # Safety
    ///
    /// No other thread may hold the same part.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, row: usize, column: usize, width: usize) -> &mut [f32] {
        let from = row * self.stride + column;
        assert!(column + width <= self.stride && from + width <= self.len);
        // SAFETY: in bounds by the assertion, unique as guaranteed by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(from), width) }
    }
}

/// Lengths, in words, of the arrays that [`forward`] allocates for one key head of a sequence.
pub(crate) fn scratch(dtype: Dtype, len: usize, shape: &AttentionShape) -> Vec<usize> {
    let dim = shape.head_dim;
    let (keys, values) = (Packed::words(dtype, dim, len), Packed::words(dtype, len, dim));
    vec![keys, values, BLOCK * score_stride(len), BLOCK * dim]
}

/// As [`scratch`], for [`backward`].
pub(crate) fn backward_scratch(dtype: Dtype, len: usize, shape: &AttentionShape) -> Vec<usize> {
    let (dim, scores) = (shape.head_dim, BLOCK * score_stride(len));
    let (transposed, keys) = (Packed::words(dtype, dim, len), Packed::words(dtype, len, dim));
    let block = Packed::words(dtype, BLOCK.min(len), dim);
    let capped = capped_numbers(len, shape);
    vec![transposed, transposed, keys, scores, scores, BLOCK * dim, len * dim, len * dim, capped, block, block]
}

/// Capped scores of a query that the backward pass keeps.
fn capped_numbers(len: usize, shape: &AttentionShape) -> usize {
    if shape.softcap.is_some() { len } else { 0 }
}

pub(super) fn forward(dtype: Dtype, fused: &[f32], cu_seqlens: &[usize], shape: &AttentionShape) -> Buffer {
    let rows = fused.len() / shape.fused();
    let mut out = Buffer::uninitialized(rows * shape.output());
    let target = Columns::new(&mut out, shape.output());
    pool::each(tasks(cu_seqlens, shape), |_, task| forward_task(dtype, fused, task, shape, &target));
    out
}

fn forward_task(dtype: Dtype, fused: &[f32], task: Task, shape: &AttentionShape, out: &Columns) {
    let (stride, dim) = (shape.fused(), shape.head_dim);
    let rows = &fused[task.start * stride..(task.start + task.len) * stride];
    prefetch_columns(rows, stride, dim, &[shape.key_at(task.kv_head), shape.value_at(task.kv_head)]);
    let keys = Packed::new(dtype, View::rows(&rows[shape.key_at(task.kv_head)..], stride).t(), dim, task.len);
    let values = Packed::new(dtype, View::rows(&rows[shape.value_at(task.kv_head)..], stride), task.len, dim);
    let mut scores = Buffer::uninitialized(BLOCK * score_stride(task.len));
    let mut block_out = Buffer::uninitialized(BLOCK * dim);
    for head in task.kv_head * shape.group()..(task.kv_head + 1) * shape.group() {
        prefetch_columns(rows, stride, dim, &[shape.query_at(head)]);
        for first in (0..task.len).step_by(BLOCK) {
            let count = BLOCK.min(task.len - first);
            let seen = first + count;
            let wide = score_stride(seen);
            let queries = View::rows(&rows[first * stride + shape.query_at(head)..], stride);
            gemm_here((count, seen, dim), queries, keys.panels(), &mut scores, wide, Store::Replace);
            let sums: [f32; BLOCK] = std::array::from_fn(|r| {
                if r >= count {
                    return 1.0;
                }
                let row = &mut scores[r * wide..(r + 1) * wide];
                shape.softmax(row, shape.first_key(first + r), first + r + 1)
            });
            gemm_here(
                (count, dim, seen),
                View::rows(&scores, wide),
                values.panels(),
                &mut block_out,
                dim,
                Store::Replace,
            );
            for r in 0..count {
                // SAFETY: only this task has this sequence and this head.
                let out = unsafe { out.part(task.start + first + r, shape.query_at(head), dim) };
                normalize(&block_out[r * dim..(r + 1) * dim], sums[r], out);
            }
        }
    }
}

/// Prefetches the given columns of every row: they are far apart in memory and read soon.
fn prefetch_columns(rows: &[f32], stride: usize, dim: usize, columns: &[usize]) {
    for row in rows.chunks(stride) {
        columns.iter().for_each(|&at| prefetch(&row[at..at + dim]));
    }
}

/// Distance between rows of scores: leaves room for whole lanes after the last key, at any offset of the first read.
pub(super) fn score_stride(keys: usize) -> usize {
    keys.next_multiple_of(LANES) + LANES
}

multiversion! {
    /// Turns scores into unnormalised probabilities `exp(scale * (score - max))` for the keys `from..to` and zero for
    /// the others. The row has [`score_stride`] places; those past the last key may hold any value. Returns the sum.
    pub(super) fn softmax_row(row: &mut [f32], from: usize, to: usize, scale: f32) -> f32 {
        row[..from].fill(0.0);
        // Whole lanes: places past the last key are excluded from the maximum and end up zero.
        let used = (to - from).next_multiple_of(LANES);
        row[to..from + used].fill(f32::NEG_INFINITY);
        let top = max(&row[from..from + used]) * scale;
        let (lanes, _) = row[from..from + used].as_chunks_mut::<LANES>();
        let (last, whole) = lanes.split_last_mut().expect("a query sees itself");
        let mut sum = [0f32; LANES];
        for score in whole {
            for i in 0..LANES {
                score[i] = exp(score[i] * scale - top);
                sum[i] += score[i];
            }
        }
        for score in last.iter_mut() {
            *score = exp(*score * scale - top);
        }
        row[to..].fill(0.0);
        let last = &row[from + used - LANES..from + used];
        for i in 0..LANES {
            sum[i] += last[i];
        }
        fold(sum, |a, b| a + b)
    }
}

multiversion! {
    pub(super) fn normalize(x: &[f32], total: f32, out: &mut [f32]) {
        let inverse = 1.0 / total;
        for (out, x) in out.iter_mut().zip(x) {
            *out = x * inverse;
        }
    }
}

pub(super) fn backward(
    dtype: Dtype,
    d_out: &[f32],
    fused: &[f32],
    cu_seqlens: &[usize],
    shape: &AttentionShape,
) -> Buffer {
    let mut d_fused = Buffer::uninitialized(fused.len());
    let target = Columns::new(&mut d_fused, shape.fused());
    pool::each(tasks(cu_seqlens, shape), |_, task| backward_task(dtype, d_out, fused, task, shape, &target));
    d_fused
}

/// With `p = softmax(cap(scale q k^T))`, `o = p v`:
///
/// ```text
/// d_v = p^T d_o,   d_p = d_o v^T,   d_s = p * (d_p - rowsum(p * d_p)) * scale * cap',   d_q = d_s k,   d_k = d_s^T q
/// ```
///
/// Probabilities are recomputed block by block.
fn backward_task(dtype: Dtype, d_out: &[f32], fused: &[f32], task: Task, shape: &AttentionShape, d_fused: &Columns) {
    let (stride, dim, width) = (shape.fused(), shape.head_dim, shape.output());
    let rows = &fused[task.start * stride..(task.start + task.len) * stride];
    let key_rows = View::rows(&rows[shape.key_at(task.kv_head)..], stride);
    let value_rows = View::rows(&rows[shape.value_at(task.kv_head)..], stride);
    prefetch_columns(rows, stride, dim, &[shape.key_at(task.kv_head), shape.value_at(task.kv_head)]);
    let keys_t = Packed::new(dtype, key_rows.t(), dim, task.len);
    let values_t = Packed::new(dtype, value_rows.t(), dim, task.len);
    let keys = Packed::new(dtype, key_rows, task.len, dim);
    let mut probabilities = Buffer::uninitialized(BLOCK * score_stride(task.len));
    let mut d_scores = Buffer::uninitialized(BLOCK * score_stride(task.len));
    let mut d_query = Buffer::uninitialized(BLOCK * dim);
    let mut d_keys = Buffer::zeros(task.len * dim);
    let mut d_values = Buffer::zeros(task.len * dim);
    let mut capped = Buffer::uninitialized(capped_numbers(task.len, shape));
    let (mut packed_query, mut packed_out) = (Packed::empty(dtype), Packed::empty(dtype));
    for head in task.kv_head * shape.group()..(task.kv_head + 1) * shape.group() {
        prefetch_columns(rows, stride, dim, &[shape.query_at(head)]);
        prefetch_columns(
            &d_out[task.start * width..(task.start + task.len) * width],
            width,
            dim,
            &[shape.query_at(head)],
        );
        for first in (0..task.len).step_by(BLOCK) {
            let count = BLOCK.min(task.len - first);
            let seen = first + count;
            let queries = View::rows(&rows[first * stride + shape.query_at(head)..], stride);
            let d_block = View::rows(&d_out[(task.start + first) * width + shape.query_at(head)..], width);
            let wide = score_stride(seen);
            gemm_here((count, seen, dim), queries, keys_t.panels(), &mut probabilities, wide, Store::Replace);
            gemm_here((count, seen, dim), d_block, values_t.panels(), &mut d_scores, wide, Store::Replace);
            for r in 0..count {
                let p = &mut probabilities[r * wide..(r + 1) * wide];
                let (from, to) = (shape.first_key(first + r), first + r + 1);
                let d = &mut d_scores[r * wide..(r + 1) * wide];
                match shape.softcap {
                    None => {
                        let total = softmax_row(p, from, to, shape.scale);
                        score_gradient(p, d, from, to, total, shape.scale);
                    }
                    Some(softcap) => {
                        cap(&mut p[from..to], shape.scale, softcap);
                        capped[from..to].copy_from_slice(&p[from..to]);
                        let total = softmax_row(p, from, to, 1.0);
                        score_gradient(p, d, from, to, total, shape.scale);
                        cap_backward(&mut d[from..to], &capped[from..to], softcap);
                    }
                }
            }
            packed_out.pack(d_block, count, dim);
            packed_query.pack(queries, count, dim);
            let (p, d_s) = (View::rows(&probabilities, wide), View::rows(&d_scores, wide));
            gemm_here((seen, dim, count), p.t(), packed_out.panels(), &mut d_values, dim, Store::Add);
            gemm_here((seen, dim, count), d_s.t(), packed_query.panels(), &mut d_keys, dim, Store::Add);
            gemm_here((count, dim, seen), d_s, keys.panels(), &mut d_query, dim, Store::Replace);
            for r in 0..count {
                // SAFETY: only this task has this sequence and this head.
                let out = unsafe { d_fused.part(task.start + first + r, shape.query_at(head), dim) };
                out.copy_from_slice(&d_query[r * dim..(r + 1) * dim]);
            }
        }
    }
    for t in 0..task.len {
        // SAFETY: only this task has this sequence and this key head.
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
        let inverse = 1.0 / total;
        let used = (to - from).next_multiple_of(LANES);
        d[..from].fill(0.0);
        d[to..].fill(0.0);
        let (p, _) = p[from..from + used].as_chunks_mut::<LANES>();
        let (d, _) = d[from..from + used].as_chunks_mut::<LANES>();
        let mut mean = [0f32; LANES];
        for (p, d) in p.iter_mut().zip(d.iter()) {
            for i in 0..LANES {
                p[i] *= inverse;
                mean[i] += p[i] * d[i];
            }
        }
        let mean = fold(mean, |a, b| a + b);
        for (p, d) in p.iter().zip(d) {
            for i in 0..LANES {
                d[i] = p[i] * (d[i] - mean) * scale;
            }
        }
    }
}
