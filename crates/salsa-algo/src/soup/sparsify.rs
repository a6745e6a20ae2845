//! Sparsifying task vectors: by magnitude (TIES) or at random (DARE).

use super::SoupError;
use crate::random::uniform;

/// Which entries of a task vector are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparsify {
    /// All of them.
    None,
    /// The `density` share of largest magnitude: `floor(density * n)` of them, at least one; among equals the first.
    /// Depends on the whole tensor.
    Magnitude {
        /// Share of entries kept, in `(0, 1]`.
        density: f64,
    },
    /// Each one with probability `density`, then divided by `density`, which preserves the expectation.
    ///
    /// Entry j of ingredient i is kept if `uniform(seed, i, j) < density` ([`crate::random::uniform`]). Give each tensor
    /// its own seed, for instance [`crate::random::bits`] of a run's seed and the tensor's number.
    Random {
        /// Probability that an entry is kept, in `(0, 1]`.
        density: f64,
        /// The random seed.
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

    /// Replaces the density; it may be 0.
    ///
    /// # Errors
    /// If it is not in `[0, 1]`.
    pub(super) fn with_density(self, density: f64) -> Result<Sparsify, SoupError> {
        if !(0.0..=1.0).contains(&density) {
            return Err(SoupError::Density { density });
        }
        Ok(match self {
            Sparsify::None => Sparsify::None,
            Sparsify::Magnitude { .. } => Sparsify::Magnitude { density },
            Sparsify::Random { seed, .. } => Sparsify::Random { density, seed },
        })
    }
}

/// Sparsifies one ingredient's task vector, given in pieces.
///
/// ```text
/// new → look at all pieces, then `looked`, as long as it `needs_scan` → `thin` all pieces, in order
/// ```
#[derive(Clone, Debug)]
pub(super) enum Sparsifier {
    All,
    Nothing,
    /// Determining the threshold.
    Ranking(Ranking),
    /// Entries above the threshold, and the first `ties` of those equal to it. Magnitudes are compared by their bits.
    Above {
        threshold: u32,
        ties: u64,
    },
    Chance {
        density: f64,
        seed: u64,
        ingredient: u64,
        next: u64,
    },
}

impl Sparsifier {
    /// Begins a tensor of this many numbers. A density of 0 keeps nothing.
    pub(super) fn new(sparsify: Sparsify, ingredient: usize, numbers: usize) -> Sparsifier {
        match sparsify {
            Sparsify::Magnitude { density: 0.0 } | Sparsify::Random { density: 0.0, .. } => Sparsifier::Nothing,
            Sparsify::Magnitude { density } => {
                let kept = ((density * numbers as f64) as usize).max(1);
                if kept >= numbers { Sparsifier::All } else { Sparsifier::Ranking(Ranking::new(kept as u64)) }
            }
            Sparsify::None => Sparsifier::All,
            Sparsify::Random { density, seed } => {
                Sparsifier::Chance { density, seed, ingredient: ingredient as u64, next: 0 }
            }
        }
    }

    pub(super) fn needs_scan(&self) -> bool {
        matches!(self, Sparsifier::Ranking(_))
    }

    pub(super) fn look(&mut self, base: &[f32], tensor: &[f32]) {
        if let Sparsifier::Ranking(ranking) = self {
            tensor.iter().zip(base).for_each(|(x, b)| ranking.count((x - b).abs().to_bits()));
        }
    }

    /// Ends a pass of `look`, after all pieces.
    pub(super) fn looked(&mut self) {
        let Sparsifier::Ranking(ranking) = self else { return };
        if let Some((threshold, ties)) = ranking.narrow() {
            *self = Sparsifier::Above { threshold, ties };
        }
    }

    /// Writes the next entries of the task vector, or zero.
    pub(super) fn thin(&mut self, base: &[f32], tensor: &[f32], out: &mut [f32]) {
        out.iter_mut().zip(tensor).zip(base).for_each(|((out, x), b)| *out = x - b);
        match self {
            Sparsifier::All => {}
            Sparsifier::Nothing => out.fill(0.0),
            Sparsifier::Ranking(_) => panic!("the whole tensor is to be looked at before it is thinned out"),
            Sparsifier::Above { threshold, ties } => {
                for x in out {
                    let magnitude = x.abs().to_bits();
                    if magnitude == *threshold && *ties > 0 {
                        *ties -= 1;
                    } else if magnitude <= *threshold {
                        *x = 0.0;
                    }
                }
            }
            Sparsifier::Chance { density, seed, ingredient, next } => {
                for x in out {
                    let is_kept = uniform(*seed, *ingredient, *next) < *density;
                    *x = if is_kept { *x / *density as f32 } else { 0.0 };
                    *next += 1;
                }
            }
        }
    }
}

/// Finds the `kept`-th largest magnitude by counting, first by the upper bits, then by the lower bits of those that
/// share the upper ones. Bits of non-negative floats have the same order as the floats.
#[derive(Clone, Debug)]
pub(super) struct Ranking {
    /// How many of the entries counted in this pass to keep.
    kept: u64,
    upper: Option<u32>,
    counts: Vec<u64>,
}

/// A magnitude has 31 bits.
const LOWER_BITS: u32 = 15;
const UPPER_BITS: u32 = 16;

impl Ranking {
    fn new(kept: u64) -> Ranking {
        Ranking { kept, upper: None, counts: vec![0; 1 << UPPER_BITS] }
    }

    fn count(&mut self, magnitude: u32) {
        match self.upper {
            None => self.counts[(magnitude >> LOWER_BITS) as usize] += 1,
            Some(upper) if magnitude >> LOWER_BITS == upper => {
                self.counts[(magnitude & ((1 << LOWER_BITS) - 1)) as usize] += 1;
            }
            Some(_) => {}
        }
    }

    /// Returns the threshold and the number of equal entries to keep, once known.
    fn narrow(&mut self) -> Option<(u32, u64)> {
        let mut above = 0;
        let is_reached = |count: &u64| {
            above += count;
            above >= self.kept
        };
        let from_the_top = self.counts.iter().rev().position(is_reached).expect("more were counted than are kept");
        let bin = self.counts.len() - 1 - from_the_top;
        self.kept -= above - self.counts[bin];
        match self.upper {
            None => {
                self.upper = Some(bin as u32);
                self.counts = vec![0; 1 << LOWER_BITS];
                None
            }
            Some(upper) => Some((upper << LOWER_BITS | bin as u32, self.kept)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(tensor: &[f32], sparsify: Sparsify, ingredient: usize) -> Vec<f32> {
        entries_in_pieces(tensor, sparsify, ingredient, tensor.len().max(1))
    }

    fn entries_in_pieces(tensor: &[f32], sparsify: Sparsify, ingredient: usize, size: usize) -> Vec<f32> {
        let (base, mut out) = (vec![0.0; size], vec![f32::NAN; tensor.len()]);
        let mut thinning = Sparsifier::new(sparsify, ingredient, tensor.len());
        while thinning.needs_scan() {
            tensor.chunks(size).for_each(|piece| thinning.look(&base, piece));
            thinning.looked();
        }
        for (piece, out) in tensor.chunks(size).zip(out.chunks_mut(size)) {
            thinning.thin(&base, piece, out);
        }
        out
    }

    /// Selection in memory, the reference for counting in two passes.
    fn sorted(tensor: &[f32], density: f64) -> Vec<f32> {
        let kept = ((density * tensor.len() as f64) as usize).max(1);
        let mut order: Vec<usize> = (0..tensor.len()).collect();
        order.sort_by_key(|&j| (std::cmp::Reverse(tensor[j].abs().to_bits()), j));
        let mut out = vec![0.0; tensor.len()];
        order[..kept].iter().for_each(|&j| out[j] = tensor[j]);
        out
    }

    #[test]
    fn counting_in_pieces_is_sorting() {
        let wide = |s, i| f32::from_bits(crate::random::bits(11, s, i) as u32);
        let spread: Vec<f32> = (0..3000).map(|i| wide(0, i)).filter(|x| x.is_finite()).collect();
        let close: Vec<f32> = (0..3000).map(|i| (uniform(11, 1, i) - 0.5) as f32).collect();
        let coarse: Vec<f32> = close.iter().map(|x| (x * 16.0).round() / 16.0).collect();
        let bfloat: Vec<f32> = close.iter().map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect();
        for tensor in [spread, close, coarse, bfloat, vec![0.0; 100], vec![-2.0; 100]] {
            for density in [1e-9, 0.1, 0.333, 0.5, 0.9, 0.9999] {
                for size in [1, 64, 1000, 3000] {
                    let found = entries_in_pieces(&tensor, Sparsify::Magnitude { density }, 0, size);
                    let (found, expected) = (found.iter(), sorted(&tensor, density));
                    assert!(found.map(|x| x.to_bits()).eq(expected.iter().map(|x| x.to_bits())), "{density} {size}");
                }
            }
        }
    }

    #[test]
    fn chance_does_not_depend_on_the_pieces() {
        let x: Vec<f32> = (0..500).map(|i| i as f32).collect();
        let sparsify = Sparsify::Random { density: 0.3, seed: 4 };
        assert_eq!(entries_in_pieces(&x, sparsify, 2, 7), entries(&x, sparsify, 2));
    }

    #[test]
    fn density_zero_keeps_nothing() {
        for sparsify in [Sparsify::Magnitude { density: 0.0 }, Sparsify::Random { density: 0.0, seed: 1 }] {
            assert_eq!(entries(&[1.0, -2.0], sparsify, 0), [0.0, 0.0]);
        }
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
        assert!(entries(&[], Sparsify::Magnitude { density: 0.5 }, 0).is_empty());
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
