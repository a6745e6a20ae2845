//! Model Stock: estimates from angles how far the mean of few models is from the centre of all.

use super::gram::Gram;
use super::vectors::Angles;
use super::{Vectors, same_lengths};

/// Smaller products of norms are replaced by this: their angle is noise.
const SMALLEST_PRODUCT: f64 = 1e-6;

/// Below this the denominator counts as zero.
const SINGULAR: f64 = 1e-6;

/// Computes the ratio by which Model Stock moves from the base to the mean of `n` models.
///
/// ```text
/// cosine = mean over pairs i < j of (d[i] . d[j]) / (|d[i]| |d[j]|)          d[i] = ingredient[i] - base
/// ratio  = n cosine / (1 + (n - 1) cosine)                                   0 where the denominator is 0
/// ```
///
/// Task vectors at right angles (ratio 0) share only noise; parallel ones (ratio 1) have none. A product of two lengths
/// below 1e-6 counts as 1e-6, and a denominator below 1e-6 as 0. Source: Jang et al. 2024 (2403.19522), equation 5 for
/// two models and its appendix for `n`; the two thresholds are mergekit's.
///
/// ```
/// use salsa_algo::soup::{Gram, stock_ratio};
/// let mut gram = Gram::new(2);
/// gram.add(&[0.0, 0.0], &[&[3.0, 4.0], &[0.0, 1.0]]); // cosine 0.8
/// assert!((stock_ratio(&gram) - 2.0 * 0.8 / 1.8).abs() < 1e-12);
/// ```
///
/// # Panics
/// If there are fewer than two ingredients.
pub fn stock_ratio(gram: &Gram) -> f64 {
    let count = gram.count();
    assert!(count >= 2, "an angle needs two ingredients");
    let (mut sum, mut pairs) = (0.0, 0.0);
    for i in 0..count {
        for j in i + 1..count {
            let lengths = (gram.norm(i) * gram.norm(j)).max(SMALLEST_PRODUCT);
            sum += (gram.product(i, j) / lengths).clamp(-1.0, 1.0);
            pairs += 1.0;
        }
    }
    let (cosine, count) = (sum / pairs, count as f64);
    let denominator = 1.0 + (count - 1.0) * cosine;
    if denominator.abs() < SINGULAR { 0.0 } else { count * cosine / denominator }
}

/// Merges one tensor of each ingredient by Model Stock.
///
/// ```text
/// out[j] = ratio * mean_i(ingredient[i][j]) + (1 - ratio) * base[j]          ratio: stock_ratio
/// ```
///
/// Pass whole tensors, or use [`StockStream`], which also supports a ratio per row.
///
/// ```
/// // Task vectors (1, 1) and (1, 0): cosine sqrt(1/2), ratio 2 * 0.7071 / 1.7071 = 0.8284; their mean is (1, 0.5).
/// let mut out = [0.0; 2];
/// salsa_algo::soup::model_stock(&[1.0, 1.0], &[&[2.0, 2.0], &[2.0, 1.0]], &mut out);
/// assert!((out[0] - 1.8284).abs() < 1e-4 && (out[1] - 1.4142).abs() < 1e-4);
/// ```
///
/// # Panics
/// If there are fewer than two ingredients, or lengths differ.
pub fn model_stock(base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
    let mut stream = StockStream::new(Vectors::Whole, ingredients.len());
    stream.look(base, ingredients);
    stream.looked();
    stream.apply(base, ingredients, out);
}

/// [`model_stock`] of tensors that are never in memory as a whole.
///
/// ```text
/// new → look at all pieces, in order → looked → apply to all pieces, in order
/// ```
///
/// With [`Vectors::Rows`] each row has its own ratio (mergekit's `filter_wise`). The result does not depend on how
/// tensors are split. Memory holds one number for each row.
///
/// ```
/// use salsa_algo::soup::{StockStream, Vectors};
/// // First rows parallel (ratio 1: their mean), second rows at a right angle (ratio 0: the base).
/// let (base, a, b) = ([0.0; 4], [1.0, 0.0, 1.0, 0.0], [3.0, 0.0, 0.0, 1.0]);
/// let mut stream = StockStream::new(Vectors::Rows(2), 2);
/// stream.look(&base, &[&a, &b]);
/// stream.looked();
/// let mut out = [9.0; 4];
/// stream.apply(&base, &[&a, &b], &mut out);
/// assert_eq!(out, [2.0, 0.0, 0.0, 0.0]);
/// ```
#[derive(Clone, Debug)]
pub struct StockStream {
    ratios: Angles<f64>,
    at: usize,
}

impl StockStream {
    /// Begins one tensor of this many ingredients.
    ///
    /// # Panics
    /// If there are fewer than two ingredients.
    pub fn new(vectors: Vectors, ingredients: usize) -> StockStream {
        assert!(ingredients >= 2, "an angle needs two ingredients");
        StockStream { ratios: Angles::new(vectors, ingredients), at: 0 }
    }

    /// Adds the next piece to the angles.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn look(&mut self, base: &[f32], ingredients: &[&[f32]]) {
        self.ratios.look(Some(base), ingredients, stock_ratio);
    }

    /// Ends the first pass, after all pieces.
    pub fn looked(&mut self) {
        self.ratios.looked(stock_ratio);
    }

    /// Merges the next piece.
    ///
    /// # Panics
    /// If lengths differ, or `look` did not get all pieces.
    pub fn apply(&mut self, base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
        same_lengths(out, ingredients);
        same_lengths(out, &[base]);
        let count = ingredients.len() as f32;
        let mut from = 0;
        while from < out.len() {
            let (ratio, rest) = self.ratios.of(self.at);
            let to = out.len().min(from.saturating_add(rest));
            let (of_mean, of_base) = (*ratio as f32, (1.0 - ratio) as f32);
            for j in from..to {
                let sum: f32 = ingredients.iter().map(|ingredient| ingredient[j]).sum();
                out[j] = of_mean * (sum / count) + of_base * base[j];
            }
            self.at += to - from;
            from = to;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    fn tensor(stream: u64, len: u64) -> Vec<f32> {
        (0..len).map(|i| (uniform(21, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    fn gram(vectors: &[&[f32]]) -> Gram {
        let mut gram = Gram::new(vectors.len());
        gram.add(&vec![0.0; vectors[0].len()], vectors);
        gram
    }

    #[test]
    fn the_ratio_of_known_angles() {
        assert_eq!(stock_ratio(&gram(&[&[1.0, 0.0], &[0.0, 2.0]])), 0.0);
        assert_eq!(stock_ratio(&gram(&[&[1.0, 0.0], &[3.0, 0.0], &[2.0, 0.0]])), 1.0);
        // Cosines 1, 0 and 0: mean 1/3, ratio 1 / (1 + 2/3).
        assert!((stock_ratio(&gram(&[&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]])) - 0.6).abs() < 1e-12);
        // Opposite: the denominator is 0.
        assert_eq!(stock_ratio(&gram(&[&[1.0], &[-1.0]])), 0.0);
        // Cosine -0.6: ratio -1.2 / 0.4.
        assert!((stock_ratio(&gram(&[&[1.0, 0.0], &[-3.0, 4.0]])) + 3.0).abs() < 1e-12);
        // Nothing was trained.
        assert_eq!(stock_ratio(&gram(&[&[0.0], &[0.0]])), 0.0);
        // Lengths of 1e-4: the product counts as 1e-6, so the cosine as 1e-8 / 1e-6.
        let tiny = stock_ratio(&gram(&[&[1e-4], &[1e-4]]));
        assert!((tiny - 0.02 / 1.01).abs() < 1e-7, "{tiny}");
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let [base, a, b, c] = [0, 1, 2, 3].map(|stream| tensor(stream, 60));
        for vectors in [Vectors::Whole, Vectors::Rows(12)] {
            let cut = |size: usize| {
                let mut stream = StockStream::new(vectors, 3);
                let pieces = || (0..60).step_by(size).map(|from| from..(from + size).min(60));
                pieces().for_each(|r| stream.look(&base[r.clone()], &[&a[r.clone()], &b[r.clone()], &c[r]]));
                stream.looked();
                let mut out = vec![f32::NAN; 60];
                for r in pieces() {
                    let members = [&a[r.clone()], &b[r.clone()], &c[r.clone()]];
                    stream.apply(&base[r.clone()], &members, &mut out[r]);
                }
                out
            };
            for size in [1, 7, 12, 25] {
                assert_eq!(cut(size), cut(60), "{vectors:?} {size}");
            }
        }
        let mut rows = StockStream::new(Vectors::Rows(12), 3);
        rows.look(&base, &[&a, &b, &c]);
        rows.looked();
        let (mut by_rows, mut alone) = ([0.0; 60], [0.0; 12]);
        rows.apply(&base, &[&a, &b, &c], &mut by_rows);
        model_stock(&base[24..36], &[&a[24..36], &b[24..36], &c[24..36]], &mut alone);
        assert_eq!(by_rows[24..36], alone);
    }
}
