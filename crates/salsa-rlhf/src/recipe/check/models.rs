//! Checks of the models that a stage reads.
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use salsa_engine::{Head, ModelSpec};

use super::ErrorList;
use crate::{
    chat,
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        models::{frozen::Found, reward_model::RewardModel},
        reads::{ModelUse, Reads, TokenizerUse},
        text::encoder::Encoder,
    },
    tokenizer::Tokenizer,
};

/// The models of a stage opened so far.
pub(super) struct Models<'a> {
    reads: &'a Reads,
    known: Vec<PathBuf>,
    read: Option<Reader>,
    /// The reward model that scores the reader's answers.
    reward: Option<PathBuf>,
}

/// The model whose tokenizer reads the data.
pub(super) struct Reader {
    checkpoint: Checkpoint,
    /// None if the stage does not need one and the model has none.
    pub encoder: Option<Encoder>,
    pub spec: ModelSpec,
}

impl Models<'_> {
    pub(super) fn new(reads: &Reads) -> Models<'_> {
        Models { reads, known: Vec::new(), read: None, reward: None }
    }

    /// Whether this model was opened before.
    pub(super) fn knows(&self, path: &Path) -> bool {
        self.known.iter().any(|known| known == path)
    }

    pub(super) fn reader(&self) -> Option<&Reader> {
        self.read.as_ref()
    }

    /// Opens the model named at a place; returns a description.
    ///
    /// # Errors
    /// If the stage could not use the model.
    pub(super) fn open(&mut self, place: &str, path: &Path) -> anyhow::Result<String> {
        self.known.push(path.to_owned());
        let used = self.reads.model_use(place);
        let checkpoint = match used {
            ModelUse::Metrics => {
                ensure!(path.join("metrics.jsonl").exists(), "{} holds no metrics.jsonl", path.display());
                return Ok("a run".to_owned());
            }
            ModelUse::Tokenizer => {
                return Ok(format!("a tokenizer of {} tokens", Tokenizer::from_dir(path)?.vocab_size()));
            }
            ModelUse::Any => Checkpoint::open(path)?,
            ModelUse::Language => Found::open(path, Head::LanguageModel)?.checkpoint,
            ModelUse::Reward | ModelUse::RewardOfReader => Found::open(path, Head::Scalar)?.checkpoint,
        };
        if used == ModelUse::RewardOfReader {
            self.reward = Some(path.to_owned());
        }
        let fact = fact(&checkpoint);
        if self.reads.reader.as_deref() == Some(path) {
            let (encoder, spec) = (self.encoder(&checkpoint)?, checkpoint.spec.clone());
            self.read = Some(Reader { checkpoint, encoder, spec });
        }
        Ok(fact)
    }

    /// The encoder of the reader model.
    fn encoder(&self, checkpoint: &Checkpoint) -> anyhow::Result<Option<Encoder>> {
        if self.reads.tokenizer == TokenizerUse::IfAny {
            return Ok(Encoder::open_if_any(checkpoint)?.map(|encoder| encoder.with_chat(&self.reads.chat)));
        }
        let encoder = Encoder::open(checkpoint)?.with_chat(&self.reads.chat);
        Ok(Some(match &*self.reads.template {
            "" => encoder,
            choice => {
                let template = chat::source_of(choice).and_then(|source| encoder.with_template(&source));
                template.with_context(|| format!("chat_template {choice}"))?
            }
        }))
    }

    /// Checks that the reward model, if there is one, can score answers of the reader.
    pub(super) fn check_reward_model(&self, faults: &mut ErrorList) {
        if let (Some(reader), Some(reward), true) = (&self.read, &self.reward, faults.is_empty()) {
            let found = RewardModel::find(reward, &reader.checkpoint, &StageContext::quiet());
            faults.take(found.context("reward_model_path"));
        }
    }
}

/// Family and size.
fn fact(checkpoint: &Checkpoint) -> String {
    let family = checkpoint.config["model_type"].as_str().unwrap_or("?");
    let adapter = checkpoint.adapter().map_or("", |_| "an adapter on ");
    format!("{adapter}{family}, {} parameters", checkpoint.spec.parameters())
}
