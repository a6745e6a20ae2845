//! The weights of a soup's ingredients.

use std::fmt;

/// What is done to weights that do not sum to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Normalize {
    /// They are divided by their sum (mergekit's `normalize: true`).
    #[default]
    Divide,
    /// They are used as given.
    Keep,
}

/// The checked weights of a soup, one per ingredient.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    values: Vec<f32>,
    sum_to_one: bool,
}

impl Weights {
    /// Checks weights and normalises them as asked.
    ///
    /// ```text
    /// Divide   w[i] / sum w        Keep   w[i]
    /// ```
    ///
    /// Computed in `f64`, then rounded to `f32`, the precision of the soup. Weights may be negative (extrapolation).
    ///
    /// ```
    /// use salsa_algo::soup::{Normalize, Weights};
    /// assert_eq!(Weights::new(&[1.0, 3.0], Normalize::Divide).unwrap().values(), [0.25, 0.75]);
    /// assert_eq!(Weights::new(&[1.0, 3.0], Normalize::Keep).unwrap().values(), [1.0, 3.0]);
    /// ```
    ///
    /// # Errors
    /// If there are none, if one is not a finite number, or if they are to be divided by a sum of zero.
    pub fn new(given: &[f64], normalize: Normalize) -> Result<Weights, SoupError> {
        if given.is_empty() {
            return Err(SoupError::NoWeights);
        }
        if let Some(position) = given.iter().position(|w| !w.is_finite()) {
            return Err(SoupError::WeightNotFinite { position, weight: given[position] });
        }
        let sum: f64 = given.iter().sum();
        let divisor = match normalize {
            Normalize::Keep => 1.0,
            Normalize::Divide if sum.abs() < SMALLEST_SUM || !sum.is_finite() => {
                return Err(SoupError::SumUnusable { sum });
            }
            Normalize::Divide => sum,
        };
        let sum_to_one = (sum / divisor - 1.0).abs() < 1e-9;
        Ok(Weights { values: given.iter().map(|w| (w / divisor) as f32).collect(), sum_to_one })
    }

    /// Returns the weights `1 - t` and `t` of a point on the line through two models.
    ///
    /// `t` may lie outside `[0, 1]`.
    ///
    /// ```
    /// assert_eq!(salsa_algo::soup::Weights::between(0.25).values(), [0.75, 0.25]);
    /// ```
    pub fn between(t: f64) -> Weights {
        Weights { values: vec![(1.0 - t) as f32, t as f32], sum_to_one: true }
    }

    /// Returns the weights, in the order of the ingredients.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Whether these are the weights of a mean: they sum to one, up to rounding.
    pub fn sum_to_one(&self) -> bool {
        self.sum_to_one
    }
}

/// Below this, a sum of weights counts as zero.
const SMALLEST_SUM: f64 = 1e-8;

/// What a person can get wrong when asking for a soup.
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
        assert_eq!(Weights::new(&[-1.0, 3.0], Normalize::Divide).expect("fine").values(), [-0.5, 1.5]);
        assert_eq!(Weights::new(&[-3.0, 1.0], Normalize::Divide).expect("fine").values(), [1.5, -0.5]);
    }
}
