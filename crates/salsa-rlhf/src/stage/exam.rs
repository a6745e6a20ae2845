//! The same questions to any model, with the same random numbers: answers and their scores.
use std::path::Path;

use salsa_engine::{Model, Prompt, Sampling};

use super::{
    StageContext,
    bases::Bases,
    encoder::Encoder,
    ppo::{RewardModel, ScoreScale, config::Gold, load_prompts, rollout::Rollouts},
    source::DataSource,
};
use crate::checkpoint::Checkpoint;

/// What every model is asked and scored with.
pub(super) struct Exam {
    encoder: Encoder,
    reward_model: RewardModel,
    answering: Answering,
    positions: usize,
    /// Tokens that the models must have embeddings for.
    pub vocab_size: usize,
}

/// How answers are given and judged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answering {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Seed of the answers.
    pub seed: u64,
    /// A reward function besides the learned one.
    pub gold: Option<Gold>,
}

/// Prompts as text and tokens.
pub(super) struct Questions {
    pub name: String,
    pub texts: Vec<String>,
    pub tokens: Vec<Vec<u32>>,
}

/// Which prompts are asked.
pub(super) struct Asked<'a> {
    pub name: &'a str,
    pub dataset: &'a DataSource,
    /// At most so many, from the start.
    pub max_prompts: Option<usize>,
    /// Longer ones, in tokens, are left out.
    pub max_prompt_length: usize,
}

/// The answers of one model to one set of prompts; one number per prompt.
pub(super) struct Answers {
    pub rollouts: Rollouts,
    pub texts: Vec<String>,
    pub scores: Vec<f64>,
    pub gold: Option<Vec<f64>>,
}

impl Exam {
    /// Opens the reward model, and tokenizer and chat template of one of the models to be asked.
    ///
    /// # Errors
    /// If they cannot be used or do not belong together.
    pub fn open(model: &Path, reward_model: &Path, answering: Answering, bases: &mut Bases) -> anyhow::Result<Exam> {
        let checkpoint = Checkpoint::open(model)?;
        let encoder = Encoder::open(&checkpoint)?;
        let reward_model = RewardModel::open(reward_model, &checkpoint, ScoreScale::Normalized, bases)?;
        let positions = checkpoint.spec.max_positions.min(reward_model.max_positions());
        Ok(Exam { encoder, reward_model, answering, positions, vocab_size: checkpoint.spec.vocab_size })
    }

    /// Reads prompts and tokenises them, once for all models.
    ///
    /// # Errors
    /// If the set cannot be read, or no prompt is short enough.
    pub fn questions(&self, asked: &Asked<'_>, context: &StageContext) -> anyhow::Result<Questions> {
        let (longest, new) = (asked.max_prompt_length, self.answering.max_new_tokens);
        let mut prompts = load_prompts(asked.dataset, longest, new, &self.encoder, self.positions, context)?;
        prompts.truncate(asked.max_prompts.unwrap_or(usize::MAX));
        let (texts, tokens) = prompts.into_iter().map(|prompt| (prompt.text, prompt.tokens)).unzip();
        Ok(Questions { name: asked.name.to_owned(), texts, tokens })
    }

    /// One answer to each prompt. The random numbers are the same for every model.
    ///
    /// # Errors
    /// If the tokenizer cannot decode an answer.
    pub fn answer(&self, model: &Model, set: &Questions) -> anyhow::Result<Answers> {
        let Answering { max_new_tokens, temperature, seed, gold } = self.answering;
        let prompt = |(i, tokens): (usize, &Vec<u32>)| Prompt { tokens: tokens.clone(), id: i as u64, sample: 0 };
        let prompts: Vec<Prompt> = set.tokens.iter().enumerate().map(prompt).collect();
        let stop_tokens = self.encoder.ends().to_vec();
        let sampling = Sampling { temperature, seed, max_new_tokens, stop_tokens, ..Sampling::default() };
        let responses = model.generate(&prompts, &sampling, &mut |_| ());
        let prompts: Vec<&[u32]> = set.tokens.iter().map(|tokens| &tokens[..]).collect();
        // Log-probs of the likeliest tokens are those of the model as it is.
        let rollouts = Rollouts::new(&prompts, responses, if temperature > 0.0 { temperature } else { 1.0 });
        let scores = self.reward_model.scores(&rollouts);
        let text = |i: usize| Ok(self.encoder.decode(rollouts.response(i))?.trim().to_owned());
        let texts = (0..rollouts.len()).map(text).collect::<anyhow::Result<Vec<String>>>()?;
        let gold = gold.map(|gold| set.texts.iter().zip(&texts).map(|(p, r)| gold.reward(p, r)).collect());
        Ok(Answers { rollouts, texts, scores, gold })
    }
}

impl Answers {
    /// What win rates are counted by.
    pub fn judged(&self) -> &[f64] {
        self.gold.as_deref().unwrap_or(&self.scores)
    }
}
