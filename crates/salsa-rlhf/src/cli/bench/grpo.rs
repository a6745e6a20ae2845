//! `salsa bench grpo`: sampling, KL and learner of the GRPO stage, on random models. Rewards are random numbers: what a
//! rule costs is not measured.
use std::{borrow::Cow, time::Instant};

use salsa_algo::{
    group::{self, advantages},
    random::uniform,
};
use salsa_engine::{Device, Model, ModelSpec, Prompt, Sampling, Trainable};
use serde_json::json;

use super::{GrpoWork, models, random_tokens};
use crate::stage::{
    optimizer::OptimizerArguments,
    rl::{
        arguments::SamplingArguments,
        grpo::{
            GrpoConfig,
            learner::{Experience, Learner},
        },
    },
    rollout::Rollouts,
};

const LEARNING_RATE: f64 = 1e-6;

/// A trainable policy, and a frozen reference.
struct Models {
    learner: Learner,
    reference: Model,
    config: GrpoConfig,
}

/// Times GRPO updates and prints the result.
pub(super) fn update(work: &GrpoWork, device: &Device) -> anyhow::Result<()> {
    let spec = work.shape.spec()?;
    let mut models = Models::new(work, &spec, device)?;
    models.config.validate()?;
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
    let tokens = work.prompts * work.generations * work.response;
    work.shape.report("grpo", "update_s", &times[1..], tokens, more.into(), device)
}

impl Models {
    fn new(work: &GrpoWork, spec: &ModelSpec, device: &Device) -> anyhow::Result<Models> {
        let config = GrpoConfig {
            sampling: SamplingArguments {
                batch_size: work.prompts * work.generations,
                response_length: work.response,
                temperature: 1.0,
                ..SamplingArguments::default()
            },
            num_generations: work.generations,
            num_iterations: work.iterations,
            per_device_train_batch_size: work.pass,
            optimizer: OptimizerArguments { max_grad_norm: 0.0, ..OptimizerArguments::default() },
            gradient_checkpointing: work.shape.gradient_checkpointing.into(),
            ..GrpoConfig::default()
        };
        let (adamw, recompute) = (config.optimizer.adamw(), config.recompute());
        let (policy, reference) = match work.shape.lora {
            None => {
                let weights = models::weights(spec, 1)?;
                let reference = Model::new(spec.clone(), &weights, device.clone())?;
                (Trainable::new(spec.clone(), weights, device.clone(), recompute)?, reference)
            }
            Some(rank) => {
                let base = models::base(spec, device)?;
                let policy = models::adapted(&base, spec.head, rank, recompute)?;
                (policy, Model::bare(base))
            }
        };
        Ok(Models { learner: Learner { policy, adamw }, reference, config })
    }

    /// Runs one update; returns the seconds of sampling, log-probs of the reference, and learning.
    fn update(&mut self, work: &GrpoWork, number: usize) -> anyhow::Result<[f64; 3]> {
        let start = Instant::now();
        let (vocabulary, count) = (self.reference.spec().vocab_size, work.prompts * work.generations);
        let prompt = |i: usize| {
            let id = (number * work.prompts + i / work.generations) as u64;
            Prompt { tokens: random_tokens(work.prompt, vocabulary, id), id, sample: (i % work.generations) as u32 }
        };
        let prompts: Vec<Prompt> = (0..count).map(prompt).collect();
        let sampling = Sampling { max_new_tokens: work.response, slots: count, ..Sampling::default() };
        let responses = self.learner.policy.generate(&prompts, &sampling, &mut |_| ());
        let views: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.tokens[..]).collect();
        let rollouts = Rollouts::new(&views, responses, 1.0);
        let sampled = start.elapsed().as_secs_f64();

        let rollouts = rollouts.with_training_logprobs(&self.learner.policy)?;
        let reference = rollouts.logprobs_of(&self.reference)?;
        let rewards: Vec<f64> = (0..count).map(|i| uniform(1, number as u64, i as u64)).collect();
        let config = &self.config;
        let advantages = advantages(&rewards, work.generations, config.baseline, config.scale_rewards);
        let lengths = rollouts.lengths();
        let experience = Experience {
            rollouts: &rollouts,
            references: &[(1.0, Cow::Borrowed(&reference))],
            advantages: group::tokens_to_go(&advantages, &lengths, &reference, 0.0),
            counted: vec![true; count],
        };
        let scored = start.elapsed().as_secs_f64();

        self.learner.learn(config, &experience, number as u64, LEARNING_RATE)?;
        Ok([sampled, scored - sampled, start.elapsed().as_secs_f64() - scored])
    }
}
