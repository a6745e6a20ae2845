//! Results of stages that are run again are set aside: moved, never deleted.
//!
//! ```text
//! OUT/.aside/STAGE-N        the former directory OUT/STAGE; N counts from 1
//! OUT/.aside/pending.json   moves of an unfinished command; the same command continues and does not repeat them
//! ```
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use super::{Recipe, Step, selection::Selected};
use crate::{
    atomic, input,
    progress::human_time,
    stage::{
        StageContext,
        lifecycle::{lock::Lock, runner::seconds_of},
    },
};

/// The folder inside a run's directory.
const FOLDER: &str = ".aside";

/// `pending.json`: for each stage, the name of its old results in [`FOLDER`], or null if it had none.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Pending {
    stages: BTreeMap<String, Option<String>>,
}

/// A planned move of a directory.
#[derive(Debug, PartialEq)]
struct Move {
    from: PathBuf,
    to: PathBuf,
    /// Description for the user.
    line: String,
}

/// All planned moves.
#[derive(Debug, Default)]
pub(super) struct Moves {
    folder: PathBuf,
    moves: Vec<Move>,
    pending: Pending,
    /// The stages to run again, except those that an earlier, unfinished command has already begun to run again.
    pub anew: BTreeSet<usize>,
    notes: Vec<String>,
}

impl Recipe {
    /// Plans what has to be set aside for this selection, without moving anything.
    ///
    /// # Errors
    /// If [`FOLDER`] exists but is no folder, or the notes of an earlier command cannot be read.
    pub(super) fn moves(&self, selected: &Selected) -> anyhow::Result<Moves> {
        let folder = self.out.join(FOLDER);
        let mut plan = Moves { folder: folder.clone(), ..Moves::default() };
        if selected.anew.is_empty() {
            return Ok(plan);
        }
        ensure!(
            fs::symlink_metadata(&folder).is_ok_and(|found| found.is_dir()) || fs::symlink_metadata(&folder).is_err(),
            "{} is no folder; move it away, so that results can be set aside there",
            folder.display()
        );
        let begun = plan.begun(self, selected)?;
        for &i in &selected.anew {
            let step = &self.steps[i];
            let before = begun.as_ref().and_then(|begun| begun.stages.get(&step.name)).cloned();
            let is_set_aside = before.as_ref().is_some_and(|to| to.as_ref().is_none_or(|to| folder.join(to).exists()));
            if fs::symlink_metadata(&step.dir).is_err() {
                plan.notes.push(format!("{} has left nothing yet", step.name));
                plan.pending.stages.insert(step.name.clone(), before.flatten());
            } else if is_set_aside && self.standing(step, &selected.anew).is_ok() {
                plan.notes
                    .push(format!("{} goes on: the command before this one set its old results aside", step.name));
                plan.pending.stages.insert(step.name.clone(), before.flatten());
                continue;
            } else {
                let to = free_name(&folder, &step.name)?;
                let line = format!("{} ({}), as {}", step.name, state(step), folder.join(&to).display());
                plan.moves.push(Move { from: step.dir.clone(), to: folder.join(&to), line });
                plan.pending.stages.insert(step.name.clone(), Some(to));
            }
            plan.anew.insert(i);
        }
        Ok(plan)
    }
}

impl Moves {
    /// The notes of an earlier run of the same command that did not finish.
    fn begun(&self, recipe: &Recipe, selected: &Selected) -> anyhow::Result<Option<Pending>> {
        let path = self.folder.join("pending.json");
        let Some(bytes) = input::read_if_any(&path)? else { return Ok(None) };
        let pending: Pending =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged; remove it", path.display()))?;
        let names: BTreeSet<&String> = selected.anew.iter().map(|&i| &recipe.steps[i].name).collect();
        Ok(Some(pending).filter(|pending| pending.stages.keys().collect::<BTreeSet<_>>() == names))
    }

    /// The planned moves, one per line.
    pub(super) fn lines(&self) -> Vec<String> {
        let heading = "set aside, to be made anew (nothing is deleted):".to_owned();
        let moves = self.moves.iter().map(|one| format!("  {}", one.line));
        let moves: Vec<String> =
            if self.moves.is_empty() { Vec::new() } else { [heading].into_iter().chain(moves).collect() };
        self.notes.iter().cloned().chain(moves).collect()
    }

    /// Announces and carries out the moves.
    ///
    /// # Errors
    /// If another process works on one of the stages (nothing is moved then), or on an I/O error.
    pub(super) fn carry_out(self, context: &StageContext) -> anyhow::Result<()> {
        self.lines().iter().for_each(|line| context.say(line));
        if self.pending.stages.is_empty() {
            return Ok(());
        }
        let mut locks = self.moves.iter().map(|one| Lock::take(&one.from)).collect::<anyhow::Result<Vec<_>>>()?;
        let pending = serde_json::to_string_pretty(&self.pending).context("JSON")? + "\n";
        atomic::write(&self.folder.join("pending.json"), pending.as_bytes())?;
        for (one, lock) in self.moves.iter().zip(&mut locks) {
            atomic::move_to(&one.from, &one.to)?;
            lock.moved_to(&one.to);
        }
        Ok(())
    }
}

/// Marks the command as finished: the next one that names the same stages runs them again.
pub(super) fn finish(out: &Path) -> anyhow::Result<()> {
    let path = out.join(FOLDER).join("pending.json");
    match fs::remove_file(&path) {
        Err(error)
            if error.kind() != std::io::ErrorKind::NotFound && error.kind() != std::io::ErrorKind::NotADirectory =>
        {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Seconds that a stage took before, from the newest of its results that were set aside.
pub(super) fn seconds_before(out: &Path, stage: &str) -> Option<f64> {
    let folder = out.join(FOLDER);
    let newest = numbers(&folder, stage).ok()?.into_iter().max()?;
    seconds_of(&folder.join(format!("{stage}-{newest}")))
}

/// The next unused name for old results of a stage.
fn free_name(folder: &Path, stage: &str) -> anyhow::Result<String> {
    let next = numbers(folder, stage)?.into_iter().max().map_or(1, |last| last + 1);
    Ok(format!("{stage}-{next}"))
}

/// The numbers of the old results of a stage.
fn numbers(folder: &Path, stage: &str) -> anyhow::Result<Vec<u64>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => bail!("cannot list {}: {error}", folder.display()),
    };
    let number = |name: &str| name.strip_prefix(stage)?.strip_prefix('-')?.parse().ok();
    Ok(entries.filter_map(|entry| number(entry.ok()?.file_name().to_str()?)).collect())
}

/// A short description of a stage's directory.
fn state(step: &Step) -> String {
    let state = if step.dir.join("stage.json").exists() { "done" } else { "not done" };
    match seconds_of(&step.dir) {
        Some(seconds) => format!("{state}, {}", human_time(seconds)),
        None => state.to_owned(),
    }
}
