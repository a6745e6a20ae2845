//! The weighted mean of models: the soup of the paper.

use super::{Weights, same_lengths};

/// Computes the weighted sum of any number of tensors.
///
/// ```text
/// sum = w[0] * ingredients[0][j]
/// sum = fused(w[i] * ingredients[i][j] + sum)      i = 1, 2, ... in this order, in f32; fused: rounded once
/// out[j] = sum / divisor                           of weights that were divided by their sum
/// ```
///
/// This equals, bit for bit, mergekit's `linear`, which uses PyTorch's `addcmul`, with three further guarantees:
///
/// 1. An ingredient of weight 0 is not read: weights `(1, 0)` give the first ingredient bit for bit.
/// 2. If the weights sum to one, an element whose bits agree in all ingredients keeps these bits. (With plain rounding,
///    `0.3 * x + 0.7 * x` need not be `x`.) So the soup of identical models is that model.
/// 3. Halves are exact: with weights `(1/2, 1/2)` the result is the true mean, rounded once.
///
/// Elements are independent of each other. Weights with any other sum give a plain sum, without guarantee 2.
///
/// ```
/// use salsa_algo::soup::{Normalize, Weights, weighted_mean};
/// let weights = Weights::new(&[1.0, 1.0, 2.0], Normalize::Divide).unwrap();
/// let mut out = [0.0; 2];
/// weighted_mean(&[&[4.0, 1.0], &[8.0, 1.0], &[2.0, 1.0]], &weights, &mut out);
/// assert_eq!(out, [4.0, 1.0]);
/// ```
///
/// # Panics
/// If the number of weights differs from the number of ingredients, or lengths differ.
pub fn weighted_mean(ingredients: &[&[f32]], weights: &Weights, out: &mut [f32]) {
    assert_eq!(ingredients.len(), weights.factors().len(), "one weight per ingredient");
    same_lengths(out, ingredients);
    let kept: Vec<(f32, &[f32])> =
        weights.factors().iter().copied().zip(ingredients.iter().copied()).filter(|(w, _)| *w != 0.0).collect();
    let Some(&(first_weight, first)) = kept.first() else {
        out.fill(0.0);
        return;
    };
    for start in (0..out.len()).step_by(CHUNK) {
        let range = start..(start + CHUNK).min(out.len());
        let out = &mut out[range.clone()];
        let first = &first[range.clone()];
        for (o, x) in out.iter_mut().zip(first) {
            *o = first_weight * x;
        }
        for (w, x) in &kept[1..] {
            add_product(*w, x[range.clone()].iter().copied(), out);
        }
        divide(out, weights.divisor());
        if weights.sum_to_one() {
            restore_agreement(first, kept[1..].iter().map(|(_, x)| &x[range.clone()]), out);
        }
    }
}

/// Adds a multiple of some numbers to sums: one step of [`weighted_mean`].
///
/// ```text
/// sums[j] = fused(weight * numbers[j] + sums[j])
/// ```
///
/// If one of the two is longer, its end is ignored.
///
/// ```
/// let mut sums = [1.0, 2.0];
/// salsa_algo::soup::add_product(0.1, [10.0, 20.0].into_iter(), &mut sums);
/// assert_eq!(sums, [2.0, 4.0]);
/// ```
pub fn add_product(weight: f32, numbers: impl Iterator<Item = f32>, sums: &mut [f32]) {
    if multiplies_exactly(weight) {
        for (sum, x) in sums.iter_mut().zip(numbers) {
            *sum += weight * x;
        }
    } else {
        let weight = f64::from(weight);
        for (sum, x) in sums.iter_mut().zip(numbers) {
            *sum = multiply_add(weight, x, *sum);
        }
    }
}

/// Divides sums by the sum of their weights: the last step of [`weighted_mean`].
///
/// ```
/// let mut sums = [3.0, 6.0];
/// salsa_algo::soup::divide(&mut sums, 3.0);
/// assert_eq!(sums, [1.0, 2.0]);
/// ```
pub fn divide(sums: &mut [f32], divisor: f32) {
    if divisor != 1.0 {
        sums.iter_mut().for_each(|sum| *sum /= divisor);
    }
}

/// Whether products with it need no rounding, so that fusing has no effect: a power of two that is not so small that
/// typical numbers of checkpoints would underflow.
fn multiplies_exactly(weight: f32) -> bool {
    (2f32.powi(-16)..=2f32.powi(16)).contains(&weight.abs()) && weight.to_bits().trailing_zeros() >= 23
}

/// `weight * x + sum`, rounded once, in instructions that every CPU has, several at a time.
///
/// The product of two `f32` is exact in `f64`. Its sum with a third is not; rounded to odd instead of nearest, it can be
/// rounded again, to `f32`, with the result of a single rounding (Boldo and Melquiond 2008).
#[inline(always)]
fn multiply_add(weight: f64, x: f32, sum: f32) -> f32 {
    let (product, sum) = (weight * f64::from(x), f64::from(sum));
    let near = product + sum;
    let of_sum = near - product;
    let error = (product - (near - of_sum)) + (sum - of_sum);
    let bits = near.to_bits();
    // Written so that NaN counts as exact.
    let inexact = u64::from(error.abs() > 0.0);
    let too_long = ((error.to_bits() ^ bits) >> 63) & inexact;
    f64::from_bits((bits - too_long) | inexact) as f32
}

/// Computes a point on the line through two models.
///
/// ```text
/// out[j] = (1 - t) * a[j] + t * b[j]
/// ```
///
/// `t` is SALSA's `alpha`: 0 gives `a` and 1 gives `b`, bit for bit; `t` outside `[0, 1]` extrapolates. Same arithmetic
/// and guarantees as [`weighted_mean`].
///
/// ```
/// let mut out = [0.0; 2];
/// salsa_algo::soup::lerp(&[0.0, 8.0], &[4.0, 8.0], 0.25, &mut out);
/// assert_eq!(out, [1.0, 8.0]);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn lerp(a: &[f32], b: &[f32], t: f64, out: &mut [f32]) {
    weighted_mean(&[a, b], &Weights::between(t), out);
}

/// Moves a model a part of the way towards another: [`lerp`] in place.
///
/// ```text
/// model[j] <- (1 - t) * model[j] + t * target[j]
/// ```
///
/// With a small `t` at every step this is an exponential moving average (WARP's anchor: `t = .01`); with `t = 1` a copy.
///
/// ```
/// let mut anchor = [1.0, 1.0];
/// salsa_algo::soup::lerp_in_place(&mut anchor, &[3.0, 1.0], 0.5);
/// assert_eq!(anchor, [2.0, 1.0]);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn lerp_in_place(model: &mut [f32], target: &[f32], t: f64) {
    let mut before = [0.0; CHUNK];
    assert_eq!(model.len(), target.len(), "the model and its target differ in length");
    for (model, target) in model.chunks_mut(CHUNK).zip(target.chunks(CHUNK)) {
        let before = &mut before[..model.len()];
        before.copy_from_slice(model);
        lerp(before, target, t, model);
    }
}

/// Elements processed at a time, so that they stay in the nearest cache for any number of ingredients.
const CHUNK: usize = 2048;

/// Sets `out[j]` to `first[j]` if all the others have the same bits.
fn restore_agreement<'a>(first: &[f32], others: impl Iterator<Item = &'a [f32]>, out: &mut [f32]) {
    let mut differs = [0u32; CHUNK];
    let differs = &mut differs[..first.len()];
    for other in others {
        for ((d, x), y) in differs.iter_mut().zip(first).zip(other) {
            *d |= x.to_bits() ^ y.to_bits();
        }
    }
    for ((o, x), d) in out.iter_mut().zip(first).zip(differs.iter()) {
        *o = if *d == 0 { *x } else { *o };
    }
}

#[cfg(test)]
mod tests {
    use super::super::Normalize;
    use super::*;
    use crate::random::{bits, uniform};

    /// More than two chunks and not a multiple of one.
    const N: usize = 2 * CHUNK + 77;

    fn tensor(stream: u64) -> Vec<f32> {
        (0..N as u64).map(|i| (uniform(1, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    fn soup(ingredients: &[&[f32]], weights: &[f64], normalize: Normalize) -> Vec<f32> {
        let mut out = vec![f32::NAN; ingredients[0].len()];
        weighted_mean(ingredients, &Weights::new(weights, normalize).expect("fine"), &mut out);
        out
    }

    fn to_bits(x: &[f32]) -> Vec<u32> {
        x.iter().map(|x| x.to_bits()).collect()
    }

    /// Arbitrary finite bit patterns: subnormals, signed zeros, the largest numbers.
    fn wild(stream: u64) -> Vec<f32> {
        let number = |i: u64| f32::from_bits(bits(2, stream, i) as u32);
        let mut x: Vec<f32> = (0..N as u64).map(|i| if number(i).is_finite() { number(i) } else { -0.0 }).collect();
        x[..4].copy_from_slice(&[0.0, -0.0, f32::MAX, f32::MIN_POSITIVE / 2.0]);
        x
    }

    #[test]
    fn weight_one_gives_the_ingredient_bit_for_bit_whatever_the_others() {
        let (a, b, c) = (wild(0), wild(1), wild(2));
        let all: [&[f32]; 3] = [&a, &b, &c];
        for normalize in [Normalize::Divide, Normalize::Keep] {
            for (i, expected) in all.iter().enumerate() {
                let mut weights = [0.0; 3];
                weights[i] = 1.0;
                assert_eq!(to_bits(&soup(&all, &weights, normalize)), to_bits(expected));
            }
        }
        let mut out = vec![0.0; N];
        lerp(&a, &b, 0.0, &mut out);
        assert_eq!(to_bits(&out), to_bits(&a));
        lerp(&a, &b, 1.0, &mut out);
        assert_eq!(to_bits(&out), to_bits(&b));
    }

    #[test]
    fn identical_ingredients_come_back_bit_for_bit() {
        let a = wild(3);
        for weights in [&[0.3, 0.7][..], &[1.0, 1.0, 1.0][..], &[0.1, 0.2, 0.3, 0.4][..], &[1.5, -0.5][..]] {
            let same = vec![&a[..]; weights.len()];
            assert_eq!(to_bits(&soup(&same, weights, Normalize::Divide)), to_bits(&a), "{weights:?}");
        }
    }

    #[test]
    fn where_all_but_one_agree_the_plain_sum_stands() {
        let x = 0.1f32;
        let y = f32::from_bits(x.to_bits() + 1);
        let fifth = 0.2f32;
        let sum = |ingredients: [f32; 3]| {
            let [a, b, c] = ingredients;
            0.6f32.mul_add(c, fifth.mul_add(b, fifth * a))
        };
        for ingredients in [[x, x, y], [x, y, x], [y, x, x]] {
            let [a, b, c] = ingredients;
            let out = soup(&[&[a], &[b], &[c]], &[0.2, 0.2, 0.6], Normalize::Keep);
            assert_eq!(out[0], sum(ingredients));
        }
    }

    #[test]
    fn halves_are_the_rounded_true_mean() {
        let (a, b) = (tensor(4), tensor(5));
        let expected: Vec<f32> =
            a.iter().zip(&b).map(|(a, b)| ((f64::from(*a) + f64::from(*b)) / 2.0) as f32).collect();
        assert_eq!(soup(&[&a, &b], &[0.5, 0.5], Normalize::Divide), expected);
    }

    #[test]
    fn products_are_fused_in_ingredient_order_and_the_sum_is_divided_last() {
        let (a, b, c) = (tensor(6), tensor(7), tensor(8));
        let sum = |j: usize, w: [f32; 3]| w[2].mul_add(c[j], w[1].mul_add(b[j], w[0] * a[j]));
        let expected: Vec<f32> = (0..N).map(|j| sum(j, [0.2, 0.3, 0.5])).collect();
        assert!(soup(&[&a, &b, &c], &[0.2, 0.3, 0.5], Normalize::Divide) == expected);
        let expected: Vec<f32> = (0..N).map(|j| sum(j, [0.3, 0.7, 0.2]) / (0.3f32 + 0.7f32 + 0.2f32)).collect();
        assert!(soup(&[&a, &b, &c], &[0.3, 0.7, 0.2], Normalize::Divide) == expected);
        let expected: Vec<f32> = (0..N).map(|j| (a[j] + b[j] + c[j]) / 3.0).collect();
        assert!(soup(&[&a, &b, &c], &[1.0; 3], Normalize::Divide) == expected);
    }

    /// Compared with the CPU's (or the C library's) `fma`.
    #[test]
    fn multiply_add_rounds_once() {
        let near_ties = |x: f32, y: f32| (x.to_bits() & 0xfff8_0000, y.to_bits() & 0xf000_0fff);
        let mut ties = 0;
        for (stream, weight) in [0.7f32, 1.0 / 3.0, -1.3, 1e30, 1e-30, f32::MAX].into_iter().enumerate() {
            for (x, y) in wild(20 + stream as u64).into_iter().zip(wild(30 + stream as u64)) {
                let (short, other) = near_ties(x, y);
                for (x, y) in [(x, y), (f32::from_bits(short), f32::from_bits(other)), (x, -weight * x), (x, x)] {
                    let expected = weight.mul_add(x, y);
                    assert_eq!(multiply_add(f64::from(weight), x, y).to_bits(), expected.to_bits(), "{weight} {x} {y}");
                    ties += u32::from((f64::from(weight) * f64::from(x) + f64::from(y)) as f32 != expected);
                }
            }
        }
        assert!(ties > 0, "no case in which rounding twice differs");
        assert!(multiply_add(0.5, f32::NAN, 1.0).is_nan());
        assert_eq!(multiply_add(0.5, f32::INFINITY, 1.0), f32::INFINITY);
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let (a, b) = (tensor(9), tensor(10));
        let whole = soup(&[&a, &b], &[0.3, 0.7], Normalize::Divide);
        let pieces: Vec<f32> = a
            .chunks(1000)
            .zip(b.chunks(1000))
            .flat_map(|(a, b)| soup(&[a, b], &[0.3, 0.7], Normalize::Divide))
            .collect();
        assert_eq!(whole, pieces);
    }

    #[test]
    fn weights_that_are_no_mean_give_the_plain_sum() {
        assert_eq!(soup(&[&[2.0, 1.0], &[2.0, 3.0]], &[1.0, 1.0], Normalize::Keep), [4.0, 4.0]);
        assert_eq!(soup(&[&[2.0, 1.0], &[2.0, 3.0]], &[0.0, 0.0], Normalize::Keep), [0.0, 0.0]);
        assert_eq!(soup(&[&[2.0], &[4.0]], &[-1.0, 0.0], Normalize::Keep), [-2.0]);
    }

    #[test]
    fn lerp_extrapolates_and_in_place_is_the_same() {
        let (a, b) = (tensor(11), tensor(12));
        let mut out = [0.0; 1];
        lerp(&[1.0], &[3.0], 1.5, &mut out);
        assert_eq!(out, [4.0]);
        for t in [0.0, 0.01, 0.6, 1.0, -0.5] {
            let mut expected = vec![0.0; N];
            lerp(&a, &b, t, &mut expected);
            let mut model = a.clone();
            lerp_in_place(&mut model, &b, t);
            assert_eq!(model, expected);
        }
    }

    #[test]
    #[should_panic(expected = "one weight per ingredient")]
    fn one_weight_per_ingredient() {
        soup(&[&[1.0]], &[0.5, 0.5], Normalize::Divide);
    }

    #[test]
    #[should_panic(expected = "tensor 1 and the output differ in length")]
    fn lengths_must_agree() {
        soup(&[&[1.0], &[1.0, 2.0]], &[0.5, 0.5], Normalize::Divide);
    }
}
