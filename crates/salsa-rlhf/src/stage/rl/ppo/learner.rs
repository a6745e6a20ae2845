//! Policy and critic: the epochs of an update and their optimizer steps.
use std::cell::{Cell, RefCell};

use anyhow::{Context, ensure};
use salsa_algo::ppo::{self, Denominators, PolicyStats};
use salsa_engine::{
    AdamW, Batch, Device, Head, Model, ModelSpec, Output, OutputGradient, Query, Trainable,
    comm::{Comm, CommError},
};

use super::{
    config::{CriticKind, PpoConfig},
    experience::Experience,
};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        lifecycle::resume::REMEDY,
        models::bases::Bases,
        ranks::{self, own_units},
        rl::policy,
        rollout::split,
    },
};

/// Policy and critic.
pub(crate) struct Learner {
    /// The policy.
    pub policy: Trainable,
    /// Source of values.
    pub critic: Critic,
    /// The optimizer of both.
    pub adamw: AdamW,
}

/// Source of values.
pub(crate) enum Critic {
    /// A separate model.
    Separate(Box<Trainable>),
    /// A second head of the policy.
    Shared,
}

impl Critic {
    /// The critic's model, if it is separate.
    pub(crate) fn separate(&self) -> Option<&Trainable> {
        match self {
            Critic::Separate(model) => Some(model),
            Critic::Shared => None,
        }
    }

    /// The critic's model, if it is separate.
    pub(crate) fn separate_mut(&mut self) -> Option<&mut Trainable> {
        match self {
            Critic::Separate(model) => Some(model),
            Critic::Shared => None,
        }
    }
}

/// Learning rates of one update. A rate of 0 leaves a model unchanged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rates {
    /// Learning rate of the policy.
    pub policy: f64,
    /// Learning rate of the critic.
    pub critic: f64,
}

/// Statistics of an optimizer step, each over its real tokens; also their mean over the steps of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct StepStats {
    /// Clipped policy loss.
    pub policy_loss: f64,
    /// Clipped value loss.
    pub value_loss: f64,
    /// Movement of the policy.
    pub policy: PolicyStats,
    /// Variance of the ratios.
    pub ratio_variance: f64,
    /// Share of clipped values.
    pub value_clip_fraction: f64,
    /// Entropy per token, in nats.
    pub entropy: f64,
    /// Norm of the policy's gradient before clipping.
    pub policy_grad_norm: f64,
    /// Norm of the critic's gradient before clipping.
    pub critic_grad_norm: f64,
}

impl Learner {
    /// Opens the trained models: all weights of the configured models, or adapters on them. A separate critic starts
    /// from the reward model, a shared one is initialised at random.
    ///
    /// # Errors
    /// If weights cannot be read, do not fit or are not finite.
    pub(crate) fn open(config: &PpoConfig, reward_model: &Checkpoint, bases: &mut Bases) -> anyhow::Result<Learner> {
        if !config.lora.use_peft {
            let spec = reward_model.spec.with_head(Head::Scalar);
            let weights = reward_model.spec.convert(&reward_model.read_weights()?, &spec, 0);
            let policy = config.model_name_or_path.read().context("policy")?;
            return Learner::new(config, policy, (spec, weights), bases.device().clone());
        }
        let (seed, recompute) = (config.run.seed, config.recompute());
        let (head, critic) = match config.critic {
            CriticKind::Separate => {
                let critic = bases.adapted(reward_model, Head::Scalar, &config.lora, seed, recompute);
                (Head::LanguageModel, Critic::Separate(Box::new(critic.context("critic")?)))
            }
            CriticKind::Shared => (Head::LanguageModelWithValue, Critic::Shared),
        };
        let policy = policy::adapted(&config.model_name_or_path, &config.lora, head, seed, recompute, bases);
        let policy = policy.context("policy")?;
        Ok(Learner { policy, critic, adamw: config.optimizer.adamw() })
    }

    /// Creates the trained models from shapes and initial weights of `policy` and `critic`; a shared critic is
    /// initialised at random.
    ///
    /// # Errors
    /// If weights do not fit or are not finite.
    pub(crate) fn new(
        config: &PpoConfig,
        (policy_spec, policy_weights): (ModelSpec, Vec<f32>),
        (critic_spec, critic_weights): (ModelSpec, Vec<f32>),
        backend: Device,
    ) -> anyhow::Result<Learner> {
        let recompute = config.recompute();
        let (policy, critic) = match config.critic {
            CriticKind::Separate => {
                let critic =
                    Trainable::new(critic_spec, critic_weights, backend.clone(), recompute).context("critic")?;
                let policy = Trainable::new(policy_spec, policy_weights, backend, recompute);
                (policy, Critic::Separate(Box::new(critic)))
            }
            CriticKind::Shared => {
                let both = policy_spec.with_head(Head::LanguageModelWithValue);
                let weights = policy_spec.convert(&policy_weights, &both, config.run.seed);
                (Trainable::new(both, weights, backend, recompute), Critic::Shared)
            }
        };
        Ok(Learner { policy: policy.context("policy")?, critic, adamw: config.optimizer.adamw() })
    }

    /// The learning rates of an update, counted from 0.
    pub(super) fn rates(&self, config: &PpoConfig, update: u64) -> Rates {
        let share = config.schedule().factor(update as usize, config.sampling.updates() as usize);
        let policy = if update < config.critic_warmup { 0.0 } else { config.learning_rate * share };
        Rates { policy, critic: config.critic_learning_rate.unwrap_or(config.learning_rate) * share }
    }

    /// The model that computes values.
    pub(crate) fn value_model(&self) -> &Model {
        self.critic.separate().unwrap_or(&self.policy)
    }

    /// Runs the epochs of an update, counted from 0: each with new minibatches, and one optimizer step per minibatch.
    /// Returns means over the steps.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub(crate) fn learn(
        &mut self,
        config: &PpoConfig,
        experience: &Experience,
        update: u64,
        rates: Rates,
    ) -> anyhow::Result<StepStats> {
        let (mut sum, mut steps) = (StepStats::default(), 0);
        for epoch in 0..config.num_ppo_epochs as u64 {
            for minibatch in config.order().minibatches(update, epoch) {
                sum.add(&self.step(config, experience, &minibatch, rates)?);
                steps += 1;
            }
        }
        Ok(sum.mean(steps))
    }

    /// One optimizer step on the responses with these indices. Gradients are accumulated over passes of at most
    /// `per_device_train_batch_size` responses of a gradient unit; each process computes its own units.
    ///
    /// # Errors
    /// If a gradient is not finite; then neither model is changed. Or if the processes cannot exchange bytes.
    fn step(
        &mut self,
        config: &PpoConfig,
        experience: &Experience,
        minibatch: &[usize],
        rates: Rates,
    ) -> anyhow::Result<StepStats> {
        let lengths = experience.rollouts.lengths();
        let denominators = Denominators {
            tokens: minibatch.iter().map(|&i| lengths[i]).sum(),
            slots: minibatch.iter().map(|&i| experience.slots[i]).sum(),
        };
        let (settings, mut units) = (config.loss_settings(), Vec::new());
        for unit in own_units(minibatch, &self.policy) {
            let mut stats = StepStats::default();
            for pass in unit.chunks(config.per_device_train_batch_size) {
                self.accumulate(experience, &lengths, pass, &settings, denominators, &mut stats);
            }
            self.policy.finish_unit();
            self.critic.separate_mut().into_iter().for_each(Trainable::finish_unit);
            units.push(stats);
        }
        let mut stats = StepStats::sum(self.policy.comm(), units)?;
        stats.ratio_variance = stats.policy.ratio_variance();
        stats.policy_grad_norm = self.policy.gradient_norm()?;
        stats.critic_grad_norm = self.critic.separate_mut().map_or(Ok(0.0), Trainable::gradient_norm)?;
        ensure!(
            (stats.policy_grad_norm + stats.critic_grad_norm).is_finite(),
            "the gradient is no longer finite (policy {}, critic {}); {REMEDY}",
            stats.policy_grad_norm,
            stats.critic_grad_norm
        );
        policy::advance(&mut self.policy, &self.adamw, rates.policy)?;
        if let Some(critic) = self.critic.separate_mut() {
            policy::advance(critic, &self.adamw, rates.critic)?;
        }
        Ok(stats)
    }

    /// Checks, before anything is saved, that the weights of both models are finite.
    ///
    /// # Errors
    /// If a weight is not finite; the error names the model.
    pub(crate) fn ensure_finite(&self) -> anyhow::Result<()> {
        for (name, model) in [("policy", Some(&self.policy)), ("critic", self.critic.separate())] {
            let finite = model.is_none_or(|model| model.weights().iter().all(|weight| weight.is_finite()));
            ensure!(finite, "a weight of the {name} is not finite; {REMEDY}");
        }
        Ok(())
    }

    /// Forward pass, loss and backward pass on the responses with these indices.
    fn accumulate(
        &mut self,
        experience: &Experience,
        lengths: &[usize],
        responses: &[usize],
        settings: &ppo::Settings,
        denominators: Denominators,
        stats: &mut StepStats,
    ) {
        let pick = |numbers: &[f64], lengths: &[usize]| -> Vec<f64> {
            let parts = split(numbers, lengths);
            responses.iter().flat_map(|&i| parts[i]).copied().collect()
        };
        let (batch, policy_query, value_query) = self.pack(experience, responses);
        let (policy_output, policy_tape) = self.policy.forward_train(&batch, &policy_query);
        let (value_output, critic_tape) = match self.critic.separate() {
            Some(critic) => {
                let (output, tape) = critic.forward_train(&batch, &value_query);
                (Some(output), Some(tape))
            }
            None => (None, None),
        };
        let Output { logprobs, entropies, values } = policy_output;
        let values = value_output.map_or(values, |output| output.values);
        let loss = ppo::loss(
            &ppo::Batch {
                logprobs: &widen(&logprobs),
                old_logprobs: &pick(&experience.rollouts.logprobs, lengths),
                advantages: &pick(&experience.advantages, lengths),
                values: &widen(&values),
                old_values: &pick(&experience.old_values, &experience.slots),
                returns: &pick(&experience.returns, &experience.slots),
            },
            settings,
            denominators,
        );
        let (d_logprobs, d_values) = (narrow(&loss.d_logprobs), narrow(&loss.d_values));
        match (self.critic.separate_mut(), critic_tape) {
            (Some(critic), Some(tape)) => {
                self.policy.backward(policy_tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
                critic.backward(tape, &OutputGradient { d_logprobs: &[], d_values: &d_values });
            }
            _ => self.policy.backward(policy_tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &d_values }),
        }
        stats.policy_loss += loss.policy_loss;
        stats.value_loss += loss.value_loss;
        stats.policy.add(&loss.policy);
        stats.value_clip_fraction += loss.value_clip_fraction;
        stats.entropy += entropies.iter().map(|&e| f64::from(e)).sum::<f64>() / denominators.tokens as f64;
    }

    /// Concatenates responses and queries their log-probs and values. With a shared critic, the policy's query includes
    /// the values.
    fn pack(&self, experience: &Experience, responses: &[usize]) -> (Batch, Query, Query) {
        let mut batch = Batch::new();
        let rollouts = &experience.rollouts;
        let (mut policy, mut value) =
            (Query { temperature: rollouts.temperature, ..Query::default() }, Query::default());
        for &i in responses {
            let rows = batch.push(&rollouts.sequences[i]);
            let values = if self.critic.separate().is_some() { &mut value } else { &mut policy };
            rollouts.query_values(i, experience.slots[i], rows.clone(), values);
            rollouts.query_logprobs(i, rows, &mut policy);
        }
        (batch, policy, value)
    }
}

impl StepStats {
    /// Adds the statistics of another minibatch.
    pub(crate) fn add(&mut self, other: &StepStats) {
        self.each(other, |sum, x| *sum += x);
    }

    /// The sum over gradient units, those of each process in order of processes: its own here.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    fn sum(ranks: &dyn Comm, mut own: Vec<StepStats>) -> Result<StepStats, CommError> {
        let mut numbers = Vec::new();
        for stats in &mut own {
            let copy = *stats;
            let taken = RefCell::new(Vec::new());
            stats.each(&copy, |_, number| taken.borrow_mut().push(number));
            numbers.append(&mut taken.into_inner());
        }
        let each = numbers.len() / own.len().max(1);
        let mut sum = StepStats::default();
        for unit in ranks::concat(ranks, numbers)?.chunks(each) {
            let at = Cell::new(0);
            sum.each(&StepStats::default(), |sum, _| *sum += unit[at.replace(at.get() + 1)]);
        }
        Ok(sum)
    }

    /// Divides sums over `steps` minibatches by their number.
    pub(crate) fn mean(mut self, steps: usize) -> StepStats {
        let sums = self;
        self.each(&sums, |mean, sum| *mean = sum / steps.max(1) as f64);
        self
    }

    /// Calls `f` with every statistic and its counterpart in `other`.
    fn each(&mut self, other: &StepStats, f: impl Fn(&mut f64, f64)) {
        // Destructured without `..`: a new field that is not handled here does not compile.
        let StepStats {
            policy_loss,
            value_loss,
            policy: PolicyStats { clip_fraction, approx_kl, policy_kl, ratio_mean, ratio_spread },
            ratio_variance,
            value_clip_fraction,
            entropy,
            policy_grad_norm,
            critic_grad_norm,
        } = self;
        f(policy_loss, other.policy_loss);
        f(value_loss, other.value_loss);
        f(clip_fraction, other.policy.clip_fraction);
        f(approx_kl, other.policy.approx_kl);
        f(policy_kl, other.policy.policy_kl);
        f(ratio_mean, other.policy.ratio_mean);
        f(ratio_spread, other.policy.ratio_spread);
        f(ratio_variance, other.ratio_variance);
        f(value_clip_fraction, other.value_clip_fraction);
        f(entropy, other.entropy);
        f(policy_grad_norm, other.policy_grad_norm);
        f(critic_grad_norm, other.critic_grad_norm);
    }
}

fn widen(numbers: &[f32]) -> Vec<f64> {
    numbers.iter().map(|&x| f64::from(x)).collect()
}

fn narrow(numbers: &[f64]) -> Vec<f32> {
    numbers.iter().map(|&x| x as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_over_steps_is_taken_number_by_number() {
        let step = |x: f64| StepStats {
            policy_loss: x,
            value_loss: 2.0 * x,
            policy: PolicyStats {
                clip_fraction: 3.0 * x,
                approx_kl: 4.0 * x,
                policy_kl: 5.0 * x,
                ratio_mean: 6.0 * x,
                ratio_spread: 7.0 * x,
            },
            ratio_variance: 8.0 * x,
            value_clip_fraction: 9.0 * x,
            entropy: 10.0 * x,
            policy_grad_norm: 11.0 * x,
            critic_grad_norm: 12.0 * x,
        };
        let mut sum = step(1.0);
        sum.add(&step(3.0));
        assert_eq!(sum.mean(2), step(2.0));
    }
}
