//! Verdicts on claims, by one fixed rule.

use std::fmt;

use super::{SeedEstimate, StudyError};

/// Minimum number of seeds for a conclusion.
///
/// Two seeds give an interval, but one that is valid only if differences between seeds are exactly normal: its
/// half-width is 12.7 standard errors, and two numbers cannot show whether that holds.
pub const MINIMUM_SEEDS: usize = 3;

/// A study's verdict on the claim that a difference is above 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The interval is above 0.
    Supported,
    /// The interval excludes every difference that would matter.
    NotSupported,
    /// The interval contains both, or there are too few seeds.
    CannotTell,
}

impl Conclusion {
    /// Returns the verdict on the claim that a difference is above 0, by its interval over seeds.
    ///
    /// ```text
    /// fewer than 3 seeds      cannot tell
    /// high <= margin          not supported
    /// low > 0                 supported
    /// else                    cannot tell
    /// ```
    ///
    /// `margin` is the largest difference that still counts as none, in units of reward; with 0, a claim is refuted
    /// only by an interval that does not exceed 0. For the opposite claim, exchange the arms. One claim is wrongly
    /// supported in at most `(1 - level) / 2` of all studies; for several claims at once see [`holm`](super::holm()).
    ///
    /// ```
    /// use salsa_algo::stats::study::{Conclusion, SeedInterval, SeedSample, mean_over_seeds};
    /// let study = |differences: &[f64]| {
    ///     let one = |(seed, value): (u64, &f64)| SeedSample { seed, values: vec![*value] };
    ///     let samples: Vec<SeedSample> = (0..).zip(differences).map(one).collect();
    ///     mean_over_seeds(&samples, SeedInterval::default()).unwrap()
    /// };
    /// // means 2, 0 and -2, each ± 4.30 / sqrt(3) = 2.48 deviations of .1, 1 and .1
    /// assert_eq!(Conclusion::of(&study(&[1.9, 2.0, 2.1]), 0.0), Ok(Conclusion::Supported));
    /// assert_eq!(Conclusion::of(&study(&[-1.0, 0.0, 1.0]), 0.0), Ok(Conclusion::CannotTell));
    /// assert_eq!(Conclusion::of(&study(&[-1.9, -2.0, -2.1]), 0.0), Ok(Conclusion::NotSupported));
    /// assert_eq!(Conclusion::of(&study(&[1.9, 2.1]), 0.0), Ok(Conclusion::CannotTell));
    /// ```
    ///
    /// # Errors
    /// If the margin is negative or not finite.
    pub fn of(difference: &SeedEstimate, margin: f64) -> Result<Conclusion, StudyError> {
        if !(margin >= 0.0 && margin.is_finite()) {
            return Err(StudyError::Margin { margin });
        }
        Ok(match difference.interval {
            Some(interval) if difference.seeds.len() >= MINIMUM_SEEDS => {
                if interval.high <= margin {
                    Conclusion::NotSupported
                } else if interval.low > 0.0 {
                    Conclusion::Supported
                } else {
                    Conclusion::CannotTell
                }
            }
            _ => Conclusion::CannotTell,
        })
    }
}

impl fmt::Display for Conclusion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Conclusion::Supported => "supported",
            Conclusion::NotSupported => "not supported",
            Conclusion::CannotTell => "cannot tell",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Interval, study::SeedMean};

    fn difference(low: f64, high: f64, seeds: u64) -> SeedEstimate {
        let mean = (low + high) / 2.0;
        let seeds = (0..seeds).map(|seed| SeedMean { seed, mean }).collect();
        SeedEstimate { mean, interval: Some(Interval { low, high }), deviation: Some(1.0), seeds }
    }

    #[test]
    fn the_rule_as_a_table() {
        use Conclusion::*;
        let rows = [
            (0.1, 0.3, 3, 0.0, Supported),
            (0.0, 0.3, 3, 0.0, CannotTell),
            (-0.3, 0.0, 3, 0.0, NotSupported),
            (0.0, 0.0, 3, 0.0, NotSupported),
            (-0.3, 0.2, 3, 0.2, NotSupported),
            (0.1, 0.2, 3, 0.2, NotSupported), // certain, and too small to matter
            (0.1, 0.3, 3, 0.2, Supported),
            (-0.1, 0.3, 3, 0.2, CannotTell),
            (0.1, 0.3, 2, 0.0, CannotTell),
            (-0.3, -0.1, 2, 0.0, CannotTell),
        ];
        for (low, high, seeds, margin, expected) in rows {
            assert_eq!(
                Conclusion::of(&difference(low, high, seeds), margin),
                Ok(expected),
                "{low} {high} {seeds} {margin}"
            );
        }
        let one = SeedEstimate { interval: None, deviation: None, ..difference(1.0, 1.0, 1) };
        assert_eq!(Conclusion::of(&one, 0.0), Ok(CannotTell));
    }

    #[test]
    fn a_margin_is_a_size() {
        for margin in [-0.1, f64::NAN, f64::INFINITY] {
            assert!(Conclusion::of(&difference(0.0, 1.0, 5), margin).is_err(), "{margin}");
        }
    }

    #[test]
    fn verdicts_read_as_words() {
        let words =
            [Conclusion::Supported, Conclusion::NotSupported, Conclusion::CannotTell].map(|one| one.to_string());
        assert_eq!(words, ["supported", "not supported", "cannot tell"]);
    }
}
