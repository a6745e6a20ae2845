//! The question of a record and the columns that accompany any layout: system message, history, template arguments.

use anyhow::{Result, bail};
use serde_json::Value;

use super::files::kind;
use super::meaning::{Columns, Meaning};
use super::message::{key_of, messages, prompt_of};
use super::{Content, Example, hh};
use crate::chat::{Message, TemplateArguments};

/// A question with its context.
pub(super) struct Question {
    /// Determines the record's part in a split.
    pub key: String,
    pub prompt: Content,
    /// Whether a text prompt became messages because of an accompanying column.
    pub is_lifted: bool,
}

/// Reads the question in `column`. Text in `prompt` stays text if there is no context; text in other columns becomes a
/// user message.
pub(super) fn question(columns: &Columns, column: &'static str) -> Result<Question> {
    if matches!(column, "messages" | "conversations") {
        let prompt = messages(columns.need(column)?, column)?.into();
        return Ok(Question { key: key_of(&Value::Null, &prompt), prompt, is_lifted: false });
    }
    let value = columns.need(column)?;
    let prompt = prompt_of(value, column)?;
    let key = key_of(value, &prompt);
    let Content::Text(asked) = prompt else { return Ok(Question { key, prompt, is_lifted: false }) };
    let about = contexts(columns, column, &asked)?;
    if about.is_empty() && column == "prompt" {
        return Ok(Question { key, prompt: Content::Text(asked), is_lifted: false });
    }
    let key = [key.as_str()].into_iter().chain(about.iter().map(|text| hh::trim(text))).collect::<Vec<_>>().join("\n");
    let text = [asked.as_str()].into_iter().chain(about).collect::<Vec<_>>().join("\n\n");
    Ok(Question { key, prompt: vec![Message::new("user", text)].into(), is_lifted: column == "prompt" })
}

/// The contexts of the question, except those that a `prompt` already contains.
fn contexts<'a>(columns: &'a Columns, column: &str, asked: &str) -> Result<Vec<&'a str>> {
    let names: Vec<&'static str> = columns.of(Meaning::Context).filter(|name| *name != column).collect();
    let texts = names.into_iter().map(|name| columns.text(name)).collect::<Result<Vec<&str>>>()?;
    let is_new = |text: &&str| !hh::trim(text).is_empty() && (column != "prompt" || !asked.contains(hh::trim(text)));
    Ok(texts.into_iter().filter(is_new).collect())
}

/// System message, earlier turns and template arguments of a record.
#[derive(Default)]
pub(super) struct Beside {
    system: Option<(&'static str, Message)>,
    history: Vec<Message>,
    arguments: TemplateArguments,
}

impl Beside {
    pub(super) fn of(columns: &Columns) -> Result<Beside> {
        let system = columns.of(Meaning::System).next();
        let system = match system {
            None => None,
            Some(name) => {
                let value = columns.peek(name).unwrap_or(&Value::Null);
                let Some(text) = value.as_str() else { bail!("column {name}: expected text, found {}", kind(value)) };
                (!hh::trim(text).is_empty()).then(|| (name, Message::new("system", text)))
            }
        };
        let column = |meaning| columns.of(meaning).next().and_then(|name| columns.get(name));
        let arguments = TemplateArguments::of_record(column(Meaning::Arguments), column(Meaning::Tools))?;
        Ok(Beside { system, history: history(column(Meaning::History))?, arguments })
    }

    /// Adds everything to an example; text becomes messages if there is anything to add. Returns whether it was text.
    ///
    /// A system message in the conversation takes precedence; the column then counts as unread.
    pub(super) fn put_to(self, example: &mut Example, columns: &Columns) -> bool {
        if self.system.is_none() && self.history.is_empty() && self.arguments.is_empty() {
            return false;
        }
        let is_lifted = example.lift();
        let conversation = match example {
            Example::Messages(conversation) => conversation,
            Example::PromptCompletion { prompt: Content::Messages(prompt), .. }
            | Example::Prompt(Content::Messages(prompt)) => prompt,
            Example::Preference(pair) => match &mut pair.prompt {
                Content::Messages(prompt) => prompt,
                Content::Text(_) => return false,
            },
            _ => return false,
        };
        let has_system = conversation.messages.first().is_some_and(|message| message.role == "system");
        conversation.messages.splice(usize::from(has_system)..usize::from(has_system), self.history);
        if let Some((name, system)) = self.system.filter(|_| !has_system) {
            columns.get(name);
            conversation.messages.insert(0, system);
        }
        conversation.arguments = self.arguments;
        is_lifted
    }
}

/// Earlier turns: a list of pairs of question and answer.
fn history(value: Option<&Value>) -> Result<Vec<Message>> {
    let pair = |item: &Value| match item.as_array().map(Vec::as_slice) {
        Some([Value::String(asked), Value::String(said)]) => {
            Ok([Message::new("user", asked), Message::new("assistant", said)])
        }
        _ => bail!("column history: expected pairs of texts, found {}", kind(item)),
    };
    match value {
        None => Ok(Vec::new()),
        Some(Value::Array(pairs)) => {
            Ok(pairs.iter().map(pair).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
        }
        Some(other) => bail!("column history: expected a list of pairs of texts, found {}", kind(other)),
    }
}
