//! A search for the weights of a soup by what its ingredients' means are worth: CMA-ES on the simplex.
//!
//! ```text
//! weights   w = 1 / n + B z, projected onto the simplex; B: n - 1 orthonormal directions of sum 0
//! sample    z = m + sigma C^(1/2) x, x standard normal
//! learn     m: the weighted mean of the better half; C and sigma: from the steps of m and of the better half
//! ```
//!
//! A sample outside the simplex is replaced by its projection before it is measured and learned from, so that vertices and
//! faces (ingredients of weight 0) can be reached.
//!
//! Source: Hansen 2016, The CMA evolution strategy: a tutorial (1604.00772), with its default parameters. Random numbers
//! are functions of (seed, sample), so a search is repeated by measuring the same weights again, in any process.
use std::f64::consts::TAU;

use crate::random::uniform;

/// Standard deviation of the first samples, in each direction.
const FIRST_STEP: f64 = 0.3;

/// A search ends when no direction has a larger standard deviation.
const SMALLEST_STEP: f64 = 1e-3;

/// A search. Measure [`Search::samples`], higher is better, then [`Search::learn`].
#[derive(Clone, Debug)]
pub struct Search {
    seed: u64,
    /// Orthonormal directions of sum 0, one per dimension.
    basis: Vec<Vec<f64>>,
    /// Weights of the better half, from best to worst.
    shares: Vec<f64>,
    mean: Vec<f64>,
    sigma: f64,
    covariance: Vec<Vec<f64>>,
    /// Evolution paths of the covariance and of sigma.
    path: Vec<f64>,
    sigma_path: Vec<f64>,
    generation: u64,
}

impl Search {
    /// Starts at the equal mean of `ingredients` models.
    ///
    /// # Panics
    /// If there are fewer than two.
    pub fn new(ingredients: usize, seed: u64) -> Search {
        assert!(ingredients >= 2, "a search needs two ingredients");
        let dims = ingredients - 1;
        let parents = population(dims) / 2;
        let raw: Vec<f64> = (0..parents).map(|i| (parents as f64 + 0.5).ln() - (i as f64 + 1.0).ln()).collect();
        let sum: f64 = raw.iter().sum();
        let identity = |i: usize| (0..dims).map(|j| f64::from(u8::from(i == j))).collect();
        Search {
            seed,
            basis: (1..=dims).map(|i| direction(i, ingredients)).collect(),
            shares: raw.iter().map(|share| share / sum).collect(),
            mean: vec![0.0; dims],
            sigma: FIRST_STEP,
            covariance: (0..dims).map(identity).collect(),
            path: vec![0.0; dims],
            sigma_path: vec![0.0; dims],
            generation: 0,
        }
    }

    /// The weights to measure next; none if the search has ended.
    pub fn samples(&self) -> Vec<Vec<f64>> {
        let (values, vectors) = eigen(&self.covariance);
        let widest = values.iter().fold(0.0f64, |widest, value| widest.max(value.max(0.0).sqrt()));
        if self.sigma * widest < SMALLEST_STEP {
            return Vec::new();
        }
        let dims = self.mean.len();
        let sample = |at: usize| {
            let stretched: Vec<f64> = (0..dims).map(|i| values[i].max(0.0).sqrt() * self.normal(at, i)).collect();
            let step = |i: usize| (0..dims).map(|j| vectors[j][i] * stretched[j]).sum::<f64>();
            let place: Vec<f64> = (0..dims).map(|i| self.mean[i] + self.sigma * step(i)).collect();
            project(&self.weights_at(&place))
        };
        (0..population(dims)).map(sample).collect()
    }

    /// Learns from the qualities of [`Search::samples`], in their order.
    ///
    /// # Panics
    /// If there is another number of them, or one is NaN.
    pub fn learn(&mut self, qualities: &[f64]) {
        let samples = self.samples();
        assert_eq!(samples.len(), qualities.len(), "one quality per sample");
        assert!(qualities.iter().all(|quality| !quality.is_nan()), "a quality is a number");
        let mut order: Vec<usize> = (0..samples.len()).collect();
        // Stable: in a tie, the earlier sample.
        order.sort_by(|a, b| qualities[*b].total_cmp(&qualities[*a]));
        let (dims, n) = (self.mean.len(), self.mean.len() as f64);
        let steps: Vec<Vec<f64>> = order[..self.shares.len()]
            .iter()
            .map(|&at| {
                let place = self.place_of(&samples[at]);
                place.iter().zip(&self.mean).map(|(z, mean)| (z - mean) / self.sigma).collect()
            })
            .collect();
        let mean_step: Vec<f64> =
            (0..dims).map(|i| self.shares.iter().zip(&steps).map(|(share, step)| share * step[i]).sum()).collect();

        let effective = 1.0 / self.shares.iter().map(|share| share * share).sum::<f64>();
        let c_path = (4.0 + effective / n) / (n + 4.0 + 2.0 * effective / n);
        let c_sigma = (effective + 2.0) / (n + effective + 5.0);
        let c_one = 2.0 / ((n + 1.3).powi(2) + effective);
        let c_many =
            (2.0 * (effective - 2.0 + 1.0 / effective) / ((n + 2.0).powi(2) + effective)).clamp(0.0, 1.0 - c_one);
        let damping = 1.0 + 2.0 * (((effective - 1.0) / (n + 1.0)).sqrt() - 1.0).max(0.0) + c_sigma;
        let expected = n.sqrt() * (1.0 - 1.0 / (4.0 * n) + 1.0 / (21.0 * n * n));

        let (values, vectors) = eigen(&self.covariance);
        let whitened = whiten(&values, &vectors, &mean_step);
        let fresh = (c_sigma * (2.0 - c_sigma) * effective).sqrt();
        for (path, step) in self.sigma_path.iter_mut().zip(&whitened) {
            *path = (1.0 - c_sigma) * *path + fresh * step;
        }
        self.generation += 1;
        let length = self.sigma_path.iter().map(|x| x * x).sum::<f64>().sqrt();
        let settled = (1.0 - (1.0 - c_sigma).powf(2.0 * self.generation as f64)).sqrt();
        let moves = length / settled / expected < 1.4 + 2.0 / (n + 1.0);
        let fresh = if moves { (c_path * (2.0 - c_path) * effective).sqrt() } else { 0.0 };
        for (path, step) in self.path.iter_mut().zip(&mean_step) {
            *path = (1.0 - c_path) * *path + fresh * step;
        }
        let kept = 1.0 - c_one - c_many + if moves { 0.0 } else { c_one * c_path * (2.0 - c_path) };
        for i in 0..dims {
            for j in 0..dims {
                let many: f64 = self.shares.iter().zip(&steps).map(|(share, step)| share * step[i] * step[j]).sum();
                self.covariance[i][j] =
                    kept * self.covariance[i][j] + c_one * self.path[i] * self.path[j] + c_many * many;
            }
        }
        for (mean, step) in self.mean.iter_mut().zip(&mean_step) {
            *mean += self.sigma * step;
        }
        self.sigma *= (c_sigma / damping * (length / expected - 1.0)).exp();
    }

    fn weights_at(&self, place: &[f64]) -> Vec<f64> {
        let ingredients = self.mean.len() + 1;
        let weight = |i: usize| place.iter().zip(&self.basis).map(|(z, direction)| z * direction[i]).sum::<f64>();
        (0..ingredients).map(|i| 1.0 / ingredients as f64 + weight(i)).collect()
    }

    fn place_of(&self, weights: &[f64]) -> Vec<f64> {
        // Directions have the sum 0, so the centre adds nothing.
        self.basis.iter().map(|direction| direction.iter().zip(weights).map(|(d, w)| d * w).sum()).collect()
    }

    /// A standard normal number: Box and Muller's, of two uniform ones.
    fn normal(&self, sample: usize, dimension: usize) -> f64 {
        let index = 2 * (sample as u64 * self.mean.len() as u64 + dimension as u64);
        let draw = |index: u64| uniform(self.seed, STREAM + self.generation, index);
        (-2.0 * (1.0 - draw(index)).ln()).sqrt() * (TAU * draw(index + 1)).cos()
    }
}

/// Random stream of a search ("SOUP" in ASCII, then room for generations).
const STREAM: u64 = 0x534f_5550_0000_0000;

/// Samples of a generation.
fn population(dims: usize) -> usize {
    4 + (3.0 * (dims as f64).ln()).floor() as usize
}

/// The `i`-th of the orthonormal directions of sum 0: the mean of the first `i` ingredients against the next one.
fn direction(i: usize, ingredients: usize) -> Vec<f64> {
    let norm = (i as f64 * (i as f64 + 1.0)).sqrt();
    let entry = |at: usize| match at.cmp(&i) {
        std::cmp::Ordering::Less => 1.0 / norm,
        std::cmp::Ordering::Equal => -(i as f64) / norm,
        std::cmp::Ordering::Greater => 0.0,
    };
    (0..ingredients).map(entry).collect()
}

/// Returns the nearest point of the simplex: `max(w - t, 0)` with the `t` for which the sum is 1 (Duchi et al. 2008).
///
/// ```
/// use salsa_algo::soup::search::project;
/// assert_eq!(project(&[0.25, 0.75]), [0.25, 0.75]);
/// assert_eq!(project(&[1.5, -0.5]), [1.0, 0.0]);
/// ```
pub fn project(weights: &[f64]) -> Vec<f64> {
    let mut sorted = weights.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let (mut sum, mut threshold) = (0.0, 0.0);
    for (count, weight) in sorted.iter().enumerate() {
        sum += weight;
        let candidate = (sum - 1.0) / (count as f64 + 1.0);
        if *weight > candidate {
            threshold = candidate;
        }
    }
    weights.iter().map(|weight| (weight - threshold).max(0.0)).collect()
}

/// `C^(-1/2) x` for the eigenvalues and eigenvectors of `C`; directions in which `C` is singular are dropped.
fn whiten(values: &[f64], vectors: &[Vec<f64>], x: &[f64]) -> Vec<f64> {
    let largest = values.iter().copied().fold(0.0, f64::max);
    let mut whitened = vec![0.0; x.len()];
    for (value, vector) in values.iter().zip(vectors) {
        if *value > 1e-14 * largest {
            let along: f64 = vector.iter().zip(x).map(|(v, x)| v * x).sum();
            whitened.iter_mut().zip(vector).for_each(|(sum, v)| *sum += v * along / value.sqrt());
        }
    }
    whitened
}

/// Eigenvalues and eigenvectors (as rows) of a symmetric matrix: Jacobi's rotations.
fn eigen(matrix: &[Vec<f64>]) -> (Vec<f64>, Vec<Vec<f64>>) {
    let dims = matrix.len();
    let mut a = matrix.to_vec();
    let mut vectors: Vec<Vec<f64>> =
        (0..dims).map(|i| (0..dims).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..100 {
        let off: f64 = (0..dims).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j] * a[i][j]).sum();
        let scale: f64 = (0..dims).map(|i| a[i][i] * a[i][i]).sum();
        if off <= 1e-28 * scale {
            break;
        }
        for p in 0..dims {
            for q in p + 1..dims {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let t = if theta == 0.0 { 1.0 } else { t };
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                for k in 0..dims {
                    (a[p][k], a[q][k]) = (c * a[p][k] - s * a[q][k], s * a[p][k] + c * a[q][k]);
                    (vectors[p][k], vectors[q][k]) =
                        (c * vectors[p][k] - s * vectors[q][k], s * vectors[p][k] + c * vectors[q][k]);
                }
            }
        }
    }
    ((0..dims).map(|i| a[i][i]).collect(), vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Searches for the place of the least squared distance, each direction stretched; returns the best and the number
    /// of measurements.
    fn nearest(target: &[f64], stretch: f64, seed: u64, budget: usize) -> (Vec<f64>, usize) {
        let mut search = Search::new(target.len(), seed);
        let quality = |weights: &[f64]| -> f64 {
            let of = |(i, (w, t)): (usize, (&f64, &f64))| (w - t).powi(2) * stretch.powi(i as i32);
            -weights.iter().zip(target).enumerate().map(of).sum::<f64>()
        };
        let (mut best, mut best_quality, mut count) = (Vec::new(), f64::NEG_INFINITY, 0);
        loop {
            let samples = search.samples();
            if samples.is_empty() || count + samples.len() > budget {
                return (best, count);
            }
            let qualities: Vec<f64> = samples.iter().map(|weights| quality(weights)).collect();
            for (weights, quality) in samples.iter().zip(&qualities) {
                assert!(weights.iter().all(|w| *w >= 0.0), "{weights:?}");
                assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-12, "{weights:?}");
                if *quality > best_quality {
                    (best, best_quality) = (weights.clone(), *quality);
                }
            }
            count += samples.len();
            search.learn(&qualities);
        }
    }

    #[test]
    fn it_finds_the_best_weights_inside_on_a_face_and_at_a_vertex() {
        for target in [
            &[0.2, 0.8][..],
            &[1.0, 0.0],
            &[0.5, 0.3, 0.2],
            &[0.0, 0.6, 0.4],
            &[0.0, 0.0, 1.0, 0.0],
            &[0.1, 0.2, 0.0, 0.3, 0.4],
        ] {
            for seed in 0..5 {
                let (best, _) = nearest(target, 2.0, seed, 300);
                let apart = best.iter().zip(target).map(|(b, t)| (b - t).abs()).fold(0.0, f64::max);
                assert!(apart < 0.02, "{target:?}, seed {seed}: {best:?}");
            }
        }
    }

    #[test]
    fn the_best_place_may_lie_outside_the_simplex() {
        let (best, _) = nearest(&[1.4, -0.2, -0.2], 1.0, 3, 300);
        assert!(best[0] > 0.99, "{best:?}");
    }

    #[test]
    fn a_search_ends_and_is_a_function_of_its_seed() {
        let of = |seed| nearest(&[0.2, 0.3, 0.5], 1.0, seed, 100_000);
        assert!(of(1).1 < 2000, "{}", of(1).1);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
    }

    #[test]
    fn eigenvectors_make_the_matrix_again() {
        let matrix = vec![vec![2.0, -1.0, 0.5], vec![-1.0, 3.0, 0.25], vec![0.5, 0.25, 1.0]];
        let (values, vectors) = eigen(&matrix);
        for i in 0..3 {
            for j in 0..3 {
                let made: f64 = (0..3).map(|k| values[k] * vectors[k][i] * vectors[k][j]).sum();
                assert!((made - matrix[i][j]).abs() < 1e-12, "{i} {j}");
                let product: f64 = (0..3).map(|k| vectors[i][k] * vectors[j][k]).sum();
                assert!((product - f64::from(u8::from(i == j))).abs() < 1e-12);
            }
        }
    }
}
