//! K-quants: blocks of 256 numbers in groups of 16 or 32 with scales of their own, which are found by search.
//!
//! The search is llama.cpp's without an importance matrix, and every sum has its order, so that the bytes are the same.

use super::dequantize::scale_and_min;
use super::quantize::push_half;

/// Blocks whose scales are all smaller are zeros.
const ZERO: f32 = 1e-15;

/// Rounded to the nearest whole number, ties to even.
fn nearest(x: f32) -> i32 {
    x.round_ties_even() as i32
}

/// A range of values, and the factors of the first scale that are tried.
struct Search {
    largest: i32,
    first: f32,
    step: f32,
    steps: i32,
}

/// Scale and minimum (with the sign turned) of `scale q - min`.
struct Fit {
    scale: f32,
    min: f32,
    quants: [u8; 32],
}

/// The scale and the minimum, not above zero, with the least weighted squared error of those tried.
fn fit(x: &[f32], weights: &[f32], search: &Search) -> Fit {
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        (min, max) = (min.min(*x), max.max(*x));
        sum_w += w;
        sum_x += w * x;
    }
    min = min.min(0.0);
    if max == min {
        return Fit { scale: 0.0, min: -min, quants: [0; 32] };
    }
    let quants = |inverse: f32, min: f32| {
        let mut quants = [0; 32];
        quants.iter_mut().zip(x).for_each(|(q, x)| *q = nearest(inverse * (x - min)).clamp(0, search.largest) as u8);
        quants
    };
    let error = |quants: &[u8; 32], scale: f32, min: f32| {
        let mut sum = 0f32;
        for ((q, x), w) in quants.iter().zip(x).zip(weights) {
            let diff = scale * f32::from(*q) + min - x;
            sum += w * (diff * diff);
        }
        sum
    };
    let largest = search.largest as f32;
    let inverse = largest / (max - min);
    let mut best = Fit { scale: 1.0 / inverse, min, quants: quants(inverse, min) };
    let mut least = error(&best.quants, best.scale, best.min);
    for step in 0..=search.steps {
        // The next try starts from the best minimum so far.
        let inverse = (search.first + search.step * step as f32 + largest) / (max - best.min);
        let tried = quants(inverse, best.min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((q, x), w) in tried.iter().zip(x).zip(weights) {
            let l = f32::from(*q);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if min > 0.0 {
                (scale, min) = (sum_xl / sum_l2, 0.0);
            }
            let error = error(&tried, scale, min);
            if error < least {
                (best, least) = (Fit { scale, min, quants: tried }, error);
            }
        }
    }
    Fit { min: -best.min, ..best }
}

/// Four bits per number, scales and minima of 32 numbers of six bits.
pub(super) fn q4_k(block: &[f32], out: &mut Vec<u8>) {
    let quants = with_minima(block, out, &Search { largest: 15, first: -1.0, step: 0.1, steps: 20 });
    push_nibbles(&quants, out);
}

/// Five bits per number; the fifth bits stand first, those of numbers `32 j + i` in bit `j` of byte `i`.
pub(super) fn q5_k(block: &[f32], out: &mut Vec<u8>) {
    let quants = with_minima(block, out, &Search { largest: 31, first: -0.5, step: 0.1, steps: 15 });
    out.extend((0..32).map(|i| (0..8).fold(0, |bits, j| bits | (quants[32 * j + i] >> 4) << j)));
    push_nibbles(&quants, out);
}

/// The lower four bits: of 64 numbers, the first 32 in the low halves of bytes.
fn push_nibbles(quants: &[u8; 256], out: &mut Vec<u8>) {
    for quants in quants.chunks_exact(64) {
        out.extend((0..32).map(|i| quants[i] & 15 | (quants[i + 32] & 15) << 4));
    }
}

/// Appends `d`, `dmin` and the packed scales and minima; returns the numbers rounded to them.
fn with_minima(block: &[f32], out: &mut Vec<u8>, search: &Search) -> [u8; 256] {
    let mut fits = Vec::with_capacity(8);
    for x in block.chunks_exact(32) {
        let mut squares = 0f32;
        x.iter().for_each(|x| squares += x * x);
        let mean = (squares / 32.0).sqrt();
        let weights: Vec<f32> = x.iter().map(|x| mean + x.abs()).collect();
        fits.push(fit(x, &weights, search));
    }
    let most = |of: fn(&Fit) -> f32| fits.iter().map(of).fold(0f32, f32::max);
    let (max_scale, max_min) = (most(|fit| fit.scale), most(|fit| fit.min));
    let six_bits = |max: f32, x: f32| nearest(if max > 0.0 { 63.0 / max } else { 0.0 } * x).min(63) as u8;
    let mut packed = [0u8; 12];
    for (j, fit) in fits.iter().enumerate() {
        let (scale, min) = (six_bits(max_scale, fit.scale), six_bits(max_min, fit.min));
        match j {
            0..4 => (packed[j], packed[j + 4]) = (scale, min),
            _ => {
                packed[j + 4] = scale & 15 | (min & 15) << 4;
                packed[j - 4] |= scale >> 4 << 6;
                packed[j] |= min >> 4 << 6;
            }
        }
    }
    let (d, dmin) = (push_half(max_scale / 63.0, out), push_half(max_min / 63.0, out));
    out.extend(packed);
    let mut quants = [0; 256];
    for (j, fit) in fits.iter().enumerate() {
        let (scale, min) = scale_and_min(&packed, j);
        let (d, m) = (d * f32::from(scale), dmin * f32::from(min));
        for i in 0..32 {
            let x = block[32 * j + i];
            quants[32 * j + i] = match d {
                0.0 => fit.quants[i],
                _ => nearest((x + m) / d).clamp(0, search.largest) as u8,
            };
        }
    }
    quants
}

/// The scale of 16 numbers of six bits, -32 to 31, with the least squared error weighted by squares, and the numbers.
fn symmetric(x: &[f32]) -> (f32, [u8; 16]) {
    const MOST: i32 = 32;
    let extreme = x.iter().fold(0f32, |most, x| if x.abs() > most.abs() { *x } else { most });
    if extreme.abs() < ZERO {
        return (0.0, [0; 16]);
    }
    let rounded = |inverse: f32| {
        let mut quants = [0; 16];
        quants.iter_mut().zip(x).for_each(|(q, x)| *q = nearest(inverse * x).clamp(-MOST, MOST - 1));
        let (mut sum_xl, mut sum_l2) = (0f32, 0f32);
        for (q, x) in quants.iter().zip(x) {
            let (w, l) = (x * x, *q as f32);
            sum_xl += w * x * l;
            sum_l2 += w * l * l;
        }
        (quants, sum_xl, sum_l2)
    };
    let (mut quants, sum_xl, sum_l2) = rounded(-(MOST as f32) / extreme);
    let mut scale = if sum_l2 == 0.0 { 0.0 } else { sum_xl / sum_l2 };
    let mut best = scale * sum_xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let (tried, sum_xl, sum_l2) = rounded(-(MOST as f32 + 0.1 * step as f32) / extreme);
        if sum_l2 > 0.0 && sum_xl * sum_xl > best * sum_l2 {
            (quants, scale) = (tried, sum_xl / sum_l2);
            best = scale * sum_xl;
        }
    }
    (scale, quants.map(|q| (q + MOST) as u8))
}

/// Six bits per number, signed scales of 16 numbers of eight bits.
pub(super) fn q6_k(block: &[f32], out: &mut Vec<u8>) {
    let fits: Vec<(f32, [u8; 16])> = block.chunks_exact(16).map(symmetric).collect();
    let extreme = fits.iter().fold(0f32, |most, fit| if fit.0.abs() > most.abs() { fit.0 } else { most });
    if extreme.abs() < ZERO {
        return out.extend([0; 210]);
    }
    let inverse = -128.0 / extreme;
    let d = half::f16::from_f32(1.0 / inverse);
    let scales: Vec<i8> = fits.iter().map(|fit| nearest(inverse * fit.0).min(127) as i8).collect();
    let mut quants = [0u8; 256];
    for (i, quant) in quants.iter_mut().enumerate() {
        let scale = d.to_f32() * f32::from(scales[i / 16]);
        *quant = match scale {
            0.0 => fits[i / 16].1[i % 16],
            _ => (nearest(block[i] / scale).clamp(-32, 31) + 32) as u8,
        };
    }
    for quants in quants.chunks_exact(128) {
        out.extend((0..64).map(|i| quants[i] & 15 | (quants[i + 64] & 15) << 4));
    }
    for quants in quants.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |bits, j| bits | (quants[32 * j + i] >> 4) << (2 * j))));
    }
    out.extend(scales.iter().map(|scale| *scale as u8));
    out.extend(d.to_le_bytes());
}
