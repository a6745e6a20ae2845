//! Metrics of a PPO update, under TRL's names.
use super::learner::StepStats;
use crate::{
    metrics::Metrics,
    stage::{
        rl::measure::{Scored, lengths},
        rollout::Rollouts,
    },
};

/// The measurements of one update.
pub(super) struct Measured<'a> {
    /// Scores and KLs.
    pub scored: Scored<'a>,
    /// Share of the returns' variance that the critic explains.
    pub explained_variance: f64,
    /// Statistics of the optimizer steps.
    pub learned: &'a StepStats,
}

impl Measured<'_> {
    /// All metrics, every mean over real tokens or responses.
    pub(super) fn metrics(&self, rollouts: &Rollouts) -> Metrics {
        let learned = self.learned;
        let mut metrics = self
            .scored
            .metrics(rollouts)
            .with("policy/approxkl_avg", learned.policy.approx_kl)
            .with("policy/policykl_avg", learned.policy.policy_kl)
            .with("policy/clipfrac_avg", learned.policy.clip_fraction)
            .with("policy/entropy_avg", learned.entropy)
            .with("policy/grad_norm", learned.policy_grad_norm)
            .with("loss/policy_avg", learned.policy_loss)
            .with("loss/value_avg", learned.value_loss)
            .with("val/clipfrac_avg", learned.value_clip_fraction)
            .with("val/ratio", learned.policy.ratio_mean)
            .with("val/ratio_var", learned.ratio_variance)
            .with("val/explained_variance", self.explained_variance)
            .with("val/grad_norm", learned.critic_grad_norm);
        lengths(rollouts, &mut metrics);
        metrics
    }
}
