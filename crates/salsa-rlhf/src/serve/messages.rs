//! The messages of a chat request.
use serde_json::{Map, Value};

use super::{
    error::ApiError,
    fields::{Fields, expected, is_empty},
};
use crate::chat::{Conversation, Message, TemplateArguments};

/// Maximum number of messages in a conversation.
const MOST_MESSAGES: usize = 4096;

/// Takes the conversation from a request: its messages and the arguments of the chat template.
///
/// # Errors
/// The message that cannot be read.
pub(super) fn take(fields: &mut Fields) -> Result<Conversation, ApiError> {
    let messages = match fields.needed("messages")? {
        Value::Array(items) if items.is_empty() => {
            return Err(ApiError::invalid("messages", "messages is empty; at least one is needed"));
        }
        Value::Array(items) if items.len() > MOST_MESSAGES => {
            let count = items.len();
            return Err(ApiError::invalid("messages", format!("{count} messages; at most {MOST_MESSAGES} are taken")));
        }
        Value::Array(items) => items.into_iter().enumerate().map(|(at, item)| message(at, item)),
        other => return Err(expected("messages", "a list of messages", &other)),
    };
    Ok(Conversation { messages: messages.collect::<Result<_, _>>()?, arguments: arguments(fields)? })
}

/// Takes the arguments of the chat template.
fn arguments(fields: &mut Fields) -> Result<TemplateArguments, ApiError> {
    const NAME: &str = TemplateArguments::COLUMN;
    match fields.take(NAME) {
        None => Ok(TemplateArguments::default()),
        Some(Value::Object(arguments)) => {
            TemplateArguments::try_from(arguments).map_err(|error| ApiError::invalid(NAME, format!("{error:#}")))
        }
        Some(other) => Err(expected(NAME, "an object", &other)),
    }
}

fn message(at: usize, item: Value) -> Result<Message, ApiError> {
    let name = format!("messages[{at}]");
    let Value::Object(mut fields) = item else { return Err(expected(&name, "an object", &item)) };
    fields.retain(|_, value| !value.is_null());
    let role = match fields.shift_remove("role") {
        Some(Value::String(role)) => role,
        Some(other) => return Err(expected(&format!("{name}.role"), "a text", &other)),
        None => return Err(ApiError::invalid(format!("{name}.role"), format!("{name} has no role"))),
    };
    let content = match fields.shift_remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => joined(&name, parts)?,
        Some(other) => return Err(expected(&format!("{name}.content"), "a text or a list of parts", &other)),
        None => return Err(ApiError::invalid(format!("{name}.content"), format!("{name} has no content"))),
    };
    nothing_else(&name, fields)?;
    Ok(Message::new(role, content))
}

/// Concatenates the text parts of a message.
fn joined(name: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let text = |(at, part): (usize, Value)| {
        let name = format!("{name}.content[{at}]");
        match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
            (Some("text"), Some(text)) => Ok(text.to_owned()),
            _ => Err(ApiError::unsupported(name, "only parts of the type text are supported")),
        }
    };
    parts.into_iter().enumerate().map(text).collect()
}

/// Checks that other fields of a message (tools, refusals, names) are empty.
fn nothing_else(name: &str, fields: Map<String, Value>) -> Result<(), ApiError> {
    match fields.iter().find(|(_, value)| !is_empty(value)) {
        None => Ok(()),
        Some((field, _)) => {
            let param = format!("{name}.{field}");
            Err(ApiError::unsupported(&param, format!("{param} is not supported: a message has role and content")))
        }
    }
}
