//! The models that a stage reads.
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use salsa_engine::{Head, ModelSpec};
use serde::Deserialize;
use serde_json::Value;

use super::{Faults, root};
use crate::{
    chat,
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        models::{frozen::Found, reward_model::RewardModel},
        text::{chat_arguments::ChatArguments, encoder::Encoder},
    },
    tokenizer::Tokenizer,
};

/// What is known of a stage's models.
pub(super) struct Models {
    kind: &'static str,
    /// Whose tokenizer writes and reads the texts of the stage.
    reader: Option<PathBuf>,
    /// In place of the reader's own template, if it is not empty.
    template: String,
    chat: ChatArguments,
    known: Vec<PathBuf>,
    read: Option<Reader>,
}

/// The model whose tokenizer reads the data.
pub(super) struct Reader {
    checkpoint: Checkpoint,
    /// None where the stage can do without, and the model has none.
    pub encoder: Option<Encoder>,
    pub spec: ModelSpec,
}

impl Models {
    pub fn new(kind: &'static str, config: &Value) -> Models {
        let text = |key: &str| config[key].as_str().unwrap_or_default();
        let reader = match kind {
            "evaluate" => first(&config["arms"][text("baseline")]),
            "soup" | "landscape" => first(&config["models"]),
            "generate" | "score" | "logprobs" => first(&config["model"]),
            "winrate" => first(&config["reward_model_path"]),
            _ => first(&config["model_name_or_path"]),
        };
        // The stage's own reading says what is wrong with them.
        let chat = ChatArguments::deserialize(if kind == "soup" { &config["greedy"] } else { config });
        let chat = chat.unwrap_or_default();
        Models { kind, reader, template: text("chat_template").to_owned(), chat, known: Vec::new(), read: None }
    }

    /// Whether it has been opened before.
    pub fn knows(&self, path: &Path) -> bool {
        self.known.iter().any(|known| known == path)
    }

    pub fn reader(&self) -> Option<&Reader> {
        self.read.as_ref()
    }

    /// Opens what is named at a place; says what it is.
    ///
    /// # Errors
    /// If the stage could not use it.
    pub fn open(&mut self, place: &str, path: &Path) -> anyhow::Result<String> {
        self.known.push(path.to_owned());
        match root(place).as_str() {
            "runs" => {
                ensure!(path.join("metrics.jsonl").exists(), "{} holds no metrics.jsonl", path.display());
                return Ok("a run".to_owned());
            }
            "tokenizer_name_or_path" | "tokenizer_source" => {
                return Ok(format!("a tokenizer of {} tokens", Tokenizer::from_dir(path)?.vocab_size()));
            }
            _ => {}
        }
        let checkpoint = self.checkpoint(place, path)?;
        let fact = fact(&checkpoint);
        if self.reader.as_deref() == Some(path) {
            let (encoder, spec) = (self.encoder(&checkpoint)?, checkpoint.spec.clone());
            self.read = Some(Reader { checkpoint, encoder, spec });
        }
        Ok(fact)
    }

    /// Opens a model under the head that it needs at this place.
    fn checkpoint(&self, place: &str, path: &Path) -> anyhow::Result<Checkpoint> {
        let head = match (self.kind, root(place).as_str()) {
            (_, "reward_model_path") | ("score" | "winrate", _) => Head::Scalar,
            ("soup", _) if place.ends_with("reward_model_path") => Head::Scalar,
            // Of either kind.
            ("soup" | "reward", _) => return Checkpoint::open(path),
            _ => Head::LanguageModel,
        };
        Ok(Found::open(path, head)?.checkpoint)
    }

    /// The way of the reader from text to tokens.
    fn encoder(&self, checkpoint: &Checkpoint) -> anyhow::Result<Option<Encoder>> {
        if ["soup", "generate", "score", "logprobs", "winrate"].contains(&self.kind) {
            return Ok(Encoder::open_if_any(checkpoint)?.map(|encoder| encoder.with_chat(&self.chat)));
        }
        let encoder = Encoder::open(checkpoint)?.with_chat(&self.chat);
        Ok(Some(match self.template.as_str() {
            "" => encoder,
            choice => {
                let template = chat::source_of(choice).and_then(|source| encoder.with_template(&source));
                template.with_context(|| format!("chat_template {choice}"))?
            }
        }))
    }

    /// Holds the reward model, where there is one, against the model whose answers it scores.
    pub fn hold_together(&self, config: &Value, faults: &mut Faults) {
        let reward = config.get("reward_model_path").and_then(Value::as_str).filter(|path| !path.is_empty());
        if let (Some(reader), Some(reward), true) = (&self.read, reward, self.kind != "winrate" && faults.is_empty()) {
            let found = RewardModel::find(Path::new(reward), &reader.checkpoint, &StageContext::quiet());
            faults.take(found.context("reward_model_path"));
        }
    }
}

/// The first model of a source: a path, a list of them, or a soup.
fn first(source: &Value) -> Option<PathBuf> {
    match source {
        Value::String(path) if !path.is_empty() => Some(path.into()),
        Value::Array(sources) => first(sources.first()?),
        Value::Object(soup) => first(soup.get("models")?),
        _ => None,
    }
}

/// Family and size.
fn fact(checkpoint: &Checkpoint) -> String {
    let family = checkpoint.config["model_type"].as_str().unwrap_or("?");
    let adapter = checkpoint.adapter().map_or("", |_| "an adapter on ");
    format!("{adapter}{family}, {} parameters", checkpoint.spec.parameters())
}
