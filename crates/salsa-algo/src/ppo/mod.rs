//! The PPO loss of one micro-batch: clipped policy term, clipped value term, their derivatives and statistics.
//!
//! Everything is a *share* of a mean over the minibatch: sums over this micro-batch divided by the minibatch's
//! [`Denominators`]. Losses, derivatives and statistics of the micro-batches therefore add up to those of the minibatch.

mod policy;
mod value;

pub use policy::{PolicyLoss, PolicyStats, policy_loss};
pub use value::{ValueLoss, explained_variance, value_loss};

/// The constants of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// How far the probability ratio may move from 1 before its gain is clipped (epsilon of the paper; .2).
    pub clip_ratio: f64,
    /// How far a value may move from the old value before its gain is clipped (.2); infinity disables clipping.
    pub clip_value: f64,
    /// Weight of the value loss in the total (`vf_coef`; TRL: .1).
    pub value_coef: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { clip_ratio: 0.2, clip_value: 0.2, value_coef: 0.1 }
    }
}

/// The denominators of a minibatch's means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Denominators {
    /// Response tokens in the minibatch.
    pub tokens: usize,
    /// Value slots in the minibatch (see [`crate::reward::slots`]).
    pub slots: usize,
}

/// The inputs of one micro-batch, responses concatenated.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Log-prob of each response token under the policy being trained.
    pub logprobs: &'a [f64],
    /// Log-prob of each response token when it was sampled.
    pub old_logprobs: &'a [f64],
    /// Whitened advantage of each response token.
    pub advantages: &'a [f64],
    /// Value of each slot under the critic being trained.
    pub values: &'a [f64],
    /// Value of each slot when the response was sampled.
    pub old_values: &'a [f64],
    /// Return of each slot.
    pub returns: &'a [f64],
}

/// The loss of one micro-batch, with its derivatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// `policy.loss + value_coef * value.loss`: this micro-batch's share of the minibatch's loss.
    pub loss: f64,
    /// Derivative of `loss` by each log-prob.
    pub d_logprobs: Vec<f64>,
    /// Derivative of `loss` by each value; `value_coef` is included.
    pub d_values: Vec<f64>,
    /// Share of the policy loss alone (`loss/policy_avg`).
    pub policy_loss: f64,
    /// Share of the value loss alone, without `value_coef` (`loss/value_avg`).
    pub value_loss: f64,
    /// Statistics of the policy's step, as shares.
    pub policy: PolicyStats,
    /// Share of the slots whose value gain was clipped (`val/clipfrac_avg`).
    pub value_clip_fraction: f64,
}

/// Returns the PPO loss of one micro-batch with its derivatives with respect to log-probs and values.
///
/// ```text
/// loss = policy_loss + value_coef * value_loss
/// ```
///
/// [`policy_loss`] and [`value_loss`] have the formulas. No entropy term and no KL term: the KL is in the rewards.
/// Source: Schulman et al. 2017 (1707.06347), equations 7 and 9; arithmetic as in TRL's `PPOTrainer`.
///
/// ```
/// use salsa_algo::ppo::{Batch, Denominators, Settings, loss};
/// let batch = Batch {
///     logprobs: &[-1.0], old_logprobs: &[-1.0], advantages: &[2.0], // ratio 1: -2
///     values: &[0.5], old_values: &[0.5], returns: &[1.5],          // .5 * 1^2 = .5
/// };
/// let loss = loss(&batch, &Settings::default(), Denominators { tokens: 1, slots: 1 });
/// assert_eq!(loss.loss, -2.0 + 0.1 * 0.5);
/// assert_eq!(loss.d_logprobs, [-2.0]);
/// assert_eq!(loss.d_values, [-0.1]);
/// ```
///
/// # Panics
/// If lengths differ among the token slices or among the slot slices, or a denominator is smaller than its count.
pub fn loss(batch: &Batch, settings: &Settings, denominators: Denominators) -> Loss {
    let policy =
        policy_loss(batch.logprobs, batch.old_logprobs, batch.advantages, settings.clip_ratio, denominators.tokens);
    let value = value_loss(batch.values, batch.old_values, batch.returns, settings.clip_value, denominators.slots);
    Loss {
        loss: policy.loss + settings.value_coef * value.loss,
        d_logprobs: policy.d_logprobs,
        d_values: value.d_values.iter().map(|d| settings.value_coef * d).collect(),
        policy_loss: policy.loss,
        value_loss: value.loss,
        policy: policy.stats,
        value_clip_fraction: value.clip_fraction,
    }
}

/// Returns `1 / denominator`, the weight of one of `count` items in the mean; 1 for a denominator of 0.
fn weight(count: usize, denominator: usize, what: &str) -> f64 {
    assert!(
        denominator >= count,
        "the minibatch cannot have fewer {what} ({denominator}) than this part of it ({count})"
    );
    1.0 / denominator.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};
    use crate::random::uniform;

    fn noise(stream: u64, n: u64) -> Vec<f64> {
        (0..n).map(|i| uniform(21, stream, i) * 2.0 - 1.0).collect()
    }

    #[test]
    fn derivatives_of_the_total() {
        let (old, new, adv) = (noise(0, 12), noise(1, 12), noise(2, 12));
        let new: Vec<f64> = old.iter().zip(&new).map(|(o, n)| o + 0.4 * n).collect();
        let (old_values, values, returns) = (noise(3, 15), noise(4, 15), noise(5, 15));
        let settings = Settings { clip_ratio: 0.2, clip_value: 0.3, value_coef: 0.7 };
        let at = |x: &[f64]| {
            let batch = Batch {
                logprobs: &x[..12],
                old_logprobs: &old,
                advantages: &adv,
                values: &x[12..],
                old_values: &old_values,
                returns: &returns,
            };
            loss(&batch, &settings, Denominators { tokens: 20, slots: 25 })
        };
        let x = [new, values].concat();
        let result = at(&x);
        assert!(result.policy.clip_fraction > 0.0 && result.value_clip_fraction > 0.0, "both branches are visited");
        let expected = gradient(|x| at(x).loss, &x);
        assert_close(&result.d_logprobs, &expected[..12], 1e-9);
        assert_close(&result.d_values, &expected[12..], 1e-9);
    }

    #[test]
    fn micro_batches_add_up_to_the_minibatch() {
        let columns: Vec<Vec<f64>> = (0..6).map(|s| noise(10 + s, 10)).collect();
        let part = |range: std::ops::Range<usize>| {
            let c = |i: usize| &columns[i][range.clone()];
            let batch = Batch {
                logprobs: c(0),
                old_logprobs: c(1),
                advantages: c(2),
                values: c(3),
                old_values: c(4),
                returns: c(5),
            };
            loss(&batch, &Settings::default(), Denominators { tokens: 10, slots: 10 })
        };
        let (whole, a, b) = (part(0..10), part(0..3), part(3..10));
        assert_close(&[a.loss + b.loss, a.value_loss + b.value_loss], &[whole.loss, whole.value_loss], 1e-14);
        assert_close(&[a.d_logprobs, b.d_logprobs].concat(), &whole.d_logprobs, 0.0);
        assert_close(&[a.d_values, b.d_values].concat(), &whole.d_values, 0.0);
        let mut sum = a.policy;
        sum.add(&b.policy);
        let flat = |s: PolicyStats| [s.clip_fraction, s.approx_kl, s.policy_kl, s.ratio_mean, s.ratio_variance()];
        assert_close(&flat(sum), &flat(whole.policy), 1e-14);
    }

    #[test]
    fn an_empty_batch_weighs_nothing() {
        let none: &[f64] = &[];
        let batch = Batch {
            logprobs: none,
            old_logprobs: none,
            advantages: none,
            values: none,
            old_values: none,
            returns: none,
        };
        assert_eq!(loss(&batch, &Settings::default(), Denominators { tokens: 0, slots: 0 }).loss, 0.0);
    }
}
