//! What all methods share: prompts, rewards, the reference and the anchors, and how responses are sampled.
use std::{collections::BTreeMap, path::Path, sync::Arc};

use anyhow::{Context, ensure};
use salsa_engine::{
    Head, Model, ModelSpec, Prompt, Recompute, Sampling, Trainable,
    comm::{Comm, CommError},
};

use super::{
    arguments::{RunArguments, SamplingArguments, ScoreArguments},
    measure::{self, Samples, Scored},
    order::Order,
    plan::Plan,
    ppo::config::CriticKind,
    reference::{FrozenModels, Reference, ReferenceConfig},
};
use crate::{
    checkpoint::Checkpoint,
    metrics::{Metrics, names},
    stage::{
        StageContext,
        models::{bases::Bases, frozen::open_language_model, lora::LoraArguments, model_source::ModelSource},
        ranks,
        rewards::{Answered, FoundRewards, RewardSource, Rewards, Scores},
        rollout::Rollouts,
        text::{
            chat_arguments::ChatArguments,
            encoder::Encoder,
            prompts::{self, Prompts, TextPrompt},
            source::DataSource,
        },
    },
};

/// The settings of a run that do not depend on its method.
pub(super) struct Setup<'a> {
    /// The stage.
    pub name: &'static str,
    /// The initial policy.
    pub model: &'a ModelSource,
    /// The rewards, at least one.
    pub rewards: Vec<RewardSource>,
    /// The reference of the KL penalty.
    pub reference: &'a ReferenceConfig,
    /// Models for additional logged KLs.
    pub anchors: &'a BTreeMap<String, ModelSource>,
    /// The prompts.
    pub dataset: &'a DataSource,
    /// How prompts become tokens.
    pub chat: &'a ChatArguments,
    /// How responses are sampled.
    pub sampling: &'a SamplingArguments,
    /// Post-processing of scores.
    pub scores: &'a ScoreArguments,
    /// The trained adapter.
    pub lora: &'a LoraArguments,
    /// Settings of the run as a whole.
    pub run: &'a RunArguments,
    /// Source of values; `None` for methods without.
    pub critic: Option<CriticKind>,
    /// Which activations the backward pass recomputes.
    pub recompute: Recompute,
    /// Responses per forward and backward pass.
    pub pass: usize,
    /// The key of that name.
    pub gradient_units: Option<usize>,
    /// The order of prompts and responses.
    pub order: Order,
    /// Which prompts an update may have.
    pub prompts: PromptUse,
    /// Directory of the results.
    pub dir: &'a Path,
}

/// Which prompts an update may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PromptUse {
    /// Those of the order.
    InOrder,
    /// Any, since prompts are replaced.
    Any,
}

/// Prompts and frozen models of a run.
pub(super) struct Environment {
    /// Tokenizer and chat template of the policy.
    pub encoder: Encoder,
    /// The prompts.
    pub prompts: Vec<TextPrompt>,
    /// The number of prompts that are too long.
    pub left_out: usize,
    /// The policy's shape without a value head.
    pub language_model: ModelSpec,
    /// The rewards.
    pub rewards: Rewards,
    /// The checkpoint that a separate critic starts from: the first reward model, or without one the policy.
    pub critic_origin: Checkpoint,
    /// The reference.
    pub reference: Reference,
    /// Reference and anchors.
    pub frozen: FrozenModels,
    /// Names of the anchors and their indices among the frozen models.
    pub anchors: Vec<(String, usize)>,
    /// The processes of the run.
    pub ranks: Arc<dyn Comm>,
}

impl Environment {
    /// Loads prompts and models, and what is trained with `open`, which gets the critic's origin. Returns also the
    /// checkpoint whose tokenizer and family are saved with the result.
    ///
    /// # Errors
    /// If a model or the data cannot be used, models are incompatible, or memory does not suffice.
    pub(super) fn open<L>(
        setup: &Setup<'_>,
        context: &StageContext,
        open: impl FnOnce(&Checkpoint, &mut Bases) -> anyhow::Result<L>,
        policy: impl Fn(&L) -> &Trainable,
    ) -> anyhow::Result<(Environment, L, Checkpoint)> {
        let first = setup.model.paths().into_iter().next().context("model_name_or_path names no model")?;
        ensure!(
            !first.as_os_str().is_empty(),
            "no model is given; say model_name_or_path: DIR (or --sft_model_path DIR)"
        );
        let source = Checkpoint::open(first)?;
        let encoder = Encoder::open(&source)?.with_chat(setup.chat);
        let found = FoundRewards::open(setup.rewards.clone(), &source, setup.dir, context)?;
        let scored = found.models().map(|model| model.spec.max_positions);
        let positions = scored.fold(source.spec.max_positions, usize::min);
        let Prompts { prompts, left_out } = prompts::load(
            setup.dataset,
            setup.sampling.max_prompt_length,
            setup.sampling.response_length,
            &encoder,
            positions,
            found.records(),
            context,
        )?;
        found.check_columns(prompts.iter().map(|prompt| (&prompt.content, &prompt.columns)))?;
        let critic_origin = Checkpoint::open(found.models().next().unwrap_or(&source).dir())?;
        Plan::open(setup, &found, &critic_origin)?.check_memory(setup, &prompts, context)?;
        let mut bases = Bases::on(&context.device);
        // A policy that is an adapter is loaded first: its base, which has a language-model head, serves all others.
        let base = setup.lora.use_peft.then(|| open_language_model(first)).transpose()?;
        let base = base.map(|checkpoint| bases.frozen(&checkpoint, Head::LanguageModel)).transpose()?;
        let rewards = found.load(setup.scores.scale(), &mut bases)?;
        let learner = open(&critic_origin, &mut bases)?;
        drop(base);
        let trained = policy(&learner);
        let language_model = trained.spec().with_head(Head::LanguageModel);
        let mut frozen = FrozenModels::default();
        let reference = Reference::load(setup.reference, setup.model, trained, &mut frozen, &mut bases)?;
        let anchors = setup.anchors.iter();
        let anchors = anchors.map(|(name, model)| Ok((name.clone(), frozen.load(model, &language_model, &mut bases)?)));
        let anchors = anchors.collect::<anyhow::Result<Vec<_>>>()?;
        let environment = Environment {
            encoder,
            prompts,
            left_out,
            language_model,
            rewards,
            critic_origin,
            reference,
            frozen,
            anchors,
            ranks: context.ranks.clone(),
        };
        Ok((environment, learner, source))
    }

    /// The prompt of each response of an update, counted from 0, and the responses.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(super) fn sample(
        &self,
        setup: &Setup<'_>,
        policy: &Model,
        update: u64,
    ) -> Result<(Vec<usize>, Rollouts), CommError> {
        let asked = (setup.order.batch / setup.order.group) as u64;
        self.sample_from(setup, policy, update * asked, asked)
    }

    /// Responses to the prompts from the `first` one of the run on, `asked` of them: the prompt of each response, and
    /// the responses. The prompts are dealt to the processes.
    ///
    /// # Errors
    /// If the processes cannot exchange bytes.
    pub(super) fn sample_from(
        &self,
        setup: &Setup<'_>,
        policy: &Model,
        first: u64,
        asked: u64,
    ) -> Result<(Vec<usize>, Rollouts), CommError> {
        let group = setup.order.group;
        let prompt_indices = setup.order.prompts_from(self.prompts.len(), first, asked);
        // The random stream is the index of the response in the run: a repeated prompt gets another response.
        let prompt = |(i, &at): (usize, &usize)| Prompt {
            tokens: self.prompts[at].tokens.clone(),
            id: first + (i / group) as u64,
            sample: (i % group) as u32,
        };
        let prompts: Vec<Prompt> = prompt_indices.iter().enumerate().map(prompt).collect();
        let sampling = Sampling {
            temperature: setup.sampling.temperature,
            seed: setup.run.seed,
            max_new_tokens: setup.sampling.response_length,
            stop_tokens: self.encoder.ends().to_vec(),
            slots: *setup.sampling.decode_slots,
            ..Sampling::default()
        };
        let responses = ranks::generate(policy, &prompts, &sampling, &*self.ranks, &mut |_| ())?;
        let prompts: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.tokens[..]).collect();
        let rollouts = Rollouts::new(&prompts, responses, setup.sampling.temperature);
        Ok((prompt_indices, rollouts.on(&self.ranks)))
    }

    /// The rewards of responses, the first of which is the `first` one of the run.
    ///
    /// # Errors
    /// If a response cannot be decoded, or a reward cannot be had.
    pub(super) fn score(
        &mut self,
        prompt_indices: &[usize],
        rollouts: &Rollouts,
        first: u64,
    ) -> anyhow::Result<Scores> {
        let (reads_text, reads_rendered) = (self.rewards.reads_text(), self.rewards.reads_rendered());
        let answered = |(i, &at): (usize, &usize)| {
            let rendered = |tokens: &[u32]| match reads_rendered {
                true => self.encoder.decode_with_special(tokens),
                false => Ok(String::new()),
            };
            Ok(Answered {
                prompt: &self.prompts[at].content,
                columns: &self.prompts[at].columns,
                text: self.encoder.decode(rollouts.response(i))?.trim().to_owned(),
                tokens: rollouts.response(i),
                rendered: rendered(&rollouts.sequences[i])?,
                rendered_prompt: rendered(&self.prompts[at].tokens)?,
            })
        };
        let answered = match reads_text {
            true => prompt_indices.iter().enumerate().map(answered).collect::<anyhow::Result<Vec<_>>>()?,
            false => Vec::new(),
        };
        self.rewards.of(rollouts, &answered, first)
    }

    /// Adds the rewards one by one, the KLs to the anchors and the mean gold reward to the metrics of an update. Returns texts of some responses.
    ///
    /// # Errors
    /// If a response cannot be decoded.
    pub(super) fn observe(
        &self,
        run: &RunArguments,
        prompt_indices: &[usize],
        rollouts: &Rollouts,
        scored: &Scored<'_>,
        scores: &Scores,
        frozen_logprobs: &[Vec<f64>],
        metrics: &mut Metrics,
    ) -> anyhow::Result<Samples> {
        scores.observe(metrics);
        for (name, at) in &self.anchors {
            metrics.set(format!("{}{name}", names::KL_TO), measure::kl_per_response(rollouts, &frozen_logprobs[*at]));
        }
        let mut samples = Samples::default();
        let mut gold_total = 0.0;
        let read = if run.gold.is_some() { prompt_indices.len() } else { Samples::KEPT.min(prompt_indices.len()) };
        for (i, &at) in prompt_indices.iter().enumerate().take(read) {
            let prompt = self.prompts[at].content.last_words();
            let response = self.encoder.decode(rollouts.response(i))?;
            let gold = run.gold.map(|gold| gold.reward(prompt, response.trim()));
            gold_total += gold.unwrap_or(0.0);
            if i < Samples::KEPT {
                samples.push(prompt, response.trim(), scored.scores[i], gold);
            }
        }
        if run.gold.is_some() {
            metrics.set(names::GOLD, gold_total / rollouts.len() as f64);
        }
        Ok(samples)
    }
}
