//! The log-prob head: logits in blocks of rows and vocabulary, reduced immediately, never stored as a whole.

use super::Buffer;
use super::gemm::{Packed, gemm, gemm_here};
use super::isa::multiversion;
use super::kernel::Store;
use super::math::{LANES, exp, fold, max};
use super::rows::{cap, cap_backward, each_row, softmax_gradient};
use super::view::View;
use crate::backend::{LogprobQuery, TokenStats};
use crate::pool;

/// Vocabulary entries whose logits exist at once. Part of the numerical contract: log-sums are merged at these places.
const VOCABULARY: usize = 1024;
/// Rows of a forward task.
const ROWS: usize = 96;
/// Rows of a backward block: its logits are computed by all threads together.
const BACKWARD_ROWS: usize = 512;

/// The running reduction of one row over the vocabulary.
#[derive(Clone, Copy)]
pub(super) struct Softmax {
    /// Largest logit so far.
    top: f32,
    /// `sum exp(logit - top)`.
    sum: f32,
    /// `sum exp(logit - top) * (logit - top)`.
    weighted: f32,
}

impl Softmax {
    pub(super) const EMPTY: Softmax = Softmax { top: f32::NEG_INFINITY, sum: 0.0, weighted: 0.0 };

    /// Adds the next block of scaled logits.
    pub(super) fn merge(self, block: &[f32]) -> Softmax {
        let (top, sum, weighted) = block_softmax(block);
        if self.top == f32::NEG_INFINITY {
            return Softmax { top, sum, weighted };
        }
        let new = if top > self.top { top } else { self.top };
        let (old_scale, block_scale) = (exp(self.top - new), exp(top - new));
        let shifted = |sum: f32, weighted: f32, top: f32, scale: f32| scale * (weighted + sum * (top - new));
        Softmax {
            top: new,
            sum: self.sum * old_scale + sum * block_scale,
            weighted: shifted(self.sum, self.weighted, self.top, old_scale) + shifted(sum, weighted, top, block_scale),
        }
    }

    /// `log sum exp`.
    pub(super) fn log_sum(&self) -> f32 {
        self.top + self.sum.ln()
    }

    /// `-sum p log p = log_sum - sum p logit`.
    fn entropy(&self) -> f32 {
        self.sum.ln() - self.weighted / self.sum
    }
}

multiversion! {
    fn block_softmax(block: &[f32]) -> (f32, f32, f32) {
        let top = max(block);
        let (mut sum, mut weighted) = ([0f32; LANES], [0f32; LANES]);
        let (whole, rest) = block.as_chunks::<LANES>();
        for x in whole {
            for i in 0..LANES {
                let shifted = x[i] - top;
                let probability = exp(shifted);
                sum[i] += probability;
                weighted[i] += probability * shifted;
            }
        }
        for (i, x) in rest.iter().enumerate() {
            let shifted = x - top;
            let probability = exp(shifted);
            sum[i] += probability;
            weighted[i] += probability * shifted;
        }
        (top, fold(sum, |a, b| a + b), fold(weighted, |a, b| a + b))
    }
}

multiversion! {
    fn scale(x: &mut [f32], factor: f32) {
        for x in x.iter_mut() {
            *x *= factor;
        }
    }
}

/// The log-sum of a whole row of scaled logits, reduced as [`token_stats`] reduces it.
pub(super) fn log_sum(row: &[f32]) -> f32 {
    row.chunks(VOCABULARY).fold(Softmax::EMPTY, Softmax::merge).log_sum()
}

/// Returns the number of tasks of [`token_stats`] over `rows` rows, and the logits each computes at a time.
pub(crate) fn token_stats_tasks(rows: usize) -> (usize, usize) {
    (rows.div_ceil(ROWS), ROWS.min(rows) * VOCABULARY)
}

/// Rows and vocabulary entries that [`token_stats_backward`] works on at a time.
pub(crate) fn token_stats_backward_block(rows: usize) -> [usize; 2] {
    [BACKWARD_ROWS.min(rows), VOCABULARY]
}

pub(super) fn token_stats(heads: &[(&Buffer, &Packed, f32)], query: LogprobQuery<'_>) -> TokenStats {
    let rows = query.targets.len();
    let vocabulary = heads[0].1.columns();
    let mut stats = TokenStats { logprobs: vec![0.0; rows], entropies: vec![0.0; rows], log_sums: vec![0.0; rows] };
    let parts = stats.logprobs.chunks_mut(ROWS).zip(stats.entropies.chunks_mut(ROWS));
    pool::each(parts.zip(stats.log_sums.chunks_mut(ROWS)), |task, ((logprobs, entropies), log_sums)| {
        let count = logprobs.len();
        let mut logits = Buffer::uninitialized(count * VOCABULARY);
        let mut other = Buffer::default();
        let mut softmax = [Softmax::EMPTY; ROWS];
        let mut chosen = [0f32; ROWS];
        for first in (0..vocabulary).step_by(VOCABULARY) {
            let width = VOCABULARY.min(vocabulary - first);
            mixed_logits(heads, query, [task * ROWS, count], [first, width], &mut logits, &mut other);
            for r in 0..count {
                let row = &logits[r * width..(r + 1) * width];
                softmax[r] = softmax[r].merge(row);
                let target = query.targets[task * ROWS + r] as usize;
                if (first..first + width).contains(&target) {
                    chosen[r] = row[target - first];
                }
            }
        }
        for r in 0..count {
            log_sums[r] = softmax[r].log_sum();
            logprobs[r] = chosen[r] - log_sums[r];
            entropies[r] = softmax[r].entropy();
        }
    });
    stats
}

/// A tile (first row and count, first entry and count) of `sum_i mix_i * cap(hidden_i W_i^T) / temperature`. A single
/// head of weight 1 is not multiplied by it.
fn mixed_logits(
    heads: &[(&Buffer, &Packed, f32)],
    query: LogprobQuery<'_>,
    [row, count]: [usize; 2],
    [first, width]: [usize; 2],
    logits: &mut Buffer,
    other: &mut Buffer,
) {
    let tile = |(hidden, head, _): &(&Buffer, &Packed, f32), out: &mut [f32]| {
        let depth = head.depth();
        let hidden = View::rows(&hidden[row * depth..(row + count) * depth], depth);
        gemm_here((count, width, depth), hidden, head.panels_from(first), out, width, Store::Replace);
        if let Some(softcap) = query.softcap {
            cap(&mut out[..count * width], 1.0, softcap);
        }
    };
    let inverse_temperature = 1.0 / query.temperature;
    tile(&heads[0], logits);
    let here = &mut logits[..count * width];
    if heads.len() > 1 {
        scale(here, heads[0].2);
        if other.len() < here.len() {
            *other = Buffer::uninitialized(here.len());
        }
        for head in &heads[1..] {
            tile(head, other);
            here.iter_mut().zip(other.iter()).for_each(|(sum, x)| *sum += head.2 * x);
        }
    }
    if inverse_temperature != 1.0 {
        scale(here, inverse_temperature);
    }
}

pub(super) fn token_stats_backward(
    d_logprobs: &[f32],
    hidden: &Buffer,
    head: &Packed,
    query: LogprobQuery<'_>,
    log_sums: &[f32],
    mut d_weight: Option<&mut [f32]>,
) -> Buffer {
    let (rows, depth, vocabulary) = (d_logprobs.len(), head.depth(), head.columns());
    let inverse_temperature = 1.0 / query.temperature;
    let mut d_hidden = Buffer::zeros(rows * depth);
    let mut d_logits = Buffer::uninitialized(BACKWARD_ROWS.min(rows) * VOCABULARY);
    let (mut packed_weight, mut packed_hidden) = (Packed::default(), Packed::empty(head.dtype()));
    for row in (0..rows).step_by(BACKWARD_ROWS) {
        let count = BACKWARD_ROWS.min(rows - row);
        let x = View::rows(&hidden[row * depth..(row + count) * depth], depth);
        packed_hidden.pack(x, count, depth);
        for first in (0..vocabulary).step_by(VOCABULARY) {
            let width = VOCABULARY.min(vocabulary - first);
            gemm((count, width, depth), x, head.panels_from(first), &mut d_logits, width, Store::Replace);
            each_row(&mut d_logits[..count * width], width, |r, logits| {
                let at = row + r;
                let capped = query.softcap.map(|softcap| {
                    cap(logits, 1.0, softcap);
                    let mut capped = [0f32; VOCABULARY];
                    capped[..width].copy_from_slice(logits);
                    (capped, softcap)
                });
                softmax_gradient(logits, d_logprobs[at], log_sums[at], inverse_temperature);
                let target = (query.targets[at] as usize).wrapping_sub(first);
                if target < width {
                    logits[target] += d_logprobs[at] * inverse_temperature;
                }
                if let Some((capped, softcap)) = capped {
                    cap_backward(logits, &capped[..width], softcap);
                }
            });
            let d = View::rows(&d_logits, width);
            packed_weight.transpose_of(head, first, width);
            let d_rows = &mut d_hidden[row * depth..(row + count) * depth];
            gemm((count, depth, width), d, packed_weight.panels(), d_rows, depth, Store::Add);
            if let Some(d_weight) = &mut d_weight {
                let d_block = &mut d_weight[first * depth..(first + width) * depth];
                gemm((width, depth, count), d.t(), packed_hidden.panels(), d_block, depth, Store::Add);
            }
        }
    }
    d_hidden
}

pub(super) fn logits(
    hidden: &Buffer,
    head: &Packed,
    softcap: Option<f32>,
    temperature: f32,
    use_row: &(dyn Fn(usize, &[f32]) + Sync),
) {
    let (depth, vocabulary) = (head.depth(), head.columns());
    let rows = hidden.len() / depth;
    let mut out = Buffer::uninitialized(rows * vocabulary);
    gemm((rows, vocabulary, depth), View::rows(hidden, depth), head.panels(), &mut out, vocabulary, Store::Replace);
    each_row(&mut out, vocabulary, |r, row| {
        if let Some(softcap) = softcap {
            cap(row, 1.0, softcap);
        }
        scale(row, 1.0 / temperature);
        use_row(r, row);
    });
}
