//! Which stages of a recipe run, and which of them are run again.
use std::collections::BTreeSet;

use super::{ErrorList, Recipe, Step};
use crate::{
    config::{Usage, names},
    stage::lifecycle::{
        inputs::Input,
        record::Record,
        standing::{DirectoryState, Refused, standing},
    },
};

/// The selection of stages on the command line, by name.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Run again; old results are set aside.
    pub rerun: Vec<String>,
    /// The same, with every stage that reads their results, directly or indirectly.
    pub from: Vec<String>,
    /// The only stages to run; empty: all.
    pub only: Vec<String>,
}

/// The same by the positions of the stages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Stages that run unless they are done.
    pub(super) run: BTreeSet<usize>,
    /// Those among them whose old results are set aside first.
    pub(super) anew: BTreeSet<usize>,
}

impl Selected {
    /// Whether a stage is to be run again.
    pub(super) fn is_anew(&self, recipe: &Recipe, step: &Step) -> bool {
        self.anew.iter().any(|&i| recipe.steps[i].name == step.name)
    }
}

impl Recipe {
    /// Selects all stages, none of them to be run again.
    pub fn all(&self) -> Selected {
        Selected { run: (0..self.steps.len()).collect(), anew: BTreeSet::new() }
    }

    /// Selects all stages, each to be made anew: what their directories hold does not count.
    pub fn all_anew(&self) -> Selected {
        let run = self.all().run;
        Selected { anew: run.clone(), run }
    }

    /// Selects the stages that the command line names.
    ///
    /// # Errors
    /// If a name is not that of a stage; if a stage is to be run again but left out; if a stage reads the product of an
    /// unfinished stage that is left out.
    pub fn select(&self, selection: &Selection) -> anyhow::Result<Selected> {
        let positions = |flag: &str, names: &[String]| -> Result<BTreeSet<usize>, Usage> {
            names.iter().map(|name| self.position(flag, name)).collect()
        };
        let mut anew = positions("rerun", &selection.rerun)?;
        for first in positions("from", &selection.from)? {
            anew.insert(first);
            anew.extend(self.readers(first));
        }
        let only = positions("only", &selection.only)?;
        let run = if only.is_empty() { self.all().run } else { only };
        let left_out: Vec<&str> = anew.difference(&run).map(|&i| self.steps[i].name.as_str()).collect();
        if !left_out.is_empty() {
            let names = left_out.join(", ");
            return Err(
                Usage(format!("{names}: to be made anew, but not among the stages of --only; add it there")).into()
            );
        }
        for (i, from) in run.iter().flat_map(|&i| self.read_by(i).into_iter().map(move |from| (i, from))) {
            if !run.contains(&from) && !self.is_done(&self.steps[from]) {
                let (reader, read) = (&self.steps[i].name, &self.steps[from].name);
                return Err(Usage(format!(
                    "--only {reader}: it reads what {read} leaves, and {read} is not done; say --only {read},{reader}"
                ))
                .into());
            }
        }
        Ok(Selected { run, anew })
    }

    /// Whether a stage has finished.
    pub(super) fn is_done(&self, step: &Step) -> bool {
        step.dir.join("stage.json").exists()
    }

    fn position(&self, flag: &str, name: &str) -> Result<usize, Usage> {
        let names = || self.steps.iter().map(|step| step.name.as_str());
        names().position(|known| known == name).ok_or_else(|| {
            Usage(format!("--{flag} {name}: the recipe has no stage {name:?}; {}", names::hint(name, names())))
        })
    }

    /// The earlier stages whose directories a stage reads from.
    pub(super) fn read_by(&self, step: usize) -> BTreeSet<usize> {
        let reads = |other: &Step| self.steps[step].planned.inputs.iter().any(|path| path.starts_with(&other.dir));
        (0..step).filter(|&other| reads(&self.steps[other])).collect()
    }

    /// The stages that read the product of a stage, directly or indirectly.
    pub(super) fn readers(&self, step: usize) -> BTreeSet<usize> {
        let mut found = BTreeSet::from([step]);
        for later in step + 1..self.steps.len() {
            if !self.read_by(later).is_disjoint(&found) {
                found.insert(later);
            }
        }
        found.remove(&step);
        found
    }

    /// Compares the contents of a stage's directory with the recipe. Inputs from `anew` or from unfinished stages are
    /// not compared, as their contents are not known yet.
    ///
    /// # Errors
    /// As [`standing`], and if an input cannot be read.
    pub(super) fn standing(&self, step: &Step, anew: &BTreeSet<usize>) -> anyhow::Result<DirectoryState> {
        let is_later = |path: &std::path::Path| {
            let mut writers = self.steps.iter().enumerate().filter(|(_, writer)| path.starts_with(&writer.dir));
            writers.any(|(i, writer)| anew.contains(&i) || !self.is_done(writer))
        };
        let has_record = ["stage.json", "running.json"].iter().any(|name| step.dir.join(name).exists());
        let (later, known): (Vec<_>, Vec<_>) = step.planned.inputs.iter().cloned().partition(|path| is_later(path));
        let known = if has_record { known } else { Vec::new() };
        let inputs = known.iter().map(|path| Input::read(path)).collect::<anyhow::Result<Vec<_>>>()?;
        let (config, places) = (step.planned.config.clone(), step.planned.places.clone());
        standing(&step.dir, &Record { later, ..Record::new(step.kind.name, config, places, inputs) })
    }

    /// Checks, before any work, that no stage's directory holds the results of another configuration.
    ///
    /// # Errors
    /// Every stage whose directory does, with a remedy.
    pub(super) fn check_standing(&self, selected: &Selected) -> Result<(), ErrorList> {
        let mut needed = selected.run.clone();
        for &step in &selected.run {
            let mut to_do = vec![step];
            while let Some(step) = to_do.pop() {
                to_do.extend(self.read_by(step).into_iter().filter(|&from| needed.insert(from)));
            }
        }
        let mut faults = ErrorList::default();
        for step in needed.difference(&selected.anew).map(|&i| &self.steps[i]) {
            let standing = self.standing(step, &selected.anew).map_err(|error| self.with_stage_name(step, error));
            faults.take(standing);
        }
        faults.none_or(())
    }

    /// Rewords a stage's error for a recipe, with the stage's name.
    pub(super) fn with_stage_name(&self, step: &Step, error: anyhow::Error) -> anyhow::Error {
        self.refused(step, error).context(format!("stage {}", step.name))
    }

    /// Rewords a stage's error for a recipe, where stages can be run again.
    pub(super) fn refused(&self, step: &Step, error: anyhow::Error) -> anyhow::Error {
        let name = &step.name;
        match error.downcast_ref::<Refused>() {
            Some(Refused::Foreign { .. }) | None => error,
            Some(refused) => {
                let position = self.steps.iter().position(|other| other.name == *name).unwrap_or_default();
                let readers = self.readers(position);
                let readers: Vec<&str> = readers.iter().map(|&i| self.steps[i].name.as_str()).collect();
                let from = match readers.as_slice() {
                    [] => String::new(),
                    readers => format!(" (--from {name}: with {}, which read it)", readers.join(", ")),
                };
                let what = match refused {
                    Refused::Begun { .. } => format!("{}; undo that to resume", refused.what()),
                    _ => refused.what(),
                };
                anyhow::anyhow!("{what}; --rerun {name} sets it aside and makes it anew{from}, or choose another --out")
            }
        }
    }
}
