//! Losses on preference pairs: a chosen and a rejected response to the same prompt.
//!
//! [`bradley_terry`] trains a reward model from its scores; [`dpo`] trains a policy from its log-probs, without one.
//! As in [`crate::ppo`], results are shares of means over `pairs` pairs, so that micro-batches add up.

pub mod bradley_terry;
pub mod dpo;

/// Returns `ln(1 + exp(x))` without overflow; `softplus(-x)` is `-ln(sigmoid(x))`.
///
/// ```
/// use salsa_algo::preference::softplus;
/// assert_eq!(softplus(0.0), 2f64.ln());
/// assert_eq!(softplus(1000.0), 1000.0);
/// ```
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Returns `1 / (1 + exp(-x))` without overflow: the probability that a response whose score is higher by `x` wins.
///
/// ```
/// use salsa_algo::preference::sigmoid;
/// assert_eq!(sigmoid(0.0), 0.5);
/// assert_eq!(sigmoid(-1000.0), 0.0);
/// ```
pub fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) }
}

/// Returns `1 / pairs` after checking that a micro-batch of `count` pairs fits.
fn weight(count: usize, pairs: usize) -> f64 {
    assert!(pairs >= count, "the batch cannot have fewer pairs ({pairs}) than this part of it ({count})");
    1.0 / pairs.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softplus_and_sigmoid_fit_together_at_every_scale() {
        for x in [-700.0, -30.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 30.0, 700.0] {
            assert!((sigmoid(x) + sigmoid(-x) - 1.0).abs() < 1e-15, "{x}");
            assert!((softplus(x) - softplus(-x) - x).abs() < 1e-12 * (1.0 + f64::abs(x)), "{x}");
            assert!((softplus(x) + sigmoid(-x).ln()).abs() < 1e-12 * (1.0 + f64::abs(x)), "{x}");
        }
        assert!((sigmoid(3f64.ln()) - 0.75).abs() < 1e-15);
        assert!((softplus(-100.0) / (-100f64).exp() - 1.0).abs() < 1e-12, "tiny tails survive");
        assert!(softplus(f64::NAN).is_nan() && sigmoid(f64::NAN).is_nan());
    }
}
