//! The weights of a soup's ingredients.

use std::fmt;

/// Treatment of weights that do not sum to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalize {
    /// They are divided by their sum (mergekit's `normalize: true`).
    #[default]
    Divide,
    /// They are used as given.
    Keep,
}

/// The checked weights of a soup, one per ingredient.
///
/// A weighted sum multiplies by [`Weights::factors`] and divides by [`Weights::divisor`]: rounded once at the end, a mean
/// of three is closer than with the rounded weight 1/3.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    factors: Vec<f32>,
    divisor: f32,
    sum_to_one: bool,
}

impl Weights {
    /// Checks weights and normalises them.
    ///
    /// ```text
    /// Divide   factors = w / 2^k      divisor = sum of factors, in f32, in order      2^k <= |sum w| < 2^(k + 1)
    /// Keep     factors = w            divisor = 1
    /// ```
    ///
    /// `2^k` changes no result unless numbers leave the range of `f32`; where the sum is a power of two, the divisor is 1.
    /// Weights may be negative (extrapolation).
    ///
    /// ```
    /// use salsa_algo::soup::{Normalize, Weights};
    /// let parts = |w: Weights| (w.factors().to_vec(), w.divisor());
    /// assert_eq!(parts(Weights::new(&[1.0, 3.0], Normalize::Divide).unwrap()), (vec![0.25, 0.75], 1.0));
    /// assert_eq!(parts(Weights::new(&[1.0, 5.0], Normalize::Divide).unwrap()), (vec![0.25, 1.25], 1.5));
    /// assert_eq!(parts(Weights::new(&[1.0, 3.0], Normalize::Keep).unwrap()), (vec![1.0, 3.0], 1.0));
    /// ```
    ///
    /// # Errors
    /// If there are none, if one is not finite, or if the sum to divide by is zero.
    pub fn new(given: &[f64], normalize: Normalize) -> Result<Weights, SoupError> {
        if given.is_empty() {
            return Err(SoupError::NoWeights);
        }
        if let Some(position) = given.iter().position(|w| !w.is_finite()) {
            return Err(SoupError::WeightNotFinite { position, weight: given[position] });
        }
        let sum: f64 = given.iter().sum();
        if normalize == Normalize::Keep {
            let factors = given.iter().map(|w| *w as f32).collect();
            return Ok(Weights { factors, divisor: 1.0, sum_to_one: (sum - 1.0).abs() < 1e-9 });
        }
        if sum.abs() < SMALLEST_SUM || !sum.is_finite() {
            return Err(SoupError::SumUnusable { sum });
        }
        let scale = power_of_two_below(sum);
        let mut factors: Vec<f32> = given.iter().map(|w| (w / scale) as f32).collect();
        let mut divisor: f32 = factors.iter().sum();
        if divisor == 0.0 || !divisor.is_finite() {
            return Err(SoupError::SumUnusable { sum: f64::from(divisor) });
        }
        if divisor.to_bits().trailing_zeros() >= 23 {
            factors.iter_mut().for_each(|factor| *factor /= divisor);
            divisor = 1.0;
        }
        Ok(Weights { factors, divisor, sum_to_one: true })
    }

    /// Returns the weights `1 - t` and `t` of a point on the line through two models.
    ///
    /// `t` may lie outside `[0, 1]`.
    ///
    /// ```
    /// assert_eq!(salsa_algo::soup::Weights::between(0.25).factors(), [0.75, 0.25]);
    /// ```
    pub fn between(t: f64) -> Weights {
        Weights { factors: vec![(1.0 - t) as f32, t as f32], divisor: 1.0, sum_to_one: true }
    }

    /// Returns the factor of each ingredient, in order.
    pub fn factors(&self) -> &[f32] {
        &self.factors
    }

    /// Returns the divisor of the sum of products.
    pub fn divisor(&self) -> f32 {
        self.divisor
    }

    /// Whether these are the weights of a mean: they sum to one, up to rounding.
    pub fn sum_to_one(&self) -> bool {
        self.sum_to_one
    }
}

/// Below this, a sum of weights counts as zero.
const SMALLEST_SUM: f64 = 1e-8;

/// Returns the largest power of two not above the magnitude, if that is a normal number, with the sign of `x`.
fn power_of_two_below(x: f64) -> f64 {
    f64::from_bits(x.to_bits() & (0xfff << 52))
}

/// Invalid input for a soup.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SoupError {
    /// No weights at all.
    NoWeights,
    /// A weight is NaN or infinite.
    WeightNotFinite {
        /// Which one, from 0.
        position: usize,
        /// Its value.
        weight: f64,
    },
    /// The weights sum to zero or to infinity, so that they cannot be divided by their sum.
    SumUnusable {
        /// The sum.
        sum: f64,
    },
    /// The share of entries to keep is not in `(0, 1]`.
    Density {
        /// Its value.
        density: f64,
    },
}

impl fmt::Display for SoupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SoupError::NoWeights => write!(f, "a soup needs at least one ingredient; give one weight per ingredient"),
            SoupError::WeightNotFinite { position, weight } => {
                write!(f, "weight {} of the soup is {weight}; give a finite number", position + 1)
            }
            SoupError::SumUnusable { sum } => {
                write!(
                    f,
                    "the weights of the soup sum to {sum}, so they cannot be normalised; change them or switch normalisation off"
                )
            }
            SoupError::Density { density } => {
                write!(f, "density {density} is not a share of entries to keep; give a number above 0 and at most 1")
            }
        }
    }
}

impl std::error::Error for SoupError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_weights_are_refused_with_a_remedy() {
        let divide = |w: &[f64]| Weights::new(w, Normalize::Divide).expect_err("refused").to_string();
        assert!(divide(&[]).contains("one weight per ingredient"));
        assert!(divide(&[0.5, f64::NAN]).contains("weight 2 of the soup is NaN"));
        assert!(divide(&[1.0, -1.0]).contains("sum to 0"));
        assert!(divide(&[f64::MAX, f64::MAX]).contains("sum to inf"));
        assert!(Weights::new(&[1.0, -1.0], Normalize::Keep).is_ok());
        assert!(Weights::new(&[f64::INFINITY], Normalize::Keep).is_err());
        assert!(SoupError::Density { density: 0.0 }.to_string().contains("above 0 and at most 1"));
    }

    #[test]
    fn which_weights_make_a_mean() {
        let sums = |w: &[f64], n| Weights::new(w, n).expect("fine").sum_to_one();
        assert!(sums(&[0.1; 10], Normalize::Keep), "0.1 * 10 is one up to rounding");
        assert!(sums(&[2.0, -1.0], Normalize::Keep));
        assert!(sums(&[3.0, 9.0], Normalize::Divide));
        assert!(!sums(&[0.5, 0.6], Normalize::Keep));
        assert!(!sums(&[0.5, 0.499], Normalize::Keep));
    }

    #[test]
    fn equal_weights_of_two_are_exact_halves() {
        assert_eq!(Weights::new(&[1.0, 1.0], Normalize::Divide).expect("fine"), Weights::between(0.5));
        assert_eq!(Weights::new(&[-1.0, 3.0], Normalize::Divide).expect("fine").factors(), [-0.5, 1.5]);
        assert_eq!(Weights::new(&[-3.0, 1.0], Normalize::Divide).expect("fine").factors(), [1.5, -0.5]);
    }

    #[test]
    fn large_and_small_weights_stay_in_range() {
        for scale in [1e-7, 1.0, 1e300] {
            let weights = Weights::new(&[scale, 2.0 * scale], Normalize::Divide).expect("fine");
            let [a, b] = weights.factors() else { panic!("two weights") };
            assert_eq!(b / a, 2.0);
            assert!((1.0..2.0).contains(&weights.divisor()) && a + b == weights.divisor());
        }
    }

    #[test]
    fn the_divisor_is_the_sum_of_the_weights_as_f32() {
        let weights = Weights::new(&[0.3, 0.7, 0.2], Normalize::Divide).expect("fine");
        assert_eq!(weights.factors(), [0.3, 0.7, 0.2]);
        assert_eq!(weights.divisor(), 0.3f32 + 0.7f32 + 0.2f32);
        // The sum is nonzero only in f64.
        assert!(Weights::new(&[1.0, -0.999_999_98], Normalize::Divide).is_err());
    }
}
