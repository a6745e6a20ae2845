//! From scores, KLs and values to what an update learns from: rewards, advantages, returns.
use salsa_algo::{
    gae::gae,
    reward,
    whiten::{Mean, drop_score_slots, whiten},
};

use super::PpoConfig;
use crate::stage::rollout::{Rollouts, split};

/// The slots of each response: its tokens, and one more where the score goes after EOS.
pub fn slots(config: &PpoConfig, rollouts: &Rollouts) -> Vec<usize> {
    let lengths = rollouts.lengths().into_iter().zip(&rollouts.endings);
    lengths.map(|(tokens, &ending)| reward::slots(config.score_at(), tokens, ending)).collect()
}

/// The reward of every slot: the KL penalty, `beta` times the KL, on each token, the score on the last slot.
///
/// `scores` has a number for each response, `kls` one for each token, responses end to end.
pub fn rewards(
    config: &PpoConfig,
    beta: f64,
    rollouts: &Rollouts,
    scores: &[f64],
    kls: &[f64],
    slots: &[usize],
) -> Vec<f64> {
    let rule = config.scores.rule();
    let mut rewards: Vec<f64> = Vec::new();
    for (i, kl) in split(kls, &rollouts.lengths()).into_iter().enumerate() {
        rewards.extend(reward::rewards(beta, kl, rule.apply(scores[i], rollouts.endings[i]), slots[i]));
    }
    if config.whiten_rewards {
        whiten(&mut rewards, Mean::Keep);
    }
    rewards
}

/// Whitened advantages of the tokens, and returns of the slots, from rewards and values of the slots.
pub fn estimate(
    config: &PpoConfig,
    rewards: &[f64],
    values: &[f64],
    slots: &[usize],
    rollouts: &Rollouts,
) -> (Vec<f64>, Vec<f64>) {
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for (rewards, values) in split(rewards, slots).into_iter().zip(split(values, slots)) {
        let estimated = gae(rewards, values, config.gamma, config.lam);
        advantages.extend(estimated.advantages);
        returns.extend(estimated.returns);
    }
    let mut advantages = drop_score_slots(&advantages, slots, &rollouts.lengths());
    whiten(&mut advantages, Mean::Remove);
    (advantages, returns)
}
