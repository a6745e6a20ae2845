//! What a stage's directory holds, compared with the work that is wanted there.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use serde_json::Value;

use super::record::Record;
use crate::{atomic, checkpoint};

/// What a directory holds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Standing {
    /// Nothing that would be kept.
    Empty,
    /// A part of this work, from which it goes on.
    Begun,
    /// This work, with these results.
    Done(Value),
}

/// Why a directory is left as it is.
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
    /// It holds a part of other work.
    Begun {
        /// The directory.
        dir: PathBuf,
        /// The first difference.
        difference: String,
    },
    /// No stage made it.
    Foreign {
        /// The directory.
        dir: PathBuf,
    },
}

impl Refused {
    /// What stands in the way.
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

    /// What a single stage can do about it.
    fn remedy(&self) -> &'static str {
        match self {
            Refused::Done { .. } => "remove the directory to make it anew, or choose another output directory",
            Refused::Begun { .. } => "undo that to resume, or remove the directory to start anew",
            Refused::Foreign { .. } => "choose another output directory",
        }
    }
}

/// Compares what `dir` holds with the work that `wanted` describes.
///
/// # Errors
/// [`Refused`], and if a record or the model is damaged.
pub(crate) fn standing(dir: &Path, wanted: &Record) -> anyhow::Result<Standing> {
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
        return Ok(Standing::Done(done.results));
    }
    match Record::read(&dir.join("running.json"))? {
        Some(_) if !has_checkpoints(dir) => Ok(Standing::Empty),
        Some(begun) => match begun.difference(wanted) {
            Some(difference) => bail!(Refused::Begun { dir: dir.to_owned(), difference }),
            None => Ok(Standing::Begun),
        },
        None if dir.exists() && !only_contains(dir, &[".lock"])? => bail!(Refused::Foreign { dir: dir.to_owned() }),
        None => Ok(Standing::Empty),
    }
}

/// Whether there is something to resume from.
pub(super) fn has_checkpoints(dir: &Path) -> bool {
    fs::read_dir(dir.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether there is nothing else in the directory than these and what a killed process left of a marker.
pub(super) fn only_contains(dir: &Path, names: &[&str]) -> anyhow::Result<bool> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    Ok(entries
        .filter_map(Result::ok)
        .map(|entry| entry.file_name())
        .all(|found| names.iter().any(|name| found == *name) || atomic::is_temporary_of(&found, "running.json")))
}
