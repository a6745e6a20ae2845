//! GRPO and relatives (RLOO, Dr. GRPO, DAPO, GSPO) against a reference, which may be a soup, or none.
//!
//! Several responses per prompt are each other's baseline, so there is no critic. `Run::step` is the algorithm; the
//! arithmetic is in [`salsa_algo::group`].
use std::path::Path;

use anyhow::{Context, ensure};
use salsa_algo::{
    group::{ScaleRewards, advantages, normalize_tokens, tokens_to_go},
    whiten::moments,
};
use serde_json::{Value, json};

use super::{
    environment::Environment,
    measure::{self, Samples, Scored},
    policy,
    reference::kls_to,
    training::{self, Loop, Method},
};
use crate::{
    checkpoint::Checkpoint,
    metrics::Metrics,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Shown, Stage},
        lifecycle::resume::{Checkpoints, REMEDY, Snapshot},
        ranks::gradient_units,
        reads::{ExampleUse, ModelUse, Reads},
        rollout::{Rollouts, split},
    },
};

pub(in crate::stage) mod config;
mod groups;
pub(crate) mod learner;
#[cfg(test)]
mod tests;

pub(crate) use config::GrpoConfig;
use config::KlIn;
use groups::{Groups, Sampled};
use learner::{Experience, Learner, StepStats, counts};

/// The state of a run between two updates.
struct Run<'a> {
    config: &'a GrpoConfig,
    environment: Environment,
    learner: Learner,
    /// Prompts sampled so far: with dynamic sampling more than those learned from.
    asked: u64,
}

impl Run<'_> {
    /// One update, counted from 0.
    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        let rate = self.rate(update);
        let (config, world) = (self.config, &mut self.environment);
        // 1 and 2. Sample groups of responses, and score them. On the CPU, decoding gives the log-probs of training.
        let Sampled { groups, asked, rounds } = groups::sample(config, world, &self.learner.policy, self.asked)?;
        let Groups { prompt_indices, rollouts, scores: rewarded } = groups;
        let rollouts = rollouts.with_training_logprobs(&self.learner.policy)?;
        let scores = &rewarded.total;
        // 3. Log-probs of the frozen models, KL of every token to the reference.
        let frozen_logprobs = world.frozen.logprobs(&rollouts)?;
        let references = world.reference.logprobs(&rollouts, &world.frozen, &frozen_logprobs)?;
        let kls = kls_to(&references, config.kl_estimator, &rollouts);

        // 4. One reward, and one advantage, per response.
        let rewards = rewards(config, &rollouts, scores, &kls);
        let counted: Vec<bool> = rollouts.endings.iter().map(|&ending| counts(config, ending)).collect();
        let advantages = token_advantages(config, &rollouts, &rewards, &kls, &counted);
        let experience = Experience { rollouts: &rollouts, references: &references, advantages, counted };
        // 5. The optimizer steps. 6. A moving reference follows; it counts updates from 1.
        let learned = self.learner.learn(config, &experience, update, rate)?;
        world.reference.follow(&self.learner.policy, &world.language_model, update + 1)?;

        // 7. Metrics.
        let scored = Scored { scores, kls: &kls, beta: config.kl_coef };
        let mut metrics = metrics(config, &scored, &rollouts, &rewards, &learned);
        rounds.observe(&mut metrics);
        self.asked = asked;
        let samples = world.observe(
            &config.run,
            &prompt_indices,
            &rollouts,
            &scored,
            &rewarded,
            &frozen_logprobs,
            &mut metrics,
        )?;
        Ok((metrics, samples))
    }
}

/// The advantage of each token: that of its response, less the KL to go with `kl_in: reward_to_go`.
fn token_advantages(
    config: &GrpoConfig,
    rollouts: &Rollouts,
    rewards: &[f64],
    kls: &[f64],
    counted: &[bool],
) -> Vec<f64> {
    let of_responses = advantages(rewards, config.num_generations, config.baseline, config.scale_rewards);
    let beta = if config.kl_in == KlIn::RewardToGo { config.kl_coef } else { 0.0 };
    let lengths = rollouts.lengths();
    let mut advantages = tokens_to_go(&of_responses, &lengths, kls, beta);
    if config.scale_rewards == ScaleRewards::Tokens {
        let counts: Vec<bool> =
            lengths.iter().zip(counted).flat_map(|(&length, &counts)| std::iter::repeat_n(counts, length)).collect();
        let mut counted = advantages.iter_mut().zip(counts).filter(|(_, counts)| *counts).map(|(a, _)| a);
        let mut places: Vec<&mut f64> = counted.by_ref().collect();
        let mut normalized: Vec<f64> = places.iter().map(|advantage| **advantage).collect();
        normalize_tokens(&mut normalized);
        places.iter_mut().zip(normalized).for_each(|(place, advantage)| **place = advantage);
    }
    advantages
}

/// The reward of each response: its score, and with `kl_in: reward` the KL penalty.
fn rewards(config: &GrpoConfig, rollouts: &Rollouts, scores: &[f64], kls: &[f64]) -> Vec<f64> {
    let rule = config.scores.rule();
    let kls = split(kls, &rollouts.lengths());
    let penalty = |i: usize| match config.kl_in {
        KlIn::Reward => config.kl_coef * kls[i].iter().sum::<f64>(),
        KlIn::Loss | KlIn::RewardToGo => 0.0,
    };
    scores.iter().enumerate().map(|(i, &score)| rule.apply(score, rollouts.endings[i]) - penalty(i)).collect()
}

/// The metrics of an update: those of PPO where there are any, and those of TRL's GRPO.
fn metrics(
    config: &GrpoConfig,
    scored: &Scored<'_>,
    rollouts: &Rollouts,
    rewards: &[f64],
    learned: &StepStats,
) -> Metrics {
    let groups = rewards.chunks(config.num_generations).map(|group| moments(group).variance.sqrt());
    let deviations: Vec<f64> = groups.collect();
    let equal = deviations.iter().filter(|&&deviation| deviation == 0.0).count() as f64;
    let count = deviations.len() as f64;
    let mut metrics = scored
        .metrics(rollouts)
        .with("reward", rewards.iter().sum::<f64>() / rewards.len() as f64)
        .with("reward_std", deviations.iter().sum::<f64>() / count)
        .with("frac_reward_zero_std", equal / count)
        .with("policy/approxkl_avg", learned.clip.approx_kl)
        .with("clip_ratio/low_mean", learned.clip.clipped_low)
        .with("clip_ratio/high_mean", learned.clip.clipped_high)
        .with("policy/entropy_avg", learned.entropy)
        .with("policy/grad_norm", learned.grad_norm)
        .with("loss/policy_avg", learned.policy_loss)
        .with("loss/kl_avg", learned.loss - learned.policy_loss)
        .with("val/ratio", learned.clip.ratio);
    measure::lengths(rollouts, &mut metrics);
    metrics
}

impl Stage for GrpoConfig {
    const NAME: &'static str = "grpo";
    const ABOUT: &'static str = "GRPO, RLOO and relatives: several responses per prompt instead of a critic.";
    const EXAMPLE: &'static str = "--model sft-a --reward_model reward --dataset prompts.jsonl --output_dir policy \\\n    \
                                   --reference.kind soup --reference.models '[sft-a, sft-b]' --num_generations 8";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = policy::NEXT;
    const SHOWN: Shown = Shown::Trajectory;

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_source(Some(&self.model_name_or_path), &self.chat)
            .models("reward_model_path", ModelUse::RewardOfReader)
            .models("rewards", ModelUse::RewardOfReader)
            .examples("dataset", &self.dataset, ExampleUse::Prompt)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.run.device, self.run.dtype))
    }

    fn role(&self) -> String {
        self.reference.role()
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Trains a policy and saves it with its tokenizer.
///
/// # Errors
/// If a model or the data cannot be used, models are incompatible, a number is not finite (the last checkpoint is
/// kept), or the run was interrupted (a checkpoint is written first).
pub(crate) fn run(config: &GrpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let (mut run, source) = Run::open(config, context)?;
    let settings = Loop { dir: &config.output_dir, sampling: &config.sampling, run: &config.run };
    training::train(&mut run, config, &settings, &source, context)
}

impl<'a> Run<'a> {
    fn open(config: &'a GrpoConfig, context: &StageContext) -> anyhow::Result<(Run<'a>, Checkpoint)> {
        let open = |bases: &mut _| {
            policy::open(&config.model_name_or_path, &config.lora, config.run.seed, config.recompute(), bases)
        };
        let (environment, learner, source) = Environment::open(
            &config.setup(),
            context,
            |_, bases| Ok(Learner { policy: open(bases)?, adamw: config.optimizer.adamw() }),
            |learner| &learner.policy,
        )?;
        Ok((Run { config, environment, learner, asked: 0 }, source))
    }
}

impl Method for Run<'_> {
    type Config = GrpoConfig;

    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        Run::step(self, update)
    }

    fn rate(&self, update: u64) -> f64 {
        let updates = self.config.sampling.updates();
        self.config.learning_rate * self.config.schedule().factor(update as usize, updates as usize)
    }

    fn environment(&self) -> &Environment {
        &self.environment
    }

    fn resume(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<u64> {
        let newest = checkpoints.newest()?;
        let saved = newest.as_ref().map(|restored| restored.gradient_units);
        let units = gradient_units(self.config.optimizer.gradient_units, saved, &*checkpoints.ranks)?;
        self.learner.policy.share(checkpoints.ranks.clone(), units)?;
        let Some(restored) = newest else { return Ok(0) };
        restored.restore_model("policy", &mut self.learner.policy)?;
        self.environment.reference.restore(&restored)?;
        self.asked = restored.state["prompts"].as_u64().context("the checkpoint lacks prompts")?;
        Ok(restored.step)
    }

    fn snapshot(&self, done: u64) -> Snapshot<'_> {
        let snapshot = Snapshot::new(done, json!({"prompts": self.asked})).with_model("policy", &self.learner.policy);
        self.environment.reference.snapshot(snapshot)
    }

    fn ensure_finite(&self) -> anyhow::Result<()> {
        let finite = self.learner.policy.weights().iter().all(|weight| weight.is_finite());
        ensure!(finite, "a weight of the policy is not finite; {REMEDY}");
        Ok(())
    }

    fn save(&self, source: &Checkpoint, dir: &Path) -> anyhow::Result<()> {
        training::save_policy(&self.learner.policy, &self.environment, &self.config.run, source, dir)
    }
}
