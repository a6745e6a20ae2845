//! Thinning out task vectors: by magnitude (TIES) or at random (DARE).

use super::SoupError;
use crate::random::uniform;

/// Which entries of a task vector are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsify {
    /// All of them.
    None,
    /// The `density` share of largest magnitude: `floor(density * n)` of them, at least one; among equals the first.
    /// Looks at the whole tensor.
    Magnitude {
        /// Share of entries kept, in `(0, 1]`.
        density: f64,
    },
    /// Each one with probability `density`, then divided by `density`, so that the expectation stays.
    ///
    /// Entry j of ingredient i is kept if `uniform(seed, i, j) < density` ([`crate::random::uniform`]). Give each tensor
    /// its own seed, for instance [`crate::random::bits`] of a run's seed and the tensor's number.
    Random {
        /// Probability that an entry is kept, in `(0, 1]`.
        density: f64,
        /// Where the randomness comes from.
        seed: u64,
    },
}

impl Sparsify {
    /// Checks the density.
    ///
    /// # Errors
    /// If it is not in `(0, 1]`.
    pub(super) fn checked(self) -> Result<Sparsify, SoupError> {
        match self {
            Sparsify::Magnitude { density } | Sparsify::Random { density, .. }
                if !(density > 0.0 && density <= 1.0) =>
            {
                Err(SoupError::Density { density })
            }
            fine => Ok(fine),
        }
    }
}

/// One ingredient's thinned-out task vector, entry by entry.
pub(super) struct TaskVector<'a> {
    base: &'a [f32],
    tensor: &'a [f32],
    rule: Rule,
}

enum Rule {
    All,
    /// Entries above the threshold, and the first `ties` of those equal to it. Magnitudes are compared by their bits.
    Above {
        threshold: u32,
        ties: usize,
    },
    Chance {
        density: f64,
        seed: u64,
        ingredient: u64,
    },
}

impl<'a> TaskVector<'a> {
    pub(super) fn new(base: &'a [f32], tensor: &'a [f32], sparsify: Sparsify, ingredient: usize) -> TaskVector<'a> {
        let rule = match sparsify {
            Sparsify::None => Rule::All,
            Sparsify::Magnitude { density } => largest(base, tensor, density),
            Sparsify::Random { density, seed } => Rule::Chance { density, seed, ingredient: ingredient as u64 },
        };
        TaskVector { base, tensor, rule }
    }

    /// Entry `j`, zero if dropped. To be called for 0, 1, 2, ... in order, since ties go to the first.
    pub(super) fn entry(&mut self, j: usize) -> f32 {
        let delta = self.tensor[j] - self.base[j];
        match &mut self.rule {
            Rule::All => delta,
            Rule::Above { threshold, ties } => {
                let magnitude = delta.abs().to_bits();
                if magnitude == *threshold && *ties > 0 {
                    *ties -= 1;
                    return delta;
                }
                if magnitude > *threshold { delta } else { 0.0 }
            }
            Rule::Chance { density, seed, ingredient } => {
                if uniform(*seed, *ingredient, j as u64) < *density {
                    delta / *density as f32
                } else {
                    0.0
                }
            }
        }
    }
}

/// The rule that keeps `floor(density * n)` entries, at least one.
fn largest(base: &[f32], tensor: &[f32], density: f64) -> Rule {
    // The bits of non-negative floats are ordered like the floats themselves.
    let mut magnitudes: Vec<u32> = tensor.iter().zip(base).map(|(x, b)| (x - b).abs().to_bits()).collect();
    let kept = ((density * magnitudes.len() as f64) as usize).max(1);
    if kept >= magnitudes.len() {
        return Rule::All;
    }
    let (above, &mut threshold, _) = magnitudes.select_nth_unstable_by(kept - 1, |a, b| b.cmp(a));
    let ties = kept - above.iter().filter(|&&m| m > threshold).count();
    Rule::Above { threshold, ties }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(tensor: &[f32], sparsify: Sparsify, ingredient: usize) -> Vec<f32> {
        let base = vec![0.0; tensor.len()];
        let mut vector = TaskVector::new(&base, tensor, sparsify, ingredient);
        (0..tensor.len()).map(|j| vector.entry(j)).collect()
    }

    #[test]
    fn magnitude_keeps_the_largest() {
        let x = [1.0, -5.0, 3.0, -2.0, 4.0];
        for (density, expected) in [
            (1.0, [1.0, -5.0, 3.0, -2.0, 4.0]),
            (0.8, [0.0, -5.0, 3.0, -2.0, 4.0]),
            (0.79, [0.0, -5.0, 3.0, 0.0, 4.0]), // 3.95 rounds down
            (0.4, [0.0, -5.0, 0.0, 0.0, 4.0]),
            (0.01, [0.0, -5.0, 0.0, 0.0, 0.0]), // at least one
        ] {
            assert_eq!(entries(&x, Sparsify::Magnitude { density }, 0), expected, "{density}");
        }
        assert_eq!(entries(&[], Sparsify::Magnitude { density: 0.5 }, 0), []);
    }

    #[test]
    fn among_equals_the_first_are_kept_and_exactly_so_many() {
        let x = [1.0, -1.0, 2.0, 1.0, -1.0, 1.0];
        assert_eq!(entries(&x, Sparsify::Magnitude { density: 0.5 }, 0), [1.0, -1.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(entries(&[3.0; 4], Sparsify::Magnitude { density: 0.75 }, 0), [3.0, 3.0, 3.0, 0.0]);
    }

    #[test]
    fn chance_keeps_the_share_and_the_expectation() {
        let x = vec![1.0; 20_000];
        let thin = entries(&x, Sparsify::Random { density: 0.25, seed: 9 }, 0);
        assert!(thin.iter().all(|&v| v == 0.0 || v == 4.0));
        let kept = thin.iter().filter(|&&v| v != 0.0).count();
        assert!((4_750..5_250).contains(&kept), "{kept}"); // standard deviation 61
        assert_eq!(entries(&x, Sparsify::Random { density: 1.0, seed: 9 }, 0), x);
    }

    #[test]
    fn chance_depends_on_seed_and_ingredient_only() {
        let x = vec![1.0; 1000];
        let of = |seed, ingredient| entries(&x, Sparsify::Random { density: 0.5, seed }, ingredient);
        assert_eq!(of(1, 0), of(1, 0));
        assert_ne!(of(1, 0), of(2, 0));
        assert_ne!(of(1, 0), of(1, 1));
    }

    #[test]
    fn density_is_checked() {
        for density in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(Sparsify::Magnitude { density }.checked().is_err(), "{density}");
            assert!(Sparsify::Random { density, seed: 0 }.checked().is_err(), "{density}");
        }
        assert!(Sparsify::Magnitude { density: 1.0 }.checked().is_ok());
        assert!(Sparsify::Random { density: 1e-9, seed: 0 }.checked().is_ok());
        assert!(Sparsify::None.checked().is_ok());
    }
}
