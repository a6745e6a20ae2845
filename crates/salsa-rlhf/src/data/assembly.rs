//! Assembles records into a data set: checks that all have one layout, and notes how they were read.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::{
    Content, Dataset, Example, Labels, Layout, Place, Preference, Shape, bucket,
    columns::Row,
    unpaired::{Paired, Unpaired, prompt_and_answer},
};

/// A data set under construction.
pub(super) struct Assembly {
    set: Dataset,
    /// The shape of the records, the place of the record that determined it, and its null columns.
    shape: Option<(Shape, String, Vec<String>)>,
    records: usize,
    /// Number of records whose text became messages; all others must then become messages too.
    lifted: usize,
    unread: BTreeMap<String, usize>,
    /// Whether records came with their rows.
    keeps_records: bool,
    labels: Labels,
    unpaired: Unpaired,
}

impl Assembly {
    pub(super) fn new(path: &Path, labels: Labels) -> Assembly {
        let set = Dataset {
            examples: Vec::new(),
            layout: Layout::Text,
            recognised: "",
            path: path.to_path_buf(),
            sha256: String::new(),
            dropped_identical: 0,
            notes: Vec::new(),
            buckets: Vec::new(),
            places: Vec::new(),
            records: Vec::new(),
            labels: Vec::new(),
        };
        let (unread, unpaired) = (BTreeMap::new(), Unpaired::default());
        Assembly { set, shape: None, records: 0, lifted: 0, unread, keeps_records: false, labels, unpaired }
    }

    /// Adds a record; `nulls` are its null columns.
    ///
    /// # Errors
    /// If its layout differs from the first record's.
    pub(super) fn add(&mut self, row: Row, nulls: Vec<String>, place: &Place) -> Result<()> {
        self.check_shape(&row, nulls, place)?;
        if self.records == 0 {
            self.set.recognised = row.recognised;
        }
        self.records += 1;
        self.keeps_records |= row.record.is_some();
        self.lifted += usize::from(row.is_lifted);
        for column in row.unread {
            *self.unread.entry(column).or_default() += 1;
        }
        match row.label {
            Some(label) if self.labels == Labels::Paired => self.unpaired.add(row.example, label, row.key, place),
            Some(label) => {
                if let Some((prompt, completion)) = prompt_and_answer(row.example) {
                    self.keep(Example::PromptCompletion { prompt, completion }, &row.key, place, row.record);
                    self.set.labels.push(label);
                }
            }
            None => self.keep(row.example, &row.key, place, row.record),
        }
        Ok(())
    }

    fn keep(&mut self, example: Example, key: &str, place: &Place, record: Option<Map<String, Value>>) {
        if let Example::Preference(pair) = &example
            && pair.chosen == pair.rejected
        {
            self.set.dropped_identical += 1;
            return;
        }
        self.set.buckets.push(bucket(key));
        self.set.places.push(place.clone());
        self.set.records.extend(record);
        self.set.examples.push(example);
    }

    fn check_shape(&mut self, row: &Row, nulls: Vec<String>, place: &Place) -> Result<()> {
        let shape = Shape { is_labelled: row.label.is_some(), ..Shape::of(&row.example) };
        match &mut self.shape {
            None => self.shape = Some((shape, place.to_string(), nulls)),
            // Converted messages agree with text: those of this record, or those of all earlier ones.
            Some((expected, ..)) if expected.agrees(&shape) && (row.is_lifted || self.lifted == self.records) => {
                if !row.is_lifted {
                    expected.messages = shape.messages;
                }
            }
            Some((expected, at, then)) if *expected != shape => bail!(
                "this record is {shape}{}, but the first one ({at}) is {expected}{}. One data set has one layout: split it into two files",
                named(&nulls),
                named(then)
            ),
            Some(_) => {}
        }
        Ok(())
    }

    /// Completes the data set.
    ///
    /// # Errors
    /// If no record is left, or labelled answers cannot be paired.
    pub(super) fn finish(mut self, sha256: String) -> Result<Dataset> {
        self.set.sha256 = sha256;
        let Some((shape, ..)) = self.shape.take() else {
            bail!("{} holds no records: a data set needs at least one", self.set.path.display());
        };
        self.set.layout = shape.layout;
        if !self.set.labels.is_empty() {
            self.set.layout = Layout::PromptCompletion;
            self.set.recognised = "KTO: prompt, completion, label";
        }
        self.pair()?;
        if self.set.examples.is_empty() {
            bail!(
                "{}: all {} preference pairs have identical or equally rated answers, so none says which is better",
                self.set.path.display(),
                self.set.dropped_identical
            );
        }
        self.lift();
        self.take_off_prompts();
        self.note_missing_prompts();
        self.note_unread();
        Ok(self.set)
    }

    fn pair(&mut self) -> Result<()> {
        if self.unpaired.is_empty() {
            return Ok(());
        }
        let (pairs, note) = std::mem::take(&mut self.unpaired).paired(&self.set.path)?;
        for Paired { pair, key, place } in pairs {
            self.keep(Example::Preference(pair), &key, &place, self.keeps_records.then(Map::new));
        }
        self.set.layout = Layout::Preference;
        self.set.recognised = "KTO: prompt, completion, label, in pairs";
        self.set.notes.push(note);
        Ok(())
    }

    fn lift(&mut self) {
        if self.lifted == 0 {
            return;
        }
        let lifted = self.set.examples.iter_mut().map(Example::lift).filter(|was_text| *was_text).count();
        let others = if lifted == 0 { "" } else { "; so do those of the other records" };
        self.set.notes.push(format!(
            "{} of {} records have a system message, earlier turns, a context or template arguments beside text: prompts and \
             answers become messages for the chat template{others}",
            self.lifted, self.records
        ));
    }

    /// Removes the prompt from answers that repeat it, if all do: otherwise it would appear twice.
    fn take_off_prompts(&mut self) {
        let count = self.set.examples.iter().filter(|example| repeats_prompt(example)).count();
        if count == self.set.examples.len() {
            self.set.examples.iter_mut().for_each(take_off_prompt);
            self.set.notes.push("every answer begins with its prompt: it is taken off the answers".to_owned());
        } else if count * 2 > self.set.examples.len() {
            let all = self.set.examples.len();
            self.set.notes.push(format!(
                "the answers of {count} of {all} records begin with their prompt, which stands there twice: take it off"
            ));
        }
    }

    fn note_missing_prompts(&mut self) {
        let is_bare = |example: &Example| matches!(example, Example::Preference(pair) if pair.prompt.is_empty());
        if self.set.examples.iter().all(is_bare) {
            self.set.notes.push(
                "no pair has a prompt: what is better is learned of the answers alone. Prompts are read of prompt, \
                 instruction, question, query, messages, conversations and input, or of a beginning that both answers share"
                    .to_owned(),
            );
        }
    }

    fn note_unread(&mut self) {
        if !self.unread.is_empty() {
            self.set.notes.push(unread_columns(&self.unread, self.records));
        }
    }
}

/// Null columns for an error message: they are often the reason for another layout.
fn named(nulls: &[String]) -> String {
    let names: Vec<String> = nulls.iter().map(|name| printable(name)).collect();
    if names.is_empty() { String::new() } else { format!(" (null: {})", names.join(", ")) }
}

/// A message about columns that look like content and were not read, each with its number of `records`.
pub fn unread_columns(unread: &BTreeMap<String, usize>, records: usize) -> String {
    let column = |(name, count): (&String, &usize)| format!("{} ({count} of {records} records)", printable(name));
    let columns: Vec<String> = unread.iter().map(column).collect();
    format!("columns that are not read: {}", columns.join(", "))
}

/// Escapes a name from a file for the terminal.
fn printable(name: &str) -> String {
    name.escape_debug().collect()
}

/// Whether the answers are text that continues the prompt.
fn repeats_prompt(example: &Example) -> bool {
    let (prompt, answers) = match example {
        Example::PromptCompletion { prompt, completion } => (prompt, vec![completion]),
        Example::Preference(Preference { prompt, chosen, rejected, .. }) => (prompt, vec![chosen, rejected]),
        _ => return false,
    };
    let Content::Text(prompt) = prompt else { return false };
    let repeats = |answer: &Content| match answer {
        Content::Text(answer) => answer.strip_prefix(prompt.as_str()).is_some_and(|rest| !rest.trim().is_empty()),
        Content::Messages(_) => false,
    };
    !prompt.trim().is_empty() && answers.into_iter().all(repeats)
}

fn take_off_prompt(example: &mut Example) {
    let (prompt, answers) = match example {
        Example::PromptCompletion { prompt, completion } => (prompt, vec![completion]),
        Example::Preference(Preference { prompt, chosen, rejected, .. }) => (prompt, vec![chosen, rejected]),
        _ => return,
    };
    let Content::Text(prompt) = prompt else { return };
    for answer in answers {
        if let Content::Text(answer) = answer {
            answer.drain(..prompt.len());
        }
    }
}
