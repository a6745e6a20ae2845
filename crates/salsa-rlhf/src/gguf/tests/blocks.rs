//! Blocks against the Python package `gguf` and llama.cpp's library, whose digests `golden.py` has written.

use sha2::{Digest, Sha256};

use super::super::{block::BlockType, dequantize::dequantize, quantize::quantize};
use crate::atomic::hex;

const BLOCKS: usize = 64;
const GOLDEN: &str = include_str!("golden.txt");

/// The generator of `golden.py`.
fn words(count: usize) -> Vec<u16> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 48) as u16
    };
    (0..count).map(|_| next()).collect()
}

/// The bytes of a block that make its scales finite by a cleared bit.
fn scales(kind: BlockType) -> &'static [usize] {
    use BlockType::*;
    match kind {
        F32 | Q8_K => &[3],
        F16 | BF16 | Q4_0 | Q5_0 | Q8_0 => &[1],
        Q4_1 | Q5_1 | Q4_K | Q5_K => &[1, 3],
        Q2_K => &[81, 83],
        Q3_K => &[109],
        Q6_K => &[209],
    }
}

fn blocks(kind: BlockType) -> Vec<u8> {
    let mut bytes: Vec<u8> = words(BLOCKS * kind.bytes()).into_iter().map(|word| word as u8).collect();
    for block in bytes.chunks_exact_mut(kind.bytes()) {
        scales(kind).iter().for_each(|at| block[*at] &= 0xBF);
    }
    bytes
}

fn numbers() -> Vec<f32> {
    let sum = |quad: &[u16]| quad.iter().map(|word| i32::from(*word)).sum::<i32>() - 2 * 65535;
    let mut rows: Vec<f32> = words(BLOCKS * 256 * 4).chunks_exact(4).map(|quad| sum(quad) as f32 / 524_288.0).collect();
    let mut row = |number: usize, change: &dyn Fn(usize, &mut f32)| {
        rows[number * 256..][..256].iter_mut().enumerate().for_each(|(i, x)| change(i, x));
    };
    row(1, &|i, x| *x = if i == 100 { 3.0 } else { *x });
    row(2, &|_, x| *x = x.abs());
    row(3, &|_, x| *x = -x.abs());
    row(4, &|_, x| *x = 0.25);
    row(5, &|_, x| *x = 0.0);
    row(6, &|_, x| *x *= 2f32.powi(-30));
    row(7, &|i, x| *x = if (32..64).contains(&i) { 0.0 } else { *x });
    rows
}

fn golden(what: &str, kind: BlockType) -> Option<&'static str> {
    let start = format!("{what} {kind} ");
    GOLDEN.lines().find_map(|line| line.strip_prefix(&start))
}

#[test]
fn blocks_of_every_type_decode_to_the_bits_of_the_reference() {
    let decoded = |kind: BlockType| {
        let mut out = vec![0f32; BLOCKS * kind.len()];
        dequantize(kind, &blocks(kind), &mut out);
        hex(&Sha256::digest(out.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
    };
    let differing: Vec<BlockType> =
        BlockType::all().filter(|kind| golden("decode", *kind) != Some(decoded(*kind).as_str())).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

#[test]
fn numbers_encode_to_the_bytes_of_the_reference() {
    let encoded = |kind: BlockType| {
        let mut out = Vec::new();
        quantize(kind, &numbers(), &mut out).unwrap();
        hex(&Sha256::digest(&out))
    };
    let of_reference = BlockType::all().filter_map(|kind| Some((kind, golden("encode", kind)?)));
    let all: Vec<(BlockType, &str)> = of_reference.collect();
    assert_eq!(all.len(), 6);
    let differing: Vec<BlockType> =
        all.into_iter().filter(|(kind, digest)| encoded(*kind) != *digest).map(|(kind, _)| kind).collect();
    assert!(differing.is_empty(), "{differing:?}");
}

/// The largest error over the largest number of a row, which a block type of this many bits may have.
#[test]
fn numbers_come_back_close() {
    for (kind, most) in [
        (BlockType::F32, 0.0),
        (BlockType::F16, 1e-3),
        (BlockType::BF16, 4e-3),
        (BlockType::Q8_0, 0.005),
        (BlockType::Q6_K, 0.035),
        (BlockType::Q5_K, 0.05),
        (BlockType::Q5_0, 0.07),
        (BlockType::Q4_K, 0.09),
        (BlockType::Q4_0, 0.14),
    ] {
        let numbers = numbers();
        let (mut bytes, mut back) = (Vec::new(), vec![0f32; numbers.len()]);
        quantize(kind, &numbers, &mut bytes).unwrap();
        dequantize(kind, &bytes, &mut back);
        for (row, (own, back)) in numbers.chunks(256).zip(back.chunks(256)).enumerate().filter(|(row, _)| *row != 6) {
            let largest = own.iter().fold(0f32, |most, x| most.max(x.abs()));
            let error = own.iter().zip(back).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(error <= most * largest, "{kind}, row {row}: {error} of {largest}");
        }
    }
}

#[test]
fn what_no_block_can_hold_is_named() {
    for kind in [BlockType::F16, BlockType::Q8_0, BlockType::Q4_0, BlockType::Q4_K, BlockType::Q6_K] {
        for bad in [f32::NAN, f32::INFINITY, 1e6] {
            let mut numbers = vec![0.5; 512];
            numbers[300] = bad;
            assert_eq!(quantize(kind, &numbers, &mut Vec::new()), Err(300), "{kind} {bad}");
        }
    }
}
