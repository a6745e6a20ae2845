//! The policy: the passes of an update over its pairs, and their optimizer steps.
use anyhow::ensure;
use salsa_algo::preference::{
    PairLoss,
    dpo::{self, LossType},
    online::Ranked,
};
use salsa_engine::{
    AdamW, Batch, OutputGradient, Query, Trainable,
    comm::{Comm, CommError},
};

use super::{OnlineDpoConfig, config::Ties};
use crate::stage::{
    lifecycle::resume::REMEDY,
    ranks::{self, own_units},
    rl::policy,
    rollout::{Rollouts, split},
};

/// The pairs of an update with the data of the loss.
pub(super) struct Experience<'a> {
    /// The responses.
    pub rollouts: &'a Rollouts,
    /// All pairs; those of a prompt are neighbours.
    pub pairs: &'a [Ranked],
    /// The log-prob of each response under the reference: the sum over its tokens, or where the loss says so the mean.
    pub reference: Vec<f64>,
}

/// The policy and its optimizer.
pub(super) struct Learner {
    /// The policy.
    pub policy: Trainable,
    /// Its optimizer.
    pub adamw: AdamW,
}

/// Statistics of an optimizer step, each a mean over its pairs; also their mean over the steps of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StepStats {
    /// The loss.
    pub loss: f64,
    /// Implicit rewards: beta times the log-ratio of policy to reference.
    pub rewards_chosen: f64,
    /// Those of the other response.
    pub rewards_rejected: f64,
    /// Share of the pairs with the higher implicit reward on the chosen response.
    pub accuracy: f64,
    /// Log-prob of the chosen response.
    pub logp_chosen: f64,
    /// Log-prob of the rejected response.
    pub logp_rejected: f64,
    /// Entropy per token, in nats.
    pub entropy: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
}

impl StepStats {
    /// The share of a micro-batch in a step with so many pairs, without entropy and norm.
    fn of(loss: &PairLoss, chosen: &[f64], rejected: &[f64], pairs: usize) -> StepStats {
        let mean = |numbers: &[f64]| numbers.iter().sum::<f64>() / pairs as f64;
        StepStats {
            loss: loss.loss,
            rewards_chosen: mean(&loss.rewards_chosen),
            rewards_rejected: mean(&loss.rewards_rejected),
            accuracy: loss.accuracy,
            logp_chosen: mean(chosen),
            logp_rejected: mean(rejected),
            ..StepStats::default()
        }
    }

    fn numbers(&mut self) -> [&mut f64; 8] {
        [
            &mut self.loss,
            &mut self.rewards_chosen,
            &mut self.rewards_rejected,
            &mut self.accuracy,
            &mut self.logp_chosen,
            &mut self.logp_rejected,
            &mut self.entropy,
            &mut self.grad_norm,
        ]
    }

    fn add(&mut self, mut other: StepStats) {
        self.numbers().into_iter().zip(other.numbers()).for_each(|(own, more)| *own += *more);
    }

    /// The sum over gradient units, those of each process in order of processes: its own here.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    fn sum(ranks: &dyn Comm, own: Vec<StepStats>) -> Result<StepStats, CommError> {
        let numbers = |mut stats: StepStats| stats.numbers().map(|number| *number);
        let all = ranks::concat(ranks, own.into_iter().flat_map(numbers).collect())?;
        let mut sum = StepStats::default();
        for unit in all.as_chunks::<8>().0 {
            sum.numbers().into_iter().zip(unit).for_each(|(own, more)| *own += more);
        }
        Ok(sum)
    }

    fn divided(mut self, by: f64) -> StepStats {
        self.numbers().into_iter().for_each(|number| *number /= by);
        self
    }
}

/// Whether a response's log-prob is the mean over its tokens. IPO's is the sum, as in its paper and TRL's online DPO.
fn is_per_token(loss_type: LossType) -> bool {
    loss_type == LossType::SigmoidNorm
}

/// The log-prob of each response from those of its tokens.
pub(super) fn of_responses(loss_type: LossType, logprobs: &[f64], lengths: &[usize]) -> Vec<f64> {
    let of = |tokens: &[f64]| tokens.iter().sum::<f64>() * share(loss_type, tokens.len());
    split(logprobs, lengths).into_iter().map(of).collect()
}

/// The share of a token in the log-prob of its response.
fn share(loss_type: LossType, length: usize) -> f64 {
    if is_per_token(loss_type) { 1.0 / length as f64 } else { 1.0 }
}

impl Learner {
    /// Runs the passes of an update, counted from 0: each with new minibatches, and one optimizer step per minibatch that
    /// has a pair to learn from. Returns means over these steps.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub(super) fn learn(
        &mut self,
        config: &OnlineDpoConfig,
        experience: &Experience<'_>,
        update: u64,
        rate: f64,
    ) -> anyhow::Result<StepStats> {
        let (mut sum, mut steps) = (StepStats::default(), 0);
        let order = config.order();
        for epoch in 0..order.epochs {
            for minibatch in order.minibatches(update, epoch) {
                let pairs = minibatch.into_iter().map(|at| experience.pairs[at]);
                let pairs: Vec<Ranked> = pairs.filter(|pair| config.ties == Ties::Keep || !pair.is_tie).collect();
                if !pairs.is_empty() {
                    sum.add(self.step(config, experience, &pairs, rate)?);
                    steps += 1;
                }
            }
        }
        Ok(sum.divided(f64::from(steps.max(1))))
    }

    /// One optimizer step on these pairs. Gradients are accumulated over passes of at most `per_device_train_batch_size`
    /// pairs of a gradient unit; each process computes its own units.
    ///
    /// # Errors
    /// If the gradient is not finite; then the policy is not changed. Or if the processes cannot exchange bytes.
    fn step(
        &mut self,
        config: &OnlineDpoConfig,
        experience: &Experience<'_>,
        pairs: &[Ranked],
        rate: f64,
    ) -> anyhow::Result<StepStats> {
        let length = |at: usize| experience.rollouts.response(at).len();
        let tokens: usize = pairs.iter().map(|pair| length(pair.chosen) + length(pair.rejected)).sum();
        let (objective, mut units) = (config.objective(), Vec::new());
        for unit in own_units(pairs, &self.policy) {
            let mut stats = StepStats::default();
            for pass in unit.chunks(config.per_device_train_batch_size) {
                stats.add(self.accumulate(&objective, experience, pass, pairs.len()));
            }
            self.policy.finish_unit();
            units.push(stats);
        }
        let mut stats = StepStats::sum(self.policy.comm(), units)?;
        stats.entropy /= tokens as f64;
        stats.grad_norm = self.policy.gradient_norm()?;
        ensure!(stats.grad_norm.is_finite(), "the gradient is no longer finite ({}); {REMEDY}", stats.grad_norm);
        policy::advance(&mut self.policy, &self.adamw, rate)?;
        Ok(stats)
    }

    /// Forward pass, loss and backward pass on some of the `count` pairs of a step. The entropy is summed over tokens.
    fn accumulate(
        &mut self,
        objective: &dpo::Objective,
        experience: &Experience<'_>,
        pairs: &[Ranked],
        count: usize,
    ) -> StepStats {
        let rollouts = experience.rollouts;
        let mut batch = Batch::sharing_prefixes();
        let mut query = Query { temperature: rollouts.temperature, ..Query::default() };
        let mut lengths = Vec::with_capacity(2 * pairs.len());
        for at in pairs.iter().flat_map(|pair| [pair.chosen, pair.rejected]) {
            let rows = batch.push(&rollouts.sequences[at]);
            rollouts.query_logprobs(at, rows, &mut query);
            lengths.push(rollouts.response(at).len());
        }
        let (output, tape) = self.policy.forward_train(&batch, &query);
        let logprobs: Vec<f64> = output.logprobs.iter().map(|&x| f64::from(x)).collect();
        let logprobs = of_responses(objective.loss_type, &logprobs, &lengths);
        let side = |first: usize| logprobs.iter().skip(first).step_by(2).copied().collect::<Vec<_>>();
        let (chosen, rejected) = (side(0), side(1));
        let of_reference = |pick: fn(&Ranked) -> usize| -> Vec<f64> {
            pairs.iter().map(|pair| experience.reference[pick(pair)]).collect()
        };
        let batch = dpo::Batch {
            chosen: &chosen,
            rejected: &rejected,
            ref_chosen: &of_reference(|pair| pair.chosen),
            ref_rejected: &of_reference(|pair| pair.rejected),
        };
        let loss = dpo::loss(&batch, objective, count);
        let of_pairs = loss.d_chosen.iter().zip(&loss.d_rejected).flat_map(|(&chosen, &rejected)| [chosen, rejected]);
        let d_logprobs: Vec<f32> = of_pairs
            .zip(&lengths)
            .flat_map(|(d, &length)| std::iter::repeat_n((d * share(objective.loss_type, length)) as f32, length))
            .collect();
        self.policy.backward(tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
        let entropy = output.entropies.iter().map(|&x| f64::from(x)).sum();
        StepStats { entropy, ..StepStats::of(&loss, &chosen, &rejected, count) }
    }
}
