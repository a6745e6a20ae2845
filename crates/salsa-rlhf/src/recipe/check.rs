//! `salsa run --check`: everything that a recipe names is opened, and no weight is read.
//!
//! ```text
//! each model directory   its config and tensors; its tokenizer and chat template, where the stage needs them
//! each data set          all of it read; its first record as the stage's model would see it
//! each stage             its own work up to its memory plan, where all that it reads is there
//! ```
use std::path::Path;

use super::{Faults, Recipe, Step};
use crate::{
    config::paths::PathKind,
    hub,
    stage::{StageContext, kind::Planned, memory::Rehearsed},
};

mod data;
mod models;

use models::Models;

/// What a look at all stages came to.
#[derive(Default)]
pub struct Checked {
    /// One line about each stage: what it reads, and the memory it needs as far as that is known.
    pub lines: Vec<String>,
    /// What is wrong.
    pub faults: Faults,
}

/// A look at one stage.
struct Look<'a> {
    recipe: &'a Recipe,
    step: &'a Step,
    facts: Vec<String>,
    faults: Faults,
    /// Whether all that it reads was there to be opened.
    whole: bool,
}

/// Whether something that a stage reads can be opened.
enum Presence<'a> {
    /// It can be tried.
    Here,
    /// The stage of this name is going to write it.
    Later(&'a str),
    /// It has this id on the hub, and is not in the cache.
    OnHub,
}

impl Recipe {
    /// Opens what every stage reads. No weight is read, nothing is written, and the network is not asked.
    pub fn check(&self) -> Checked {
        let mut checked = Checked::default();
        for step in &self.steps {
            let (line, faults) = Look::at(self, step);
            checked.lines.push(line);
            checked.faults.extend(faults, |fault| fault.context(format!("stages.{}", step.name)));
        }
        checked
    }
}

impl<'a> Look<'a> {
    fn at(recipe: &'a Recipe, step: &'a Step) -> (String, Faults) {
        let mut look = Look { recipe, step, facts: Vec::new(), faults: Faults::default(), whole: true };
        let models = look.models();
        look.data(&models);
        if recipe.is_done(step) {
            look.facts.push("done already".to_owned());
        } else if look.whole && look.faults.is_empty() {
            look.rehearse();
        }
        let facts = match (look.facts.is_empty(), look.faults.is_empty()) {
            (true, true) => "reads nothing".to_owned(),
            (true, false) => "nothing of it can be used".to_owned(),
            (false, _) => look.facts.join("; "),
        };
        (format!("{} ({}): {facts}", step.name, step.kind.name), look.faults)
    }

    /// Opens the models, each once.
    fn models(&mut self) -> Models<'a> {
        let step = self.step;
        let mut models = Models::new(&step.planned.reads);
        for (place, path) in paths(&self.step.planned, PathKind::Model) {
            if models.knows(&path) || !self.is_here(&place, &path) {
                continue;
            }
            let fact = models.open(&place, &path).map_err(|error| error.context(place.clone()));
            self.facts.extend(self.faults.take(fact).map(|fact| format!("{place} {}: {fact}", path.display())));
        }
        if self.whole {
            models.hold_together(&mut self.faults);
        }
        models
    }

    /// Says so if it is not.
    fn is_here(&mut self, place: &str, path: &Path) -> bool {
        let fact = match self.recipe.presence(self.step, path) {
            Presence::Here => return true,
            Presence::Later(stage) => format!("{place}: what {stage} will write"),
            Presence::OnHub => {
                format!("{place} {}: not checked, an id of the hub that is not in the cache", path.display())
            }
        };
        self.facts.push(fact);
        self.whole = false;
        false
    }

    /// Lets the stage do its work up to its memory plan.
    fn rehearse(&mut self) {
        let planned = &self.step.planned;
        if self.faults.take((planned.check_inputs)()).is_none() || !planned.plans_memory {
            return;
        }
        if let Err(error) = (planned.work)(&StageContext::rehearsal()) {
            match error.downcast_ref::<Rehearsed>() {
                Some(Rehearsed(need)) => self.facts.push(format!("memory {need}")),
                None => self.faults.add(error),
            }
        }
    }
}

impl Recipe {
    fn is_done(&self, step: &Step) -> bool {
        step.dir.join("stage.json").exists()
    }

    /// Whether `path`, which `step` reads, can be opened.
    fn presence<'a>(&'a self, step: &Step, path: &Path) -> Presence<'a> {
        let earlier = self.steps.iter().take_while(|other| other.name != step.name);
        let to_do = earlier.filter(|other| !self.is_done(other)).find(|other| path.starts_with(&other.dir));
        let faulty = self.faulty.iter().find(|name| path.starts_with(self.out.join(name)) && !path.exists());
        match to_do.map(|other| &other.name).or(faulty) {
            Some(writer) => Presence::Later(writer),
            None if !path.exists() && path.to_str().is_some_and(hub::is_id) => Presence::OnHub,
            None => Presence::Here,
        }
    }
}

/// The paths of one kind that a stage reads, each with its place.
fn paths(planned: &Planned, wanted: PathKind) -> Vec<(String, std::path::PathBuf)> {
    let mut found = Vec::new();
    planned
        .places
        .visit(&mut planned.config.clone(), &mut |kind, place, text| {
            if kind == wanted {
                found.push((place.to_owned(), text.into()));
            }
            Ok(None)
        })
        .expect("this visit cannot fail");
    found
}
