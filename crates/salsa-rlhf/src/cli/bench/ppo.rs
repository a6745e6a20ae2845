//! `salsa bench ppo`: the rollout, scoring, experience and learner of the PPO stage, on random models.
use std::time::Instant;

use anyhow::ensure;
use salsa_algo::kl::kls;
use salsa_engine::{Device, Head, Model, ModelSpec, Prompt, Sampling};
use serde_json::json;

use super::{PpoWork, models, random_tokens};
use crate::stage::{
    optimizer::OptimizerArguments,
    rl::{
        arguments::{PenaltyArguments, SamplingArguments},
        ppo::{
            PpoConfig,
            experience::Experience,
            learner::{Critic, Learner, Rates},
        },
    },
    rollout::Rollouts,
};

/// The learning rate of both models.
const RATES: Rates = Rates { policy: 3e-6, critic: 3e-6 };

/// Four separate models: trainable policy and critic; reference and reward model are frozen copies of them.
struct Models {
    learner: Learner,
    reference: Model,
    reward_model: Model,
    config: PpoConfig,
}

/// Times PPO updates and prints the result.
pub(super) fn update(work: &PpoWork, device: &Device) -> anyhow::Result<()> {
    ensure!(
        work.batch > 0 && work.prompt > 0 && work.response > 0 && work.epochs > 0 && work.updates > 0,
        "--batch, --prompt, --response, --epochs and --updates must be at least 1"
    );
    let spec = work.shape.spec()?;
    let mut models = Models::new(work, &spec, device)?;
    let (mut times, mut phases) = (Vec::new(), Vec::new());
    for number in 0..=work.updates {
        let start = Instant::now();
        phases.push(models.update(work, number)?);
        times.push(start.elapsed().as_secs_f64());
    }
    let phase = |name: &str, pick: fn(&[f64; 3]) -> f64| {
        (name.to_owned(), json!(phases[1..].iter().map(pick).collect::<Vec<_>>()))
    };
    let more = serde_json::Map::from_iter([
        phase("rollout_s", |phases| phases[0]),
        phase("scoring_s", |phases| phases[1]),
        phase("learning_s", |phases| phases[2]),
    ]);
    work.shape.report("ppo", "update_s", &times[1..], work.batch * work.response, more.into(), device)
}

impl Models {
    fn new(work: &PpoWork, spec: &ModelSpec, device: &Device) -> anyhow::Result<Models> {
        let config = PpoConfig {
            sampling: SamplingArguments {
                batch_size: work.batch,
                response_length: work.response,
                temperature: 1.0,
                ..SamplingArguments::default()
            },
            num_ppo_epochs: work.epochs,
            // TRL's default; micro-batches accumulate to the same step.
            per_device_train_batch_size: 8,
            optimizer: OptimizerArguments { max_grad_norm: 0.0, ..OptimizerArguments::default() },
            gradient_checkpointing: work.shape.gradient_checkpointing.into(),
            ..PpoConfig::default()
        };
        if let Some(rank) = work.shape.lora {
            return Models::adapted(config, spec, rank, device);
        }
        let scalar = spec.with_head(Head::Scalar);
        let (policy, critic) = (models::weights(spec, 1)?, models::weights(&scalar, 2)?);
        Ok(Models {
            reference: Model::new(spec.clone(), &policy, device.clone())?,
            reward_model: Model::new(scalar.clone(), &critic, device.clone())?,
            learner: Learner::new(&config, (spec.clone(), policy), (scalar, critic), device.clone())?,
            config,
        })
    }

    /// The same with adapters on one base; the reference has the rank of a soup of two such adapters.
    fn adapted(config: PpoConfig, spec: &ModelSpec, rank: usize, device: &Device) -> anyhow::Result<Models> {
        let (base, recompute) = (models::base(spec, device)?, config.recompute());
        let (lora, soup) = (models::adapter(rank), models::adapter(2 * rank));
        let score = lora.init(&spec.with_head(Head::Scalar), 2);
        let critic = models::adapted(&base, Head::Scalar, rank, recompute)?;
        let policy = models::adapted(&base, Head::LanguageModel, rank, recompute)?;
        Ok(Models {
            reward_model: Model::on(base.clone(), Head::Scalar, &lora, &score)?,
            reference: Model::on(base, Head::LanguageModel, &soup, &soup.init(spec, 3))?,
            learner: Learner { policy, critic: Critic::Separate(Box::new(critic)), adamw: config.optimizer.adamw() },
            config,
        })
    }

    /// Runs one update; returns the seconds of rollout, scoring and epochs.
    fn update(&mut self, work: &PpoWork, number: usize) -> anyhow::Result<[f64; 3]> {
        let start = Instant::now();
        let vocabulary = self.reference.spec().vocab_size;
        let tokens = |i: usize| random_tokens(work.prompt, vocabulary, (number * work.batch + i) as u64);
        let prompts: Vec<Prompt> = (0..work.batch)
            .map(|i| Prompt { tokens: tokens(i), id: (number * work.batch + i) as u64, sample: 0 })
            .collect();
        let sampling = Sampling { max_new_tokens: work.response, slots: work.batch, ..Sampling::default() };
        let responses = self.learner.policy.generate(&prompts, &sampling, &mut |_| ());
        let views: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.tokens[..]).collect();
        let rollouts = Rollouts::new(&views, responses, 1.0);
        let sampled = start.elapsed().as_secs_f64();

        let rollouts = rollouts.with_training_logprobs(&self.learner.policy)?;
        let scores = rollouts.last_values_of(&self.reward_model)?;
        let reference = rollouts.logprobs_of(&self.reference)?;
        let PenaltyArguments { kl_coef, kl_estimator, .. } = self.config.penalty;
        let kls = kls(kl_estimator, &rollouts.logprobs, &reference);
        let critic = self.learner.value_model();
        let experience = Experience::new(&self.config, kl_coef, rollouts, &scores, &kls, critic)?;
        let scored = start.elapsed().as_secs_f64();

        self.learner.learn(&self.config, &experience, number as u64, RATES)?;
        Ok([sampled, scored - sampled, start.elapsed().as_secs_f64() - scored])
    }
}
