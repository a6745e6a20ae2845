//! Confidence intervals in closed form.

use crate::whiten::moments;

/// Standard errors on either side of a 95 % interval of the normal distribution.
pub const Z95: f64 = 1.959_963_984_540_054;

/// A range of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// A mean with its interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean of the sample itself.
    pub mean: f64,
    /// The confidence interval of the true mean.
    pub interval: Interval,
}

/// Returns Wilson's interval for a share.
///
/// ```text
/// p      = successes / n
/// center = (p + z^2 / 2n) / (1 + z^2 / n)
/// half   = z / (1 + z^2 / n) * sqrt(p (1 - p) / n + z^2 / 4n^2)
/// ```
///
/// `successes` may hold halves (ties). Stays within `[0, 1]`; no trials give all of `[0, 1]`. Source: Wilson 1927.
///
/// ```
/// // nothing in 4 trials, z = 2: center (0 + .5) / 2, half 1 * sqrt(4 / 64)
/// let interval = salsa_algo::stats::wilson(0.0, 4, 2.0);
/// assert_eq!((interval.low, interval.high), (0.0, 0.5));
/// ```
///
/// # Panics
/// If `successes` is not between 0 and `n`.
pub fn wilson(successes: f64, n: usize, z: f64) -> Interval {
    let trials = n as f64;
    assert!((0.0..=trials).contains(&successes), "{successes} successes in {n} trials");
    if n == 0 {
        return Interval { low: 0.0, high: 1.0 };
    }
    let p = successes / trials;
    let shrink = 1.0 + z * z / trials;
    let center = (p + z * z / (2.0 * trials)) / shrink;
    let half = z / shrink * (p * (1.0 - p) / trials + z * z / (4.0 * trials * trials)).sqrt();
    Interval { low: (center - half).max(0.0), high: (center + half).min(1.0) }
}

/// Returns the mean of a sample with its normal interval; none for fewer than two numbers.
///
/// ```text
/// mean ± z * sqrt(variance / n)          variance unbiased
/// ```
///
/// Good for a few dozen numbers or more; for fewer, or if they accumulate at an end, see
/// [`bootstrap_mean`](super::bootstrap_mean).
///
/// ```
/// // mean 2, variance 2, standard error 1
/// let estimate = salsa_algo::stats::mean_interval(&[1.0, 3.0], 1.5).unwrap();
/// assert_eq!((estimate.mean, estimate.interval.low, estimate.interval.high), (2.0, 0.5, 3.5));
/// ```
pub fn mean_interval(values: &[f64], z: f64) -> Option<Estimate> {
    if values.len() < 2 {
        return None;
    }
    let moments = moments(values);
    let half = z * (moments.variance / values.len() as f64).sqrt();
    let interval = Interval { low: moments.mean - half, high: moments.mean + half };
    Some(Estimate { mean: moments.mean, interval })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_interval(interval: Interval, low: f64, high: f64, tolerance: f64) {
        assert!((interval.low - low).abs() < tolerance && (interval.high - high).abs() < tolerance, "{interval:?}");
    }

    #[test]
    fn wilson_by_hand() {
        // 8 of 16, z = 2: shrink 1.25, center (.5 + .125)/1.25 = .5, half 1.6 * sqrt(1/64 + 1/256) = .4 * sqrt(5)/4 ...
        let half = 1.6 * (1.0f64 / 64.0 + 1.0 / 256.0).sqrt();
        assert_interval(wilson(8.0, 16, 2.0), 0.5 - half, 0.5 + half, 1e-15);
        // all of 4, z = 2: the mirror image of none
        assert_interval(wilson(4.0, 4, 2.0), 0.5, 1.0, 1e-15);
    }

    #[test]
    fn wilson_agrees_with_published_figures() {
        // Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3
        assert_interval(wilson(81.0, 263, Z95), 0.2553, 0.3662, 5e-5);
        assert_interval(wilson(15.0, 148, Z95), 0.0624, 0.1605, 5e-5);
        assert_interval(wilson(0.0, 20, Z95), 0.0, 0.1611, 5e-5);
        assert_interval(wilson(1.0, 29, Z95), 0.0061, 0.1718, 5e-5);
    }

    #[test]
    fn wilson_stays_within_bounds_and_narrows() {
        let mut width = 2.0;
        for n in [1, 10, 100, 1000] {
            let all = wilson(n as f64, n, Z95);
            assert!(all.high <= 1.0 && all.low > 0.0);
            assert!(wilson(0.0, n, Z95).low >= 0.0);
            assert!(all.high - all.low < width);
            width = all.high - all.low;
        }
        assert_eq!(wilson(0.0, 0, Z95), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    #[should_panic(expected = "3 successes in 2 trials")]
    fn more_successes_than_trials() {
        wilson(3.0, 2, Z95);
    }

    #[test]
    fn mean_by_hand() {
        // 1 2 3 6: mean 3, variance 14/3, standard error sqrt(14/12)
        let half = 2.0 * (14.0f64 / 12.0).sqrt();
        let estimate = mean_interval(&[1.0, 2.0, 3.0, 6.0], 2.0).expect("four numbers");
        assert_eq!(estimate.mean, 3.0);
        assert_interval(estimate.interval, 3.0 - half, 3.0 + half, 1e-14);
        let two = mean_interval(&[1.0, 3.0], 1.5).expect("two numbers"); // standard error 1
        assert_interval(two.interval, 0.5, 3.5, 1e-15);
        assert_eq!(mean_interval(&[1.0], Z95), None);
        assert_eq!(mean_interval(&[], Z95), None);
    }
}
