//! The Karcher mean: the point of a sphere with the least sum of squared angles to some models.

use super::gram::{Gram, Products};
use super::{Normalize, Weights, same_lengths, weighted_mean};

/// The end condition of the search for a Karcher mean, and the threshold for zero tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KarcherSearch {
    /// Maximum number of steps.
    pub max_iter: usize,
    /// A step shorter than this (in radians) ends the search; a tensor not longer than this counts as zero.
    pub tol: f64,
}

impl Default for KarcherSearch {
    /// mergekit's: 10 steps, 1e-5.
    fn default() -> KarcherSearch {
        KarcherSearch { max_iter: 10, tol: 1e-5 }
    }
}

/// Computes the factors of the ingredients in their Karcher mean from their inner products.
///
/// ```text
/// u[i] = x[i] / |x[i]|                                         of those longer than tol
/// m    = sum_i u[i] / |sum_i u[i]|                             u[0] where that is zero
/// repeat at most max_iter times:
///   angle[i] = acos(m . u[i])
///   v        = mean_i of angle[i] / sin(angle[i]) * (u[i] - (m . u[i]) m)     of angles of tol and more
///   end if |v| < tol
///   m        = cos(|v|) m + sin(|v|) v / |v|
/// out  = m * mean_i |x[i]|                                     the mean length, of all ingredients
/// ```
///
/// Every `m` is a combination of the `u`, so the search works on the factors instead of tensors. An ingredient opposite
/// to `m` (an angle of pi, up to tol) has no direction and is skipped in that step. Source: Karcher 1977; the steps are
/// those of mergekit's `karcher` (2603.04972), in f64.
///
/// ```
/// use salsa_algo::soup::{Gram, KarcherSearch, karcher_factors};
/// let mut gram = Gram::new(2);
/// gram.add(&[0.0, 0.0], &[&[3.0, 0.0], &[0.0, 1.0]]); // the diagonal (1, 1) / sqrt(2), of length 2
/// let factors = karcher_factors(&gram, KarcherSearch::default());
/// assert!((factors[0] * 3.0 - 2f64.sqrt()).abs() < 1e-12 && (factors[1] - 2f64.sqrt()).abs() < 1e-12);
/// ```
pub fn karcher_factors(gram: &Gram, search: KarcherSearch) -> Vec<f64> {
    let count = gram.count();
    if count == 1 {
        return vec![1.0];
    }
    let valid: Vec<usize> = (0..count).filter(|&i| gram.norm(i) > search.tol).collect();
    let mut factors = vec![0.0; count];
    if valid.is_empty() {
        return factors;
    }
    let directions = Directions::new(gram, &valid);
    let mean = directions.mean(search);
    let length = (0..count).map(|i| gram.norm(i)).sum::<f64>() / count as f64;
    for (&i, factor) in valid.iter().zip(mean) {
        factors[i] = length * factor / gram.norm(i);
    }
    factors
}

/// Unit vectors, represented by their cosines.
struct Directions {
    cosines: Vec<Vec<f64>>,
}

impl Directions {
    fn new(gram: &Gram, which: &[usize]) -> Directions {
        let cosine = |i: usize, j: usize| {
            let cosine = (gram.product(i, j) / (gram.norm(i) * gram.norm(j))).clamp(-1.0, 1.0);
            if i == j { 1.0 } else { cosine }
        };
        Directions { cosines: which.iter().map(|&i| which.iter().map(|&j| cosine(i, j)).collect()).collect() }
    }

    /// `u[i] . sum_k factors[k] u[k]`
    fn product(&self, i: usize, factors: &[f64]) -> f64 {
        self.cosines[i].iter().zip(factors).map(|(cosine, factor)| cosine * factor).sum()
    }

    fn length(&self, factors: &[f64]) -> f64 {
        let square: f64 = factors.iter().enumerate().map(|(i, factor)| factor * self.product(i, factors)).sum();
        square.max(0.0).sqrt()
    }

    /// The factors of the mean, which has length 1.
    fn mean(&self, KarcherSearch { max_iter, tol }: KarcherSearch) -> Vec<f64> {
        let count = self.cosines.len();
        let alpha = 1.0 / count as f64;
        let mut mean = vec![alpha; count];
        match self.length(&mean) {
            length if length < tol => {
                mean.fill(0.0);
                mean[0] = 1.0;
            }
            length => mean.iter_mut().for_each(|factor| *factor /= length),
        }
        for _ in 0..max_iter {
            let tangent = self.tangent(&mean, alpha, tol);
            let step = self.length(&tangent);
            if step < tol {
                break;
            }
            for (mean, tangent) in mean.iter_mut().zip(&tangent) {
                *mean = step.cos() * *mean + step.sin() / step * tangent;
            }
            let length = self.length(&mean);
            if length > tol {
                mean.iter_mut().for_each(|factor| *factor /= length);
            }
        }
        mean
    }

    /// The factors of the mean direction to all ingredients, in the tangent plane at `mean`.
    fn tangent(&self, mean: &[f64], alpha: f64, tol: f64) -> Vec<f64> {
        let mut tangent = vec![0.0; mean.len()];
        for i in 0..mean.len() {
            let cosine = self.product(i, mean).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tol || angle > std::f64::consts::PI - tol {
                continue;
            }
            let factor = alpha * angle / angle.sin();
            tangent[i] += factor;
            tangent.iter_mut().zip(mean).for_each(|(tangent, mean)| *tangent -= factor * cosine * mean);
        }
        tangent
    }
}

/// Computes the Karcher mean of one tensor of each ingredient; the formula is at [`karcher_factors`].
///
/// Pass whole tensors, or use [`KarcherStream`]. Identical ingredients give exactly that ingredient.
///
/// ```
/// use salsa_algo::soup::{KarcherSearch, karcher};
/// let mut out = [0.0; 2];
/// karcher(&[&[1.0, 0.0], &[0.0, 1.0]], KarcherSearch::default(), &mut out);
/// assert!((out[0] - 0.5f32.sqrt()).abs() < 1e-7 && (out[1] - 0.5f32.sqrt()).abs() < 1e-7);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn karcher(ingredients: &[&[f32]], search: KarcherSearch, out: &mut [f32]) {
    let mut stream = KarcherStream::new(ingredients.len(), search);
    stream.look(ingredients);
    stream.looked();
    stream.apply(ingredients, out);
}

/// [`karcher`] of tensors that are never in memory as a whole.
///
/// ```text
/// new → look at all pieces, in order → looked → apply to all pieces, in any order
/// ```
///
/// The result does not depend on how tensors are split. Memory holds the inner products of the ingredients.
///
/// ```
/// use salsa_algo::soup::{KarcherSearch, KarcherStream};
/// let mut stream = KarcherStream::new(2, KarcherSearch::default());
/// stream.look(&[&[2.0], &[2.0]]);
/// stream.looked();
/// let mut out = [0.0; 1];
/// stream.apply(&[&[2.0], &[2.0]], &mut out);
/// assert_eq!(out, [2.0]);
/// ```
#[derive(Clone, Debug)]
pub struct KarcherStream {
    search: KarcherSearch,
    products: Products,
    weights: Option<Weights>,
}

impl KarcherStream {
    /// Starts on one tensor of this many ingredients.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(ingredients: usize, search: KarcherSearch) -> KarcherStream {
        assert!(ingredients > 0, "a mean needs an ingredient");
        KarcherStream { search, products: Products::new(ingredients), weights: None }
    }

    /// Adds the next piece to the angles.
    ///
    /// # Panics
    /// If lengths differ.
    pub fn look(&mut self, ingredients: &[&[f32]]) {
        self.products.add(None, ingredients);
    }

    /// Ends the first pass, after all pieces.
    ///
    /// # Panics
    /// If a number passed to `look` is not finite.
    pub fn looked(&mut self) {
        let factors = karcher_factors(&self.products.gram(), self.search);
        self.weights = Some(Weights::new(&factors, Normalize::Keep).expect("finite numbers have finite factors"));
    }

    /// Computes one piece of the result.
    ///
    /// # Panics
    /// If lengths differ, or `look` did not get all pieces.
    pub fn apply(&self, ingredients: &[&[f32]], out: &mut [f32]) {
        same_lengths(out, ingredients);
        let weights = self.weights.as_ref().expect("all pieces were looked at before the first is merged");
        weighted_mean(ingredients, weights, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;

    fn mean(ingredients: &[&[f32]]) -> Vec<f32> {
        let mut out = vec![f32::NAN; ingredients[0].len()];
        karcher(ingredients, KarcherSearch::default(), &mut out);
        out
    }

    fn tensor(stream: u64) -> Vec<f32> {
        (0..61).map(|i| (uniform(23, stream, i) * 2.0 - 1.0) as f32).collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
    }

    #[test]
    fn of_two_it_is_the_middle_of_the_arc_with_the_mean_length() {
        // 0 and 60 degrees, lengths 1 and 3: 30 degrees, length 2.
        let b = [1.5, 3.0 * 3f32.sqrt() / 2.0];
        let out = mean(&[&[1.0, 0.0], &b]);
        assert!((out[0] - 3f32.sqrt()).abs() < 1e-6 && (out[1] - 1.0).abs() < 1e-6, "{out:?}");
    }

    /// On a circle the mean is that of the angles: 0, 0 and 90 degrees give 30; the mean of the vectors is at 26.6.
    #[test]
    fn of_three_on_a_circle_it_is_the_mean_angle() {
        let out = mean(&[&[1.0, 0.0], &[1.0, 0.0], &[0.0, 1.0]]);
        assert!((out[1].atan2(out[0]).to_degrees() - 30.0).abs() < 1e-3, "{out:?}");
        assert!((out[0].hypot(out[1]) - 1.0).abs() < 1e-6);
    }

    /// The defining condition: the tangents to all ingredients cancel.
    #[test]
    fn the_sum_of_squared_angles_is_least() {
        let all = [0, 1, 2, 3].map(tensor);
        let views: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
        let squares = |m: &[f32]| -> f64 {
            views.iter().map(|x| (dot(m, x) / (dot(m, m) * dot(x, x)).sqrt()).acos().powi(2)).sum()
        };
        let best = mean(&views);
        for stream in 10..20 {
            let moved: Vec<f32> = best.iter().zip(tensor(stream)).map(|(m, n)| m + 0.02 * n).collect();
            assert!(squares(&moved) > squares(&best));
        }
        let lengths: f64 = views.iter().map(|x| dot(x, x).sqrt()).sum::<f64>() / 4.0;
        assert!((dot(&best, &best).sqrt() / lengths - 1.0).abs() < 1e-6);
    }

    #[test]
    fn special_tensors_are_defined() {
        let a = tensor(5);
        assert_eq!(mean(&[&a]), a);
        assert_eq!(mean(&[&a, &a, &a]), a);
        assert_eq!(mean(&[&[0.0, 0.0], &[0.0, 0.0]]), [0.0, 0.0]);
        // A zero tensor has no direction and halves the length.
        assert_eq!(mean(&[&[0.0, 0.0], &[0.0, 4.0]]), [0.0, 2.0]);
        // Opposite: the first one's direction.
        assert_eq!(mean(&[&[2.0, 0.0], &[-4.0, 0.0]]), [3.0, 0.0]);
    }

    #[test]
    fn pieces_give_the_same_as_the_whole() {
        let (a, b) = (tensor(6), tensor(7));
        for size in [1, 8, 13] {
            let mut stream = KarcherStream::new(2, KarcherSearch::default());
            a.chunks(size).zip(b.chunks(size)).for_each(|(a, b)| stream.look(&[a, b]));
            stream.looked();
            let mut out = vec![f32::NAN; 61];
            out.chunks_mut(size)
                .zip(a.chunks(size).zip(b.chunks(size)))
                .for_each(|(out, (a, b))| stream.apply(&[a, b], out));
            assert_eq!(out, mean(&[&a, &b]), "{size}");
        }
    }
}
