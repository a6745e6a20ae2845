//! Blocks to float32, with the values of llama.cpp's reference code and of the Python package `gguf`.
//!
//! `d` is a block's scale, `m` its minimum, `q` a stored integer: a number is `d q` or `d q + m`. In a K-quant 16 or 32
//! neighbouring numbers have a scale of their own, an integer multiple of the block's. All products are rounded to
//! float32 in the order given here, so that the result has the same bits everywhere.

use half::f16;

use super::block::BlockType;
use crate::checkpoint::Dtype;

/// Decodes whole blocks.
///
/// # Panics
/// If `bytes` are not the blocks of `out`.
pub(super) fn dequantize(kind: BlockType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), kind.bytes_of(out.len()), "as many bytes as numbers need");
    let decode: fn(&[u8], &mut [f32]) = match kind {
        BlockType::F32 => return Dtype::F32.widen(bytes, out),
        BlockType::F16 => return Dtype::F16.widen(bytes, out),
        BlockType::BF16 => return Dtype::BF16.widen(bytes, out),
        BlockType::Q4_0 => q4_0,
        BlockType::Q4_1 => q4_1,
        BlockType::Q5_0 => q5_0,
        BlockType::Q5_1 => q5_1,
        BlockType::Q8_0 => q8_0,
        BlockType::Q2_K => q2_k,
        BlockType::Q3_K => q3_k,
        BlockType::Q4_K => q4_k,
        BlockType::Q5_K => q5_k,
        BlockType::Q6_K => q6_k,
        BlockType::Q8_K => q8_k,
    };
    bytes.chunks_exact(kind.bytes()).zip(out.chunks_exact_mut(kind.len())).for_each(|(block, out)| decode(block, out));
}

/// A float16 at byte `at`.
pub(super) fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Number `i` of 32 in four bits each: the low halves of 16 bytes, then the high ones.
fn nibble(packed: &[u8], i: usize) -> u8 {
    if i < 16 { packed[i] & 15 } else { packed[i - 16] >> 4 }
}

/// Number `i` of 32 with the fifth bit from a 32-bit mask.
fn five_bits(mask: &[u8], packed: &[u8], i: usize) -> u8 {
    nibble(packed, i) | (mask[i / 8] >> (i % 8) & 1) << 4
}

fn fill(out: &mut [f32], number: impl Fn(usize) -> f32) {
    out.iter_mut().enumerate().for_each(|(i, place)| *place = number(i));
}

fn q4_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    fill(out, |i| d * (f32::from(nibble(&block[2..], i)) - 8.0));
}

fn q4_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    fill(out, |i| d * f32::from(nibble(&block[4..], i)) + m);
}

fn q5_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    fill(out, |i| d * (f32::from(five_bits(&block[2..6], &block[6..], i)) - 16.0));
}

fn q5_1(block: &[u8], out: &mut [f32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    fill(out, |i| d * f32::from(five_bits(&block[4..8], &block[8..], i)) + m);
}

fn q8_0(block: &[u8], out: &mut [f32]) {
    let d = half(block, 0);
    fill(out, |i| f32::from(block[2 + i] as i8) * d);
}

/// Sixteen bytes of scales and minima, 64 bytes of two bits each, `d`, `dmin`.
fn q2_k(block: &[u8], out: &mut [f32]) {
    let (scales, packed, d, dmin) = (&block[..16], &block[16..80], half(block, 80), half(block, 82));
    fill(out, |i| {
        let scale = scales[i / 16];
        let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
        dl * f32::from(two_bits(packed, i)) - ml
    });
}

/// Number `i` of 256 in two bits each: 32 bytes hold numbers 0 to 31 in their lowest bits, then 32 to 63, and so on.
fn two_bits(packed: &[u8], i: usize) -> u8 {
    packed[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3
}

/// A 32-byte mask of the third bits (0 subtracts 4), 64 bytes of two bits each, 16 scales of six bits, `d`.
fn q3_k(block: &[u8], out: &mut [f32]) {
    let (mask, packed, scales, d) = (&block[..32], &block[32..96], &block[96..108], half(block, 108));
    let scale = |j: usize| {
        let low = scales[j % 8] >> (j / 8 * 4) & 15;
        let high = scales[8 + j % 4] >> (j / 4 * 2) & 3;
        f32::from((low | high << 4) as i8 - 32)
    };
    fill(out, |i| {
        let third = mask[i % 32] >> (i / 32) & 1;
        let q = two_bits(packed, i) as i8 - if third == 1 { 0 } else { 4 };
        d * scale(i / 16) * f32::from(q)
    });
}

/// Scale and minimum `j` of eight, of six bits each in twelve bytes.
pub(super) fn scale_and_min(packed: &[u8], j: usize) -> (u8, u8) {
    match j {
        0..4 => (packed[j] & 63, packed[j + 4] & 63),
        _ => {
            let both = packed[j + 4];
            (both & 15 | packed[j - 4] >> 6 << 4, both >> 4 | packed[j] >> 6 << 4)
        }
    }
}

/// Number `i` of 256 in four bits each: 32 bytes hold 32 numbers in their low halves, and the next 32 in the high.
fn half_byte(packed: &[u8], i: usize) -> u8 {
    packed[i / 64 * 32 + i % 32] >> (i % 64 / 32 * 4) & 15
}

/// `d`, `dmin`, eight scales and minima, 128 bytes of four bits each.
fn q4_k(block: &[u8], out: &mut [f32]) {
    with_minima(block, out, |i| half_byte(&block[16..], i));
}

/// As Q4_K, with a 32-byte mask of fifth bits before the packed numbers.
fn q5_k(block: &[u8], out: &mut [f32]) {
    with_minima(block, out, |i| half_byte(&block[48..], i) | (block[16 + i % 32] >> (i / 32) & 1) << 4);
}

fn with_minima(block: &[u8], out: &mut [f32], number: impl Fn(usize) -> u8) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_and_min(&block[4..16], j);
        let (dl, ml) = (d * f32::from(scale), dmin * f32::from(min));
        fill(out, |i| dl * f32::from(number(32 * j + i)) - ml);
    }
}

/// 128 bytes of the lower four bits, 64 of the upper two, 16 signed scales, `d`.
fn q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(block, 208));
    fill(out, |i| {
        let nibble = low[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15;
        let q = (nibble | two_bits(high, i) << 4) as i8 - 32;
        d * f32::from(scales[i / 16] as i8) * f32::from(q)
    });
}

/// A float32 `d`, 256 signed bytes; their sums behind them are not needed.
fn q8_k(block: &[u8], out: &mut [f32]) {
    let d = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
    fill(out, |i| d * f32::from(block[4 + i] as i8));
}
