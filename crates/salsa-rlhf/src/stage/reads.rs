//! How a stage uses the models and data that it reads, so that `salsa run --check` can open them in the same way.
use std::path::{Path, PathBuf};

use salsa_engine::Head;

use super::{
    models::model_source::ModelSource,
    text::{chat_arguments::ChatArguments, source::DataSource},
};
use crate::config::paths::{DataPath, TemplateChoice};

/// How a stage uses its inputs. Models that are not listed have the use [`ModelUse::Language`].
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// The model whose tokenizer encodes and decodes the texts of the stage.
    pub reader: Option<PathBuf>,
    /// Whether the stage needs a tokenizer: rows may hold token ids.
    pub tokenizer: TokenizerUse,
    /// A template that replaces the reader's own, if not empty.
    pub template: TemplateChoice,
    /// How prompts become tokens.
    pub chat: ChatArguments,
    /// Uses of models, each with the end of the model's place in the configuration.
    pub models: Vec<(&'static str, ModelUse)>,
    /// Data sets, each with its place in the configuration.
    pub examples: Vec<(String, DataSource, ExampleUse)>,
    /// Row files, each with its key.
    pub rows: Vec<(&'static str, PathBuf, RowUse)>,
}

/// Whether a stage needs a tokenizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerUse {
    /// A tokenizer is required.
    #[default]
    Required,
    /// Used if there is one; otherwise rows hold token ids.
    IfAny,
}

/// How a stage uses a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelUse {
    /// Must have a language-model head.
    Language,
    /// Must be a reward model.
    Reward,
    /// Must be a reward model with the reader's tokenizer; it scores the reader's answers.
    RewardOfReader,
    /// A model of either kind.
    Any,
    /// Only its tokenizer is read.
    Tokenizer,
    /// Only its metrics are read: the directory of an earlier stage.
    Metrics,
}

/// How a stage uses an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExampleUse {
    /// Text for training a tokenizer and a base model.
    Text,
    /// A demonstration to train on.
    Demonstration,
    /// A preference pair.
    Preference,
    /// A response with a label, or a preference pair.
    Labelled,
    /// A prompt to answer.
    Prompt,
}

/// How a stage uses a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowUse {
    /// A prompt to answer.
    Prompt,
    /// A prompt with a response, or a text.
    Sequence,
    /// A prompt with a response.
    Answer,
}

impl Reads {
    /// Reads texts with the tokenizer of this model, if given; an empty path counts as `None`.
    pub fn with_reader(model: Option<&Path>, chat: &ChatArguments) -> Reads {
        let reader = model.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        Reads { reader, chat: chat.clone(), ..Reads::default() }
    }

    /// As [`Reads::with_reader`], for a model that may be a soup made in memory: its first ingredient is the reader.
    pub fn with_source(model: Option<&ModelSource>, chat: &ChatArguments) -> Reads {
        Reads::with_reader(model.and_then(|model| model.paths().first().copied()), chat)
    }

    /// Sets a template that replaces the reader's own.
    pub fn template(self, template: &TemplateChoice) -> Reads {
        Reads { template: template.clone(), ..self }
    }

    /// Makes the tokenizer optional, since rows may hold token ids.
    pub fn tokenizer_if_any(self) -> Reads {
        Reads { tokenizer: TokenizerUse::IfAny, ..self }
    }

    /// Sets the use of models whose place ends with `place`.
    pub fn models(mut self, place: &'static str, used: ModelUse) -> Reads {
        self.models.push((place, used));
        self
    }

    /// Adds a data set.
    pub fn examples(mut self, place: impl Into<String>, source: &DataSource, used: ExampleUse) -> Reads {
        self.examples.push((place.into(), source.clone(), used));
        self
    }

    /// Adds an optional data set.
    pub fn examples_if_any(self, place: &str, source: Option<&DataSource>, used: ExampleUse) -> Reads {
        match source {
            Some(source) => self.examples(place, source, used),
            None => self,
        }
    }

    /// Adds a row file.
    pub fn rows(mut self, key: &'static str, path: &DataPath, used: RowUse) -> Reads {
        self.rows.push((key, path.to_path_buf(), used));
        self
    }

    /// The use of the model at this place.
    pub fn model_use(&self, place: &str) -> ModelUse {
        let key = |text: &str| text.replace('-', "_");
        let place = key(place.split('[').next().unwrap_or_default());
        let is_it =
            |end: &str| place == end || place.ends_with(&format!(".{end}")) || place.starts_with(&format!("{end}."));
        self.models.iter().find(|(end, _)| is_it(end)).map_or(ModelUse::Language, |(_, used)| *used)
    }
}

impl ModelUse {
    /// The required head; `None` if any or none will do.
    pub fn head(self) -> Option<Head> {
        match self {
            ModelUse::Language => Some(Head::LanguageModel),
            ModelUse::Reward | ModelUse::RewardOfReader => Some(Head::Scalar),
            ModelUse::Any | ModelUse::Tokenizer | ModelUse::Metrics => None,
        }
    }
}
