//! Preferences: two answers to one prompt, `chosen` and `rejected`, and the location of the prompt.

use anyhow::{Result, anyhow, bail};

use super::beside::{Question, question};
use super::columns::{Row, question_column};
use super::meaning::Columns;
use super::message::{content, first_user};
use super::{Content, Example, Preference, hh};
use crate::chat::{Conversation, Message};

pub(super) fn read(columns: &Columns) -> Result<Row> {
    let chosen = content(columns.need("chosen")?, "chosen")?;
    let rejected = content(columns.need("rejected")?, "rejected")?;
    let recognised = layout(columns, &chosen);
    let given = question_column(columns).map(|column| question(columns, column)).transpose()?;
    let is_lifted = given.as_ref().is_some_and(|given| given.is_lifted);
    let key = match (&given, &chosen) {
        (Some(given), _) => Some(given.key.clone()),
        (None, Content::Text(text)) if hh::is_transcript(text) => Some(hh::opening(text).to_string()),
        _ => None,
    };
    let given = given.map(|Question { prompt, .. }| without_answer(prompt, &chosen));
    let (prompt, chosen, rejected) = match (chosen, rejected) {
        (Content::Text(chosen), Content::Text(rejected)) => texts(given, chosen, rejected)?,
        (Content::Messages(chosen), Content::Messages(rejected)) => {
            conversations(given, chosen.messages, rejected.messages)?
        }
        _ => bail!("chosen and rejected must both be text or both be messages"),
    };
    let key = key.unwrap_or_else(|| match &prompt {
        Content::Messages(messages) => first_user(messages),
        Content::Text(text) => hh::trim(text).to_string(),
    });
    let pair = Preference {
        prompt,
        chosen,
        rejected,
        margin: columns.number("margin")?,
        score_chosen: columns.number("score_chosen")?,
        score_rejected: columns.number("score_rejected")?,
    };
    Ok(Row { is_lifted, ..Row::new(key, Example::Preference(pair), recognised) })
}

fn layout(columns: &Columns, chosen: &Content) -> &'static str {
    let has = |name: &str| columns.has(name);
    match (chosen, question_column(columns)) {
        (Content::Text(text), _) if hh::is_transcript(text) => "HH-RLHF: chosen, rejected as transcripts",
        (Content::Messages(_), Some("prompt")) if has("score_chosen") => {
            "UltraFeedback, binarized: prompt, chosen, rejected, score_chosen, score_rejected"
        }
        (_, Some("prompt")) => "TRL: prompt, chosen, rejected",
        (_, Some("instruction")) => "instruction, chosen, rejected",
        (_, Some("question")) => "question, chosen, rejected",
        (_, Some("query")) => "query, chosen, rejected",
        (_, Some("input")) => "Orca: input, chosen, rejected",
        (_, Some("messages")) => "axolotl: messages, chosen, rejected",
        (_, Some(_)) => "LLaMA-Factory: conversations, chosen, rejected",
        (_, None) => "TRL: chosen, rejected",
    }
}

/// Removes the preferred answer from the end of a conversation, which leaves its prompt.
fn without_answer(prompt: Content, chosen: &Content) -> Content {
    match prompt {
        Content::Messages(mut prompt) => {
            let repeats = |last: &Message| last.role == "assistant" && last.content == chosen.last_words();
            let whole = matches!(chosen, Content::Messages(chosen) if chosen.starts_with(&prompt));
            if !whole && prompt.last().is_some_and(repeats) {
                prompt.messages.pop();
            }
            Content::Messages(prompt)
        }
        text => text,
    }
}

type Triple = (Content, Content, Content);

fn texts(given: Option<Content>, chosen: String, rejected: String) -> Result<Triple> {
    let transcripts = hh::is_transcript(&chosen) && hh::is_transcript(&rejected);
    match given {
        _ if transcripts => {
            let pair = hh::pair(&chosen, &rejected).ok_or_else(|| {
                anyhow!("chosen and rejected share no \"\\n\\nAssistant:\" in their common beginning: they answer different prompts")
            })?;
            Ok((pair.prompt.into(), pair.chosen.into(), pair.rejected.into()))
        }
        None => {
            let prompt = shared_text(&chosen, &rejected).to_string();
            let rest = |text: &str| Content::Text(text[prompt.len()..].to_string());
            Ok((Content::Text(prompt.clone()), rest(&chosen), rest(&rejected)))
        }
        Some(Content::Text(prompt)) => Ok((Content::Text(prompt), Content::Text(chosen), Content::Text(rejected))),
        Some(prompt) => Ok((prompt, reply(&chosen), reply(&rejected))),
    }
}

/// Text as an assistant message.
pub(super) fn reply(text: &str) -> Content {
    vec![Message::new("assistant", hh::trim(text))].into()
}

fn conversations(given: Option<Content>, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Triple> {
    let replies_only = |messages: &[Message]| messages.first().is_some_and(|m| m.role == "assistant");
    match given {
        Some(Content::Text(asked)) if replies_only(&chosen) && replies_only(&rejected) => {
            Ok((vec![Message::new("user", asked)].into(), chosen.into(), rejected.into()))
        }
        Some(Content::Messages(Conversation { messages: prompt, .. }))
            if !(chosen.starts_with(&prompt) && rejected.starts_with(&prompt)) =>
        {
            check_replies(&chosen, &rejected)?;
            Ok((prompt.into(), chosen.into(), rejected.into()))
        }
        _ => {
            let most = chosen.len().min(rejected.len()) - 1;
            let shared = chosen.iter().zip(&rejected).take(most).take_while(|(a, b)| a == b).count();
            let (said, other) = (chosen[shared..].to_vec(), rejected[shared..].to_vec());
            check_replies(&said, &other)?;
            Ok((chosen[..shared].to_vec().into(), said.into(), other.into()))
        }
    }
}

fn check_replies(chosen: &[Message], rejected: &[Message]) -> Result<()> {
    for (column, replies) in [("chosen", chosen), ("rejected", rejected)] {
        if let Some(first) = replies.first().filter(|m| m.role != "assistant") {
            bail!(
                "column {column}: the first message after the prompt is of role {:?}, expected \"assistant\": both answers must continue the same conversation",
                first.role
            );
        }
    }
    Ok(())
}

/// The common prefix of two texts up to, not including, its last white space, so that no word is cut.
fn shared_text<'a>(a: &'a str, b: &str) -> &'a str {
    let common = hh::common_prefix(a, b);
    &common[..common.rfind(char::is_whitespace).unwrap_or(0)]
}
