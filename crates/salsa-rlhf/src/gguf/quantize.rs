//! Float32 to blocks: the roundings of llama.cpp's reference code, whose bytes these are.

use half::f16;

use super::block::BlockType;
use super::k_quants::{q4_k, q5_k, q6_k};
use crate::checkpoint::Dtype;

/// The largest number that a block of any type can hold the scale of.
const LARGEST: f32 = 65_504.0;

/// Encodes whole blocks behind `out`. Returns the index of the first number that is not finite or too large.
///
/// # Panics
/// If the numbers are no whole blocks, or the type is one that is only read.
pub(super) fn quantize(kind: BlockType, numbers: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
    assert!(numbers.len().is_multiple_of(kind.len()), "whole blocks");
    let plain = match kind {
        BlockType::F32 => Some(Dtype::F32),
        BlockType::F16 => Some(Dtype::F16),
        BlockType::BF16 => Some(Dtype::BF16),
        _ => None,
    };
    if let Some(dtype) = plain {
        return dtype.encode(numbers, out);
    }
    if let Some(at) = numbers.iter().position(|number| number.is_nan() || number.abs() > LARGEST) {
        return Err(at);
    }
    let encode: fn(&[f32], &mut Vec<u8>) = match kind {
        BlockType::Q4_0 => q4_0,
        BlockType::Q5_0 => q5_0,
        BlockType::Q8_0 => q8_0,
        BlockType::Q4_K => q4_k,
        BlockType::Q5_K => q5_k,
        BlockType::Q6_K => q6_k,
        other => unreachable!("{other} is only read"),
    };
    out.clear();
    numbers.chunks_exact(kind.len()).for_each(|block| encode(block, out));
    Ok(())
}

/// Appends a float16 and returns its value.
pub(super) fn push_half(number: f32, out: &mut Vec<u8>) -> f32 {
    let half = f16::from_f32(number);
    out.extend(half.to_le_bytes());
    half.to_f32()
}

/// The reciprocal of a scale; 0 for a block of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The number of the largest magnitude, with its sign; the first of equals.
fn extreme(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |most: f32, number| if number.abs() > most.abs() { *number } else { most })
}

/// The extreme number becomes -8, so that all of 16 values are used.
fn q4_0(block: &[f32], out: &mut Vec<u8>) {
    let d = extreme(block) / -8.0;
    let id = inverse(d);
    push_half(d, out);
    let quant = |x: f32| ((x * id + 8.5) as u8).min(15);
    out.extend((0..16).map(|i| quant(block[i]) | quant(block[i + 16]) << 4));
}

/// As Q4_0 with 32 values; the fifth bits stand in a mask.
fn q5_0(block: &[f32], out: &mut Vec<u8>) {
    let d = extreme(block) / -16.0;
    let id = inverse(d);
    push_half(d, out);
    let quants: Vec<u8> = block.iter().map(|x| ((x * id + 16.5) as u8).min(31)).collect();
    let mask = quants.iter().enumerate().fold(0u32, |mask, (i, quant)| mask | u32::from(quant >> 4) << i);
    out.extend(mask.to_le_bytes());
    out.extend((0..16).map(|i| quants[i] & 15 | (quants[i + 16] & 15) << 4));
}

/// The largest magnitude becomes 127; halves are rounded away from zero.
fn q8_0(block: &[f32], out: &mut Vec<u8>) {
    let d = extreme(block).abs() / 127.0;
    let id = inverse(d);
    push_half(d, out);
    out.extend(block.iter().map(|x| (x * id).round() as i8 as u8));
}
