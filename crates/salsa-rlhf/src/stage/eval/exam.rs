//! Answers of any model to the same questions, with the same random numbers, and their scores.
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::bail;
use salsa_engine::{Device, Head, Model, ModelSpec, Prompt, Sampling, comm::Comm};
use serde_json::{Map, Value};

use crate::{
    checkpoint::Checkpoint,
    data::Content,
    report::PromptCount,
    stage::{
        StageContext,
        gold::Gold,
        memory::{MemorySettings, Order, Passed, Passes, Responses},
        models::{bases::Bases, reward_model::ScoreScale, roles::Roles},
        ranks,
        rewards::{Answered, FoundRewards, RewardSource, Rewards, Scores},
        rollout::{self, Rollouts},
        text::{
            chat_arguments::ChatArguments,
            encoder::Encoder,
            prompts::{self, Prompts, TextPrompt},
            source::DataSource,
        },
    },
};

/// Settings shared by all evaluated models, before the weights of reward models are read.
pub(in crate::stage) struct EvalSetup {
    encoder: Encoder,
    rewards: FoundRewards,
    answering: Answering,
    /// The shape of the evaluated models.
    pub spec: ModelSpec,
    ranks: Arc<dyn Comm>,
}

/// Settings and rewards shared by all evaluated models.
pub(in crate::stage) struct Evaluator {
    encoder: Encoder,
    /// Behind a lock since the state of a program changes when it is asked.
    rewards: Mutex<Rewards>,
    answering: Answering,
    /// Vocabulary size that the models must have.
    pub vocab_size: usize,
    /// The processes that prompts and passes are dealt to.
    ranks: Arc<dyn Comm>,
}

/// How answers are generated and scored.
#[derive(Clone, Copy, Debug)]
pub(in crate::stage) struct Answering {
    /// Maximum number of tokens of an answer.
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the most likely token.
    pub temperature: f32,
    /// Seed of the answers.
    pub seed: u64,
    /// Answers generated at once; affects speed and memory only.
    pub slots: usize,
    /// A reward function in addition to the learned one.
    pub gold: Option<Gold>,
}

/// Prompts as given and as tokens.
pub(in crate::stage) struct Questions {
    pub name: String,
    pub prompts: Vec<Content>,
    /// The columns of the records, if a reward reads them; else empty mappings.
    columns: Vec<Map<String, Value>>,
    pub tokens: Vec<Vec<u32>>,
    /// The number of prompts that are too long.
    pub left_out: usize,
}

impl Questions {
    /// How many prompts are answered, and how many are too long.
    pub(in crate::stage) fn count(&self) -> PromptCount {
        PromptCount { answered: self.prompts.len(), left_out: self.left_out }
    }
}

/// Selection of prompts.
pub(in crate::stage) struct PromptSet<'a> {
    pub name: &'a str,
    pub dataset: &'a DataSource,
    /// Maximum number of prompts, taken from the start.
    pub max_prompts: Option<usize>,
    /// Longer prompts, in tokens, are omitted.
    pub max_prompt_length: usize,
}

/// The answers of one model to one set of prompts; one number per prompt.
pub(in crate::stage) struct Answers {
    pub rollouts: Rollouts,
    pub texts: Vec<String>,
    /// The weighted sum of the rewards.
    pub scores: Vec<f64>,
    /// Each reward by itself, without its weight, by name.
    pub each: Vec<(String, Vec<f64>)>,
    pub gold: Option<Vec<f64>>,
}

impl EvalSetup {
    /// Opens the reward models, and the tokenizer and chat template of one of the evaluated models; `dir` is the
    /// directory of the results. Reads no weights.
    ///
    /// # Errors
    /// If they cannot be used or are incompatible.
    pub(crate) fn open(
        model: &Path,
        rewards: Vec<RewardSource>,
        answering: Answering,
        chat: &ChatArguments,
        dir: &Path,
        context: &StageContext,
    ) -> anyhow::Result<EvalSetup> {
        let checkpoint = Checkpoint::open(model)?;
        let encoder = Encoder::open(&checkpoint)?.with_chat(chat);
        let rewards = FoundRewards::open(rewards, &checkpoint, dir, context)?;
        let spec = checkpoint.spec.with_head(Head::LanguageModel);
        Ok(EvalSetup { encoder, rewards, answering, spec, ranks: context.ranks.clone() })
    }

    /// Reads and tokenises prompts, once for all models.
    ///
    /// # Errors
    /// If the set cannot be read, or no prompt is short enough.
    pub(crate) fn questions(&self, asked: &PromptSet<'_>, context: &StageContext) -> anyhow::Result<Questions> {
        let (longest, new) = (asked.max_prompt_length, self.answering.max_new_tokens);
        let scored = self.rewards.models().map(|model| model.spec.max_positions);
        let positions = scored.fold(self.spec.max_positions, usize::min);
        let Prompts { mut prompts, left_out } =
            prompts::load(asked.dataset, longest, new, &self.encoder, positions, self.rewards.records(), context)?;
        prompts.truncate(asked.max_prompts.unwrap_or(usize::MAX));
        self.rewards.check_columns(prompts.iter().map(|prompt| (&prompt.content, &prompt.columns)))?;
        let (name, count) = (asked.name.to_owned(), prompts.len());
        let (contents, tokens) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut set = Questions { name, prompts: contents, columns: Vec::with_capacity(count), tokens, left_out };
        for TextPrompt { content, tokens, columns } in prompts {
            set.prompts.push(content);
            set.tokens.push(tokens);
            set.columns.push(columns);
        }
        Ok(set)
    }

    /// The settings that affect memory.
    pub(crate) fn knobs(&self, device: &Device) -> MemorySettings {
        MemorySettings { slots: self.answering.slots, ..MemorySettings::on(device) }
    }

    /// Adds the memory of the reward models.
    pub(crate) fn add_reward_models(&self, roles: &mut Roles) {
        self.rewards.models().for_each(|model| roles.frozen(model, Head::Scalar));
    }

    /// Adds the memory of answering all questions with a model and of scoring the answers. Answers count with their
    /// maximum length.
    pub(crate) fn add_passes(&self, sets: &[Questions], model: Passed<'_>, knobs: &MemorySettings, passes: &Passes) {
        for Questions { tokens, .. } in sets {
            let responses = Responses::new(tokens, self.answering.max_new_tokens, Order::Given);
            let slots = knobs.slots.min(tokens.len());
            responses.add_generation(model, slots, slots, passes);
            for model in self.rewards.models() {
                let adapter = model.adapter().map(|adapter| &adapter.lora);
                passes.forward(Passed::new(&model.spec.with_head(Head::Scalar), adapter), &self.scoring_pass(tokens));
            }
        }
    }

    /// Sequence lengths of the largest pass over questions with their answers.
    pub(crate) fn scoring_pass(&self, tokens: &[Vec<u32>]) -> Vec<u64> {
        let responses = Responses::new(tokens, self.answering.max_new_tokens, Order::Given);
        responses.scoring(tokens.len(), rollout::PASS as u64)
    }

    /// Reads the weights of the reward models.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite.
    pub(crate) fn load(self, bases: &mut Bases) -> anyhow::Result<Evaluator> {
        let EvalSetup { encoder, rewards, answering, spec, ranks } = self;
        let rewards = Mutex::new(rewards.load(ScoreScale::Normalized, bases)?);
        Ok(Evaluator { encoder, rewards, answering, vocab_size: spec.vocab_size, ranks })
    }
}

impl Evaluator {
    /// Generates one answer to each prompt. The random numbers are the same for every model.
    ///
    /// # Errors
    /// If a score or a log-probability is not finite, or the tokenizer cannot decode an answer.
    pub(crate) fn answer(&self, model: &Model, set: &Questions) -> anyhow::Result<Answers> {
        let Answering { max_new_tokens, temperature, seed, slots, gold } = self.answering;
        let prompt = |(i, tokens): (usize, &Vec<u32>)| Prompt { tokens: tokens.clone(), id: i as u64, sample: 0 };
        let prompts: Vec<Prompt> = set.tokens.iter().enumerate().map(prompt).collect();
        let stop_tokens = self.encoder.ends().to_vec();
        let sampling = Sampling { temperature, seed, max_new_tokens, stop_tokens, slots, ..Sampling::default() };
        let responses = ranks::generate(model, &prompts, &sampling, &*self.ranks, &mut |_| ())?;
        let prompts: Vec<&[u32]> = set.tokens.iter().map(|tokens| &tokens[..]).collect();
        // Greedy decoding reports unscaled log-probs.
        let rollouts = Rollouts::new(&prompts, responses, if temperature > 0.0 { temperature } else { 1.0 });
        let rollouts = rollouts.on(&self.ranks);
        let text = |i: usize| Ok(self.encoder.decode(rollouts.response(i))?.trim().to_owned());
        let texts = (0..rollouts.len()).map(text).collect::<anyhow::Result<Vec<String>>>()?;
        let rewarded = self.score(set, &rollouts, &texts)?;
        let (each, scores) = (rewarded.each(), rewarded.total);
        for (what, values) in [("score", &scores), ("log-probability", &rollouts.logprobs)] {
            let bad = values.iter().find(|value| !value.is_finite());
            if let Some(bad) = bad {
                bail!("a {what} on the set {:?} is {bad}: the numbers of the model overflow", set.name);
            }
        }
        let answered = || set.prompts.iter().zip(&texts);
        let gold = gold.map(|gold| answered().map(|(prompt, text)| gold.reward(prompt.last_words(), text)).collect());
        Ok(Answers { rollouts, texts, scores, each, gold })
    }

    /// The rewards of answers.
    fn score(&self, set: &Questions, rollouts: &Rollouts, texts: &[String]) -> anyhow::Result<Scores> {
        let mut rewards = self.rewards.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = |i: usize| {
            Ok(Answered {
                prompt: &set.prompts[i],
                columns: &set.columns[i],
                text: texts[i].clone(),
                tokens: rollouts.response(i),
                rendered: self.encoder.decode_with_special(&rollouts.sequences[i])?,
                rendered_prompt: self.encoder.decode_with_special(&set.tokens[i])?,
            })
        };
        let count = if rewards.reads_text() { rollouts.len() } else { 0 };
        let answered = (0..count).map(answered).collect::<anyhow::Result<Vec<_>>>()?;
        rewards.of(rollouts, &answered, 0)
    }
}

impl Answers {
    /// The values that win rates compare.
    pub(crate) fn judged(&self) -> &[f64] {
        self.gold.as_deref().unwrap_or(&self.scores)
    }
}
