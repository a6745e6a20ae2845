//! KL divergence between policy and reference, estimated from sampled tokens, and its coefficient.

/// Estimators of a token's KL from its log-probs under policy and reference, in Schulman's names; see [`kl`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum KlEstimator {
    /// `logp - ref`: unbiased, of either sign.
    #[default]
    K1,
    /// `(logp - ref)^2 / 2`: biased, small variance.
    K2,
    /// `exp(ref - logp) - 1 - (ref - logp)`: unbiased, never negative.
    K3,
}

/// Log-ratios are capped at this value before `exp` (`exp(20)` is about 4.9e8), so that one extreme token gives a huge
/// number and not an infinity.
pub(crate) const MAX_LOG_RATIO: f64 = 20.0;

/// Returns `exp(min(log_ratio, 20))`; NaN stays NaN.
pub(crate) fn ratio(log_ratio: f64) -> f64 {
    if log_ratio > MAX_LOG_RATIO { MAX_LOG_RATIO.exp() } else { log_ratio.exp() }
}

/// Returns the estimated KL of one sampled token, in nats.
///
/// ```text
/// k1 = logprob - ref_logprob
/// k2 = (logprob - ref_logprob)^2 / 2
/// k3 = exp(ref_logprob - logprob) - 1 - (ref_logprob - logprob)
/// ```
///
/// The token must be drawn from the policy. As estimates of KL(policy ‖ reference), with `x = logprob - ref_logprob`:
///
/// | estimator | value | bias | sign |
/// |---|---|---|---|
/// | `K1` | `x` | none | either |
/// | `K2` | `x^2 / 2` | small when the two are close | never negative |
/// | `K3` | `exp(-x) - 1 + x` | none | never negative |
///
/// In k3 the exponent is capped at 20; below that the formula is exact. Both log-probabilities must come from the same
/// positions and the same sampling temperature. Source: J. Schulman, "Approximating KL divergence" (2020). TRL's
/// default is `K1`.
///
/// ```
/// use salsa_algo::kl::{KlEstimator, kl};
/// assert_eq!(kl(KlEstimator::K1, -1.0, -1.5), 0.5);
/// assert_eq!(kl(KlEstimator::K2, -1.0, -1.5), 0.125);
/// assert_eq!(kl(KlEstimator::K3, -1.0, -1.5), (-0.5f64).exp() - 0.5);
/// ```
pub fn kl(estimator: KlEstimator, logprob: f64, ref_logprob: f64) -> f64 {
    let x = logprob - ref_logprob;
    match estimator {
        KlEstimator::K1 => x,
        KlEstimator::K2 => 0.5 * x * x,
        // exp_m1 keeps the small differences that exp(-x) - 1 loses.
        KlEstimator::K3 if -x <= MAX_LOG_RATIO => (-x).exp_m1() + x,
        KlEstimator::K3 => ratio(-x) - 1.0 + x,
    }
}

/// Returns the derivative of [`kl`] by `logprob`.
///
/// ```text
/// k1   1
/// k2   logprob - ref_logprob
/// k3   1 - exp(ref_logprob - logprob)
/// ```
///
/// In k3 the exponent is capped at 20, where the derivative of the estimate itself would be that of a constant: the token
/// is still pushed towards the reference.
///
/// ```
/// use salsa_algo::kl::{KlEstimator, kl_gradient};
/// assert_eq!(kl_gradient(KlEstimator::K2, -1.0, -1.5), 0.5);
/// assert_eq!(kl_gradient(KlEstimator::K3, -1.0, -1.0), 0.0);
/// ```
pub fn kl_gradient(estimator: KlEstimator, logprob: f64, ref_logprob: f64) -> f64 {
    let x = logprob - ref_logprob;
    match estimator {
        KlEstimator::K1 => 1.0,
        KlEstimator::K2 => x,
        KlEstimator::K3 if -x <= MAX_LOG_RATIO => -(-x).exp_m1(),
        KlEstimator::K3 => 1.0 - ratio(-x),
    }
}

/// Returns the estimated KL of every token of a response: [`kl`] element by element.
///
/// ```
/// use salsa_algo::kl::{KlEstimator, kls};
/// assert_eq!(kls(KlEstimator::K1, &[-1.0, -0.5], &[-1.5, -0.25]), [0.5, -0.25]);
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn kls(estimator: KlEstimator, logprobs: &[f64], ref_logprobs: &[f64]) -> Vec<f64> {
    assert_eq!(logprobs.len(), ref_logprobs.len(), "one reference log-prob per policy log-prob");
    logprobs.iter().zip(ref_logprobs).map(|(&p, &r)| kl(estimator, p, r)).collect()
}

/// How the KL coefficient `beta` changes from one PPO step to the next.
///
/// SALSA and today's TRL keep it fixed; TRL up to 0.11 adapted it (target 6, horizon 10000).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum KlController {
    /// `beta` never changes.
    #[default]
    Fixed,
    /// `beta` grows while the measured KL is above `target`, and shrinks below it.
    Adaptive {
        /// Target KL of a whole response, in nats.
        target: f64,
        /// Responses after which a KL off by 20 % or more has moved `beta` by about 20 %.
        horizon: f64,
    },
}

impl KlController {
    /// Returns the coefficient to use next, given the one just used and the KL just measured.
    ///
    /// ```text
    /// Fixed      beta
    /// Adaptive   beta * (1 + clip(measured_kl / target - 1, -0.2, 0.2) * responses / horizon)
    /// ```
    ///
    /// `measured_kl` is the KL summed over a response and averaged over the `responses` of the step. A NaN measurement
    /// leaves `beta` unchanged. Source: Ziegler et al. 2019 (1909.08593), section 2.2; TRL 0.11 `AdaptiveKLController`.
    ///
    /// ```
    /// use salsa_algo::kl::KlController;
    /// let adaptive = KlController::Adaptive { target: 6.0, horizon: 10_000.0 };
    /// assert!((adaptive.update(0.2, 9.0, 128) - 0.200512).abs() < 1e-12); // 9/6 - 1 = .5, clipped to .2
    /// assert_eq!(KlController::Fixed.update(0.2, 9.0, 128), 0.2);
    /// ```
    pub fn update(&self, beta: f64, measured_kl: f64, responses: usize) -> f64 {
        match *self {
            KlController::Fixed => beta,
            KlController::Adaptive { .. } if measured_kl.is_nan() => beta,
            KlController::Adaptive { target, horizon } => {
                let error = (measured_kl / target - 1.0).clamp(-0.2, 0.2);
                beta * (1.0 + error * responses as f64 / horizon)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KlEstimator::*;
    use super::*;
    use crate::finite_difference::assert_close;

    #[test]
    fn pencil_table() {
        // logprob, ref, k1, k2, k3; ln 2 = .693147180559945
        let ln2 = std::f64::consts::LN_2;
        for (p, r, k1, k2, k3) in [
            (-1.0, -1.0, 0.0, 0.0, 0.0),
            (-2.0, -3.0, 1.0, 0.5, 0.36787944117144233), // 1/e - 1 + 1
            (-3.0, -2.0, -1.0, 0.5, 0.718281828459045),  // e - 1 - 1
            (-1.0 - ln2, -1.0, -ln2, 0.2402265069591007, 0.3068528194400547), // 2 - 1 - ln 2
        ] {
            assert_close(&[kl(K1, p, r), kl(K2, p, r), kl(K3, p, r)], &[k1, k2, k3], 1e-14);
        }
    }

    #[test]
    fn k1_and_k3_are_unbiased_under_the_policy() {
        // policy (.5, .3, .2), reference (.2, .5, .3): KL = sum p ln(p/q)
        let (p, q) = ([0.5f64, 0.3, 0.2], [0.2f64, 0.5, 0.3]);
        let exact = 0.5 * 2.5f64.ln() + 0.3 * 0.6f64.ln() + 0.2 * (2.0f64 / 3.0).ln();
        for estimator in [K1, K3] {
            let mean: f64 = (0..3).map(|i| p[i] * kl(estimator, p[i].ln(), q[i].ln())).sum();
            assert!((mean - exact).abs() < 1e-14, "{estimator:?}: {mean} is not {exact}");
        }
    }

    #[test]
    fn k2_and_k3_are_never_negative_and_agree_for_close_models() {
        for i in -100..=100 {
            let x = f64::from(i) * 1e-3;
            assert!(kl(K2, -1.0 + x, -1.0) >= 0.0 && kl(K3, -1.0 + x, -1.0) >= 0.0);
            // their difference is x^3/6 + O(x^4)
            assert!((kl(K2, -1.0 + x, -1.0) - kl(K3, -1.0 + x, -1.0)).abs() <= x.abs().powi(3) / 5.0 + 1e-16);
        }
        assert!((kl(K3, 1e-9, 0.0) - 5e-19).abs() < 1e-24, "small differences survive");
    }

    #[test]
    fn an_absurd_token_stays_finite_and_the_cap_is_continuous() {
        let top = 20f64.exp();
        assert!((kl(K3, -1000.0, 0.0) - (top - 1001.0)).abs() < 1e-6);
        assert!((kl(K3, -20.0, 0.0) - (top - 21.0)).abs() < 1e-6);
        assert!((kl(K3, -19.0, 0.0) - (19f64.exp() - 20.0)).abs() < 1e-6);
        assert!((kl(K3, 0.0, -1000.0) - 999.0).abs() < 1e-12);
        for estimator in [K1, K2, K3] {
            assert!(kl(estimator, f64::NAN, 0.0).is_nan());
        }
        assert!(ratio(f64::NAN).is_nan());
        assert_eq!([ratio(0.0), ratio(f64::NEG_INFINITY), ratio(f64::INFINITY)], [1.0, 0.0, top]);
    }

    #[test]
    fn adaptive_coefficient() {
        let adaptive = KlController::Adaptive { target: 6.0, horizon: 10_000.0 };
        // error, times 128/10000 = .0128:  9 -> .2 (clipped), 6.6 -> .1, 6 -> 0, 1 -> -.2 (clipped)
        for (kl, expected) in [(9.0, 0.200512), (6.6, 0.200256), (6.0, 0.2), (1.0, 0.199488), (-50.0, 0.199488)] {
            assert!((adaptive.update(0.2, kl, 128) - expected).abs() < 1e-12, "{kl}");
        }
        assert_eq!(adaptive.update(0.2, f64::NAN, 128), 0.2);
        assert_eq!(adaptive.update(0.2, 9.0, 0), 0.2);
        assert_eq!(KlController::Fixed.update(0.3, 1e9, 128), 0.3);
    }

    #[test]
    #[should_panic(expected = "one reference log-prob")]
    fn lengths_must_agree() {
        kls(K1, &[0.0], &[]);
    }
}
