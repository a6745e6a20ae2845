//! The meaning of columns in every layout, and which of a record's columns were read.

use std::cell::RefCell;

use anyhow::{Result, anyhow};
use serde_json::{Map, Value};

use super::files::kind;
use super::hh;

/// The meaning of a column that accompanies the answers of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The question: text, messages or an HH-RLHF transcript.
    Question,
    /// The context of the question; appended after an empty line.
    Context,
    /// The system message.
    System,
    /// Earlier turns, as pairs of texts.
    History,
    /// Tools for the chat template.
    Tools,
    /// Other arguments of the chat template.
    Arguments,
}

/// The columns of each meaning; if a record has several questions or system messages, the first one counts.
const MEANINGS: [(Meaning, &[&str]); 6] = [
    (Meaning::Question, &["prompt", "instruction", "question", "query", "messages", "conversations", "input"]),
    (Meaning::Context, &["input", "context"]),
    (Meaning::System, &["system", "system_prompt"]),
    (Meaning::History, &["history"]),
    (Meaning::Tools, &["tools"]),
    (Meaning::Arguments, &["chat_template_kwargs"]),
];

/// Columns of answers, apart from those of a preference ([`super::columns::PAIR`]).
const ANSWER_COLUMNS: [&str; 6] = ["completion", "response", "output", "answer", "text", "label"];

/// Texts of at least this many words count as content.
const FEW_WORDS: usize = 5;

/// A record without its `null` columns.
pub(super) type Record = Map<String, Value>;

/// The columns of a record, and which of them were read.
pub(super) struct Columns {
    record: Record,
    used: RefCell<Vec<&'static str>>,
}

impl Columns {
    pub(super) fn new(mut record: Record) -> Columns {
        record.retain(|_, value| !value.is_null());
        Columns { record, used: RefCell::default() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.record.contains_key(name)
    }

    pub(super) fn has_all(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.has(name))
    }

    /// The first existing column of these.
    pub(super) fn first(&self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().copied().find(|name| self.has(name))
    }

    /// The existing columns of a meaning.
    pub(super) fn of(&self, meaning: Meaning) -> impl Iterator<Item = &'static str> + '_ {
        let named = |(of, names): &(Meaning, &'static [&'static str])| (*of == meaning).then_some(*names);
        let names = MEANINGS.iter().find_map(named).unwrap_or_default();
        names.iter().copied().filter(|name| self.has(name))
    }

    /// A column, without marking it as read.
    pub(super) fn peek(&self, name: &str) -> Option<&Value> {
        self.record.get(name)
    }

    /// A column, which is marked as read.
    pub(super) fn get(&self, name: &'static str) -> Option<&Value> {
        self.used.borrow_mut().push(name);
        self.record.get(name)
    }

    /// A required column.
    pub(super) fn need(&self, name: &'static str) -> Result<&Value> {
        self.get(name).ok_or_else(|| anyhow!("column {name} is missing"))
    }

    /// A required column of text.
    pub(super) fn text(&self, name: &'static str) -> Result<&str> {
        let value = self.need(name)?;
        value.as_str().ok_or_else(|| anyhow!("column {name}: expected text, found {}", kind(value)))
    }

    /// An optional column of numbers.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.as_f64().filter(|x| x.is_finite());
        number.map(Some).ok_or_else(|| anyhow!("column {name}: expected a number, found {}", kind(value)))
    }

    /// The names of all columns, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.record.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Columns that look like content and were not read, sorted. `said` returns the texts that were read: a column that
    /// repeats part of them, or all of them in another form, is not reported.
    pub(super) fn unread(&self, said: impl FnOnce() -> Vec<String>) -> Vec<String> {
        let used = self.used.borrow();
        let mut unread: Vec<(&String, Vec<&str>)> = self
            .record
            .iter()
            .filter(|(name, _)| !used.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name, content(name, value)?)))
            .collect();
        if unread.is_empty() {
            return Vec::new();
        }
        let said = said();
        let is_said = |text: &str| said.iter().any(|said| said.contains(hh::trim(text)));
        unread.retain(|(_, texts)| {
            let repeats_all = match texts[..] {
                [text] => said.iter().all(|said| text.contains(hh::trim(said))),
                _ => false,
            };
            !repeats_all && (texts.is_empty() || !texts.iter().all(|text| is_said(text)))
        });
        let mut names: Vec<String> = unread.into_iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }
}

/// The texts of a column, if it looks like content.
fn content<'a>(name: &str, value: &'a Value) -> Option<Vec<&'a str>> {
    let is_known = ANSWER_COLUMNS.contains(&name)
        || super::columns::PAIR.contains(&name)
        || MEANINGS.iter().any(|(_, names)| names.contains(&name));
    match value {
        Value::String(text) => {
            let is_content =
                !text.trim().is_empty() && (is_known || text.split_whitespace().nth(FEW_WORDS - 1).is_some());
            is_content.then(|| vec![text.as_str()])
        }
        Value::Array(items) if !items.is_empty() => {
            let said: Option<Vec<&str>> = items.iter().map(words_of).collect();
            said.or_else(|| is_known.then(Vec::new))
        }
        Value::Object(fields) if !fields.is_empty() => {
            words_of(value).map(|text| vec![text]).or_else(|| is_known.then(Vec::new))
        }
        _ => None,
    }
}

/// The text of a message.
fn words_of(item: &Value) -> Option<&str> {
    let text = |names: [&str; 2]| names.into_iter().find_map(|name| item.get(name)?.as_str());
    text(["role", "from"]).and(text(["content", "value"]))
}
