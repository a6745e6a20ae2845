//! Compares the content of a stage's directory with the work to do there.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::record::Record;
use crate::{atomic, checkpoint};

/// State of a directory.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DirectoryState {
    /// Nothing worth keeping.
    Empty,
    /// Part of this work, which can be resumed.
    Begun,
    /// The finished work, with its results.
    Done(Value),
}

/// Why a directory may not be used.
#[derive(Debug, thiserror::Error)]
#[error("{}; {}", self.what(), self.remedy())]
pub(crate) enum Refused {
    /// It holds the result of another configuration.
    Done {
        /// The directory.
        dir: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// It holds part of other work.
    Begun {
        /// The directory.
        dir: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// It was not made by a stage.
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
}

impl Refused {
    /// Describes the obstacle.
    pub(crate) fn what(&self) -> String {
        match self {
            Refused::Done { dir, difference } => {
                format!("{} holds the result of another configuration: {difference}", dir.display())
            }
            Refused::Begun { dir, difference } => {
                format!("{} holds unfinished work of another configuration: {difference}", dir.display())
            }
            Refused::Foreign { dir } => {
                format!("{} is not empty and not a directory that salsa made (it has no stage.json)", dir.display())
            }
        }
    }

    /// Suggests a remedy for a single stage.
    fn remedy(&self) -> &'static str {
        match self {
            Refused::Done { .. } => "remove the directory to make it anew, or choose another output directory",
            Refused::Begun { .. } => "undo that to resume, or remove the directory to start anew",
            Refused::Foreign { .. } => "choose another output directory",
        }
    }
}

/// Compares the content of `dir` with the work `wanted`.
///
/// # Errors
/// [`Refused`], and if a record or the model is damaged.
pub(crate) fn standing(dir: &Path, wanted: &Record) -> anyhow::Result<DirectoryState> {
    if let Some(done) = Record::read(&dir.join("stage.json"))? {
        if let Some(difference) = done.difference(wanted) {
            bail!(Refused::Done { dir: dir.to_owned(), difference });
        }
        if let Some(file) = checkpoint::missing_file(dir)? {
            bail!(
                "{} is marked as done (stage.json), but {} is gone; remove the directory to make it anew",
                dir.display(),
                file.display()
            );
        }
        return Ok(DirectoryState::Done(done.results));
    }
    match Record::read(&dir.join("running.json"))? {
        Some(_) if !has_checkpoints(dir) => Ok(DirectoryState::Empty),
        Some(begun) => match begun.difference(wanted) {
            Some(difference) => bail!(Refused::Begun { dir: dir.to_owned(), difference }),
            None => Ok(DirectoryState::Begun),
        },
        None if dir.exists() && !only_contains(dir, &[".lock"])? => bail!(Refused::Foreign { dir: dir.to_owned() }),
        None => Ok(DirectoryState::Empty),
    }
}

/// Whether there are checkpoints to resume from.
pub(super) fn has_checkpoints(dir: &Path) -> bool {
    fs::read_dir(dir.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether the directory contains only files of these names and temporary files of a killed process.
pub(super) fn only_contains(dir: &Path, names: &[&str]) -> anyhow::Result<bool> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .all(|found| names.iter().any(|name| found == *name) || atomic::is_temporary_of(&found, "running.json")))
}
