//! PPO against a reference: with a soup as reference it is SALSA, with one SFT model plain PPO.
//!
//! `Run::step` is the algorithm; the methods it calls follow in order. Rewards and advantages are computed in
//! [`experience`], the optimizer steps in [`learner`], the arithmetic in `salsa_algo`.
use std::path::Path;

use anyhow::Context;
use salsa_algo::{kl::KlController, ppo::explained_variance};
use serde_json::{Value, json};

use super::{
    environment::Environment,
    measure::{self, Samples, Scored},
    policy,
    reference::kls_to,
    training::{self, Loop, Method},
};
use crate::{
    checkpoint::{Checkpoint, Companions},
    metrics::Metrics,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Shown, Stage},
        lifecycle::resume::{Checkpoints, Snapshot},
        models::save::save_model,
        ranks::gradient_units,
        reads::{ExampleUse, ModelUse, Reads},
    },
};

pub(in crate::stage) mod config;
pub(crate) mod experience;
pub(crate) mod learner;
mod metrics;
#[cfg(test)]
mod tests;

pub(crate) use config::PpoConfig;
use experience::Experience;
use learner::Learner;
use metrics::Measured;

/// The state of a PPO run between two updates.
struct Run<'a> {
    config: &'a PpoConfig,
    environment: Environment,
    learner: Learner,
    controller: KlController,
    beta: f64,
}

impl Run<'_> {
    /// One update, counted from 0. The numbers are the steps of docs/ppo.md.
    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        let (config, world) = (self.config, &mut self.environment);
        // 1. Sample. Only on a GPU are log-probs computed again: on the CPU, decoding gives those of training.
        let (prompt_indices, rollouts) = world.sample(&config.setup(), &self.learner.policy, update)?;
        let rollouts = rollouts.with_training_logprobs(&self.learner.policy)?;
        // 2 to 4. Scores, log-probs of the frozen models (reference and anchors), KL of every token to the reference.
        let rewarded = world.score(&prompt_indices, &rollouts, update * rollouts.len() as u64)?;
        let scores = &rewarded.total;
        let frozen_logprobs = world.frozen.logprobs(&rollouts)?;
        let reference = world.reference.logprobs(&rollouts, &world.frozen, &frozen_logprobs)?;
        let kls = kls_to(&reference, config.penalty.kl_estimator, &rollouts);

        // 5 to 7. Values, rewards (beta is applied here), advantages and returns.
        let experience = Experience::new(config, self.beta, rollouts, scores, &kls, self.learner.value_model())?;
        // 8. The epochs.
        let rates = self.learner.rates(config, update);
        let learned = self.learner.learn(config, &experience, update, rates)?;
        // 9. A moving reference follows; it counts updates from 1.
        world.reference.follow(&self.learner.policy, &world.language_model, update + 1)?;

        // 10. Metrics, with the beta of this update; then the beta of the next one.
        let scored = Scored { scores, kls: &kls, beta: self.beta };
        let explained_variance = explained_variance(&experience.old_values, &experience.returns);
        let rollouts = &experience.rollouts;
        let mut metrics = Measured { scored, explained_variance, learned: &learned }.metrics(rollouts);
        let samples = world.observe(
            &config.run,
            &prompt_indices,
            rollouts,
            &scored,
            &rewarded,
            &frozen_logprobs,
            &mut metrics,
        )?;
        self.beta = self.controller.update(self.beta, measure::mean_kl(&kls, rollouts), rollouts.len());
        Ok((metrics, samples))
    }
}

impl Stage for PpoConfig {
    const NAME: &'static str = "ppo";
    const ABOUT: &'static str = "PPO against a reference of your choice: an SFT model, a soup (SALSA), and more.";
    const EXAMPLE: &'static str = "--model sft-a --reward_model reward --dataset prompts.jsonl --output_dir salsa \\\n    \
                                   --reference.kind soup --reference.models '[sft-a, sft-b]' --kl_coef 0.05";
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

/// Trains a policy and saves it with its tokenizer; a separate critic is saved in `critic/` next to it.
///
/// # Errors
/// If a model or the data cannot be used, models are incompatible, a number is not finite (the last checkpoint is
/// kept), or the run was interrupted (a checkpoint is written first).
pub(crate) fn run(config: &PpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let (mut run, source) = Run::open(config, context)?;
    let settings = Loop { dir: &config.output_dir, sampling: &config.sampling, run: &config.run };
    training::train(&mut run, config, &settings, &source, context)
}

impl<'a> Run<'a> {
    /// Loads models and prompts. Returns the checkpoint whose tokenizer and family are saved with the result.
    fn open(config: &'a PpoConfig, context: &StageContext) -> anyhow::Result<(Run<'a>, Checkpoint)> {
        let (environment, learner, source) = Environment::open(
            &config.setup(),
            context,
            |origin, bases| Learner::open(config, origin, bases),
            |learner| &learner.policy,
        )?;
        let (controller, beta) = (config.penalty.controller(), config.penalty.kl_coef);
        Ok((Run { config, environment, learner, controller, beta }, source))
    }
}

impl Method for Run<'_> {
    type Config = PpoConfig;

    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        Run::step(self, update)
    }

    fn rate(&self, update: u64) -> f64 {
        self.learner.rates(self.config, update).policy
    }

    fn environment(&self) -> &Environment {
        &self.environment
    }

    fn resume(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<u64> {
        let newest = checkpoints.newest()?;
        let saved = newest.as_ref().map(|restored| restored.gradient_units);
        let units = gradient_units(self.config.optimizer.gradient_units, saved, &*checkpoints.ranks)?;
        for model in [Some(&mut self.learner.policy), self.learner.critic.separate_mut()].into_iter().flatten() {
            model.share(checkpoints.ranks.clone(), units)?;
        }
        let Some(restored) = newest else { return Ok(0) };
        restored.restore_model("policy", &mut self.learner.policy)?;
        if let Some(critic) = self.learner.critic.separate_mut() {
            restored.restore_model("critic", critic)?;
        }
        self.environment.reference.restore(&restored)?;
        self.beta = restored.state["kl_coef"].as_f64().context("the checkpoint lacks kl_coef")?;
        Ok(restored.step)
    }

    fn snapshot(&self, done: u64) -> Snapshot<'_> {
        let snapshot = Snapshot::new(done, json!({"kl_coef": self.beta})).with_model("policy", &self.learner.policy);
        let snapshot = match self.learner.critic.separate() {
            Some(critic) => snapshot.with_model("critic", critic),
            None => snapshot,
        };
        self.environment.reference.snapshot(snapshot)
    }

    fn ensure_finite(&self) -> anyhow::Result<()> {
        self.learner.ensure_finite()
    }

    fn save(&self, source: &Checkpoint, dir: &Path) -> anyhow::Result<()> {
        if let Some(critic) = self.learner.critic.separate() {
            let origin = &self.environment.critic_origin;
            let options = self.config.run.save_options(origin);
            let companions = Companions::from_dir(origin.dir())?;
            save_model(&dir.join("critic"), origin, critic, critic.spec(), &companions, &[], &options)?;
        }
        training::save_policy(&self.learner.policy, &self.environment, &self.config.run, source, dir)
    }
}
