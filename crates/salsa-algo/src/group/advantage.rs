//! Advantages of the responses of a group.

use crate::whiten::moments;

/// What is subtracted from a reward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Baseline {
    /// The mean of its group (GRPO).
    #[default]
    Group,
    /// The mean of the other responses of its group (RLOO): independent of the response itself, so unbiased.
    LeaveOneOut,
    /// Nothing (REINFORCE++, which subtracts the mean of the batch by `scale_rewards: tokens`).
    None,
}

/// What advantages are divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum ScaleRewards {
    /// The standard deviation of the rewards of the group.
    #[default]
    Group,
    /// The standard deviation of the rewards of the batch.
    Batch,
    /// Nothing: a prompt on which responses differ little has little influence (Dr. GRPO).
    None,
    /// The standard deviation over all tokens of the batch, after subtracting their mean (REINFORCE++).
    Tokens,
}

/// Added to standard deviations, as in TRL.
const EPSILON: f64 = 1e-4;

/// Returns the advantage of every response. `rewards` has groups of `group` responses to one prompt, one after the other.
///
/// ```text
/// Group         r - mean(group)
/// LeaveOneOut   r - mean(group without r) = (r - mean(group)) * n / (n - 1)
///
/// None          r
///
/// scale         / (std + 1e-4), std with denominator n - 1, of the rewards of the group or of the batch; Tokens: not here
/// ```
///
/// A group of one response has nothing to compare with: its advantage is 0, unless there is no baseline. Source: Shao et al. 2024 (2402.03300) and
/// Ahmadian et al. 2024 (2402.14740); arithmetic as in TRL's `GRPOTrainer`.
///
/// ```
/// use salsa_algo::group::{Baseline, ScaleRewards, advantages};
/// let rewards = [1.0, 3.0, 5.0, 5.0]; // two prompts, two responses each
/// assert_eq!(advantages(&rewards, 2, Baseline::Group, ScaleRewards::None), [-1.0, 1.0, 0.0, 0.0]);
/// assert_eq!(advantages(&rewards, 2, Baseline::LeaveOneOut, ScaleRewards::None), [-2.0, 2.0, 0.0, 0.0]);
/// let scaled = advantages(&rewards, 2, Baseline::Group, ScaleRewards::Group); // std of 1 and 3: sqrt(2)
/// assert_eq!(scaled[1], 1.0 / (2f64.sqrt() + 1e-4));
/// ```
///
/// # Panics
/// If `group` is 0, or the number of rewards no multiple of it.
pub fn advantages(rewards: &[f64], group: usize, baseline: Baseline, scale: ScaleRewards) -> Vec<f64> {
    assert!(group > 0, "a group has at least one response");
    assert_eq!(rewards.len() % group, 0, "whole groups of {group}");
    let of_batch = match scale {
        ScaleRewards::Batch => Some(moments(rewards).variance.sqrt()),
        ScaleRewards::Group | ScaleRewards::None | ScaleRewards::Tokens => None,
    };
    let factor = match baseline {
        Baseline::LeaveOneOut if group > 1 => group as f64 / (group - 1) as f64,
        Baseline::LeaveOneOut | Baseline::Group | Baseline::None => 1.0,
    };
    let mut all = Vec::with_capacity(rewards.len());
    for rewards in rewards.chunks(group) {
        let of_group = moments(rewards);
        let divisor = match scale {
            ScaleRewards::Group => of_group.variance.sqrt() + EPSILON,
            ScaleRewards::Batch => of_batch.unwrap_or(0.0) + EPSILON,
            ScaleRewards::None | ScaleRewards::Tokens => 1.0,
        };
        let baseline = if baseline == Baseline::None { 0.0 } else { of_group.mean };
        all.extend(rewards.iter().map(|reward| (reward - baseline) * factor / divisor));
    }
    all
}

/// Returns the advantage of every token: that of its response, minus `beta` times the KL of this and all later tokens of
/// the response. `lengths` are the tokens of the responses, `kls` their KLs, concatenated.
///
/// ```text
/// A_t = A - beta * (KL_t + KL_t+1 + ... + KL_last)
/// ```
///
/// Source: Hu et al. 2025 (2501.03262, REINFORCE++).
///
/// ```
/// use salsa_algo::group::tokens_to_go;
/// assert_eq!(tokens_to_go(&[1.0, -2.0], &[2, 1], &[0.5, 0.25, 1.0], 2.0), [-0.5, 0.5, -4.0]);
/// assert_eq!(tokens_to_go(&[1.0, -2.0], &[2, 1], &[0.5, 0.25, 1.0], 0.0), [1.0, 1.0, -2.0]);
/// ```
///
/// # Panics
/// If lengths differ.
pub fn tokens_to_go(advantages: &[f64], lengths: &[usize], kls: &[f64], beta: f64) -> Vec<f64> {
    assert_eq!(advantages.len(), lengths.len(), "one advantage per response");
    assert_eq!(kls.len(), lengths.iter().sum::<usize>(), "one KL per token");
    let mut all = Vec::with_capacity(kls.len());
    let mut start = 0;
    for (&advantage, &length) in advantages.iter().zip(lengths) {
        let kls = &kls[start..start + length];
        start += length;
        let mut to_go = 0.0;
        all.extend(kls.iter().rev().map(|kl| {
            to_go += kl;
            advantage - beta * to_go
        }));
        all[start - length..].reverse();
    }
    all
}

/// Subtracts the mean over all tokens and divides by their standard deviation (denominator n, at least 1e-4).
///
/// Source: Hu et al. 2025 (2501.03262, REINFORCE++); the limit is that of OpenRLHF.
///
/// ```
/// use salsa_algo::group::normalize_tokens;
/// let mut advantages = [1.0, 1.0, 4.0]; // mean 2, variance (1 + 1 + 4) / 3 = 2
/// normalize_tokens(&mut advantages);
/// assert_eq!(advantages, [-1.0 / 2f64.sqrt(), -1.0 / 2f64.sqrt(), 2.0 / 2f64.sqrt()]);
/// ```
pub fn normalize_tokens(advantages: &mut [f64]) {
    let count = advantages.len().max(1) as f64;
    let mean = advantages.iter().sum::<f64>() / count;
    let variance = advantages.iter().map(|advantage| (advantage - mean).powi(2)).sum::<f64>() / count;
    let deviation = variance.max(SMALLEST_VARIANCE).sqrt();
    advantages.iter_mut().for_each(|advantage| *advantage = (*advantage - mean) / deviation);
}

/// Lower limit of the variance of the advantages of tokens.
const SMALLEST_VARIANCE: f64 = 1e-8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_close;

    #[test]
    fn advantages_by_hand() {
        let rewards = [0.0, 0.0, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0];
        // group 1: mean 1, squares 1 + 1 + 0 + 4 = 6, variance 2; group 2: all equal
        let group = advantages(&rewards, 4, Baseline::Group, ScaleRewards::Group);
        let std = 2f64.sqrt() + 1e-4;
        assert_close(&group, &[-1.0 / std, -1.0 / std, 0.0, 2.0 / std, 0.0, 0.0, 0.0, 0.0], 1e-15);
        let others = advantages(&rewards, 4, Baseline::LeaveOneOut, ScaleRewards::None);
        // means of the others: 4/3, 4/3, 1, 1/3
        assert_close(&others[..4], &[-4.0 / 3.0, -4.0 / 3.0, 0.0, 8.0 / 3.0], 1e-15);
        // the batch: mean 1.5, squares 2 * 2.25 + .25 + 2.25 + 4 * .25 = 8, variance 8/7
        let batch = advantages(&rewards, 4, Baseline::Group, ScaleRewards::Batch);
        assert_close(&batch[3..4], &[2.0 / ((8f64 / 7.0).sqrt() + 1e-4)], 1e-15);
    }

    #[test]
    fn advantages_of_a_group_sum_to_zero_and_a_constant_changes_nothing() {
        let rewards = [0.3, -1.0, 2.5, 0.7, 0.1, -0.4];
        let shifted = rewards.map(|reward| reward + 8.0);
        for baseline in [Baseline::Group, Baseline::LeaveOneOut] {
            for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
                let found = advantages(&rewards, 3, baseline, scale);
                found.chunks(3).for_each(|group| assert!(group.iter().sum::<f64>().abs() < 1e-12));
                assert_close(&found, &advantages(&shifted, 3, baseline, scale), 1e-12);
            }
        }
    }

    #[test]
    fn without_a_baseline_rewards_stay_and_tokens_are_normalised_over_the_batch() {
        let rewards = [3.0, -1.0, 0.5];
        let own = advantages(&rewards, 1, Baseline::None, ScaleRewards::Tokens);
        assert_eq!(own, rewards);
        // 6 tokens; to go: 3 - .5 * (.4 + .2 + 0), 3 - .1, 3 | -1 - .5 * 2 | .5 - .5 * .6, .5 - .5 * .2
        let lengths = [3, 1, 2];
        let mut tokens = tokens_to_go(&own, &lengths, &[0.4, 0.2, 0.0, 2.0, 0.4, 0.2], 0.5);
        assert_close(&tokens, &[2.7, 2.9, 3.0, -2.0, 0.2, 0.4], 1e-15);
        normalize_tokens(&mut tokens);
        let mean = 7.2 / 6.0;
        let squares = (1.5f64.powi(2) + 1.7f64.powi(2) + 1.8f64.powi(2) + 3.2f64.powi(2) + 1.0 + 0.8f64.powi(2)) / 6.0;
        assert_close(&tokens[..1], &[(2.7 - mean) / squares.sqrt()], 1e-14);
        let mut equal = [2.0; 4];
        normalize_tokens(&mut equal);
        assert_eq!(equal, [0.0; 4]);
    }

    #[test]
    fn one_response_has_no_advantage() {
        for baseline in [Baseline::Group, Baseline::LeaveOneOut] {
            assert_eq!(advantages(&[5.0, -3.0], 1, baseline, ScaleRewards::Group), [0.0, 0.0]);
        }
        assert!(advantages(&[], 4, Baseline::Group, ScaleRewards::Batch).is_empty());
    }

    #[test]
    fn nan_stays_in_its_group() {
        let found = advantages(&[f64::NAN, 1.0, 2.0, 4.0], 2, Baseline::Group, ScaleRewards::Group);
        assert!(found[..2].iter().all(|x| x.is_nan()) && found[2..].iter().all(|x| x.is_finite()));
    }

    #[test]
    #[should_panic(expected = "whole groups of 2")]
    fn groups_are_whole() {
        advantages(&[1.0; 3], 2, Baseline::Group, ScaleRewards::None);
    }
}
