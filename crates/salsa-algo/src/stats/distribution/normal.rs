//! The standard normal distribution.

use super::last_true;

/// Returns the probability that a standard normal number is at most `x`.
///
/// ```text
/// |x| < 2.5:  Φ(x) = 1/2 + φ(x) (x + x^3 / 3 + x^5 / (3 * 5) + x^7 / (3 * 5 * 7) + ...)
/// x <= -2.5:  Φ(x) = φ(x) / (-x + 1 / (-x + 2 / (-x + 3 / (-x + ...))))
/// ```
///
/// Source: DLMF 7.6.2 and 7.9.1, written for Φ.
pub(crate) fn normal_cdf(x: f64) -> f64 {
    if x.abs() < 2.5 {
        let (mut term, mut sum, mut odd) = (x, 0.0, 1.0);
        while f64::abs(term) > 1e-18 {
            sum += term;
            odd += 2.0;
            term *= x * x / odd;
        }
        return 0.5 + density(x) * sum;
    }
    let tail = density(x) / (1..=200).rev().fold(x.abs(), |rest, k| x.abs() + f64::from(k) / rest);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// Returns the number below which a standard normal number lies with this probability; infinite at 0 and 1.
pub(crate) fn normal_quantile(probability: f64) -> f64 {
    if probability > 0.5 {
        return -normal_quantile(1.0 - probability);
    }
    if probability == 0.5 {
        return 0.0;
    }
    if probability <= 0.0 {
        return f64::NEG_INFINITY;
    }
    last_true(-40.0, 0.0, |x| normal_cdf(x) <= probability)
}

fn density(x: f64) -> f64 {
    (-x * x / 2.0).exp() * FACTOR
}

/// `1 / sqrt(2π)`.
const FACTOR: f64 = 0.398_942_280_401_432_7;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Z95;

    #[test]
    fn published_values() {
        // Abramowitz and Stegun, tables 26.1 and 26.2.
        for (x, tail) in [(0.0, 0.5), (1.0, 0.158_655_253_931_457), (2.0, 0.022_750_131_948_179)] {
            assert!((normal_cdf(-x) - tail).abs() < 1e-14 && (normal_cdf(x) + tail - 1.0).abs() < 1e-14, "{x}");
        }
        for (x, log10_of_tail) in [(5.0, 6.54265), (10.0, 23.11805), (20.0, 88.56010)] {
            assert!((normal_cdf(-x).log10() + log10_of_tail).abs() < 1e-5, "{x}");
        }
        assert!((normal_cdf(2.5 - 1e-12) - normal_cdf(2.5)).abs() < 1e-12, "the two formulas meet");
    }

    #[test]
    fn the_quantile_is_the_inverse() {
        assert!((normal_quantile(0.975) - Z95).abs() < 1e-14);
        assert_eq!(normal_quantile(0.5), 0.0);
        assert_eq!((normal_quantile(0.0), normal_quantile(1.0)), (f64::NEG_INFINITY, f64::INFINITY));
        for p in [1e-12, 0.01, 0.3, 0.9] {
            assert!((normal_cdf(normal_quantile(p)) / p - 1.0).abs() < 1e-13, "{p}");
        }
    }
}
