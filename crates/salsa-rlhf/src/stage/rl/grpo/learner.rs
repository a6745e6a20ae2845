//! The policy: the passes of an update and their optimizer steps.
use std::borrow::Cow;

use anyhow::ensure;
use salsa_algo::{
    group::{self, ClipStats, Denominators, LossType, Settings},
    reward::Ending,
};
use salsa_engine::{
    AdamW, Batch, OutputGradient, Query, Trainable,
    comm::{Comm, CommError},
};

use super::GrpoConfig;
use crate::stage::{
    lifecycle::resume::REMEDY,
    ranks::{self, own_units},
    rl::policy,
    rollout::{Rollouts, split},
};

/// The responses of an update with the data of the loss. Per-token numbers are concatenated.
pub(crate) struct Experience<'a> {
    /// The responses.
    pub rollouts: &'a Rollouts,
    /// The models of the reference: weight and log-prob of every token.
    pub references: &'a [(f64, Cow<'a, [f64]>)],
    /// Advantage of each token.
    pub advantages: Vec<f64>,
    /// Whether each response counts.
    pub counted: Vec<bool>,
}

impl Experience<'_> {
    /// The tokens of responses that count, among these.
    fn tokens(&self, lengths: &[usize], responses: impl Iterator<Item = usize>) -> usize {
        responses.filter(|&i| self.counted[i]).map(|i| lengths[i]).sum()
    }
}

/// Whether a response counts in the loss.
pub(super) fn counts(config: &GrpoConfig, ending: Ending) -> bool {
    !config.mask_truncated_completions || ending == Ending::Eos
}

/// The policy and its optimizer.
pub(crate) struct Learner {
    /// The policy.
    pub policy: Trainable,
    /// Its optimizer.
    pub adamw: AdamW,
}

/// Statistics of an optimizer step, each over its counted tokens; also their mean over the steps of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepStats {
    /// The loss, with its penalty.
    pub loss: f64,
    /// The loss without the penalty.
    pub policy_loss: f64,
    /// Movement of the policy.
    pub clip: ClipStats,
    /// Entropy per token, in nats.
    pub entropy: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

impl StepStats {
    fn add(&mut self, other: &StepStats) {
        self.loss += other.loss;
        self.policy_loss += other.policy_loss;
        self.clip.add(&other.clip);
        self.entropy += other.entropy;
        self.grad_norm += other.grad_norm;
    }

    /// The sum over gradient units, those of each process in order of processes: its own here.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    fn sum(ranks: &dyn Comm, own: Vec<StepStats>) -> Result<StepStats, CommError> {
        let numbers = |stats: StepStats| {
            let ClipStats { clipped_low, clipped_high, ratio, approx_kl, kl } = stats.clip;
            [stats.loss, stats.policy_loss, clipped_low, clipped_high, ratio, approx_kl, kl, stats.entropy]
        };
        let all = ranks::concat(ranks, own.into_iter().flat_map(numbers).collect())?;
        let mut sum = StepStats::default();
        for &[loss, policy_loss, clipped_low, clipped_high, ratio, approx_kl, kl, entropy] in all.as_chunks().0 {
            let clip = ClipStats { clipped_low, clipped_high, ratio, approx_kl, kl };
            sum.add(&StepStats { loss, policy_loss, clip, entropy, grad_norm: 0.0 });
        }
        Ok(sum)
    }

    fn divided(self, by: f64) -> StepStats {
        let ClipStats { clipped_low, clipped_high, ratio, approx_kl, kl } = self.clip;
        StepStats {
            loss: self.loss / by,
            policy_loss: self.policy_loss / by,
            clip: ClipStats {
                clipped_low: clipped_low / by,
                clipped_high: clipped_high / by,
                ratio: ratio / by,
                approx_kl: approx_kl / by,
                kl: kl / by,
            },
            entropy: self.entropy / by,
            grad_norm: self.grad_norm / by,
        }
    }
}

impl Learner {
    /// Runs the passes of an update, counted from 0: each with new minibatches, and one optimizer step per minibatch.
    /// Returns means over the steps.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub(crate) fn learn(
        &mut self,
        config: &GrpoConfig,
        experience: &Experience<'_>,
        update: u64,
        rate: f64,
    ) -> anyhow::Result<StepStats> {
        let (mut sum, mut steps) = (StepStats::default(), 0);
        let order = config.setup().order;
        for epoch in 0..order.epochs {
            for minibatch in order.minibatches(update, epoch) {
                sum.add(&self.step(config, experience, &minibatch, rate)?);
                steps += 1;
            }
        }
        Ok(sum.divided(f64::from(steps.max(1))))
    }

    /// One optimizer step on the responses with these indices. Gradients are accumulated over passes of at most
    /// `per_device_train_batch_size` responses of a gradient unit; each process computes its own units.
    ///
    /// # Errors
    /// If the gradient is not finite; then the policy is not changed. Or if the processes cannot exchange bytes.
    fn step(
        &mut self,
        config: &GrpoConfig,
        experience: &Experience<'_>,
        minibatch: &[usize],
        rate: f64,
    ) -> anyhow::Result<StepStats> {
        let (rollouts, lengths) = (experience.rollouts, experience.rollouts.lengths());
        let tokens = match config.loss_type {
            // The mean over the tokens of the batch, of which this minibatch is a part.
            LossType::Dapo => {
                let all = experience.tokens(&lengths, 0..rollouts.len());
                all as f64 * minibatch.len() as f64 / rollouts.len() as f64
            }
            LossType::Grpo | LossType::Bnpo | LossType::DrGrpo => {
                experience.tokens(&lengths, minibatch.iter().copied()) as f64
            }
        };
        let longest = config.sampling.response_length;
        let denominators = Denominators { responses: minibatch.len(), tokens, longest };
        let (settings, mut units) = (config.loss_settings(), Vec::new());
        for unit in own_units(minibatch, &self.policy) {
            let mut stats = StepStats::default();
            for pass in unit.chunks(config.per_device_train_batch_size) {
                stats.add(&self.accumulate(experience, &lengths, pass, &settings, denominators));
            }
            self.policy.finish_unit();
            units.push(stats);
        }
        let mut stats = StepStats::sum(self.policy.comm(), units)?;
        stats.grad_norm = self.policy.gradient_norm()?;
        ensure!(stats.grad_norm.is_finite(), "the gradient is no longer finite ({}); {REMEDY}", stats.grad_norm);
        policy::advance(&mut self.policy, &self.adamw, rate)?;
        Ok(stats)
    }

    /// Forward pass, loss and backward pass on the responses with these indices.
    fn accumulate(
        &mut self,
        experience: &Experience<'_>,
        lengths: &[usize],
        responses: &[usize],
        settings: &Settings,
        denominators: Denominators,
    ) -> StepStats {
        let rollouts = experience.rollouts;
        let pick = |numbers: &[f64]| -> Vec<f64> {
            let parts = split(numbers, lengths);
            responses.iter().flat_map(|&i| parts[i]).copied().collect()
        };
        let mut batch = Batch::sharing_prefixes();
        let mut query = Query { temperature: rollouts.temperature, ..Query::default() };
        for &i in responses {
            let rows = batch.push(&rollouts.sequences[i]);
            rollouts.query_logprobs(i, rows, &mut query);
        }
        let (output, tape) = self.policy.forward_train(&batch, &query);
        let logprobs: Vec<f64> = output.logprobs.iter().map(|&x| f64::from(x)).collect();
        let references: Vec<(f64, Vec<f64>)> = match settings.penalty {
            Some(_) => experience.references.iter().map(|(weight, logprobs)| (*weight, pick(logprobs))).collect(),
            None => Vec::new(),
        };
        let references: Vec<(f64, &[f64])> = references.iter().map(|(weight, of)| (*weight, &of[..])).collect();
        let loss = group::loss(
            &group::Batch {
                logprobs: &logprobs,
                old_logprobs: &pick(&rollouts.logprobs),
                references: &references,
                lengths: &responses.iter().map(|&i| lengths[i]).collect::<Vec<_>>(),
                advantages: &pick(&experience.advantages),
                counted: &responses.iter().map(|&i| experience.counted[i]).collect::<Vec<_>>(),
            },
            settings,
            denominators,
        );
        let d_logprobs: Vec<f32> = loss.d_logprobs.iter().map(|&x| x as f32).collect();
        self.policy.backward(tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
        let entropy = output.entropies.iter().map(|&x| f64::from(x)).sum::<f64>() / denominators.tokens.max(1.0);
        StepStats { loss: loss.loss, policy_loss: loss.policy_loss, clip: loss.stats, entropy, grad_norm: 0.0 }
    }
}
