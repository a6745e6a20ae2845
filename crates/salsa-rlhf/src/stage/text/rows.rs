//! The JSON lines read by `generate`, `score`, `logprobs` and `eval winrate`: one object per line, output in input
//! order.
use std::{
    collections::BTreeMap,
    io::Write,
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
    /// The rows in order, without blank lines.
    pub rows: Vec<Row>,
}

/// One line of a file.
pub struct Row {
    /// Line number in the file, from 1.
    pub line: usize,
    /// Index among all rows of the file, from 0, including rows omitted later.
    pub index: usize,
    /// The JSON object.
    pub object: Map<String, Value>,
}

impl Rows {
    /// Reads a `.jsonl` file. Only `\n` ends a line.
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

    /// Rows from a file of another format, in order; each counts as a line.
    pub fn of(path: &Path, objects: Vec<Map<String, Value>>) -> Rows {
        let row = |(index, object)| Row { line: index + 1, index, object };
        Rows { path: path.to_owned(), rows: objects.into_iter().enumerate().map(row).collect() }
    }

    /// The file, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Checks that the results of every row are finite.
    ///
    /// # Errors
    /// As [`check_finite`], prefixed with file and line.
    pub fn check_finite<'a>(&self, what: &str, results: impl Iterator<Item = &'a [f32]>) -> anyhow::Result<()> {
        self.rows
            .iter()
            .zip(results)
            .try_for_each(|(row, values)| check_finite(what, values).with_context(|| self.place(row)))
    }

    /// File and line of a row, for messages.
    pub fn place(&self, row: &Row) -> String {
        format!("{}: line {}", self.path.display(), row.line)
    }

    /// Applies `f` to every row; errors are prefixed with file and line.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<T>(&self, f: impl Fn(&Row) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        self.rows.iter().map(|row| f(row).with_context(|| self.place(row))).collect()
    }
}

impl Rows {
    /// Reports unread columns and the interpretation of prompts given as text.
    pub fn report_reading(&self, encoder: Option<&Encoder>, context: &StageContext) {
        let texts = || self.rows.iter().filter(|row| !row.object.contains_key("tokens"));
        let mut unread: BTreeMap<String, usize> = BTreeMap::new();
        for column in texts().flat_map(|row| data::unread(row.object.clone())) {
            *unread.entry(column).or_default() += 1;
        }
        if !unread.is_empty() {
            context.print_once(&format!("{}: {}", self.name(), data::unread_columns(&unread, self.rows.len())));
        }
        let is_text = |row: &Row| matches!(row.prompt(), Ok(Content::Text(_)));
        if let Some(note) = encoder.and_then(Encoder::text_prompt_note).filter(|_| texts().any(is_text)) {
            context.print_once(&format!("{}: {note}", self.name()));
        }
    }
}

impl Row {
    /// The whole sequence of a row: the first of its `tokens`, its `prompt` with `response` (or `completion`), its
    /// `messages`, and its `text`. An end token is appended to a response or text, unless its `finish_reason` is
    /// `length`.
    ///
    /// # Errors
    /// If the row has none of these, needs a missing tokenizer, or does not fit the model.
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

    /// The sequence for a judge: as [`Row::sequence`], but prompt and response are re-encoded by the judge's tokenizer
    /// if the row's tokens are not its encoding of them.
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

    /// Whether the row's tokens start with this tokenizer's encoding of the prompt, and the rest decodes to the
    /// response.
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

    /// The row's `messages` with the other columns of the record.
    fn conversation(&self) -> anyhow::Result<Conversation> {
        let mut object = self.object.clone();
        object.retain(|name, _| !data::PAIR.contains(&name.as_str()));
        match data::example(object)? {
            Example::Messages(conversation) => Ok(conversation),
            other => bail!("this is {}, not messages", other.layout()),
        }
    }

    /// The prompt to generate a response for: the row's `tokens`, or its encoded prompt.
    ///
    /// # Errors
    /// If the row has none of these, needs a missing tokenizer, or does not fit the model.
    pub fn prompt_tokens(&self, encoder: Option<&Encoder>, spec: &ModelSpec) -> anyhow::Result<Vec<u32>> {
        let tokens = if self.object.contains_key("tokens") && !self.object.contains_key("prompt") {
            self.tokens()?
        } else {
            needed(encoder)?.prompt(&self.prompt()?)?
        };
        fits(&tokens, spec)?;
        Ok(tokens)
    }

    /// The prompt, as text or messages: the column `prompt` ([`data::prompt`]), or else the prompt that `ppo` and
    /// `evaluate` read from a record with these columns ([`data::Example::prompt`]).
    ///
    /// # Errors
    /// If the row has none.
    pub fn prompt(&self) -> anyhow::Result<Content> {
        match self.object.get("prompt") {
            Some(_) => data::prompt(self.object.clone()),
            None => data::example(self.object.clone())?.prompt().context("this record has no prompt"),
        }
    }

    /// The response, from column `response` or `completion`.
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

/// The column with the finish reason of a sampled response.
pub(crate) const FINISH_REASON: &str = "finish_reason";

/// Its value: `stop` at an end token, `length` if the response was cut off.
pub(crate) fn finish_reason(ending: Ending) -> &'static str {
    match ending {
        Ending::Eos => "stop",
        Ending::Cut => "length",
    }
}

/// Checks that results of a model are finite before they are written.
///
/// # Errors
/// If a value is not finite; the error names the result and the first such value.
pub(crate) fn check_finite(what: &str, values: &[f32]) -> anyhow::Result<()> {
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => bail!("a {what} is {value}: the model's numbers overflow on this input; check its weights"),
        None => Ok(()),
    }
}

/// Writes one object per line, atomically.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn write(path: &Path, rows: impl Iterator<Item = Map<String, Value>>) -> anyhow::Result<()> {
    if path == Path::new(STDOUT) {
        let mut out = std::io::stdout().lock();
        for row in rows {
            writeln!(out, "{}", serde_json::to_string(&row)?).context("cannot write to stdout")?;
        }
        return out.flush().context("cannot write to stdout");
    }
    atomic::write_with(path, |file| {
        for row in rows {
            serde_json::to_writer(&mut *file, &row)?;
            file.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// The path of an output that means stdout.
pub(crate) const STDOUT: &str = "-";

/// Splits consecutive sequences into batches of at most `budget` tokens (a longer sequence is a batch by itself).
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
