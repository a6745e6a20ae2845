//! The sign test: in how many seeds one arm is better.

use super::StudyError;

/// Outcome of a sign test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignTest {
    /// Differences above 0.
    pub positive: usize,
    /// Differences below 0.
    pub negative: usize,
    /// Differences of exactly 0, which are uninformative and ignored.
    pub zero: usize,
    /// Probability of signs at least as uneven if either sign is equally likely.
    pub p_value: f64,
}

/// Tests whether one sign is more frequent among the differences of the seeds (exact, two-sided).
///
/// ```text
/// p = min(1, 2 Σ_{i <= k} C(n, i) / 2^n)          n = positive + negative, k the smaller of both
/// ```
///
/// It assumes only that the differences are independent, at the price of power: five seeds of one sign give p = 0.0625,
/// so 0.05 requires six. Without any difference p is 1. Source: Arbuthnot 1710; Conover 1999, section 3.4.
///
/// ```
/// let test = salsa_algo::stats::study::sign_test(&[0.1, 0.2, 0.3, 0.1, 0.4]).unwrap();
/// assert_eq!((test.positive, test.p_value), (5, 0.0625)); // 2 / 2^5
/// ```
///
/// # Errors
/// If a difference is NaN.
pub fn sign_test(differences: &[f64]) -> Result<SignTest, StudyError> {
    if let Some(nan) = differences.iter().find(|difference| difference.is_nan()) {
        return Err(StudyError::Effect { effect: *nan });
    }
    let count = |holds: fn(&f64) -> bool| differences.iter().filter(|difference| holds(difference)).count();
    let (positive, negative) = (count(|x| *x > 0.0), count(|x| *x < 0.0));
    let zero = differences.len() - positive - negative;
    let p_value = (2.0 * at_most(positive.min(negative), positive + negative)).min(1.0);
    Ok(SignTest { positive, negative, zero, p_value })
}

/// Returns the probability of at most `k` heads among `n` throws, for `k <= n / 2`.
///
/// ```text
/// C(n, k) / 2^n * (1 + k / (n - k + 1) * (1 + (k - 1) / (n - k + 2) * (1 + ...)))
/// ```
fn at_most(k: usize, n: usize) -> f64 {
    let sum = (1..=k).fold(1.0, |inner, i| 1.0 + inner * i as f64 / (n - i + 1) as f64);
    // Halved while it grows, so that it neither overflows nor underflows early.
    let (mut largest, mut halvings) = (1.0, n);
    for i in 0..k {
        largest = largest * (n - i) as f64 / (i + 1) as f64;
        while largest > 1.0 && halvings > 0 {
            largest /= 2.0;
            halvings -= 1;
        }
    }
    largest * sum * 0.5f64.powf(halvings as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_signs(positive: usize, negative: usize) -> f64 {
        let differences: Vec<f64> = (0..positive).map(|_| 1.0).chain((0..negative).map(|_| -2.0)).collect();
        let test = sign_test(&differences).expect("numbers");
        assert_eq!((test.positive, test.negative, test.zero), (positive, negative, 0));
        test.p_value
    }

    #[test]
    fn by_hand() {
        assert_eq!(of_signs(6, 0), 2.0 / 64.0);
        assert_eq!(of_signs(1, 4), 2.0 * 6.0 / 32.0);
        assert_eq!(of_signs(8, 2), 2.0 * 56.0 / 1024.0);
        assert_eq!(of_signs(3, 3), 1.0);
        assert_eq!(of_signs(2, 3), 1.0); // 2 * 16 / 32
        assert_eq!(of_signs(0, 0), 1.0);
        let ties = sign_test(&[0.0, 1.0, -0.0, 2.0, 3.0]).expect("numbers");
        assert_eq!(ties, SignTest { positive: 3, negative: 0, zero: 2, p_value: 0.25 });
    }

    #[test]
    fn many_seeds_neither_overflow_nor_vanish() {
        // 2 P(X <= 950) of 2000 throws: normal approximation with continuity correction, z = 49.5 / sqrt(500)
        assert!((of_signs(950, 1050) - 0.026_84).abs() < 1e-4, "{}", of_signs(950, 1050));
        assert!(of_signs(0, 1000) > 0.0 && of_signs(0, 1000) < 1e-300);
        assert_eq!(of_signs(0, 3000), 0.0);
    }

    #[test]
    fn a_nan_is_refused() {
        assert!(sign_test(&[1.0, f64::NAN]).expect_err("refused").to_string().contains("NaN"));
    }
}
