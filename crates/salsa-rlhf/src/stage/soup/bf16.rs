//! The weighted mean of bfloat16 tensors without float32 buffers, which halves the memory traffic.
use salsa_algo::soup::{Weights, add_product, divide};

use crate::checkpoint::round_to_bf16;

/// Chunk size whose float32 sums fit into the L1 cache.
const CHUNK: usize = 1024;

/// Computes the weighted mean of ingredients in float32, then rounded to nearest even; bytes are little-endian
/// bfloat16. Returns whether all results are finite; a non-finite input makes them non-finite.
pub(super) fn weighted_mean(ingredients: &[&[u8]], weights: &Weights, out: &mut [u8]) -> bool {
    let mut sums = [0f32; CHUNK];
    let mut finite = true;
    for start in (0..out.len()).step_by(2 * CHUNK) {
        let end = (start + 2 * CHUNK).min(out.len());
        let out = &mut out[start..end];
        let sums = &mut sums[..out.len() / 2];
        let numbers = |i: usize| ingredients[i][start..end].chunks_exact(2).map(widen);
        for (sum, x) in sums.iter_mut().zip(numbers(0)) {
            *sum = weights.factors()[0] * x;
        }
        for (i, factor) in weights.factors().iter().enumerate().skip(1) {
            add_product(*factor, numbers(i), sums);
        }
        divide(sums, weights.divisor());
        let mut infinite = false;
        for (out, sum) in out.chunks_exact_mut(2).zip(sums.iter()) {
            let rounded = round_to_bf16(*sum);
            infinite |= rounded & 0x7f80 == 0x7f80;
            out.copy_from_slice(&rounded.to_le_bytes());
        }
        finite &= !infinite;
    }
    finite
}

#[inline(always)]
fn widen(bytes: &[u8]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16)
}

/// Whether [`weighted_mean`] equals [`salsa_algo::soup::weighted_mean`] rounded to bfloat16.
///
/// That function keeps an element unchanged if all ingredients agree on it and the weights sum to one. Here that holds
/// automatically if no weight is negative: for `k` weights, the error of float32 sums is below `2 k * 2^-23` of the
/// element, and half a step of bfloat16 is at least `2^-9` of it.
pub(super) fn is_exact(weights: &Weights) -> bool {
    !weights.sum_to_one() || (weights.factors().iter().all(|w| *w >= 0.0) && weights.factors().len() < 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;
    use salsa_algo::{random::bits, soup, soup::Normalize};

    /// Arbitrary finite bit patterns below 2^126; more than two chunks and not a multiple of one.
    fn wild(stream: u64) -> Vec<u8> {
        let number = |i| bits(4, stream, i) as u16;
        let fine = |x: &u16| x & 0x7f80 < 0x7e80;
        (0..9000).map(number).filter(fine).take(2 * CHUNK + 77).flat_map(u16::to_le_bytes).collect()
    }

    #[test]
    fn it_is_the_weighted_mean_rounded_once() {
        let tensors = [wild(0), wild(1), wild(2), wild(0)];
        for (weights, normalize) in [
            (&[0.5, 0.5][..], Normalize::Divide),
            (&[0.3, 0.7], Normalize::Divide),
            (&[1.0, 2.0, 3.0], Normalize::Divide),
            (&[1.0, 1.0, 1.0], Normalize::Divide),
            (&[0.1, 0.2, 0.3, 0.4], Normalize::Divide),
            (&[1.5, -0.25], Normalize::Keep),
            (&[2.0], Normalize::Keep),
        ] {
            let ingredients: Vec<&[u8]> = tensors.iter().take(weights.len()).map(Vec::as_slice).collect();
            agree(&ingredients, &Weights::new(weights, normalize).unwrap());
            agree(&vec![&tensors[0][..]; weights.len()], &Weights::new(weights, normalize).unwrap());
        }
    }

    fn agree(ingredients: &[&[u8]], weights: &Weights) {
        assert!(is_exact(weights));
        let mut out = vec![1; ingredients[0].len()];
        assert!(weighted_mean(ingredients, weights, &mut out));
        let wide: Vec<Vec<f32>> = ingredients
            .iter()
            .map(|bytes| {
                let mut wide = vec![0.0; bytes.len() / 2];
                Dtype::BF16.widen(bytes, &mut wide);
                wide
            })
            .collect();
        let wide: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
        let (mut mean, mut expected) = (vec![0.0; out.len() / 2], Vec::new());
        soup::weighted_mean(&wide, weights, &mut mean);
        Dtype::BF16.encode(&mean, &mut expected).unwrap();
        assert!(out == expected, "{weights:?}");
    }

    #[test]
    fn what_is_not_finite_is_noticed() {
        let one = |bits: u16| bits.to_le_bytes();
        let sum = |a: u16, b: u16, w: [f64; 2]| {
            let weights = Weights::new(&w, Normalize::Keep).unwrap();
            weighted_mean(&[&one(a), &one(b)], &weights, &mut [0; 2])
        };
        assert!(sum(0x3f80, 0x7f7f, [0.5, 0.5]));
        for bad in [0x7f80, 0xff80, 0x7fc0, 0x7fff, 0xffff, 0x7f81] {
            assert!(!sum(0x3f80, bad, [0.5, 0.5]), "{bad:x}");
            assert!(!sum(bad, bad, [0.5, 0.5]), "{bad:x}");
        }
        assert!(!sum(0x7f7f, 0x7f7f, [1.0, 1.0]), "too large");
    }

    #[test]
    fn extrapolation_goes_the_long_way() {
        let weights = |w: &[f64]| Weights::new(w, Normalize::Keep).unwrap();
        assert!(!is_exact(&weights(&[1.5, -0.5])));
        assert!(is_exact(&weights(&[1.5, -0.25])));
    }
}
