//! Soups of low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685): the mean of adapters is an adapter.

/// The factors of one adapted matrix `W[out, in] + scale * b a`: `a[rank, in]` and `b[out, rank]`, row by row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LowRank<'a> {
    /// The factor next to the input.
    pub a: &'a [f32],
    /// The factor next to the output.
    pub b: &'a [f32],
    /// Rows of `a` and columns of `b`.
    pub rank: usize,
    /// The factor of the product.
    pub scale: f64,
}

/// Returns the weighted sum of adapters as one adapter of scale 1, whose rank is the sum of theirs:
///
/// ```text
/// sum_i w_i scale_i b_i a_i = [w_1 scale_1 b_1, w_2 scale_2 b_2, ...] [a_1; a_2; ...]
/// ```
///
/// The result is the factors `(a, b)` of a matrix `[out, in]`. Exact up to one rounding of each number of `b`, and none
/// if `w_i scale_i` is a power of two. With weights that sum to 1 it is the adapter of the soup of the merged models.
///
/// ```
/// use salsa_algo::soup::{LowRank, concatenate};
/// // Two adapters of rank 1 of a matrix [1, 2]: 2 * [3][1, 0] and 1 * [4][0, 1].
/// let one = LowRank { a: &[1.0, 0.0], b: &[3.0], rank: 1, scale: 2.0 };
/// let other = LowRank { a: &[0.0, 1.0], b: &[4.0], rank: 1, scale: 1.0 };
/// let (a, b) = concatenate(&[one, other], &[0.5, 0.5], [1, 2]);
/// assert_eq!(a, [1.0, 0.0, 0.0, 1.0]);
/// assert_eq!(b, [3.0, 2.0]);                // b a = [3, 2], the mean of [6, 0] and [0, 4]
/// ```
///
/// # Panics
/// If the number of weights differs from the number of adapters, or a factor has the wrong length.
pub fn concatenate(parts: &[LowRank<'_>], weights: &[f64], [out, input]: [usize; 2]) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(parts.len(), weights.len(), "one weight for each adapter");
    for part in parts {
        assert_eq!(part.a.len(), part.rank * input, "a has one row for each rank");
        assert_eq!(part.b.len(), out * part.rank, "b has one column for each rank");
    }
    let rank: usize = parts.iter().map(|part| part.rank).sum();
    let a = parts.iter().flat_map(|part| part.a).copied().collect();
    let mut b = Vec::with_capacity(out * rank);
    for row in 0..out {
        for (part, weight) in parts.iter().zip(weights) {
            let factor = weight * part.scale;
            let numbers = &part.b[row * part.rank..(row + 1) * part.rank];
            b.extend(numbers.iter().map(|&x| (factor * f64::from(x)) as f32));
        }
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `scale * b a`, in f64.
    fn product(a: &[f32], b: &[f32], rank: usize, scale: f64, [out, input]: [usize; 2]) -> Vec<f64> {
        let at = |i: usize, j: usize| {
            (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * input + j])).sum::<f64>() * scale
        };
        (0..out * input).map(|n| at(n / input, n % input)).collect()
    }

    fn numbers(len: usize, seed: u64) -> Vec<f32> {
        (0..len as u64).map(|i| ((i * 7919 + seed * 104_729) % 1009) as f32 / 1009.0 - 0.5).collect()
    }

    #[test]
    fn it_is_the_weighted_sum_of_the_products() {
        let shape = [5, 7];
        let (a, b) = (numbers(2 * 7, 1), numbers(5 * 2, 2));
        let (c, d) = (numbers(3 * 7, 3), numbers(5 * 3, 4));
        let one = LowRank { a: &a, b: &b, rank: 2, scale: 1.7 };
        let other = LowRank { a: &c, b: &d, rank: 3, scale: 0.4 };
        let (sum_a, sum_b) = concatenate(&[one, other], &[0.3, 0.7], shape);
        let found = product(&sum_a, &sum_b, 5, 1.0, shape);
        let (p, q) = (product(&a, &b, 2, 1.7, shape), product(&c, &d, 3, 0.4, shape));
        for (i, found) in found.iter().enumerate() {
            assert!((found - (0.3 * p[i] + 0.7 * q[i])).abs() < 1e-7);
        }
    }

    #[test]
    fn alone_with_weight_and_scale_1_nothing_changes() {
        let (a, b) = (numbers(6, 1), numbers(4, 2));
        let part = LowRank { a: &a, b: &b, rank: 2, scale: 1.0 };
        assert_eq!(concatenate(&[part], &[1.0], [2, 3]), (a.clone(), b.clone()));
    }
}
