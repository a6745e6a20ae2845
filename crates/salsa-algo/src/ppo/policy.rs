//! The clipped policy loss.

use super::weight;
use crate::kl::ratio;

/// One micro-batch's share of the policy loss.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyLoss {
    /// Share of the mean over the minibatch's tokens.
    pub loss: f64,
    /// Derivative of `loss` by each log-prob.
    pub d_logprobs: Vec<f64>,
    /// How far the policy has moved, as shares.
    pub stats: PolicyStats,
}

/// How far the policy has moved from the sampling policy; each field is a share of a mean over the minibatch's tokens.
///
/// They allow early stopping: TRL up to 0.11 skipped a minibatch whose `ratio_mean` exceeded 10, and ended the epochs
/// once `policy_kl` exceeded 1.5 times a target.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyStats {
    /// Tokens whose gain was clipped (`policy/clipfrac_avg`).
    pub clip_fraction: f64,
    /// Mean of `(logprob - old_logprob)^2 / 2` (`policy/approxkl_avg`).
    pub approx_kl: f64,
    /// Mean of `old_logprob - logprob`.
    pub policy_kl: f64,
    /// Mean of the ratios (`val/ratio`); 1 before the first optimizer step.
    pub ratio_mean: f64,
    /// Mean of `(ratio - 1)^2`.
    pub ratio_spread: f64,
}

impl PolicyStats {
    /// Adds the shares of another micro-batch of the same minibatch.
    pub fn add(&mut self, other: &PolicyStats) {
        self.clip_fraction += other.clip_fraction;
        self.approx_kl += other.approx_kl;
        self.policy_kl += other.policy_kl;
        self.ratio_mean += other.ratio_mean;
        self.ratio_spread += other.ratio_spread;
    }

    /// Returns the variance of the ratios over the minibatch's tokens, once all its shares are added.
    ///
    /// ```text
    /// mean (ratio - 1)^2 - (mean ratio - 1)^2
    /// ```
    pub fn ratio_variance(&self) -> f64 {
        self.ratio_spread - (self.ratio_mean - 1.0).powi(2)
    }
}

/// Returns one micro-batch's share of the clipped policy loss, with its derivative.
///
/// ```text
/// ratio      = exp(logprob - old_logprob)
/// unclipped  = -advantage * ratio
/// clipped    = -advantage * clip(ratio, 1 - clip_ratio, 1 + clip_ratio)
/// loss       = sum max(unclipped, clipped) / tokens
/// d_logprob  = unclipped / tokens, or 0 where clipped > unclipped
/// ```
///
/// Slices have one entry per response token of the micro-batch; `tokens` counts those of the whole minibatch. The
/// exponent is capped at 20: a token more than 5e8 times as likely as before enters, with its derivative, at that
/// ratio: one runaway token gives a huge number instead of an infinity. `approx_kl` and `policy_kl` are not capped.
/// Source: Schulman et al. 2017 (1707.06347), equation 7.
///
/// ```
/// // ratio e^.5 = 1.65 and advantage 2: the gain stops at 1.2
/// let clipped = salsa_algo::ppo::policy_loss(&[-0.5], &[-1.0], &[2.0], 0.2, 1);
/// assert_eq!((clipped.loss, clipped.d_logprobs[0], clipped.stats.clip_fraction), (-2.4, 0.0, 1.0));
/// // the same with advantage -2: a loss is never cut off
/// let kept = salsa_algo::ppo::policy_loss(&[-0.5], &[-1.0], &[-2.0], 0.2, 1);
/// assert_eq!((kept.loss, kept.d_logprobs[0]), (2.0 * 0.5f64.exp(), 2.0 * 0.5f64.exp()));
/// ```
///
/// # Panics
/// If the lengths differ or exceed `tokens`.
pub fn policy_loss(
    logprobs: &[f64],
    old_logprobs: &[f64],
    advantages: &[f64],
    clip_ratio: f64,
    tokens: usize,
) -> PolicyLoss {
    assert_eq!(logprobs.len(), old_logprobs.len(), "one old log-prob per log-prob");
    assert_eq!(logprobs.len(), advantages.len(), "one advantage per log-prob");
    let weight = weight(logprobs.len(), tokens, "tokens");
    let mut loss = 0.0;
    let mut stats = PolicyStats::default();
    let mut d_logprobs = Vec::with_capacity(logprobs.len());
    for ((new, old), advantage) in logprobs.iter().zip(old_logprobs).zip(advantages) {
        let moved = new - old;
        let ratio = ratio(moved);
        let unclipped = -advantage * ratio;
        let clipped = -advantage * ratio.max(1.0 - clip_ratio).min(1.0 + clip_ratio);
        let cut_off = clipped > unclipped;
        loss += if cut_off { clipped } else { unclipped };
        d_logprobs.push(if cut_off { 0.0 } else { unclipped * weight });
        stats.add(&PolicyStats {
            clip_fraction: f64::from(u8::from(cut_off)),
            approx_kl: 0.5 * moved * moved,
            policy_kl: -moved,
            ratio_mean: ratio,
            ratio_spread: (ratio - 1.0).powi(2),
        });
    }
    PolicyLoss { loss: loss * weight, d_logprobs, stats: stats.scaled(weight) }
}

impl PolicyStats {
    fn scaled(&self, by: f64) -> PolicyStats {
        PolicyStats {
            clip_fraction: self.clip_fraction * by,
            approx_kl: self.approx_kl * by,
            policy_kl: self.policy_kl * by,
            ratio_mean: self.ratio_mean * by,
            ratio_spread: self.ratio_spread * by,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    /// The four corners of the clipping, ratio 2 or 1/2, advantage +1 or -1.
    #[test]
    fn pencil_table() {
        let ln2 = std::f64::consts::LN_2;
        for (moved, advantage, loss, d) in [
            (ln2, 1.0, -1.2, 0.0),                        // gain beyond the clip: cut off
            (ln2, -1.0, 2.0, 2.0),                        // loss: kept
            (-ln2, 1.0, -0.5, -0.5),                      // loss: kept
            (-ln2, -1.0, 0.8, 0.0),                       // gain beyond the clip: cut off
            (0.1, 1.0, -(0.1f64.exp()), -(0.1f64.exp())), // inside
            (0.1, 0.0, 0.0, 0.0),
        ] {
            let result = policy_loss(&[-1.0 + moved], &[-1.0], &[advantage], 0.2, 1);
            assert_close(&[result.loss, result.d_logprobs[0]], &[loss, d], 1e-15);
            assert_eq!(result.stats.clip_fraction, f64::from(u8::from(d == 0.0 && advantage != 0.0)));
        }
    }

    #[test]
    fn statistics_by_hand() {
        // ratios 2 and 1/2, among 4 tokens: shares of a quarter each
        let ln2 = std::f64::consts::LN_2;
        let s = policy_loss(&[ln2, -ln2], &[0.0, 0.0], &[1.0, 1.0], 0.2, 4).stats;
        assert_close(
            &[s.clip_fraction, s.approx_kl, s.policy_kl, s.ratio_mean, s.ratio_spread],
            &[0.25, 0.25 * ln2 * ln2, 0.0, 0.625, 0.3125],
            1e-15,
        );
        let s = policy_loss(&[ln2, -ln2, 0.0], &[0.0; 3], &[0.0; 3], 0.2, 3).stats;
        // ratios 2, .5, 1: mean 7/6, squares mean 5.25/3 = 1.75, variance 1.75 - 49/36
        assert!((s.ratio_variance() - (1.75 - 49.0 / 36.0)).abs() < 1e-15);
        let s = policy_loss(&[-1.0, -1.0], &[-1.5, -1.75], &[1.0; 2], 0.2, 2).stats;
        assert!((s.policy_kl - -0.625).abs() < 1e-15);
    }

    #[test]
    fn untouched_policy_gives_ratio_one_and_the_plain_policy_gradient() {
        let (logprobs, advantages) = ([-0.3, -2.0, -7.5], [0.5, -1.0, 2.0]);
        let result = policy_loss(&logprobs, &logprobs, &advantages, 0.2, 3);
        assert_eq!(result.d_logprobs, advantages.map(|a| -a * (1.0 / 3.0)));
        assert_eq!(result.loss, -1.5 * (1.0 / 3.0));
        assert_eq!((result.stats.ratio_mean, result.stats.ratio_variance()), (3.0 * (1.0 / 3.0), 0.0));
        assert_eq!((result.stats.approx_kl, result.stats.clip_fraction), (0.0, 0.0));
    }

    #[test]
    fn derivative_on_every_branch() {
        let old = [-1.0; 8];
        let new = [-0.5, -0.5, -1.5, -1.5, -0.9, -1.1, -1.0, -0.83];
        let advantages = [1.3, -0.7, 0.9, -1.1, 0.4, -0.6, 2.0, -0.2];
        let at = |x: &[f64]| policy_loss(x, &old, &advantages, 0.2, 11);
        assert_close(&at(&new).d_logprobs, &gradient(|x| at(x).loss, &new), 1e-9);
    }

    #[test]
    fn a_runaway_token_stays_finite_and_pushes_the_right_way() {
        let result = policy_loss(&[800.0], &[0.0], &[-1.0], 0.2, 1);
        assert!(result.loss.is_finite() && result.d_logprobs[0] > 0.0);
        assert_eq!(result.loss, 20f64.exp());
        assert_eq!(result.stats.approx_kl, 320_000.0);
        assert_eq!(policy_loss(&[800.0], &[0.0], &[1.0], 0.2, 1).d_logprobs, [0.0]);
        let gone = policy_loss(&[-800.0], &[0.0], &[1.0], 0.2, 1);
        assert_eq!((gone.loss, gone.d_logprobs[0]), (0.0, 0.0));
    }

    #[test]
    fn nan_comes_out_where_it_went_in() {
        for (new, old, advantage) in [(f64::NAN, 0.0, 1.0), (0.0, f64::NAN, 1.0), (0.0, 0.0, f64::NAN)] {
            let result = policy_loss(&[new], &[old], &[advantage], 0.2, 1);
            assert!(result.loss.is_nan() && result.d_logprobs[0].is_nan());
        }
    }

    #[test]
    #[should_panic(expected = "fewer tokens (1) than this part of it (2)")]
    fn the_denominator_counts_the_whole_minibatch() {
        policy_loss(&[0.0; 2], &[0.0; 2], &[0.0; 2], 0.2, 1);
    }

    #[test]
    #[should_panic(expected = "one advantage per log-prob")]
    fn lengths_must_agree() {
        policy_loss(&[0.0; 2], &[0.0; 2], &[0.0; 3], 0.2, 2);
    }
}
