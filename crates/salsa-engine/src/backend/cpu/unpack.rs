//! Gradients through a frozen matrix, of which only the packed form exists: it is unpacked block by block.

use rayon::prelude::*;
use std::ops::Range;

use super::Buffer;
use super::gemm::{Packed, View, gemm};
use super::isa::isa;
use super::kernel::{Kernel, Store};
use super::rows::{each_row, softmax_gradient};
use crate::backend::LogprobQuery;

/// Rows of the matrix unpacked at once: a multiple of the block of summation and of every panel's width, so that the
/// order of summation, and with it every bit, is that of the unpacked matrix.
const ROWS: usize = 1024;
/// Hidden rows whose logits exist at once.
const HIDDEN_ROWS: usize = 512;

/// `d_x = d_out * W`, bit for bit that of the row-major form.
pub(super) fn linear_backward_input(d_out: &Buffer, weight: &Packed) -> Buffer {
    let (out, input) = (weight.columns(), weight.depth());
    let rows = d_out.len() / out;
    let mut d_x = Buffer::stale(rows * input);
    let mut packed = Packed::default();
    for first in (0..out).step_by(ROWS) {
        let count = ROWS.min(out - first);
        packed.pack(View::rows(&rows_of(weight, first..first + count), input), count, input);
        let store = if first == 0 { Store::Replace } else { Store::Add };
        if rows > 0 {
            let d = View::rows(&d_out[first..], out);
            gemm((rows, input, count), d, packed.panels(), &mut d_x, input, store);
        }
    }
    d_x
}

/// The gradient of log-probs with respect to the hidden rows, as [`super::head::token_stats_backward`] computes it.
pub(super) fn token_stats_backward_input(
    d_logprobs: &[f32],
    hidden: &Buffer,
    head: &Packed,
    query: LogprobQuery<'_>,
    log_sums: &[f32],
) -> Buffer {
    let (rows, depth, vocabulary) = (d_logprobs.len(), head.depth(), head.columns());
    let inverse_temperature = 1.0 / query.temperature;
    let mut d_hidden = Buffer::zeros(rows * depth);
    let mut d_logits = Buffer::stale(HIDDEN_ROWS.min(rows) * ROWS);
    let mut packed = Packed::default();
    for first in (0..vocabulary).step_by(ROWS) {
        let width = ROWS.min(vocabulary - first);
        packed.pack(View::rows(&rows_of(head, first..first + width), depth), width, depth);
        for row in (0..rows).step_by(HIDDEN_ROWS) {
            let count = HIDDEN_ROWS.min(rows - row);
            let x = View::rows(&hidden[row * depth..(row + count) * depth], depth);
            gemm((count, width, depth), x, head.panels_from(first), &mut d_logits, width, Store::Replace);
            each_row(&mut d_logits[..count * width], width, |r, logits| {
                let at = row + r;
                softmax_gradient(logits, d_logprobs[at], log_sums[at], inverse_temperature);
                let target = (query.targets[at] as usize).wrapping_sub(first);
                if target < width {
                    logits[target] += d_logprobs[at] * inverse_temperature;
                }
            });
            let d_rows = &mut d_hidden[row * depth..(row + count) * depth];
            gemm((count, depth, width), View::rows(&d_logits, width), packed.panels(), d_rows, depth, Store::Add);
        }
    }
    d_hidden
}

/// Some rows of the matrix `[out, in]`, row-major. The first must begin a panel.
pub(super) fn rows_of(matrix: &Packed, rows: Range<usize>) -> Buffer {
    let (width, input) = (Kernel::of(isa()).width, matrix.depth());
    let panels = matrix.panels_from(rows.start);
    let mut out = Buffer::stale(rows.len() * input);
    let unpack = |(p, rows): (usize, &mut [f32])| {
        let panel = &panels.data[p * panels.panel_stride..][..input * width];
        // Tile by tile, so that reads and writes stay in the first-level cache.
        for from in (0..input).step_by(TILE) {
            let here = TILE.min(input - from);
            for (r, row) in rows.chunks_exact_mut(input).enumerate() {
                for (i, x) in row[from..from + here].iter_mut().enumerate() {
                    *x = panel[(from + i) * width + r];
                }
            }
        }
    };
    if out.len() < SMALL {
        out.chunks_mut(width * input).enumerate().for_each(unpack);
    } else {
        out.par_chunks_mut(width * input).enumerate().for_each(unpack);
    }
    out
}

/// Columns of a tile.
const TILE: usize = 64;
/// Below this many numbers waking other threads costs more than it saves.
const SMALL: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::backend::cpu::Cpu;

    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::random::Random::new(seed, 1);
        (0..len).map(|_| random.normal() as f32).collect()
    }

    #[test]
    fn unpacking_gives_the_matrix_back() {
        for (out, input) in [(1, 1), (37, 20), (64, 65), (1100, 130)] {
            let weights = numbers(out * input, 1);
            let packed = Cpu::default().matrix(&weights, out, input);
            assert_eq!(rows_of(&packed, 0..out)[..], weights[..]);
        }
        let weights = numbers(1100 * 3, 1);
        assert_eq!(rows_of(&Cpu::default().matrix(&weights, 1100, 3), 1024..1100)[..], weights[1024 * 3..]);
    }

    #[test]
    fn gradients_through_a_packed_matrix_are_those_through_the_row_major_one_to_the_bit() {
        for (rows, out, input) in [(7, 37, 20), (3, 2500, 33), (130, 300, 130)] {
            let (weights, d_out): (_, Buffer) = (numbers(out * input, 2), numbers(rows * out, 3).into());
            let expected = Cpu::default().linear_backward_input(&d_out, &weights, out, input);
            let found = linear_backward_input(&d_out, &Cpu::default().matrix(&weights, out, input));
            assert_eq!(found[..], expected[..]);
        }
    }

    #[test]
    fn gradients_through_a_packed_head_are_those_through_the_row_major_one_to_the_bit() {
        let (rows, vocabulary, depth) = (600, 2100, 9);
        let (weights, hidden): (_, Buffer) = (numbers(vocabulary * depth, 4), numbers(rows * depth, 5).into());
        let (head, d) = (Cpu::default().matrix(&weights, vocabulary, depth), numbers(rows, 6));
        let targets: Vec<u32> = (0..rows as u32).map(|r| r * 3).collect();
        let query = LogprobQuery { targets: &targets, temperature: 0.7 };
        let log_sums = Cpu::default().token_stats(&[(&hidden, &head, 1.0)], query).log_sums;
        let mut d_weight = vec![0.0; weights.len()];
        let expected =
            Cpu::default().token_stats_backward(&d, &hidden, &head, &weights, query, &log_sums, &mut d_weight);
        let found = token_stats_backward_input(&d, &hidden, &head, query, &log_sums);
        assert_eq!(found[..], expected[..]);
    }
}
