//! The models that learn: policy and critic, and their optimizer steps.
use anyhow::{Context, ensure};
use salsa_algo::ppo::{self, Denominators, PolicyStats};
use salsa_engine::{AdamW, Batch, Device, Head, Model, ModelSpec, Output, OutputGradient, Query, Trainable};

use super::config::{CriticKind, PpoConfig};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        lifecycle::resume::REMEDY,
        models::{adapters, bases::Bases, frozen::open_language_model, model_source::ModelSource},
        rollout::{Rollouts, split},
    },
};

/// Policy and critic.
pub struct Learner {
    /// The policy; with a shared critic it has a second head.
    pub policy: Trainable,
    /// The critic, if it is a model of its own.
    pub critic: Option<Trainable>,
    /// The optimizer of both.
    pub adamw: AdamW,
}

/// What the epochs learn from; per-token and per-slot numbers end to end.
pub struct Lesson<'a> {
    /// The responses.
    pub rollouts: &'a Rollouts,
    /// Slots of each response.
    pub slots: &'a [usize],
    /// Whitened advantage of each token.
    pub advantages: &'a [f64],
    /// Value of each slot when the response was sampled.
    pub old_values: &'a [f64],
    /// Return of each slot.
    pub returns: &'a [f64],
}

/// Learning rates of one update. A rate of 0 leaves a model exactly as it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rates {
    /// Of the policy.
    pub policy: f64,
    /// Of the critic.
    pub critic: f64,
}

/// What an optimizer step reports, every number over its real tokens; also the mean over the steps of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Learned {
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
    /// Norm of the critic's.
    pub critic_grad_norm: f64,
}

impl Learner {
    /// Opens the models that learn: all weights of what the configuration names, or adapters on it. A critic of its own
    /// starts from the reward model, a shared one at random.
    ///
    /// # Errors
    /// If weights cannot be read, do not fit or are not finite.
    pub fn open(config: &PpoConfig, reward_model: &Checkpoint, bases: &mut Bases) -> anyhow::Result<Learner> {
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
                (Head::LanguageModel, Some(critic.context("critic")?))
            }
            CriticKind::Shared => (Head::LanguageModelWithValue, None),
        };
        let policy = adapted_policy(config, head, bases).context("policy")?;
        Ok(Learner { policy, critic, adamw: config.optimizer.adamw() })
    }

    /// Makes the models that learn. `policy` and `critic` are shapes and weights to start from; a shared critic starts
    /// at random.
    ///
    /// # Errors
    /// If weights do not fit or are not finite.
    pub fn new(
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
                (Trainable::new(policy_spec, policy_weights, backend, recompute), Some(critic))
            }
            CriticKind::Shared => {
                let both = policy_spec.with_head(Head::LanguageModelWithValue);
                let weights = policy_spec.convert(&policy_weights, &both, config.run.seed);
                (Trainable::new(both, weights, backend, recompute), None)
            }
        };
        Ok(Learner { policy: policy.context("policy")?, critic, adamw: config.optimizer.adamw() })
    }

    /// The model that gives values.
    pub fn critic(&self) -> &Model {
        self.critic.as_ref().unwrap_or(&self.policy)
    }

    /// One optimizer step on the responses numbered `chosen`. Gradients of passes of at most `pass` responses add up.
    ///
    /// # Errors
    /// If a gradient is not finite; then neither model has changed.
    pub fn step(
        &mut self,
        lesson: &Lesson<'_>,
        chosen: &[usize],
        pass: usize,
        settings: &ppo::Settings,
        rates: Rates,
    ) -> anyhow::Result<Learned> {
        let lengths = lesson.rollouts.lengths();
        let denominators = Denominators {
            tokens: chosen.iter().map(|&i| lengths[i]).sum(),
            slots: chosen.iter().map(|&i| lesson.slots[i]).sum(),
        };
        let mut learned = Learned::default();
        for chosen in chosen.chunks(pass) {
            self.accumulate(lesson, &lengths, chosen, settings, denominators, &mut learned);
        }
        learned.ratio_variance = learned.policy.ratio_variance();
        learned.policy_grad_norm = self.policy.gradient_norm();
        learned.critic_grad_norm = self.critic.as_ref().map_or(0.0, Trainable::gradient_norm);
        anyhow::ensure!(
            (learned.policy_grad_norm + learned.critic_grad_norm).is_finite(),
            "the gradient is no longer finite (policy {}, critic {}); {REMEDY}",
            learned.policy_grad_norm,
            learned.critic_grad_norm
        );
        advance(&mut self.policy, &self.adamw, rates.policy)?;
        if let Some(critic) = &mut self.critic {
            advance(critic, &self.adamw, rates.critic)?;
        }
        Ok(learned)
    }

    /// Makes sure, before anything is saved, that both models are made of numbers.
    ///
    /// # Errors
    /// Names the model.
    pub fn ensure_finite(&self) -> anyhow::Result<()> {
        for (name, model) in [("policy", Some(&self.policy)), ("critic", self.critic.as_ref())] {
            let finite = model.is_none_or(|model| model.weights().iter().all(|weight| weight.is_finite()));
            ensure!(finite, "a weight of the {name} is not finite; {REMEDY}");
        }
        Ok(())
    }

    /// Forward, loss and backward of some responses.
    fn accumulate(
        &mut self,
        lesson: &Lesson<'_>,
        lengths: &[usize],
        chosen: &[usize],
        settings: &ppo::Settings,
        denominators: Denominators,
        learned: &mut Learned,
    ) {
        let pick = |numbers: &[f64], lengths: &[usize]| -> Vec<f64> {
            let parts = split(numbers, lengths);
            chosen.iter().flat_map(|&i| parts[i]).copied().collect()
        };
        let (batch, policy_query, value_query) = self.lay(lesson, chosen);
        let (policy_output, policy_tape) = self.policy.forward_train(&batch, &policy_query);
        let (value_output, critic_tape) = match &self.critic {
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
                old_logprobs: &pick(&lesson.rollouts.logprobs, lengths),
                advantages: &pick(lesson.advantages, lengths),
                values: &widen(&values),
                old_values: &pick(lesson.old_values, lesson.slots),
                returns: &pick(lesson.returns, lesson.slots),
            },
            settings,
            denominators,
        );
        let (d_logprobs, d_values) = (narrow(&loss.d_logprobs), narrow(&loss.d_values));
        match (&mut self.critic, critic_tape) {
            (Some(critic), Some(tape)) => {
                self.policy.backward(policy_tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &[] });
                critic.backward(tape, &OutputGradient { d_logprobs: &[], d_values: &d_values });
            }
            _ => self.policy.backward(policy_tape, &OutputGradient { d_logprobs: &d_logprobs, d_values: &d_values }),
        }
        learned.policy_loss += loss.policy_loss;
        learned.value_loss += loss.value_loss;
        learned.policy.add(&loss.policy);
        learned.value_clip_fraction += loss.value_clip_fraction;
        learned.entropy += entropies.iter().map(|&e| f64::from(e)).sum::<f64>() / denominators.tokens as f64;
    }

    /// Lays responses end to end and asks for their log-probs and values. A shared critic answers in the same query.
    fn lay(&self, lesson: &Lesson<'_>, chosen: &[usize]) -> (Batch, Query, Query) {
        let mut batch = Batch::new();
        let temperature = lesson.rollouts.temperature;
        let (mut policy, mut value) = (Query { temperature, ..Query::default() }, Query::default());
        for &i in chosen {
            let rows = batch.push(&lesson.rollouts.sequences[i]);
            let values = if self.critic.is_some() { &mut value } else { &mut policy };
            lesson.rollouts.ask_values(i, lesson.slots[i], rows.clone(), values);
            lesson.rollouts.ask_logprobs(i, rows, &mut policy);
        }
        (batch, policy, value)
    }
}

/// The adapter that the configuration names, or a new one.
fn adapted_policy(config: &PpoConfig, head: Head, bases: &mut Bases) -> anyhow::Result<Trainable> {
    let (seed, recompute) = (config.run.seed, config.recompute());
    match &config.model_name_or_path {
        ModelSource::Path(path) => bases.adapted(&open_language_model(path)?, head, &config.lora, seed, recompute),
        ModelSource::Soup(soup) => {
            let (weights, models) = (soup.checked_weights()?, soup.open()?);
            ensure!(
                adapters::share_a_base(&models),
                "model_name_or_path is a soup of whole models, which no adapter could name as its base; write the soup \
                 first (salsa soup) and start from it"
            );
            bases.adapter_soup(&models, &weights)?.adapted(head, seed, recompute)
        }
    }
}

fn advance(model: &mut Trainable, adamw: &AdamW, rate: f64) -> anyhow::Result<()> {
    if rate == 0.0 {
        model.zero_gradients();
    } else {
        model.adamw_step(adamw, rate)?;
    }
    Ok(())
}

impl Learned {
    /// Adds another minibatch's numbers.
    pub fn add(&mut self, other: &Learned) {
        self.each(other, |sum, x| *sum += x);
    }

    /// The mean of sums over `steps` minibatches.
    pub fn mean(mut self, steps: usize) -> Learned {
        let sums = self;
        self.each(&sums, |mean, sum| *mean = sum / steps.max(1) as f64);
        self
    }

    /// Calls `f` with every number and the one that belongs to it.
    fn each(&mut self, other: &Learned, f: impl Fn(&mut f64, f64)) {
        // Taken apart without `..`: a new number that is not treated here does not compile.
        let Learned {
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
        let step = |x: f64| Learned {
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
