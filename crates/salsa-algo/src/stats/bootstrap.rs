//! Bootstrap intervals: the spread of a mean over resamples of the sample.

use super::{Estimate, Interval, quantiles};
use crate::random::below;

/// Settings of resampling.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Resampling {
    /// Number of resamples; with 10000 the random error is about 1 % of the interval's width.
    pub resamples: usize,
    /// Share of the resampled means inside the interval, such as .95.
    pub level: f64,
    /// The random seed; the same seed gives the same interval.
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Resampling { resamples: 10_000, level: 0.95, seed: 0 }
    }
}

/// Returns the mean of a sample with its bootstrap interval; none without numbers or resamples.
///
/// ```text
/// resample r: mean of values[below(seed, r, i, n)], i = 0..n      (below: crate::random)
/// interval:   quantiles (1 - level) / 2 and (1 + level) / 2 of these means
/// ```
///
/// The percentile method; the rows must be independent. Source: Efron 1979.
///
/// ```
/// use salsa_algo::stats::{Resampling, bootstrap_mean};
/// let estimate = bootstrap_mean(&[2.0, 2.0, 2.0], &Resampling::default()).unwrap();
/// assert_eq!((estimate.mean, estimate.interval.low, estimate.interval.high), (2.0, 2.0, 2.0));
/// ```
pub fn bootstrap_mean(values: &[f64], how: &Resampling) -> Option<Estimate> {
    let n = values.len();
    if n == 0 || how.resamples == 0 {
        return None;
    }
    let mean = |sum: f64| sum / n as f64;
    let resampled = |r: u64| mean((0..n as u64).map(|i| values[below(how.seed, r, i, n)]).sum());
    let means: Vec<f64> = (0..how.resamples as u64).map(resampled).collect();
    let ends = quantiles(&means, &[(1.0 - how.level) / 2.0, (1.0 + how.level) / 2.0])?;
    Some(Estimate { mean: mean(values.iter().sum()), interval: Interval { low: ends[0], high: ends[1] } })
}

/// Returns the mean difference of two systems on the same rows, with its paired bootstrap interval.
///
/// ```text
/// bootstrap_mean of a[i] - b[i]
/// ```
///
/// `a[i]` and `b[i]` belong to the same prompt, so a prompt's difficulty, which affects both, cancels. The difference
/// is significant at `1 - level` if 0 is outside the interval.
///
/// ```
/// use salsa_algo::stats::{Resampling, bootstrap_difference};
/// // prompts differ by 100, the systems by 1 on each of them
/// let estimate = bootstrap_difference(&[1.0, 101.0], &[0.0, 100.0], &Resampling::default()).unwrap();
/// assert_eq!((estimate.mean, estimate.interval.low, estimate.interval.high), (1.0, 1.0, 1.0));
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn bootstrap_difference(a: &[f64], b: &[f64], how: &Resampling) -> Option<Estimate> {
    assert_eq!(a.len(), b.len(), "one row of each system per prompt");
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    bootstrap_mean(&differences, how)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::uniform;
    use crate::stats::{Z95, mean_interval};

    fn sample(stream: u64, n: u64) -> Vec<f64> {
        (0..n).map(|i| uniform(77, stream, i)).collect()
    }

    #[test]
    fn it_agrees_with_the_normal_interval_on_a_large_sample() {
        let values = sample(0, 400);
        let normal = mean_interval(&values, Z95).expect("400 numbers");
        let boot =
            bootstrap_mean(&values, &Resampling { resamples: 4000, ..Resampling::default() }).expect("400 numbers");
        assert!((boot.mean - normal.mean).abs() < 1e-15);
        let width = normal.interval.high - normal.interval.low;
        assert!((boot.interval.low - normal.interval.low).abs() < 0.05 * width, "{boot:?} {normal:?}");
        assert!((boot.interval.high - normal.interval.high).abs() < 0.05 * width, "{boot:?} {normal:?}");
    }

    #[test]
    fn two_rows_by_hand() {
        // means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the middle 40 % are all 1/2, the middle 80 % span everything
        let at = |level| {
            let how = Resampling { resamples: 1000, level, seed: 1 };
            bootstrap_mean(&[0.0, 1.0], &how).expect("two rows").interval
        };
        assert_eq!(at(0.4), Interval { low: 0.5, high: 0.5 });
        assert_eq!(at(0.8), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn the_interval_covers_the_truth_about_as_often_as_stated() {
        let how = Resampling { resamples: 400, level: 0.9, seed: 5 };
        let covered = (0..300)
            .filter(|&s| {
                let interval = bootstrap_mean(&sample(100 + s, 60), &how).expect("60 rows").interval;
                (interval.low..interval.high).contains(&0.5)
            })
            .count();
        assert!((250..292).contains(&covered), "{covered} of 300"); // 270 expected, standard deviation 5
    }

    #[test]
    fn the_same_seed_gives_the_same_interval() {
        let values = sample(1, 50);
        let with = |seed| bootstrap_mean(&values, &Resampling { resamples: 200, level: 0.95, seed }).expect("50 rows");
        assert_eq!(with(3), with(3));
        assert_ne!(with(3).interval, with(4).interval);
    }

    #[test]
    fn pairing_removes_what_the_prompts_share() {
        let hard: Vec<f64> = sample(2, 200).iter().map(|x| 100.0 * x).collect();
        let a: Vec<f64> = hard.iter().zip(sample(3, 200)).map(|(h, e)| h + 1.0 + e).collect();
        let b: Vec<f64> = hard.iter().zip(sample(4, 200)).map(|(h, e)| h + e).collect();
        let how = Resampling { resamples: 500, ..Resampling::default() };
        let paired = bootstrap_difference(&a, &b, &how).expect("200 rows");
        assert!(paired.interval.low > 0.8 && paired.interval.high < 1.2, "{paired:?}");
    }

    #[test]
    fn nothing_to_resample() {
        assert_eq!(bootstrap_mean(&[], &Resampling::default()), None);
        assert_eq!(bootstrap_mean(&[1.0], &Resampling { resamples: 0, ..Resampling::default() }), None);
    }
}
