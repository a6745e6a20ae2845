//! How many seeds are needed to detect a difference.

use super::StudyError;
use crate::stats::{distribution::noncentral_t_cdf, student_t_quantile};

/// Maximum number of seeds in [`power`] and [`seeds_needed`].
pub const MOST_SEEDS: usize = 1_000_000;

/// Returns the probability that a two-sided paired t test over seeds detects an effect.
///
/// ```text
/// delta = effect / deviation * sqrt(seeds)          t = student_t_quantile(level, seeds - 1)
/// P(|T| > t),  T noncentral t of seeds - 1 degrees of freedom and noncentrality delta
/// ```
///
/// `effect` is the true mean difference and `deviation` the standard deviation of the seeds' differences, both in units of
/// reward; `level` is that of the interval, 0.95 for a test at 0.05. A deviation of 0 gives 1. Source: Cohen 1988, chapter
/// 2; noncentral t: Lenth 1989.
///
/// ```
/// use salsa_algo::stats::study::power;
/// // Without an effect the test finds one as often as it may.
/// assert!((power(0.0, 1.0, 5, 0.95).unwrap() - 0.05).abs() < 1e-12);
/// // An effect of one deviation and five seeds: 40 % (Cohen's table for paired differences).
/// assert!((power(1.0, 1.0, 5, 0.95).unwrap() - 0.401).abs() < 1e-3);
/// ```
///
/// # Errors
/// For fewer than two seeds or more than [`MOST_SEEDS`], a level that is not between 0 and 0.999, an effect that is not
/// finite, or a deviation that is negative or not finite.
pub fn power(effect: f64, deviation: f64, seeds: usize, level: f64) -> Result<f64, StudyError> {
    if !(2..=MOST_SEEDS).contains(&seeds) {
        return Err(StudyError::SeedCount { seeds });
    }
    if !effect.is_finite() {
        return Err(StudyError::Effect { effect });
    }
    if !(deviation.is_finite() && deviation >= 0.0) {
        return Err(StudyError::Deviation { deviation });
    }
    let df = (seeds - 1) as f64;
    let t = student_t_quantile(level, df).filter(|_| level <= 0.999).ok_or(StudyError::Level { level })?;
    if effect == 0.0 {
        return Ok(1.0 - level);
    }
    let delta = effect.abs() / deviation * (seeds as f64).sqrt();
    // Beyond this, P(|T| <= t) is below 1e-20, given the tails of Z and of the root of chi^2 / df.
    if delta > 20.0 * t + 40.0 {
        return Ok(1.0);
    }
    Ok(1.0 - noncentral_t_cdf(t, df, delta) + noncentral_t_cdf(-t, df, delta))
}

/// Returns the smallest number of seeds, at least 2, with which a two-sided paired t test detects an effect with the
/// given power; none if that is more than [`MOST_SEEDS`].
///
/// ```text
/// min n such that power(effect, deviation, n, level) >= power
/// ```
///
/// `deviation` is the deviation between seeds so far ([`SeedEstimate::deviation`](super::SeedEstimate)). `effect`
/// should be the smallest difference that matters: the observed difference may be used too, but it is uncertain, and
/// too large on average if the study was continued because it looked large.
///
/// ```
/// use salsa_algo::stats::study::seeds_needed;
/// // 34 pairs for half a deviation, 10 for a whole one, at 5 % and 80 % (Cohen 1988; G*Power).
/// assert_eq!(seeds_needed(0.5, 1.0, 0.8, 0.95), Ok(Some(34)));
/// assert_eq!(seeds_needed(0.02, 0.02, 0.8, 0.95), Ok(Some(10)));
/// ```
///
/// # Errors
/// If the effect is 0 or not finite, the deviation negative or not finite, the power not between 0 and 1, or the level not
/// between 0 and 0.999.
pub fn seeds_needed(effect: f64, deviation: f64, power: f64, level: f64) -> Result<Option<usize>, StudyError> {
    if effect == 0.0 {
        return Err(StudyError::Effect { effect });
    }
    if !(power > 0.0 && power < 1.0) {
        return Err(StudyError::Power { power });
    }
    let enough = |seeds| -> Result<bool, StudyError> { Ok(self::power(effect, deviation, seeds, level)? >= power) };
    let (mut few, mut many) = (1, 2); // `few` is not enough, since one seed has no test
    while !enough(many)? {
        if many == MOST_SEEDS {
            return Ok(None);
        }
        (few, many) = (many, (2 * many).min(MOST_SEEDS));
    }
    while many - few > 1 {
        let middle = few + (many - few) / 2;
        if enough(middle)? {
            many = middle;
        } else {
            few = middle;
        }
    }
    Ok(Some(many))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        random::uniform,
        stats::{
            distribution::normal_quantile,
            study::{SeedInterval, SeedSample, mean_over_seeds},
        },
    };

    #[test]
    fn published_numbers_of_pairs() {
        // Chow, Shao and Wang 2008 and G*Power 3: two-sided paired t test at 5 %.
        for (effect, power, pairs) in [(0.2, 0.8, 199), (0.5, 0.9, 44), (0.8, 0.8, 15), (1.5, 0.8, 6)] {
            assert_eq!(seeds_needed(effect, 1.0, power, 0.95), Ok(Some(pairs)), "{effect} {power}");
        }
    }

    #[test]
    fn the_number_found_is_the_smallest() {
        for effect in [0.013, 0.07, 0.3, 1.1, -2.0, 7.0] {
            let seeds = seeds_needed(effect, 1.0, 0.8, 0.95).expect("usable").expect("few enough");
            assert!(power(effect, 1.0, seeds, 0.95).expect("usable") >= 0.8, "{effect}");
            assert!(seeds == 2 || power(effect, 1.0, seeds - 1, 0.95).expect("usable") < 0.8, "{effect}");
        }
    }

    #[test]
    fn simulated_studies_find_the_effect_that_often() {
        let (effect, seeds, studies) = (1.3, 5u64, 2000u64);
        let normal = |study, seed| normal_quantile(uniform(11, study, seed).max(1e-300));
        let finds = |study: &u64| {
            let sample = |seed| SeedSample { seed, values: vec![effect + normal(*study, seed)] };
            let samples: Vec<SeedSample> = (0..seeds).map(sample).collect();
            let interval = mean_over_seeds(&samples, SeedInterval::default()).expect("five seeds").interval;
            let interval = interval.expect("five seeds");
            interval.low > 0.0 || interval.high < 0.0
        };
        let found = (0..studies).filter(finds).count() as f64 / studies as f64;
        let stated = power(effect, 1.0, 5, 0.95).expect("usable");
        assert!((found - stated).abs() < 0.04, "{found} {stated}"); // standard deviation .011
    }

    #[test]
    fn extremes_are_values_not_panics() {
        assert_eq!(power(1.0, 0.0, 2, 0.95), Ok(1.0));
        assert_eq!(power(f64::MAX, f64::MIN_POSITIVE, 2, 0.999), Ok(1.0));
        assert_eq!(seeds_needed(1.0, 0.0, 0.8, 0.95), Ok(Some(2)));
        assert_eq!(seeds_needed(1e-6, 1.0, 0.8, 0.95), Ok(None));
        assert!((power(1e-300, 1.0, 5, 0.95).expect("usable") - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(power(1.0, 1.0, 1, 0.95), Err(StudyError::SeedCount { seeds: 1 }));
        assert_eq!(power(1.0, -1.0, 5, 0.95), Err(StudyError::Deviation { deviation: -1.0 }));
        assert_eq!(power(f64::INFINITY, 1.0, 5, 0.95), Err(StudyError::Effect { effect: f64::INFINITY }));
        assert_eq!(power(1.0, 1.0, 5, 1.0), Err(StudyError::Level { level: 1.0 }));
        assert_eq!(seeds_needed(0.0, 1.0, 0.8, 0.95), Err(StudyError::Effect { effect: 0.0 }));
        assert_eq!(seeds_needed(1.0, 1.0, 1.0, 0.95), Err(StudyError::Power { power: 1.0 }));
        assert!(power(1.0, f64::NAN, 5, 0.95).is_err() && seeds_needed(1.0, 1.0, 0.8, f64::NAN).is_err());
    }
}
