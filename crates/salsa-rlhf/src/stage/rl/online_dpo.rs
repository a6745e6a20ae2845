//! Online DPO against a reference, which may be a soup: a preference loss on responses that the policy has just sampled,
//! with rewards that say which is better.
//!
//! `Run::step` is the algorithm; the arithmetic is in [`salsa_algo::preference`].
use std::{borrow::Cow, path::Path};

use anyhow::ensure;
use salsa_algo::{
    kl::KlEstimator,
    preference::online::{self, Ranked},
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
    metrics::{Metrics, names},
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Shown, Stage},
        lifecycle::resume::{Checkpoints, REMEDY, Snapshot},
        ranks::gradient_units,
        reads::{ExampleUse, ModelUse, Reads},
        rollout::Rollouts,
    },
};

pub(in crate::stage) mod config;
mod learner;
#[cfg(test)]
mod tests;

pub(crate) use config::OnlineDpoConfig;
use learner::{Experience, Learner, StepStats, of_responses};

/// The state of a run between two updates.
struct Run<'a> {
    config: &'a OnlineDpoConfig,
    environment: Environment,
    learner: Learner,
}

impl Run<'_> {
    /// One update, counted from 0.
    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        let rate = self.rate(update);
        let (config, world) = (self.config, &mut self.environment);
        // 1 and 2. Sample groups of responses, and score them.
        let (prompt_indices, rollouts) = world.sample(&config.setup(), &self.learner.policy, update)?;
        let rollouts = rollouts.with_training_logprobs(&self.learner.policy)?;
        let rewarded = world.score(&prompt_indices, &rollouts, update * rollouts.len() as u64)?;
        let scores = &rewarded.total;
        // 3. Log-probs of the frozen models, KL of every token to the reference.
        let frozen_logprobs = world.frozen.logprobs(&rollouts)?;
        let references = world.reference.logprobs(&rollouts, &world.frozen, &frozen_logprobs)?;
        let kls = kls_to(&references, KlEstimator::K1, &rollouts);

        // 4. The pairs.
        let rule = config.scores.rule();
        let rewards = scores.iter().zip(&rollouts.endings).map(|(&score, &ending)| rule.apply(score, ending));
        let rewards: Vec<f64> = rewards.collect();
        let pairs = online::pairs(&rewards, config.num_generations, config.pairing);
        let reference = of_responses(config.loss_type, &mean_of(&references), &rollouts.lengths());
        let experience = Experience { rollouts: &rollouts, pairs: &pairs, reference };
        // 5. The optimizer steps. 6. A moving reference follows; it counts updates from 1.
        let learned = self.learner.learn(config, &experience, update, rate)?;
        world.reference.follow(&self.learner.policy, &world.language_model, update + 1)?;

        // 7. Metrics.
        let scored = Scored { scores, kls: &kls, beta: config.beta };
        let mut metrics = metrics(&scored, &rollouts, &rewards, &pairs, &learned);
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

/// The log-prob of every token under the reference: with several models the weighted mean. It is that of their weighted
/// geometric mean up to a constant of the prompt, which is the same for both responses of a pair.
fn mean_of(references: &[(f64, Cow<'_, [f64]>)]) -> Vec<f64> {
    if let [(_, one)] = references {
        return one.to_vec();
    }
    let tokens = references.first().map_or(0, |(_, logprobs)| logprobs.len());
    (0..tokens).map(|at| references.iter().map(|(weight, logprobs)| weight * logprobs[at]).sum()).collect()
}

/// The metrics of an update: those of PPO where there are any, and those of TRL's online DPO.
fn metrics(
    scored: &Scored<'_>,
    rollouts: &Rollouts,
    rewards: &[f64],
    pairs: &[Ranked],
    learned: &StepStats,
) -> Metrics {
    let count = pairs.len() as f64;
    let margins = pairs.iter().map(|pair| rewards[pair.chosen] - rewards[pair.rejected]).sum::<f64>();
    let ties = pairs.iter().filter(|pair| pair.is_tie).count() as f64;
    let mut metrics = scored
        .metrics(rollouts)
        .with("reward", rewards.iter().sum::<f64>() / rewards.len() as f64)
        .with("objective/scores_margin", margins / count)
        .with("frac_pairs_tied", ties / count)
        .with("loss/policy_avg", learned.loss)
        .with("rewards/chosen", learned.rewards_chosen)
        .with("rewards/rejected", learned.rewards_rejected)
        .with("rewards/margins", learned.rewards_chosen - learned.rewards_rejected)
        .with("rewards/accuracies", learned.accuracy)
        .with("logps/chosen", learned.logp_chosen)
        .with("logps/rejected", learned.logp_rejected)
        .with(names::ENTROPY, learned.entropy)
        .with("policy/grad_norm", learned.grad_norm);
    measure::lengths(rollouts, &mut metrics);
    metrics
}

impl Stage for OnlineDpoConfig {
    const NAME: &'static str = "online_dpo";
    const ABOUT: &'static str = "Online DPO: preference losses on sampled responses, ranked by rewards.";
    const EXAMPLE: &'static str = "--model sft-a --reward_model reward --dataset prompts.jsonl --output_dir policy \\\n    \
                                   --reference.kind soup --reference.models '[sft-a, sft-b]' --beta 0.1";
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
pub(crate) fn run(config: &OnlineDpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let (mut run, source) = Run::open(config, context)?;
    let settings = Loop { dir: &config.output_dir, sampling: &config.sampling, run: &config.run };
    training::train(&mut run, config, &settings, &source, context)
}

impl<'a> Run<'a> {
    fn open(config: &'a OnlineDpoConfig, context: &StageContext) -> anyhow::Result<(Run<'a>, Checkpoint)> {
        let open = |bases: &mut _| {
            policy::open(&config.model_name_or_path, &config.lora, config.run.seed, config.recompute(), bases)
        };
        let (environment, learner, source) = Environment::open(
            &config.setup(),
            context,
            |_, bases| Ok(Learner { policy: open(bases)?, adamw: config.optimizer.adamw() }),
            |learner| &learner.policy,
        )?;
        Ok((Run { config, environment, learner }, source))
    }
}

impl Method for Run<'_> {
    type Config = OnlineDpoConfig;

    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        Run::step(self, update)
    }

    fn gradient_units(&self) -> usize {
        self.learner.policy.units()
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
        Ok(restored.step)
    }

    fn snapshot(&self, done: u64) -> Snapshot<'_> {
        let snapshot = Snapshot::new(done, json!({})).with_model("policy", &self.learner.policy);
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
