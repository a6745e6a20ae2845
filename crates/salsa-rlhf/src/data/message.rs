//! Parses messages in the forms found in files.

use anyhow::{Result, anyhow, bail};
use serde_json::{Map, Value};

use super::files::kind;
use super::{Content, hh};
use crate::chat::Message;

/// A prompt: text, messages, or an HH-RLHF transcript, which becomes messages.
pub(super) fn prompt_of(value: &Value, column: &str) -> Result<Content> {
    Ok(match content(value, column)? {
        Content::Text(text) if hh::is_transcript(&text) => hh::messages(&text).into(),
        other => other,
    })
}

/// Text, or messages.
pub(super) fn content(value: &Value, column: &str) -> Result<Content> {
    match value {
        Value::String(text) => Ok(Content::Text(text.clone())),
        Value::Array(_) | Value::Object(_) => messages(value, column).map(Content::from),
        other => bail!("column {column}: expected text or a list of messages, found {}", kind(other)),
    }
}

/// A list of messages, or one message as a list of one.
pub(super) fn messages(value: &Value, column: &str) -> Result<Vec<Message>> {
    let rows;
    let items = match value {
        Value::Array(items) => items,
        Value::Object(fields) if is_message(fields) => std::slice::from_ref(value),
        Value::Object(columns) => {
            rows = transposed(columns).ok_or_else(|| {
                anyhow!("column {column}: expected a list of messages, found an object that is no message either")
            })?;
            &rows
        }
        other => bail!("column {column}: expected a list of messages, found {}", kind(other)),
    };
    if items.is_empty() {
        bail!("column {column}: the list of messages is empty");
    }
    let read = |(index, item)| message(item).map_err(|e| anyhow!("column {column}, message {}: {e}", index + 1));
    items.iter().enumerate().map(read).collect()
}

fn is_message(fields: &Map<String, Value>) -> bool {
    ["role", "from"].iter().any(|name| fields.get(*name).is_some_and(Value::is_string))
}

/// Converts an object of lists, which the `datasets` library may store, to a list of objects.
fn transposed(columns: &Map<String, Value>) -> Option<Vec<Value>> {
    let lists: Vec<(&String, &Vec<Value>)> =
        columns.iter().map(|(name, list)| Some((name, list.as_array()?))).collect::<Option<_>>()?;
    let length = lists.first()?.1.len();
    if lists.iter().any(|(_, list)| list.len() != length) {
        return None;
    }
    let row = |i: usize| lists.iter().map(|(name, list)| ((*name).clone(), list[i].clone())).collect();
    Some((0..length).map(row).collect())
}

fn message(item: &Value) -> Result<Message> {
    let Value::Object(fields) = item else {
        bail!("expected an object with role and content, found {}", kind(item));
    };
    let role = ["role", "from"].iter().find_map(|name| fields.get(*name)?.as_str());
    let role = role.ok_or_else(|| anyhow!("has no role (a text in \"role\" or \"from\")"))?;
    if let Some(calls) = ["tool_calls", "function_call"].iter().find(|name| says_something(fields.get(**name))) {
        bail!("tool calls are not supported ({calls} says something): leave this record out");
    }
    let said = ["content", "value"].iter().find_map(|name| fields.get(*name).filter(|v| !v.is_null()));
    let text = match said {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_parts(parts)?,
        Some(other) => bail!("its content is {}, expected text", kind(other)),
        None if ["content", "value"].iter().any(|name| fields.contains_key(*name)) => {
            bail!("its content is null, expected text: leave this record out")
        }
        None => bail!("has no content (a text in \"content\" or \"value\")"),
    };
    Ok(Message::new(role_name(role), text))
}

/// Whether a value is neither `null` nor an empty text, list or mapping, which columnar files use for missing values.
fn says_something(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(fields)) => fields.values().any(|value| !value.is_null()),
        Some(_) => true,
    }
}

/// Converts a ShareGPT role to that of chat templates.
fn role_name(role: &str) -> &str {
    match role {
        "human" => "user",
        "gpt" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
        other => other,
    }
}

fn text_parts(parts: &[Value]) -> Result<String> {
    let text = |part: &Value| match part.get("type").and_then(Value::as_str) {
        Some("text") => part.get("text").and_then(Value::as_str).map(str::to_string),
        _ => None,
    };
    parts
        .iter()
        .map(|part| text(part).ok_or_else(|| anyhow!("only text can be read, and its content has other parts")))
        .collect()
}

/// The split key of a prompt column.
pub(super) fn key_of(value: &Value, prompt: &Content) -> String {
    match (value.as_str(), prompt) {
        (Some(text), Content::Messages(_)) => hh::opening(text).to_string(),
        (_, Content::Messages(messages)) => first_user(messages),
        (_, Content::Text(text)) => hh::trim(text).to_string(),
    }
}

/// The first user message.
pub(super) fn first_user(messages: &[Message]) -> String {
    let first = messages.iter().find(|m| m.role == "user").or(messages.first());
    first.map_or_else(String::new, |m| hh::trim(&m.content).to_string())
}
