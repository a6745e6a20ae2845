//! One JSON record to one [`Example`], by the columns it has.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::{Map, Value};

use super::files::kind;
use super::{Content, Example, Preference, hh, rated, tldr};
use crate::chat::Message;

/// A record read.
pub(super) struct Row {
    pub example: Example,
    /// What decides its place in a split.
    pub key: String,
    /// Whose layout it has.
    pub recognised: &'static str,
}

const EXPECTED: &str = "text | messages | conversations | prompt, completion | prompt, label | prompt, chosen, rejected | \
     chosen, rejected | instruction, (input), output | question, answer | instruction, completions | \
     info, summaries, choice | subreddit, title, post, summary | data | prompt | turns";

/// A record: columns that are `null` are not in it.
pub(super) type Record = Map<String, Value>;

/// Reads one record; columns that are `null` count as absent.
pub(super) fn read(mut record: Record) -> Result<Row> {
    record.retain(|_, value| !value.is_null());
    let has = |name: &str| record.contains_key(name);
    let all = |names: &[&str]| names.iter().all(|name| has(name));
    let answer = ["completion", "response", "output"].into_iter().find(|name| has(name));
    if all(&["chosen", "rejected"]) {
        preference(&record)
    } else if has("messages") || has("conversations") {
        conversation(&record)
    } else if has("prompt") && record.get("label").is_some_and(|label| !label.is_string()) {
        bail!(
            "columns prompt and label are unpaired preferences, which no stage takes: pair them into prompt, chosen and rejected"
        )
    } else if let Some(answer) = answer.filter(|_| has("prompt")) {
        prompt_completion(&record, answer, "TRL: prompt, completion")
    } else if all(&["prompt", "label"]) {
        prompt_completion(&record, "label", "TL;DR: prompt, label")
    } else if let Some(answer) = answer.filter(|_| has("instruction")) {
        let by =
            if has("context") { "Dolly: instruction, context, response" } else { "Alpaca: instruction, input, output" };
        let (key, asked) = asked(&record, "instruction")?;
        Ok(turn(key, asked, text(&record, answer)?, by))
    } else if let Some(answer) = ["answer", "response"].into_iter().find(|name| has("question") && has(name)) {
        let (key, asked) = asked(&record, "question")?;
        Ok(turn(key, asked, text(&record, answer)?, "question, answer"))
    } else if all(&["info", "summaries", "choice"]) {
        tldr::comparison(&record)
    } else if all(&["subreddit", "title", "post", "summary"]) {
        tldr::summary(&record)
    } else if let Some(answers) = rated::ANSWERS.iter().find(|name| has(name) && (has("instruction") || has("prompt")))
    {
        rated::read(&record, answers)
    } else if has("text") {
        let text = text(&record, "text")?.to_string();
        Ok(Row { key: hh::trim(&text).to_string(), example: Example::Text(text), recognised: "text" })
    } else if has("turns") {
        first_turn(&record["turns"])
    } else if has("prompt") {
        let prompt = prompt_of(&record["prompt"], "prompt")?;
        let key = key_of(&record["prompt"], &prompt);
        Ok(Row { key, example: Example::Prompt(prompt), recognised: "TRL: prompt" })
    } else if record.get("data").is_some_and(Value::is_array) {
        alternating(&record["data"])
    } else {
        Err(unknown(&record))
    }
}

fn unknown(record: &Record) -> anyhow::Error {
    let mut found: Vec<&str> = record.keys().map(String::as_str).collect();
    found.sort_unstable();
    let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
    anyhow!("columns of no known layout: {found}. Expected one of: {EXPECTED}")
}

fn conversation(record: &Record) -> Result<Row> {
    let (column, recognised) = match (record.contains_key("messages"), record.contains_key("prompt_id")) {
        (true, true) => ("messages", "UltraChat-200k: messages"),
        (true, false) => ("messages", "TRL: messages"),
        (false, _) => ("conversations", "ShareGPT: conversations"),
    };
    let mut messages = messages(&record[column], column)?;
    if messages[0].role != "system" && column == "conversations" {
        messages.splice(0..0, system(record)?);
    }
    Ok(Row { key: first_user(&messages), example: Example::Messages(messages), recognised })
}

/// UltraChat's first form: texts of user and assistant in turn.
fn alternating(list: &Value) -> Result<Row> {
    let texts = list.as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(!texts.is_empty(), "column data: the list of texts is empty");
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let said = |(i, item): (usize, &Value)| {
        let text = item.as_str().ok_or_else(|| anyhow!("column data: expected texts, found {}", kind(item)))?;
        Ok(Message::new(role(i), text))
    };
    let messages: Vec<Message> = texts.iter().enumerate().map(said).collect::<Result<_>>()?;
    Ok(Row { key: first_user(&messages), example: Example::Messages(messages), recognised: "UltraChat: data" })
}

fn prompt_completion(record: &Record, answer: &str, recognised: &'static str) -> Result<Row> {
    let prompt = prompt_of(&record["prompt"], "prompt")?;
    let key = key_of(&record["prompt"], &prompt);
    let (prompt, completion) = match (prompt, content(&record[answer], answer)?) {
        (Content::Messages(prompt), Content::Text(said)) => {
            (prompt.into(), vec![Message::new("assistant", said)].into())
        }
        (Content::Text(asked), Content::Messages(said)) => (vec![Message::new("user", asked)].into(), said.into()),
        same => same,
    };
    Ok(Row { example: Example::PromptCompletion { prompt, completion }, key, recognised })
}

/// What was asked, and its answer.
fn turn(key: String, asked: Vec<Message>, said: &str, recognised: &'static str) -> Row {
    let completion = vec![Message::new("assistant", said)].into();
    Row { example: Example::PromptCompletion { prompt: asked.into(), completion }, key, recognised }
}

/// The split key and the messages of an instruction or question: system message, earlier turns, and itself with its
/// optional input.
fn asked(record: &Record, column: &str) -> Result<(String, Vec<Message>)> {
    let instruction = text(record, column)?;
    let input = ["input", "context"].into_iter().find(|name| record.contains_key(*name));
    let input = input.filter(|_| column == "instruction").map_or(Ok(""), |name| text(record, name))?;
    let (head, tail) = (hh::trim(instruction), hh::trim(input));
    let (key, user) = match tail {
        "" => (head.to_string(), instruction.to_string()),
        _ => (format!("{head}\n{tail}"), format!("{instruction}\n\n{input}")),
    };
    let mut messages: Vec<Message> = system(record)?.into_iter().collect();
    if column == "instruction" {
        messages.extend(history(record)?);
    }
    messages.push(Message::new("user", user));
    Ok((key, messages))
}

fn system(record: &Record) -> Result<Option<Message>> {
    let Some(column) = ["system", "system_prompt"].into_iter().find(|name| record.contains_key(*name)) else {
        return Ok(None);
    };
    let said = text(record, column)?;
    Ok((!hh::trim(said).is_empty()).then(|| Message::new("system", said)))
}

/// Earlier turns: a list of pairs of question and answer.
fn history(record: &Record) -> Result<Vec<Message>> {
    let Some(value) = record.get("history") else { return Ok(Vec::new()) };
    let pair = |item: &Value| match item.as_array().map(Vec::as_slice) {
        Some([Value::String(asked), Value::String(said)]) => {
            Ok([Message::new("user", asked), Message::new("assistant", said)])
        }
        _ => bail!("column history: expected pairs of texts, found {}", kind(item)),
    };
    match value {
        Value::Array(pairs) => Ok(pairs.iter().map(pair).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()),
        other => bail!("column history: expected a list of pairs of texts, found {}", kind(other)),
    }
}

fn first_turn(turns: &Value) -> Result<Row> {
    let first = turns.as_array().and_then(|turns| turns.first());
    let asked = first.and_then(|turn| turn.as_str().or_else(|| turn.get("content")?.as_str()));
    let asked = asked.ok_or_else(|| anyhow!("column turns: expected a list of texts with at least one"))?;
    let prompt = vec![Message::new("user", asked)].into();
    let key = hh::trim(asked).to_string();
    Ok(Row { example: Example::Prompt(prompt), key, recognised: "MT-Bench: turns" })
}

fn preference(record: &Record) -> Result<Row> {
    let (chosen, rejected) = (content(&record["chosen"], "chosen")?, content(&record["rejected"], "rejected")?);
    let given = given_prompt(record)?;
    let recognised = preference_layout(record, &chosen);
    let key = match (&given, &chosen) {
        (Some((key, _)), _) => Some(key.clone()),
        (None, Content::Text(text)) if hh::is_transcript(text) => Some(hh::opening(text).to_string()),
        _ => None,
    };
    let (prompt, chosen, rejected) = match (chosen, rejected) {
        (Content::Text(chosen), Content::Text(rejected)) => texts(given.map(|(_, p)| p), chosen, rejected)?,
        (Content::Messages(chosen), Content::Messages(rejected)) => {
            conversations(given.map(|(_, p)| p), chosen, rejected)?
        }
        _ => bail!("chosen and rejected must both be text or both be lists of messages"),
    };
    let key = key.unwrap_or_else(|| match &prompt {
        Content::Messages(messages) => first_user(messages),
        Content::Text(text) => hh::trim(text).to_string(),
    });
    let pair = Preference {
        prompt,
        chosen,
        rejected,
        margin: number(record, "margin")?,
        score_chosen: number(record, "score_chosen")?,
        score_rejected: number(record, "score_rejected")?,
    };
    Ok(Row { example: Example::Preference(pair), key, recognised })
}

fn preference_layout(record: &Record, chosen: &Content) -> &'static str {
    let has = |name: &str| record.contains_key(name);
    match chosen {
        Content::Text(text) if hh::is_transcript(text) => "HH-RLHF: chosen, rejected as transcripts",
        Content::Messages(_) if has("score_chosen") && has("prompt") => {
            "UltraFeedback, binarized: prompt, chosen, rejected, score_chosen, score_rejected"
        }
        _ if has("prompt") => "TRL: prompt, chosen, rejected",
        _ if has("instruction") => "instruction, chosen, rejected",
        _ if has("question") => "question, chosen, rejected",
        _ => "TRL: chosen, rejected",
    }
}

/// The prompt column of a preference record and its split key, if it has one.
fn given_prompt(record: &Record) -> Result<Option<(String, Content)>> {
    if let Some(value) = record.get("prompt") {
        let prompt = prompt_of(value, "prompt")?;
        return Ok(Some((key_of(value, &prompt), prompt)));
    }
    for column in ["instruction", "question"] {
        if record.contains_key(column) {
            let (key, asked) = asked(record, column)?;
            return Ok(Some((key, asked.into())));
        }
    }
    Ok(None)
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
        Some(prompt) => {
            let said = |text: &str| vec![Message::new("assistant", hh::trim(text))].into();
            Ok((prompt, said(&chosen), said(&rejected)))
        }
    }
}

fn conversations(given: Option<Content>, chosen: Vec<Message>, rejected: Vec<Message>) -> Result<Triple> {
    let replies_only = |messages: &[Message]| messages.first().is_some_and(|m| m.role == "assistant");
    match given {
        Some(Content::Text(asked)) if replies_only(&chosen) && replies_only(&rejected) => {
            Ok((vec![Message::new("user", asked)].into(), chosen.into(), rejected.into()))
        }
        Some(Content::Messages(prompt)) if !(chosen.starts_with(&prompt) && rejected.starts_with(&prompt)) => {
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

/// The common beginning of two texts up to, not including, its last white space, so that no word is cut.
fn shared_text<'a>(a: &'a str, b: &str) -> &'a str {
    let common = hh::common_prefix(a, b);
    &common[..common.rfind(char::is_whitespace).unwrap_or(0)]
}

/// A prompt: text, messages, or an HH-RLHF transcript, which becomes messages.
pub(super) fn prompt_of(value: &Value, column: &str) -> Result<Content> {
    Ok(match content(value, column)? {
        Content::Text(text) if hh::is_transcript(&text) => hh::messages(&text).into(),
        other => other,
    })
}

/// A prompt as messages; text is what the user says.
pub(super) fn messages_of(prompt: Content) -> Vec<Message> {
    match prompt {
        Content::Messages(messages) => messages,
        Content::Text(text) => vec![Message::new("user", text)],
    }
}

pub(super) fn key_of(value: &Value, prompt: &Content) -> String {
    match (value.as_str(), prompt) {
        (Some(text), Content::Messages(_)) => hh::opening(text).to_string(),
        (_, Content::Messages(messages)) => first_user(messages),
        (_, Content::Text(text)) => hh::trim(text).to_string(),
    }
}

fn first_user(messages: &[Message]) -> String {
    let first = messages.iter().find(|m| m.role == "user").or(messages.first());
    first.map_or_else(String::new, |m| hh::trim(&m.content).to_string())
}

fn content(value: &Value, column: &str) -> Result<Content> {
    match value {
        Value::String(text) => Ok(Content::Text(text.clone())),
        Value::Array(_) | Value::Object(_) => messages(value, column).map(Content::Messages),
        other => bail!("column {column}: expected text or a list of messages, found {}", kind(other)),
    }
}

fn messages(value: &Value, column: &str) -> Result<Vec<Message>> {
    let rows;
    let items = match value {
        Value::Array(items) => items,
        Value::Object(columns) => {
            rows = transposed(columns)
                .ok_or_else(|| anyhow!("column {column}: expected a list of messages, found an object"))?;
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

/// A list of objects that is stored as an object of lists, as the `datasets` library may do.
fn transposed(columns: &Record) -> Option<Vec<Value>> {
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
    let said = ["content", "value"].iter().find_map(|name| fields.get(*name).filter(|v| !v.is_null()));
    let text = match said {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => text_parts(parts)?,
        Some(other) => bail!("its content is {}, expected text", kind(other)),
        None if fields.contains_key("tool_calls") => bail!("tool calls are not supported: leave this record out"),
        None => bail!("has no content (a text in \"content\" or \"value\")"),
    };
    Ok(Message::new(role_name(role), text))
}

/// The roles of ShareGPT's files, in the words of chat templates.
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

pub(super) fn text<'a>(record: &'a Record, column: &str) -> Result<&'a str> {
    let value = record.get(column).ok_or_else(|| anyhow!("column {column} is missing"))?;
    value.as_str().ok_or_else(|| anyhow!("column {column}: expected text, found {}", kind(value)))
}

fn number(record: &Record, column: &str) -> Result<Option<f64>> {
    let Some(value) = record.get(column) else { return Ok(None) };
    let number = value.as_f64().filter(|x| x.is_finite());
    number.map(Some).ok_or_else(|| anyhow!("column {column}: expected a number, found {}", kind(value)))
}

impl From<Vec<Message>> for Content {
    fn from(messages: Vec<Message>) -> Content {
        Content::Messages(messages)
    }
}
