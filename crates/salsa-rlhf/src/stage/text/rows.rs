//! The JSON lines that `generate`, `score`, `logprobs` and `eval winrate` read: one object per line, output in input order.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail, ensure};
use salsa_algo::reward::Ending;
use salsa_engine::ModelSpec;
use serde_json::{Map, Value};

use super::{encoder::Encoder, overlong::TooLong};
use crate::{
    atomic,
    chat::Conversation,
    data::{self, Content, Example},
    stage::StageContext,
};

/// All rows of a file.
pub struct Rows {
    path: PathBuf,
    /// The rows in order; blank lines are left out.
    pub rows: Vec<Row>,
}

/// One line.
pub struct Row {
    /// Its number in the file, from 1.
    pub line: usize,
    /// Its number among the rows of the file, from 0, whichever of them are left out.
    pub index: usize,
    /// What it says.
    pub object: Map<String, Value>,
}

impl Rows {
    /// Reads a `.jsonl` file. Lines end at `\n` and nowhere else.
    ///
    /// # Errors
    /// If the file cannot be read, holds no row, or a line is not a JSON object (the line is named).
    pub fn read(path: &Path) -> anyhow::Result<Rows> {
        let mut rows = Vec::new();
        data::for_each_row(path, &mut |place, object| {
            rows.push(Row { line: place.number(), index: rows.len(), object });
            Ok(())
        })?;
        ensure!(!rows.is_empty(), "{} holds no rows; at least one is needed", path.display());
        Ok(Rows { path: path.to_owned(), rows })
    }

    /// Rows of a file of another form, in order; each counts as a line.
    pub fn of(path: &Path, objects: Vec<Map<String, Value>>) -> Rows {
        let row = |(index, object)| Row { line: index + 1, index, object };
        Rows { path: path.to_owned(), rows: objects.into_iter().enumerate().map(row).collect() }
    }

    /// The file, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Makes sure that the results of every row are numbers.
    ///
    /// # Errors
    /// As [`check_finite`], with file and line in front.
    pub fn check_finite<'a>(&self, what: &str, results: impl Iterator<Item = &'a [f32]>) -> anyhow::Result<()> {
        self.rows
            .iter()
            .zip(results)
            .try_for_each(|(row, values)| check_finite(what, values).with_context(|| self.place(row)))
    }

    /// Where a row stands.
    pub fn place(&self, row: &Row) -> String {
        format!("{}: line {}", self.path.display(), row.line)
    }

    /// Applies `f` to every row; an error gets the file and line in front.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<T>(&self, f: impl Fn(&Row) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        self.rows.iter().map(|row| f(row).with_context(|| self.place(row))).collect()
    }
}

impl Rows {
    /// Says which columns are not read, and how prompts of text are taken.
    pub fn say_how_read(&self, encoder: Option<&Encoder>, context: &StageContext) {
        let texts = || self.rows.iter().filter(|row| !row.object.contains_key("tokens"));
        let mut unread: BTreeMap<String, usize> = BTreeMap::new();
        for column in texts().flat_map(|row| data::unread(row.object.clone())) {
            *unread.entry(column).or_default() += 1;
        }
        if !unread.is_empty() {
            context.say_once(&format!("{}: {}", self.name(), data::unread_columns(&unread, self.rows.len())));
        }
        let is_text = |row: &Row| matches!(row.prompt(), Ok(Content::Text(_)));
        if let Some(note) = encoder.and_then(Encoder::of_text_prompts).filter(|_| texts().any(is_text)) {
            context.say_once(&format!("{}: {note}", self.name()));
        }
    }
}

impl Row {
    /// The whole sequence of a row: its `tokens`, its `prompt` with `response` (or `completion`), its `messages`, or its `text`,
    /// whichever comes first. A response and a text are given their end token, unless their `finish_reason` is `length`.
    ///
    /// # Errors
    /// If the row has none of these, needs a tokenizer where there is none, or does not fit the model.
    pub fn sequence(&self, encoder: Option<&Encoder>, spec: &ModelSpec) -> anyhow::Result<Vec<u32>> {
        let tokens = match self.response() {
            _ if self.object.contains_key("tokens") => self.tokens()?,
            Some(response) => self.prompt_and_response(needed(encoder)?, response)?,
            None if self.object.contains_key("messages") => {
                needed(encoder)?.conversation(&self.conversation()?)?.tokens
            }
            None => match self.object.get("text") {
                Some(Value::String(text)) if self.is_cut() => needed(encoder)?.cut_text(text)?,
                Some(Value::String(text)) => needed(encoder)?.text(text)?,
                _ => bail!("no \"tokens\", \"prompt\" with \"response\", \"messages\" or \"text\""),
            },
        };
        fits(&tokens, spec)?;
        Ok(tokens)
    }

    /// What a judge reads: [`Row::sequence`], but prompt and response as the judge's own tokenizer writes them where the
    /// row's tokens are not that tokenizer's tokens of both.
    ///
    /// # Errors
    /// As [`Row::sequence`].
    pub fn answer(&self, encoder: Option<&Encoder>, spec: &ModelSpec) -> anyhow::Result<Vec<u32>> {
        match (encoder, self.response()) {
            (Some(encoder), Some(response)) if !self.has_tokens_of(encoder, response)? => {
                let tokens = self.prompt_and_response(encoder, response)?;
                fits(&tokens, spec)?;
                Ok(tokens)
            }
            _ => self.sequence(encoder, spec),
        }
    }

    /// Whether the row's tokens begin as this tokenizer writes the prompt, and the others read as the response.
    fn has_tokens_of(&self, encoder: &Encoder, response: &Value) -> anyhow::Result<bool> {
        if !self.object.contains_key("tokens") {
            return Ok(false);
        }
        let (tokens, prompt) = (self.tokens()?, encoder.prompt(&self.prompt()?)?);
        let Some(own) = tokens.strip_prefix(&prompt[..]) else { return Ok(false) };
        Ok(match response {
            Value::String(text) => encoder.decode(own)?.trim() == text.trim(),
            _ => true,
        })
    }

    /// Tokens of prompt and response, with an end token unless the response was cut off.
    fn prompt_and_response(&self, encoder: &Encoder, response: &Value) -> anyhow::Result<Vec<u32>> {
        let (prompt, response) = (self.prompt()?, data::content(response, "response")?);
        match self.is_cut() {
            true => encoder.prompt_and_cut_response(&prompt, &response),
            false => Ok(encoder.prompt_and_response(&prompt, &response)?.0),
        }
    }

    fn is_cut(&self) -> bool {
        self.object.get(FINISH_REASON).is_some_and(|reason| reason == finish_reason(Ending::Cut))
    }

    /// The row's `messages` with what stands beside them.
    fn conversation(&self) -> anyhow::Result<Conversation> {
        let mut object = self.object.clone();
        object.retain(|name, _| name != "chosen" && name != "rejected");
        match data::example(object)? {
            Example::Messages(conversation) => Ok(conversation),
            other => bail!("this is {}, not messages", other.layout()),
        }
    }

    /// What a response shall be generated for: the row's `tokens`, or its prompt.
    ///
    /// # Errors
    /// If the row has none of these, needs a tokenizer where there is none, or does not fit the model.
    pub fn prompt_tokens(&self, encoder: Option<&Encoder>, spec: &ModelSpec) -> anyhow::Result<Vec<u32>> {
        let tokens = if self.object.contains_key("tokens") && !self.object.contains_key("prompt") {
            self.tokens()?
        } else {
            needed(encoder)?.prompt(&self.prompt()?)?
        };
        fits(&tokens, spec)?;
        Ok(tokens)
    }

    /// The prompt, as text or messages: the column `prompt` ([`data::prompt`]), or else what `ppo` and `evaluate` take of a record
    /// with these columns ([`data::Example::prompt`]).
    ///
    /// # Errors
    /// If the row has none.
    pub fn prompt(&self) -> anyhow::Result<Content> {
        match self.object.get("prompt") {
            Some(_) => data::prompt(self.object.clone()),
            None => data::example(self.object.clone())?.prompt().context("this record has no prompt"),
        }
    }

    /// The response, under either of its names.
    pub fn response(&self) -> Option<&Value> {
        self.object.get("response").or_else(|| self.object.get("completion"))
    }

    fn tokens(&self) -> anyhow::Result<Vec<u32>> {
        let tokens = self.object["tokens"].as_array().ok_or_else(|| anyhow!("\"tokens\" is not a list"))?;
        let number = |value: &Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        tokens
            .iter()
            .map(|value| number(value).ok_or_else(|| anyhow!("\"tokens\" holds {value}, which is no token number")))
            .collect()
    }
}

/// The column that says how a sampled response ended.
pub(crate) const FINISH_REASON: &str = "finish_reason";

/// What it says: `stop` at an end token, `length` where the response was cut off.
pub(crate) fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Eos => "stop",
        Ending::Cut => "length",
    }
}

/// Makes sure that results of a model are numbers, before they are written.
///
/// # Errors
/// Names the result and the first value that is not finite.
pub(crate) fn check_finite(what: &str, values: &[f32]) -> anyhow::Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => bail!("a {what} is {value}: the model's numbers overflow on this input; check its weights"),
        None => Ok(()),
    }
}

/// Writes one object per line, atomically.
///
/// # Errors
/// If the disk refuses.
pub(crate) fn write(path: &Path, rows: impl Iterator<Item = Map<String, Value>>) -> anyhow::Result<()> {
    atomic::write_with(path, |file| {
        for row in rows {
            serde_json::to_writer(&mut *file, &row)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Splits consecutive sequences into batches of at most `budget` tokens (a longer sequence makes one of its own).
pub(crate) fn batches(sequences: &[Vec<u32>], budget: usize) -> Vec<&[Vec<u32>]> {
    let mut batches = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (index, sequence) in sequences.iter().enumerate() {
        if index > start && used + sequence.len() > budget {
            batches.push(&sequences[start..index]);
            (start, used) = (index, 0);
        }
        used += sequence.len();
    }
    if start < sequences.len() {
        batches.push(&sequences[start..]);
    }
    batches
}

fn needed(encoder: Option<&Encoder>) -> anyhow::Result<&Encoder> {
    encoder.ok_or_else(|| anyhow!("the model directory has no tokenizer.json; give rows of {{\"tokens\": [...]}}"))
}

fn fits(tokens: &[u32], spec: &ModelSpec) -> anyhow::Result<()> {
    ensure!(!tokens.is_empty(), "there is no token");
    let (length, context, vocab) = (tokens.len(), spec.max_positions, spec.vocab_size);
    ensure!(length <= context, TooLong(format!("{length} tokens do not fit the model's context of {context}")));
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => bail!("token {token} is not in the model's vocabulary of {vocab}"),
        None => Ok(()),
    }
}
