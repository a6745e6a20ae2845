//! PPO against a reference: with a soup as reference it is SALSA, with one SFT model plain PPO.
//!
//! `Run::step` is the algorithm; the methods it calls follow in order. Rewards and advantages are computed in
//! [`experience`], the optimizer steps in [`learner`], the arithmetic in `salsa_algo`.
use std::path::Path;

use anyhow::{Context, ensure};
use salsa_algo::{kl::KlController, ppo::explained_variance};
use salsa_engine::{Head, ModelSpec, Prompt, Sampling};
use serde_json::{Value, json};

use super::reference::{FrozenModels, Reference};
use crate::{
    checkpoint::{Checkpoint, Companions},
    metrics::{self, Metrics, MetricsWriter, TrainerState, names},
    progress::Progress,
    stage::{
        Interrupted, StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Shown, Stage},
        lifecycle::{
            fingerprint::fingerprint,
            resume::{Checkpoints, Snapshot},
        },
        models::{bases::Bases, frozen::open_language_model, reward_model::RewardModel, save::save_model},
        reads::{ExampleUse, ModelUse, Reads},
        rollout::Rollouts,
        text::{
            encoder::Encoder,
            prompts::{self, Prompts, TextPrompt},
        },
    },
};

pub(in crate::stage) mod config;
pub(crate) mod experience;
pub(crate) mod learner;
mod measure;
mod order;
mod plan;
#[cfg(test)]
mod tests;

pub(crate) use config::PpoConfig;
use experience::Experience;
use learner::{Learner, Rates};
use measure::{Measured, Samples};
use plan::Plan;

/// The state of a PPO run between two updates.
struct Run<'a> {
    config: &'a PpoConfig,
    encoder: Encoder,
    prompts: Vec<TextPrompt>,
    /// The number of prompts that are too long.
    left_out: usize,
    learner: Learner,
    /// The policy's shape without a value head.
    language_model: ModelSpec,
    reward_model: RewardModel,
    reference: Reference,
    frozen: FrozenModels,
    /// Names of the anchors and their indices among the frozen models.
    anchors: Vec<(String, usize)>,
    controller: KlController,
    beta: f64,
}

impl Run<'_> {
    /// One update, counted from 0. The numbers are the steps of docs/ppo.md.
    fn step(&mut self, update: u64) -> anyhow::Result<(Metrics, Samples)> {
        let config = self.config;
        // 1. Sample. Only on a GPU are log-probs computed again: on the CPU, decoding gives those of training.
        let (prompt_indices, rollouts) = self.sample(update);
        let rollouts = rollouts.with_training_logprobs(&self.learner.policy);
        // 2 to 4. Scores, log-probs of the frozen models (reference and anchors), KL of every token to the reference.
        let scores = self.reward_model.scores(&rollouts);
        let frozen_logprobs = self.frozen.logprobs(&rollouts);
        let kls = self.reference.kls(config.penalty.kl_estimator, &rollouts, &self.frozen, &frozen_logprobs);

        // 5 to 7. Values, rewards (beta is applied here), advantages and returns.
        let experience = Experience::new(config, self.beta, rollouts, &scores, &kls, self.learner.value_model());
        // 8. The epochs.
        let rates = self.rates(update);
        let learned = self.learner.learn(config, &experience, update, rates)?;
        // 9. A moving reference follows; it counts updates from 1.
        self.reference.follow(&self.learner.policy, &self.language_model, update + 1)?;

        // 10. Metrics, with the beta of this update; then the beta of the next one.
        let measured = Measured {
            scores: &scores,
            kls: &kls,
            beta: self.beta,
            explained_variance: explained_variance(&experience.old_values, &experience.returns),
            learned: &learned,
        };
        let (metrics, samples) = self.report(&prompt_indices, &experience.rollouts, &measured, &frozen_logprobs)?;
        let measured_kl = measure::mean_kl(&kls, &experience.rollouts);
        self.beta = self.controller.update(self.beta, measured_kl, experience.rollouts.len());
        Ok((metrics, samples))
    }

    /// The indices of the next prompts and responses to them; every pass over the data visits each prompt once.
    fn sample(&self, update: u64) -> (Vec<usize>, Rollouts) {
        let config = self.config;
        let first = update * config.sampling.batch_size as u64;
        let responses = first..first + config.sampling.batch_size as u64;
        let prompt_indices = order::visit(self.prompts.len(), config.run.seed, responses);
        // The random stream is the index of the response in the run: a repeated prompt gets another response.
        let prompt = |(i, &at): (usize, &usize)| Prompt {
            tokens: self.prompts[at].tokens.clone(),
            id: first + i as u64,
            sample: 0,
        };
        let prompts: Vec<Prompt> = prompt_indices.iter().enumerate().map(prompt).collect();
        let sampling = Sampling {
            temperature: config.sampling.temperature,
            seed: config.run.seed,
            max_new_tokens: config.sampling.response_length,
            stop_tokens: self.encoder.ends().to_vec(),
            slots: *config.sampling.decode_slots,
            ..Sampling::default()
        };
        let responses = self.learner.policy.generate(&prompts, &sampling, &mut |_| ());
        let prompts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.tokens[..]).collect();
        let rollouts = Rollouts::new(&prompts, responses, config.sampling.temperature);
        (prompt_indices, rollouts)
    }

    fn rates(&self, update: u64) -> Rates {
        let config = self.config;
        let share = config.schedule().factor(update as usize, config.sampling.updates() as usize);
        let policy = if update < config.critic_warmup { 0.0 } else { config.learning_rate * share };
        Rates { policy, critic: config.critic_learning_rate.unwrap_or(config.learning_rate) * share }
    }

    /// The metrics of an update, including the KLs to the anchors and the mean gold reward, and texts of some
    /// responses.
    fn report(
        &self,
        prompt_indices: &[usize],
        rollouts: &Rollouts,
        measured: &Measured<'_>,
        frozen_logprobs: &[Vec<f64>],
    ) -> anyhow::Result<(Metrics, Samples)> {
        let mut metrics = measured.metrics(rollouts);
        for (name, at) in &self.anchors {
            metrics.set(format!("{}{name}", names::KL_TO), measure::kl_per_response(rollouts, &frozen_logprobs[*at]));
        }
        let mut samples = Samples::default();
        let mut gold_total = 0.0;
        let read =
            if self.config.run.gold.is_some() { prompt_indices.len() } else { Samples::KEPT.min(prompt_indices.len()) };
        for (i, &at) in prompt_indices.iter().enumerate().take(read) {
            let prompt = self.prompts[at].content.last_words();
            let response = self.encoder.decode(rollouts.response(i))?;
            let gold = self.config.run.gold.map(|gold| gold.reward(prompt, response.trim()));
            gold_total += gold.unwrap_or(0.0);
            if i < Samples::KEPT {
                samples.push(prompt, response.trim(), measured.scores[i], gold);
            }
        }
        if self.config.run.gold.is_some() {
            metrics.set(names::GOLD, gold_total / rollouts.len() as f64);
        }
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
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("talk to it", "salsa chat --model OUT"),
        ("answer prompts", "salsa generate --model OUT --input PROMPTS --output FILE"),
        ("compare models", "salsa evaluate --config FILE --output_dir DIR"),
    ];
    const SHOWN: Shown = Shown::Trajectory;

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_source(Some(&self.model_name_or_path), &self.chat)
            .models("reward_model_path", ModelUse::RewardOfReader)
            .examples("dataset", &self.dataset, ExampleUse::Prompt)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.run.device, self.run.dtype))
    }

    fn role(&self) -> String {
        match self.reference.kind() {
            "sft" => "reference: the SFT model".to_owned(),
            kind => format!("reference: {kind}"),
        }
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
    let (dir, total) = (&config.output_dir, config.sampling.updates());
    let checkpoints = Checkpoints::new(dir, fingerprint("ppo", config)?);
    let mut done = run.resume(&checkpoints)?;
    if done > 0 {
        context.say(&format!("ppo: resuming after update {done} of {total}"));
    }
    let mut writer = if done == 0 { MetricsWriter::create(dir)? } else { MetricsWriter::resume(dir, done)? };
    measure::truncate_samples(dir, done)?;
    let progress = Progress::new("ppo", total, "update");
    progress.start_at(done);
    while done < total {
        let (mut metrics, samples) =
            run.step(done).with_context(|| format!("update {} of {total}; {}", done + 1, checkpoints.kept()))?;
        let stopped_at = || format!("update {} of {total}; {}", done + 1, checkpoints.kept());
        measure::ensure_finite(&metrics).with_context(stopped_at)?;
        done += 1;
        metrics.set("lr", run.rates(done - 1).policy);
        metrics.set("episode", (done * config.sampling.batch_size as u64) as f64);
        writer.log(done, &metrics)?;
        let generations = *config.run.num_sample_generations;
        if generations > 0 && (done - 1).is_multiple_of(total.div_ceil(generations)) {
            samples.append(dir, done)?;
        }
        progress.message(&measure::headline(&metrics));
        progress.set(done);
        let stopped = done < total && context.interrupted();
        if stopped || (*config.run.save_steps > 0 && done.is_multiple_of(*config.run.save_steps) && done < total) {
            checkpoints.save(&run.snapshot(done))?;
        }
        if stopped {
            anyhow::bail!(Interrupted { step: done, total });
        }
    }
    progress.finish(&format!("{total} updates"));
    run.learner.ensure_finite().with_context(|| checkpoints.kept())?;
    run.save(&source, dir, total)?;
    let last = metrics::read(dir)?.pop().map(|(_, metrics)| metrics).unwrap_or_default();
    Ok(json!({
        "updates": total,
        "episodes": total * config.sampling.batch_size as u64,
        "prompts": run.prompts.len(),
        "left_out": run.left_out,
        "last": last.iter().map(|(name, value)| (name.to_owned(), value.into())).collect::<serde_json::Map<_, _>>(),
    }))
}

impl<'a> Run<'a> {
    /// Loads models and prompts. Returns the checkpoint whose tokenizer and family are saved with the result.
    fn open(config: &'a PpoConfig, context: &StageContext) -> anyhow::Result<(Run<'a>, Checkpoint)> {
        let first =
            config.model_name_or_path.paths().into_iter().next().context("model_name_or_path names no model")?;
        ensure!(
            !first.as_os_str().is_empty(),
            "no model is given; say model_name_or_path: DIR (or --sft_model_path DIR)"
        );
        let source = Checkpoint::open(first)?;
        let encoder = Encoder::open(&source)?.with_chat(&config.chat);
        let reward = RewardModel::find(&config.reward_model_path, &source, context)?;
        let Prompts { prompts, left_out } = prompts::load(
            &config.dataset,
            config.sampling.max_prompt_length,
            config.sampling.response_length,
            &encoder,
            source.spec.max_positions.min(reward.spec.max_positions),
            context,
        )?;
        Plan::open(config, &reward)?.check_memory(config, &prompts, context)?;
        let mut bases = Bases::on(&context.device);
        // A policy that is an adapter is loaded first: its base, which has a language-model head, serves all others.
        let base = config.lora.use_peft.then(|| open_language_model(first)).transpose()?;
        let base = base.map(|checkpoint| bases.frozen(&checkpoint, Head::LanguageModel)).transpose()?;
        let reward_model = RewardModel::load(reward, config.scores.scale(), &mut bases)?;
        let learner = Learner::open(config, &reward_model.checkpoint, &mut bases)?;
        drop(base);
        let policy_spec = learner.policy.spec().with_head(Head::LanguageModel);
        let (start, mut frozen) = (&config.model_name_or_path, FrozenModels::default());
        let reference = Reference::load(&config.reference, start, &learner.policy, &mut frozen, &mut bases)?;
        let anchors = config.anchors.iter();
        let anchors = anchors.map(|(name, model)| Ok((name.clone(), frozen.load(model, &policy_spec, &mut bases)?)));
        let anchors = anchors.collect::<anyhow::Result<Vec<_>>>()?;
        let run = Run {
            config,
            encoder,
            prompts,
            left_out,
            learner,
            language_model: policy_spec,
            reward_model,
            reference,
            frozen,
            anchors,
            controller: config.penalty.controller(),
            beta: config.penalty.kl_coef,
        };
        Ok((run, source))
    }

    fn resume(&mut self, checkpoints: &Checkpoints) -> anyhow::Result<u64> {
        let Some(mut restored) = checkpoints.newest()? else { return Ok(0) };
        restored.restore_model("policy", &mut self.learner.policy)?;
        if let Some(critic) = self.learner.critic.separate_mut() {
            restored.restore_model("critic", critic)?;
        }
        self.reference.restore(&mut restored)?;
        self.beta = restored.state["kl_coef"].as_f64().context("the checkpoint lacks kl_coef")?;
        Ok(restored.step)
    }

    fn snapshot(&self, done: u64) -> Snapshot<'_> {
        let snapshot = Snapshot::new(done, json!({"kl_coef": self.beta})).with_model("policy", &self.learner.policy);
        let snapshot = match self.learner.critic.separate() {
            Some(critic) => snapshot.with_model("critic", critic),
            None => snapshot,
        };
        self.reference.snapshot(snapshot)
    }

    fn save(&self, source: &Checkpoint, dir: &Path, updates: u64) -> anyhow::Result<()> {
        let episodes = updates * self.config.sampling.batch_size as u64;
        let epoch = episodes as f64 / self.prompts.len() as f64;
        metrics::write_trainer_state(
            dir,
            &TrainerState {
                global_step: updates,
                max_steps: updates,
                epoch,
                num_train_epochs: epoch.ceil() as u64,
                train_batch_size: self.config.sampling.batch_size as u64,
            },
        )?;
        if let Some(critic) = self.learner.critic.separate() {
            let origin = &self.reward_model.checkpoint;
            let options = self.config.run.save_options(origin);
            let companions = Companions::from_dir(origin.dir())?;
            save_model(&dir.join("critic"), origin, critic, critic.spec(), &companions, &[], &options)?;
        }
        let options = self.config.run.save_options(source);
        let companions = Companions::from_dir(source.dir())?;
        save_model(dir, source, &self.learner.policy, &self.language_model, &companions, &[], &options)
    }
}
