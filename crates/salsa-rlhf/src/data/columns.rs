//! Reads one JSON record as an [`Example`], according to its columns.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;

use super::beside::{Beside, Question, question};
use super::files::kind;
use super::meaning::{Columns, Meaning, Record};
use super::message::{content, first_user, messages};
use super::{Content, Example, hh, preference, rated, tldr};
use crate::chat::Message;

/// A parsed record.
pub(super) struct Row {
    pub example: Example,
    /// Determines its part in a split.
    pub key: String,
    /// The name of its layout.
    pub recognised: &'static str,
    /// Whether its text became messages because of an accompanying column.
    pub is_lifted: bool,
    /// Whether the answer is a wanted one, if the record is labelled.
    pub label: Option<bool>,
    /// Columns that look like content and were not read.
    pub unread: Vec<String>,
    /// The record, if records are kept.
    pub record: Option<Record>,
}

impl Row {
    pub(super) fn new(key: String, example: Example, recognised: &'static str) -> Row {
        Row { example, key, recognised, is_lifted: false, label: None, unread: Vec::new(), record: None }
    }
}

const EXPECTED: &str = "text | messages | conversations | prompt, completion | prompt, completion, label | prompt, label | \
     prompt, chosen, rejected | chosen, rejected | instruction, (input), output | question, answer | query, response | \
     input, output | instruction, completions | info, summaries, choice | subreddit, title, post, summary | data | \
     prompt | turns";

/// Columns of answers to an instruction, question, query or input.
const ANSWERS: [&str; 4] = ["completion", "response", "output", "answer"];

/// Columns of the two answers of a preference.
pub(crate) const PAIR: [&str; 2] = ["chosen", "rejected"];

/// Columns of conversations.
const CONVERSATIONS: [&str; 2] = ["messages", "conversations"];

/// Reads one record; columns that are `null` count as absent.
pub(super) fn read(record: Record) -> Result<Row> {
    let columns = Columns::new(record);
    let mut row = layout(&columns)?;
    if !matches!(row.example, Example::Text(_)) {
        let is_lifted = Beside::of(&columns)?.put_to(&mut row.example, &columns);
        row.is_lifted |= is_lifted;
    }
    row.label = label(&columns, &row.example)?;
    row.unread = columns.unread(|| row.example.texts());
    Ok(row)
}

/// The prompt of a record with a column `prompt`: text stays text, including transcripts, if there is nothing to add.
pub(super) fn prompt(record: Record) -> Result<Content> {
    let columns = Columns::new(record);
    let given = content(columns.need("prompt")?, "prompt")?;
    let asked = match given {
        Content::Text(text) if hh::is_transcript(&text) => Content::Text(text),
        _ => question(&columns, "prompt")?.prompt,
    };
    let mut example = Example::Prompt(asked);
    Beside::of(&columns)?.put_to(&mut example, &columns);
    match example {
        Example::Prompt(prompt) => Ok(prompt),
        other => bail!("this is {}, not a prompt", other.layout()),
    }
}

/// Decides which layout a record has. The first rule that matches wins: more specific layouts come first.
fn layout(columns: &Columns) -> Result<Row> {
    let has = |name: &str| columns.has(name);
    let answer = columns.first(&ANSWERS);
    // `answer` next to `prompt` is a reference for reward functions, not a completion.
    let completion = answer.filter(|name| has("prompt") && *name != "answer");
    let asked = columns.first(&["instruction", "question", "query", "input"]).filter(|_| !has("prompt"));
    if let (Some(there), Some(missing)) = (columns.first(&PAIR), PAIR.into_iter().find(|name| !has(name))) {
        bail!("column {there} is there but {missing} is missing or null: a preference needs both");
    }
    if columns.has_all(&PAIR) {
        preference::read(columns)
    } else if let Some(column) = columns.first(&CONVERSATIONS) {
        conversation(columns, column)
    } else if let Some(answer) = completion {
        prompt_completion(columns, answer, "TRL: prompt, completion")
    } else if has("prompt") && columns.peek("label").is_some_and(|label| !label.is_string()) {
        bail!("columns prompt and label: a label needs the answer that it is about, in completion")
    } else if columns.has_all(&["prompt", "label"]) {
        prompt_completion(columns, "label", "TL;DR: prompt, label")
    } else if let (Some(asked), Some(answer)) = (asked, answer) {
        let Question { key, prompt, .. } = question(columns, asked)?;
        let completion = vec![Message::new("assistant", columns.text(answer)?)].into();
        let example = Example::PromptCompletion { prompt: prompt.into_messages().into(), completion };
        Ok(Row::new(key, example, asked_layout(columns, asked)))
    } else if columns.has_all(&["info", "summaries", "choice"]) {
        tldr::comparison(columns)
    } else if columns.has_all(&["subreddit", "title", "post", "summary"]) {
        tldr::summary(columns)
    } else if let Some(answers) =
        columns.first(&rated::ANSWER_LISTS).filter(|_| columns.first(&["instruction", "prompt"]).is_some())
    {
        rated::read(columns, answers)
    } else if has("text") {
        let text = columns.text("text")?.to_string();
        Ok(Row::new(hh::trim(&text).to_string(), Example::Text(text), "text"))
    } else if has("turns") {
        first_turn(columns.need("turns")?)
    } else if has("prompt") {
        let Question { key, prompt, is_lifted } = question(columns, "prompt")?;
        Ok(Row { is_lifted, ..Row::new(key, Example::Prompt(prompt), "TRL: prompt") })
    } else if columns.peek("data").is_some_and(Value::is_array) {
        alternating(columns.need("data")?)
    } else {
        Err(unknown(columns))
    }
}

fn asked_layout(columns: &Columns, asked: &str) -> &'static str {
    match asked {
        "instruction" if columns.has("context") => "Dolly: instruction, context, response",
        "instruction" => "Alpaca: instruction, input, output",
        "question" => "question, answer",
        "query" => "query, response",
        _ => "input, output",
    }
}

fn unknown(columns: &Columns) -> anyhow::Error {
    let found = columns.names();
    let found = if found.is_empty() { "none".to_string() } else { found.join(", ") };
    anyhow!("columns of no known layout: {found}. Expected one of: {EXPECTED}")
}

fn conversation(columns: &Columns, column: &'static str) -> Result<Row> {
    let recognised = match (column, columns.has("prompt_id")) {
        ("messages", true) => "UltraChat-200k: messages",
        ("messages", false) => "TRL: messages",
        _ => "ShareGPT: conversations",
    };
    let messages = messages(columns.need(column)?, column)?;
    Ok(Row::new(first_user(&messages), Example::Messages(messages.into()), recognised))
}

/// UltraChat's original form: alternating texts of user and assistant.
fn alternating(list: &Value) -> Result<Row> {
    let texts = list.as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(!texts.is_empty(), "column data: the list of texts is empty");
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    let said = |(i, item): (usize, &Value)| {
        let text = item.as_str().ok_or_else(|| anyhow!("column data: expected texts, found {}", kind(item)))?;
        Ok(Message::new(role(i), text))
    };
    let messages: Vec<Message> = texts.iter().enumerate().map(said).collect::<Result<_>>()?;
    Ok(Row::new(first_user(&messages), Example::Messages(messages.into()), "UltraChat: data"))
}

fn prompt_completion(columns: &Columns, answer: &'static str, recognised: &'static str) -> Result<Row> {
    let Question { key, prompt, is_lifted } = question(columns, "prompt")?;
    let (prompt, completion) = match (prompt, content(columns.need(answer)?, answer)?) {
        (Content::Messages(prompt), Content::Text(said)) => {
            (prompt.into(), vec![Message::new("assistant", said)].into())
        }
        (Content::Text(asked), Content::Messages(said)) => (vec![Message::new("user", asked)].into(), said.into()),
        same => same,
    };
    Ok(Row { is_lifted, ..Row::new(key, Example::PromptCompletion { prompt, completion }, recognised) })
}

fn first_turn(turns: &Value) -> Result<Row> {
    let first = turns.as_array().and_then(|turns| turns.first());
    let asked = first.and_then(|turn| turn.as_str().or_else(|| turn.get("content")?.as_str()));
    let asked = asked.ok_or_else(|| anyhow!("column turns: expected a list of texts with at least one"))?;
    let prompt = vec![Message::new("user", asked)].into();
    Ok(Row::new(hh::trim(asked).to_string(), Example::Prompt(prompt), "MT-Bench: turns"))
}

/// Whether the answer of an unpaired preference is wanted: TRL's `label`, LLaMA-Factory's `kto_tag`. Numbers count as
/// labels only with `prompt` and `completion`; elsewhere they are classes.
fn label(columns: &Columns, example: &Example) -> Result<Option<bool>> {
    let is_answer = matches!(example, Example::PromptCompletion { .. } | Example::Messages(_));
    let Some(column) = columns.first(&["kto_tag", "label"]).filter(|_| is_answer) else { return Ok(None) };
    let is_kto = columns.has_all(&["prompt", "completion"]);
    match columns.peek(column) {
        Some(Value::Bool(label)) => Ok(Some(*label)),
        Some(Value::Number(number)) if is_kto || column == "kto_tag" => match number.as_f64() {
            Some(0.0) => Ok(Some(false)),
            Some(1.0) => Ok(Some(true)),
            _ => bail!("column {column} is {number}: expected true or false, or 1 or 0"),
        },
        _ => Ok(None),
    }
}

/// The column of a preference record that holds its prompt.
pub(super) fn question_column(columns: &Columns) -> Option<&'static str> {
    columns.of(Meaning::Question).next()
}
