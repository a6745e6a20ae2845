//! The replies of a judge in a run, one line each, appended on arrival and never rewritten.
use std::{
    collections::HashMap,
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Grades;
use crate::{
    atomic,
    stage::{StageContext, endpoint::Reply},
};

/// The replies so far.
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// The first grade of each question.
    grades: HashMap<String, f64>,
}

/// A line.
#[derive(Serialize, Deserialize)]
pub(super) struct Entry {
    /// The identity of the question.
    pub id: String,
    /// The prompt, of a conversation its last message.
    pub prompt: String,
    /// The response.
    pub response: String,
    /// What the judge said.
    pub reply: Reply,
    /// The grade in it, if there is one.
    pub grade: Option<f64>,
}

impl Journal {
    /// Opens the file, or begins it. An incomplete last line, left by a killed process, is cut off.
    ///
    /// # Errors
    /// If it cannot be read or written, or a whole line is no reply.
    pub(super) fn open(path: &Path, grades: &Grades, context: &StageContext) -> anyhow::Result<Journal> {
        let shown = path.display();
        let mut file = atomic::open_to_continue(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).with_context(|| format!("cannot read {shown}"))?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            context.say(&format!("{shown}: the last line is cut off; it is dropped and asked again"));
            file.set_len(whole as u64).with_context(|| format!("cannot cut {shown}"))?;
        }
        file.seek(SeekFrom::Start(whole as u64)).with_context(|| format!("cannot read {shown}"))?;
        let mut known = HashMap::new();
        for (at, line) in text[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let entry: Entry = serde_json::from_slice(line)
                .with_context(|| format!("{shown}:{}: this is no reply of a judge; remove the file", at + 1))?;
            // Read from the text again: a number that went through JSON could differ in its last bit.
            if let Some(grade) = grades.read(&entry.reply.text) {
                known.entry(entry.id).or_insert(grade);
            }
        }
        Ok(Journal { path: path.to_owned(), file, grades: known })
    }

    /// The grade of a question, if there is one.
    pub(super) fn grade(&self, id: &str) -> Option<f64> {
        self.grades.get(id).copied()
    }

    /// Appends a reply.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn add(&mut self, entry: Entry) -> anyhow::Result<()> {
        let line = format!("{}\n", serde_json::to_string(&entry)?);
        self.file.write_all(line.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))?;
        if let Some(grade) = entry.grade {
            self.grades.entry(entry.id).or_insert(grade);
        }
        Ok(())
    }
}
