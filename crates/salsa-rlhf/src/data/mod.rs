//! Data sets: files of records in common layouts, read into one enum.
//!
//! | layout | columns recognised |
//! |---|---|
//! | text | `text`; a `.txt` file is one text |
//! | messages | `messages` (`role`, `content`); ShareGPT's `conversations` (`from`, `value`); UltraChat's `data` (a list of texts, user and assistant in turn) |
//! | prompt and completion | `prompt` + `completion`, `response`, `output` or `label` (TL;DR); `instruction`, `question`, `query` or `input` + `output`, `response`, `answer` or `completion`; `subreddit`, `title`, `post`, `summary` (TL;DR) |
//! | preference | `chosen` + `rejected`, texts, messages or one message each, with a question or with the prompt as their shared beginning; HH-RLHF transcripts; optional `margin`, `score_chosen`, `score_rejected` |
//! | preference, from ratings | `instruction` or `prompt` + `completions` (UltraFeedback, raw): the best rated answer against one of the lower rated; `info`, `summaries`, `choice` (TL;DR comparisons) |
//! | preference, from labels | an answer with a `label` (`true` or `false`, KTO): a wanted and an unwanted answer to one prompt are a pair, unless labels are kept |
//! | prompt | `prompt`; `turns` (MT-Bench: the first turn) |
//!
//! Columns besides the answers have the same meaning in every layout: see the table in `meaning.rs`. A column whose
//! value is `null` counts as absent. Columns that look like content and are not read are listed in [`Dataset::notes`].
//!
//! In a folder, names of files and folders determine splits as on the Hugging Face hub:
//! `data/train-00000-of-00002.parquet`, `test.jsonl.gz`, `validation/0000.parquet`.

mod assembly;
mod beside;
mod columns;
mod csv;
mod files;
mod folder;
mod hh;
mod json;
mod limits;
mod meaning;
mod message;
mod parquet;
mod preference;
mod rated;
mod split;
mod tldr;
mod unpaired;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use serde_json::{Map, Value};

use self::assembly::Assembly;
pub use self::assembly::unread_columns;
pub(crate) use self::columns::PAIR;
pub use self::files::{Place, for_each_row};
use self::limits::Room;
pub use self::split::{Split, bucket, split_by_prompt};
use crate::chat::{Conversation, Message};

/// A prompt or a completion: plain text, or messages that a chat template renders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Text used verbatim, without a template.
    Text(String),
    /// Messages, for the model's chat template.
    Messages(Conversation),
}

/// Two answers to one prompt, the first preferred.
#[derive(Clone, Debug, PartialEq)]
pub struct Preference {
    /// The prompt of both; empty text if the data has none. The three contents are all text or all messages.
    pub prompt: Content,
    /// The preferred answer, without the prompt.
    pub chosen: Content,
    /// The other answer, without the prompt.
    pub rejected: Content,
    /// How much better `chosen` is, if given.
    pub margin: Option<f64>,
    /// The score of `chosen`, if given.
    pub score_chosen: Option<f64>,
    /// The score of `rejected`, if given.
    pub score_rejected: Option<f64>,
}

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub enum Example {
    /// Text to be learned from the first token to the last.
    Text(String),
    /// A conversation whose assistant turns are all to be learned.
    Messages(Conversation),
    /// A prompt and its completion; both text or both messages.
    PromptCompletion {
        /// The prompt.
        prompt: Content,
        /// The completion to be learned.
        completion: Content,
    },
    /// Two answers to one prompt.
    Preference(Preference),
    /// A prompt alone.
    Prompt(Content),
}

/// The layout of a data set's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// [`Example::Text`]
    Text,
    /// [`Example::Messages`]
    Messages,
    /// [`Example::PromptCompletion`]
    PromptCompletion,
    /// [`Example::Preference`]
    Preference,
    /// [`Example::Prompt`]
    Prompt,
}

/// A data set in memory.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// The records, in file order (files of a folder by name).
    pub examples: Vec<Example>,
    /// The layout of every record.
    pub layout: Layout,
    /// A description of the records' format: `ShareGPT: conversations (from, value)`.
    pub recognised: &'static str,
    /// The file or folder it was read from.
    pub path: PathBuf,
    /// SHA-256 of the file as stored; for a folder, of the `HASH  NAME` lines of its files.
    pub sha256: String,
    /// Number of preference pairs dropped because both answers are the same, or rated the same.
    pub dropped_identical: usize,
    /// Notes for the user on how the data was read: unread columns, and conversions.
    pub notes: Vec<String>,
    /// For each example, its bucket from 0 to 99 in [`split_by_prompt`].
    pub buckets: Vec<u8>,
    /// For each example, the location of its record.
    pub places: Vec<Place>,
    /// For each example, its record as it is in the file; empty mappings where two records make one example. Empty
    /// unless asked for with [`Records::Keep`].
    pub records: Vec<Map<String, Value>>,
    /// For each example, whether its answer is a wanted one; empty: no labels, or read as [`Labels::Paired`].
    pub labels: Vec<bool>,
}

/// What is read from records besides examples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The records themselves.
    pub records: Records,
    /// The labels of answers.
    pub labels: Labels,
}

/// Whether the records themselves are kept next to the examples read from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Records {
    /// Only the examples are kept.
    #[default]
    Drop,
    /// [`Dataset::records`] holds them.
    Keep,
}

/// What becomes of answers with a label (`true` or `false`, as for KTO).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Labels {
    /// A wanted and an unwanted answer to one prompt make a preference pair.
    #[default]
    Paired,
    /// Each stays a prompt with a completion, and its label is in [`Dataset::labels`].
    Kept,
}

/// Selects the part of a folder to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which<'a> {
    /// All files of a folder whose file names contain at most one split.
    TheOnly,
    /// All files of all splits.
    All,
    /// The files of one split.
    Named(&'a str),
}

/// Reads a `.jsonl`, `.json`, `.jsonl.gz`, `.json.gz`, `.parquet` or `.txt` file, or all such files of a folder in name
/// order: [`load_split`] of [`Which::TheOnly`], without the records.
///
/// # Errors
/// As [`load_split`].
pub fn load(path: &Path) -> Result<Dataset> {
    load_split(path, Which::TheOnly, Reading::default())
}

/// Reads a file, or the files of a folder and its subfolders that `which` selects, in name order.
///
/// A `.json` file may hold one array or JSON lines. JSON lines are split at `\n` only.
///
/// # Errors
/// When a file cannot be read, a record does not parse, its columns match no known layout or another one than the first
/// record's, or no record is left. Names the file, the line (or record of an array, or row), the columns found and the
/// ones expected. Also when a folder has several splits with [`Which::TheOnly`], lacks the split selected, or holds
/// several data sets.
pub fn load_split(path: &Path, which: Which<'_>, reading: Reading) -> Result<Dataset> {
    let (mut assembly, mut room) = (Assembly::new(path, reading.labels), Room::now());
    let sha256 = files::for_each_record(path, which, &mut |place, record| {
        let nulls = nulls(&record);
        let kept = (reading.records == Records::Keep).then(|| record.clone());
        let mut row = columns::read(record)?;
        room.take(limits::bytes_of(&row.example), path)?;
        if let Some(kept) = kept {
            room.take(limits::bytes_of_record(&kept), path)?;
            row.record = Some(kept);
        }
        assembly.add(row, nulls, place)
    })?;
    assembly.finish(sha256)
}

/// The null columns of a record, which count as absent.
fn nulls(record: &Map<String, Value>) -> Vec<String> {
    record.iter().filter(|(_, value)| value.is_null()).map(|(name, _)| name.clone()).collect()
}

/// Reads one record by its columns, as [`load`] does.
///
/// # Errors
/// When its columns match no known layout, or a value has the wrong type.
pub fn example(record: Map<String, Value>) -> Result<Example> {
    Ok(columns::read(record)?.example)
}

/// The prompt of a record with a column `prompt`, including accompanying columns. Text stays text, including
/// transcripts, if there are none.
///
/// # Errors
/// When the column is missing, or a value has the wrong type.
pub fn prompt(record: Map<String, Value>) -> Result<Content> {
    columns::prompt(record)
}

/// Parses text or messages.
///
/// # Errors
/// When the value is neither; names the column.
pub fn content(value: &Value, column: &str) -> Result<Content> {
    message::content(value, column)
}

/// Columns of a record that look like content and are read neither by [`example`] nor by [`prompt`], sorted.
pub fn unread(record: Map<String, Value>) -> Vec<String> {
    columns::read(record).map(|row| row.unread).unwrap_or_default()
}

/// The splits named by the files of a folder, sorted; empty for a file, or if no name contains one.
///
/// # Errors
/// When the folder cannot be listed or contains no data files.
pub fn splits(path: &Path) -> Result<Vec<String>> {
    folder::splits(path)
}

/// Whether a file of this name in a folder would be read as data.
pub fn is_data_file(name: &str) -> bool {
    folder::is_data_file(Path::new(name))
}

/// A conversation without a final assistant message.
pub fn asked(messages: &[Message]) -> &[Message] {
    match messages {
        [before @ .., last] if last.role == "assistant" => before,
        all => all,
    }
}

impl Example {
    /// The layout of this record.
    pub fn layout(&self) -> Layout {
        match self {
            Example::Text(_) => Layout::Text,
            Example::Messages(_) => Layout::Messages,
            Example::PromptCompletion { .. } => Layout::PromptCompletion,
            Example::Preference(_) => Layout::Preference,
            Example::Prompt(_) => Layout::Prompt,
        }
    }

    /// The prompt part of this record: its prompt, or a conversation without a final assistant message ([`asked`]).
    /// `None` for plain text, and if nothing is left of a conversation.
    pub fn prompt(&self) -> Option<Content> {
        match self {
            Example::Text(_) => None,
            Example::Messages(messages) => {
                let asked = Conversation { messages: asked(messages).to_vec(), arguments: messages.arguments.clone() };
                (!asked.is_empty()).then_some(Content::Messages(asked))
            }
            Example::PromptCompletion { prompt, .. } | Example::Prompt(prompt) => Some(prompt.clone()),
            Example::Preference(pair) => Some(pair.prompt.clone()),
        }
    }

    /// Converts text to messages: the prompt becomes a user message, an answer an assistant message. Plain text is
    /// unchanged. Returns whether there was text.
    fn lift(&mut self) -> bool {
        match self {
            Example::Text(_) | Example::Messages(_) => false,
            Example::Prompt(prompt) => prompt.lift_prompt(),
            Example::PromptCompletion { prompt, completion } => {
                completion.lift_answer();
                prompt.lift_prompt()
            }
            Example::Preference(pair) => {
                pair.chosen.lift_answer();
                pair.rejected.lift_answer();
                pair.prompt.lift_prompt()
            }
        }
    }

    /// All texts of the record.
    fn texts(&self) -> Vec<String> {
        match self {
            Example::Text(text) => vec![text.clone()],
            Example::Messages(messages) => messages.iter().map(|message| message.content.clone()).collect(),
            Example::Prompt(prompt) => prompt.texts(),
            Example::PromptCompletion { prompt, completion } => [prompt.texts(), completion.texts()].concat(),
            Example::Preference(Preference { prompt, chosen, rejected, .. }) => {
                [prompt, chosen, rejected].into_iter().flat_map(Content::texts).collect()
            }
        }
    }
}

impl From<Vec<Message>> for Content {
    fn from(messages: Vec<Message>) -> Content {
        Content::Messages(messages.into())
    }
}

impl From<Conversation> for Content {
    fn from(conversation: Conversation) -> Content {
        Content::Messages(conversation)
    }
}

impl Content {
    /// A prompt as messages: text becomes a user message, empty text no message.
    pub fn into_messages(self) -> Conversation {
        match self {
            Content::Messages(conversation) => conversation,
            Content::Text(text) if text.is_empty() => Conversation::default(),
            Content::Text(text) => vec![Message::new("user", text)].into(),
        }
    }

    /// The accompanying columns of a record: the arguments of the chat template.
    pub fn columns(&self) -> Map<String, Value> {
        match self {
            Content::Text(_) => Map::new(),
            Content::Messages(conversation) => conversation.arguments.columns(),
        }
    }

    /// [`Content::into_messages`] in place; returns whether it was text.
    fn lift_prompt(&mut self) -> bool {
        let is_text = matches!(self, Content::Text(_));
        *self = Content::Messages(std::mem::replace(self, Content::Text(String::new())).into_messages());
        is_text
    }

    fn lift_answer(&mut self) {
        if let Content::Text(text) = self {
            *self = preference::reply(text);
        }
    }

    fn texts(&self) -> Vec<String> {
        match self {
            Content::Text(text) => vec![text.clone()],
            Content::Messages(messages) => messages.iter().map(|message| message.content.clone()).collect(),
        }
    }

    /// Whether the text is empty, or there are no messages.
    pub fn is_empty(&self) -> bool {
        match self {
            Content::Text(text) => text.is_empty(),
            Content::Messages(messages) => messages.is_empty(),
        }
    }

    /// The text, or that of the last message.
    pub fn last_words(&self) -> &str {
        match self {
            Content::Text(text) => text,
            Content::Messages(messages) => messages.last().map_or("", |message| &message.content),
        }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Layout::Text => "text",
            Layout::Messages => "messages",
            Layout::PromptCompletion => "prompt and completion",
            Layout::Preference => "preference",
            Layout::Prompt => "prompt",
        })
    }
}

/// The properties that all records of a data set share: layout, text or messages, and labels.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    layout: Layout,
    messages: bool,
    is_labelled: bool,
}

impl Shape {
    fn of(example: &Example) -> Shape {
        let messages = match example {
            Example::Text(_) => false,
            Example::Messages(_) => true,
            Example::PromptCompletion { prompt, .. } | Example::Prompt(prompt) => {
                matches!(prompt, Content::Messages(_))
            }
            Example::Preference(pair) => matches!(pair.prompt, Content::Messages(_)),
        };
        Shape { layout: example.layout(), messages, is_labelled: false }
    }

    /// Whether they differ at most in text or messages.
    fn agrees(&self, other: &Shape) -> bool {
        Shape { messages: other.messages, ..*self } == *other
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let contents = match (self.layout, self.messages) {
            (Layout::Text | Layout::Messages, _) => "",
            (_, true) => " as messages",
            (_, false) => " as text",
        };
        let label = if self.is_labelled { " with a label" } else { "" };
        write!(f, "{}{contents}{label}", self.layout)
    }
}
