//! Losses on preferences: a chosen and a rejected response to the same prompt, or single responses with a label.
//!
//! [`bradley_terry`] trains a reward model from its scores. The others train a policy from its log-probs: [`dpo`] and
//! its relatives on pairs, [`kto`] on single responses, both against a reference; [`orpo`] and [`cpo`] (SimPO) on pairs
//! without one. [`online`] makes pairs of responses that were just sampled.
//! As in [`crate::ppo`], results are shares of means over `pairs` pairs, so that micro-batches add up.

pub mod bradley_terry;
pub mod cpo;
pub mod dpo;
pub mod kto;
pub mod online;
pub mod orpo;

/// One micro-batch's share of a loss on pairs of log-probs, and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct PairLoss {
    /// Share of the mean loss.
    pub loss: f64,
    /// Derivative of `loss` by each chosen response's log-prob.
    pub d_chosen: Vec<f64>,
    /// Derivative of `loss` by each rejected response's log-prob.
    pub d_rejected: Vec<f64>,
    /// Implicit reward of each chosen response: `beta * (chosen - ref_chosen)`, without a reference `beta * chosen`.
    pub rewards_chosen: Vec<f64>,
    /// Implicit reward of each rejected response.
    pub rewards_rejected: Vec<f64>,
    /// Share of the pairs whose chosen response has strictly the higher implicit reward.
    pub accuracy: f64,
    /// Share of the mean difference of the implicit rewards.
    pub reward_margin: f64,
}

impl PairLoss {
    /// Sums `at(chosen, rejected)`: the loss of a pair and its derivatives by both. The rewards are `beta` times these
    /// numbers.
    fn sum(
        chosen: &[f64],
        rejected: &[f64],
        beta: f64,
        pairs: usize,
        at: impl Fn(f64, f64) -> (f64, f64, f64),
    ) -> PairLoss {
        assert_eq!(chosen.len(), rejected.len(), "one log-prob per pair in every slice");
        let weight = weight(chosen.len(), pairs);
        let (mut sum, mut right, mut gaps) = (0.0, 0.0, 0.0);
        let (mut d_chosen, mut d_rejected) = (Vec::with_capacity(chosen.len()), Vec::with_capacity(chosen.len()));
        for (&c, &r) in chosen.iter().zip(rejected) {
            let (loss, by_chosen, by_rejected) = at(c, r);
            sum += loss;
            d_chosen.push(by_chosen * weight);
            d_rejected.push(by_rejected * weight);
            right += f64::from(u8::from(c > r));
            gaps += c - r;
        }
        PairLoss {
            loss: sum * weight,
            d_chosen,
            d_rejected,
            rewards_chosen: chosen.iter().map(|c| beta * c).collect(),
            rewards_rejected: rejected.iter().map(|r| beta * r).collect(),
            accuracy: right * weight,
            reward_margin: beta * gaps * weight,
        }
    }
}

/// Returns a micro-batch's share of the negative log-likelihood per token, and its derivative by the log-prob of each
/// token: `-logprob / tokens` and `-1 / tokens`. `logprob` is the sum over the micro-batch, `tokens` counts the whole
/// batch.
///
/// ```
/// use salsa_algo::preference::negative_log_likelihood;
/// assert_eq!(negative_log_likelihood(-6.0, 4.0), (1.5, -0.25));
/// ```
pub fn negative_log_likelihood(logprob: f64, tokens: f64) -> (f64, f64) {
    (-logprob / tokens, -1.0 / tokens)
}

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
