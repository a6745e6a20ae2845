//! What a stage makes of the models and data that it reads, for `salsa run --check` to open them in the same way.
use std::path::{Path, PathBuf};

use salsa_engine::Head;

use super::{
    models::model_source::ModelSource,
    text::{chat_arguments::ChatArguments, source::DataSource},
};
use crate::config::paths::{DataPath, TemplateChoice};

/// What a stage makes of what it reads. Paths that are not mentioned are models of the kind [`ModelUse::Language`].
#[derive(Clone, Debug, Default)]
pub struct Reads {
    /// The model whose tokenizer writes and reads the texts of the stage.
    pub reader: Option<PathBuf>,
    /// Whether the stage can do without a tokenizer: its rows may hold token ids.
    pub tokenizer: TokenizerUse,
    /// A template in place of the reader's own, if it is not empty.
    pub template: TemplateChoice,
    /// How prompts become tokens.
    pub chat: ChatArguments,
    /// How models are used: the end of their place in the configuration, and the use.
    pub models: Vec<(&'static str, ModelUse)>,
    /// Data sets, each with its place in the configuration.
    pub examples: Vec<(String, DataSource, ExampleUse)>,
    /// Files of rows, each with its key.
    pub rows: Vec<(&'static str, PathBuf, RowUse)>,
}

/// Whether a stage needs a tokenizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TokenizerUse {
    /// It cannot do without.
    #[default]
    Required,
    /// It reads token ids where there is none.
    IfAny,
}

/// What a stage makes of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelUse {
    /// It must have a language-model head.
    Language,
    /// It must be a reward model.
    Reward,
    /// It must be a reward model that scores the answers of the reader, with the reader's tokenizer.
    RewardOfReader,
    /// A model of either kind.
    Any,
    /// Its tokenizer alone is read.
    Tokenizer,
    /// Its metrics alone are read: the directory of an earlier stage.
    Metrics,
}

/// What a stage makes of an example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExampleUse {
    /// Text to train a tokenizer and a base model on.
    Text,
    /// A demonstration to learn.
    Demonstration,
    /// A preference pair.
    Preference,
    /// A prompt to answer.
    Prompt,
}

/// What a stage makes of a row.
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
    /// A stage whose texts are read by the tokenizer of this model, if there is one; an empty path is none.
    pub fn with_reader(model: Option<&Path>, chat: &ChatArguments) -> Reads {
        let reader = model.filter(|path| !path.as_os_str().is_empty()).map(Path::to_owned);
        Reads { reader, chat: chat.clone(), ..Reads::default() }
    }

    /// The same for a model that may be a soup made in memory: its first ingredient.
    pub fn with_source(model: Option<&ModelSource>, chat: &ChatArguments) -> Reads {
        Reads::with_reader(model.and_then(|model| model.paths().first().copied()), chat)
    }

    /// A template in place of the reader's own.
    pub fn template(self, template: &TemplateChoice) -> Reads {
        Reads { template: template.clone(), ..self }
    }

    /// Rows that may hold token ids, so that no tokenizer is needed.
    pub fn tokenizer_if_any(self) -> Reads {
        Reads { tokenizer: TokenizerUse::IfAny, ..self }
    }

    /// Models whose place ends so.
    pub fn models(mut self, place: &'static str, used: ModelUse) -> Reads {
        self.models.push((place, used));
        self
    }

    /// A data set.
    pub fn examples(mut self, place: impl Into<String>, source: &DataSource, used: ExampleUse) -> Reads {
        self.examples.push((place.into(), source.clone(), used));
        self
    }

    /// A data set that may be absent.
    pub fn examples_if_any(self, place: &str, source: Option<&DataSource>, used: ExampleUse) -> Reads {
        match source {
            Some(source) => self.examples(place, source, used),
            None => self,
        }
    }

    /// A file of rows.
    pub fn rows(mut self, key: &'static str, path: &DataPath, used: RowUse) -> Reads {
        self.rows.push((key, path.to_path_buf(), used));
        self
    }

    /// What the stage makes of the model at this place.
    pub fn model_use(&self, place: &str) -> ModelUse {
        let key = |text: &str| text.replace('-', "_");
        let place = key(place.split('[').next().unwrap_or_default());
        let is_it =
            |end: &str| place == end || place.ends_with(&format!(".{end}")) || place.starts_with(&format!("{end}."));
        self.models.iter().find(|(end, _)| is_it(end)).map_or(ModelUse::Language, |(_, used)| *used)
    }
}

impl ModelUse {
    /// The head that a model needs; none where any or none is fine.
    pub fn head(self) -> Option<Head> {
        match self {
            ModelUse::Language => Some(Head::LanguageModel),
            ModelUse::Reward | ModelUse::RewardOfReader => Some(Head::Scalar),
            ModelUse::Any | ModelUse::Tokenizer | ModelUse::Metrics => None,
        }
    }
}
