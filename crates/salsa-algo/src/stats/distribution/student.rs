//! Student's t distribution.

use super::{beta::incomplete_beta, last_true};

/// Returns the probability that the magnitude of a t variable is at least `t`: the p-value of a two-sided test.
///
/// ```text
/// I_y(df / 2, 1 / 2)          y = df / (df + t^2)
/// ```
///
/// Source: DLMF 8.17 and Abramowitz and Stegun 26.7.1.
pub(crate) fn student_t_two_sided(t: f64, df: f64) -> f64 {
    if t.is_infinite() {
        return 0.0;
    }
    let square = t * t;
    incomplete_beta(df / 2.0, 0.5, df / (df + square), square / (df + square))
}

/// Returns the half-width of a two-sided t interval in standard errors; none if `level` is not between 0 and 1 or
/// `df` is not a positive number.
///
/// ```text
/// t such that P(|T| <= t) = level          T of `df` degrees of freedom
/// ```
///
/// At 95 %: 12.71, 4.30, 3.18, 2.78 for 1 to 4 degrees of freedom (two to five seeds), and 1.96 for very many.
///
/// ```
/// use salsa_algo::stats::student_t_quantile;
/// // one degree of freedom is the Cauchy distribution, of which half lies within ±1; two have t = sqrt(2 l^2 / (1 - l^2))
/// assert!((student_t_quantile(0.5, 1.0).unwrap() - 1.0).abs() < 1e-14);
/// assert!((student_t_quantile(0.6, 2.0).unwrap() - (0.72f64 / 0.64).sqrt()).abs() < 1e-14);
/// assert_eq!(student_t_quantile(1.0, 4.0), None);
/// ```
pub fn student_t_quantile(level: f64, df: f64) -> Option<f64> {
    if !(level > 0.0 && level < 1.0 && df > 0.0 && df.is_finite()) {
        return None;
    }
    let inside = |t: f64| student_t_two_sided(t, df) >= 1.0 - level;
    let mut high = 1.0;
    while inside(high) && high < 1e150 {
        high *= 2.0;
    }
    Some(last_true(0.0, high, inside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        for t in [0.0f64, 0.01, 0.5, 1.0, 3.0, 100.0] {
            let cauchy = 1.0 - 2.0 / std::f64::consts::PI * t.atan();
            assert!((student_t_two_sided(t, 1.0) - cauchy).abs() < 1e-13, "{t}");
            let two = 1.0 - t / (2.0 + t * t).sqrt();
            assert!((student_t_two_sided(-t, 2.0) - two).abs() < 1e-13, "{t}");
        }
        assert_eq!(student_t_two_sided(f64::INFINITY, 3.0), 0.0);
    }

    #[test]
    fn published_quantiles() {
        // Abramowitz and Stegun, table 26.10, two-sided 95 % and 99 %.
        for (df, at95, at99) in [(1.0, 12.706, 63.657), (4.0, 2.776, 4.604), (9.0, 2.262, 3.250), (30.0, 2.042, 2.750)]
        {
            assert!((student_t_quantile(0.95, df).expect("a level") - at95).abs() < 5e-4, "{df}");
            assert!((student_t_quantile(0.99, df).expect("a level") - at99).abs() < 5e-4, "{df}");
        }
    }

    #[test]
    fn what_is_no_level_has_no_quantile() {
        for (level, df) in [(0.0, 3.0), (1.0, 3.0), (f64::NAN, 3.0), (0.9, 0.0), (0.9, f64::NAN)] {
            assert_eq!(student_t_quantile(level, df), None, "{level} {df}");
        }
    }
}
