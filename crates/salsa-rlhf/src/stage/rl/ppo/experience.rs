//! The training data of an update: rewards, advantages and returns from scores, KLs and values.
use salsa_algo::{
    gae::gae,
    reward,
    whiten::{Mean, drop_score_slots, whiten},
};
use salsa_engine::{Model, comm::CommError};

use super::PpoConfig;
use crate::stage::rollout::{Rollouts, split};

/// The responses of an update with the data of the losses. Per-token and per-slot numbers are concatenated.
pub(crate) struct Experience {
    /// The responses.
    pub(crate) rollouts: Rollouts,
    /// Slots of each response: its tokens, and one more if the score is added after the end token.
    pub(crate) slots: Vec<usize>,
    /// Value of each slot at sampling.
    pub(crate) old_values: Vec<f64>,
    /// Whitened advantage of each token.
    pub(crate) advantages: Vec<f64>,
    /// Return of each slot.
    pub(crate) returns: Vec<f64>,
}

impl Experience {
    /// Computes rewards from the scores of responses and the KLs of their tokens, penalised with `beta`; then
    /// advantages and returns from rewards and the critic's values.
    ///
    /// `scores` has one number per response, `kls` one per token, concatenated over the responses.
    ///
    /// # Errors
    /// As [`Rollouts::values_of`].
    pub(crate) fn new(
        config: &PpoConfig,
        beta: f64,
        rollouts: Rollouts,
        scores: &[f64],
        kls: &[f64],
        critic: &Model,
    ) -> Result<Experience, CommError> {
        let endings = rollouts.lengths().into_iter().zip(&rollouts.endings);
        let slots: Vec<usize> =
            endings.map(|(tokens, &ending)| reward::slots(config.score_position, tokens, ending)).collect();
        let old_values = rollouts.values_of(critic, &slots)?;
        let rewards = rewards(config, beta, &rollouts, scores, kls, &slots);
        let (advantages, returns) = advantages(config, &rewards, &old_values, &slots, &rollouts);
        Ok(Experience { rollouts, slots, old_values, advantages, returns })
    }
}

/// The reward of every slot: the KL penalty, `-beta * KL`, on each token, the score on the last slot.
fn rewards(
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
fn advantages(
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
