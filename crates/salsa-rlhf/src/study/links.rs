//! A cell as a run directory: links to its stages, and the files of a run beside them.
use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use super::plan::{Cell, Study};
use crate::{input, stage::StageContext};

impl Study {
    /// Creates the directory of a cell whose stages are all done. Correct existing contents are left alone.
    ///
    /// # Errors
    /// If something else is in the place of a link, or on an I/O error.
    pub(super) fn assemble(&self, cell: &Cell) -> anyhow::Result<()> {
        let dir = &cell.recipe.out;
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let as_run = cell.recipe.as_run()?;
        let mut is_new = input::read(&dir.join("recipe.yaml")).ok().as_deref() != Some(as_run.as_bytes());
        for (name, node) in &cell.stages {
            let stage = self.nodes[*node].dir.file_name().context("a stage has a directory")?;
            is_new |= link(&dir.join(name), &Path::new("../../../stages").join(stage))?;
        }
        remove_other_links(dir, cell)?;
        if is_new || !dir.join("report.html").exists() {
            // Every stage is done, so this only compares their records and writes the files beside the stages.
            cell.recipe.run(&StageContext::quiet()).with_context(|| format!("cell {}", self.name_of(cell)))?;
        }
        Ok(())
    }
}

/// Makes `place` a link to `target`; returns whether it was not one before.
fn link(place: &Path, target: &Path) -> anyhow::Result<bool> {
    match fs::read_link(place) {
        Ok(known) if known == target => return Ok(false),
        Ok(_) => remove(place)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => bail!("{} is no link to a stage of the study; move it away", place.display()),
    }
    match symlink(target, place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot link {} to its stage", place.display()))
        }
        _ => Ok(true),
    }
}

/// Removes links to stages that the cell no longer has since the study was changed.
fn remove_other_links(dir: &Path, cell: &Cell) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let path: PathBuf = entry.with_context(|| format!("cannot list {}", dir.display()))?.path();
        let is_stage = fs::read_link(&path).is_ok_and(|target| target.starts_with("../../../stages"));
        let is_own = cell.stages.iter().any(|(name, _)| path.file_name() == Some(name.as_ref()));
        if is_stage && !is_own {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(link: &Path) -> anyhow::Result<()> {
    fs::remove_file(link).with_context(|| format!("cannot remove the link {}", link.display()))
}

#[cfg(unix)]
fn symlink(target: &Path, place: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, place)
}

#[cfg(windows)]
fn symlink(target: &Path, place: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(target, place)
}
