//! `salsa run --check`: opens everything that a recipe names, without reading weights.
//!
//! ```text
//! each model directory   its config and tensors; its tokenizer and chat template if the stage needs them
//! each data set          all records are read; the first one is encoded for the stage's model
//! each stage             executed up to its memory plan if its data exists; models that earlier stages will write are
//!                        replaced by outlines
//! ```
use std::path::Path;

use super::{ErrorList, Recipe, Selected, Step, aside};
use crate::{
    config::paths::PathKind,
    hub,
    progress::human_time,
    stage::{StageContext, kind::Planned, lifecycle::runner::seconds_of, memory::PlanOnly},
};

mod agreement;
mod data;
mod models;
mod outlines;

use models::Models;
use outlines::Outlines;

/// Result of a check of all stages.
#[derive(Default)]
pub struct Checked {
    /// One block of lines per stage: its inputs, what is left out of them, and the memory it needs, as far as known.
    pub stages: Vec<String>,
    /// All errors.
    pub faults: ErrorList,
}

/// The check of one stage.
struct StageCheck<'a> {
    recipe: &'a Recipe,
    step: &'a Step,
    selected: &'a Selected,
    /// Its processes are those of the run.
    context: &'a StageContext,
    facts: Vec<String>,
    faults: ErrorList,
    /// Whether everything it reads could be opened.
    whole: bool,
}

/// Whether an input of a stage can be opened.
enum Presence<'a> {
    /// It can be opened.
    Here,
    /// The stage of this name will write it.
    Later(&'a str),
    /// It is an id of the hub that is not in the cache.
    OnHub,
}

impl Recipe {
    /// Opens all inputs of every selected stage. Reads no weights, writes only outlines of models in the system's
    /// folder for temporary files, and does not use the network.
    pub fn check(&self, selected: &Selected) -> Checked {
        self.check_together(selected, &StageContext::rehearsal())
    }

    /// [`Recipe::check`] of a run by the processes of a context ([`StageContext::with_ranks`]): the memory is what each
    /// of them needs. All of them call this.
    pub fn check_together(&self, selected: &Selected, context: &StageContext) -> Checked {
        let (mut checked, mut outlines) = (Checked::default(), Outlines::new(self, selected));
        for step in selected.run.iter().map(|&i| &self.steps[i]) {
            let (block, faults) = StageCheck::at(self, step, selected, context, &mut outlines);
            checked.stages.push(block);
            checked.faults.extend(faults, |fault| fault.context(format!("stages.{}", step.name)));
        }
        checked
    }
}

impl<'a> StageCheck<'a> {
    fn at(
        recipe: &'a Recipe,
        step: &'a Step,
        selected: &'a Selected,
        context: &'a StageContext,
        outlines: &mut Outlines<'_>,
    ) -> (String, ErrorList) {
        let mut check = StageCheck {
            recipe,
            step,
            selected,
            context,
            facts: Vec::new(),
            faults: ErrorList::default(),
            whole: true,
        };
        let models = check.models();
        check.data(&models);
        check.compare_with_earlier();
        check.before();
        if recipe.remains(step, selected) && check.faults.is_empty() {
            check.rehearse(outlines);
        }
        let facts = match (check.facts.is_empty(), check.faults.is_empty()) {
            (true, true) => "reads nothing".to_owned(),
            (true, false) => "nothing of it can be used".to_owned(),
            (false, _) => check.facts.join("\n"),
        };
        let block = format!("{} ({})\n{facts}", step.name, step.kind.name);
        (block.replace('\n', "\n  "), check.faults)
    }

    /// Opens each model once.
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
            models.check_reward_model(&mut self.faults);
        }
        models
    }

    /// Returns whether an input can be opened; if not, records why.
    fn is_here(&mut self, place: &str, path: &Path) -> bool {
        let fact = match self.recipe.presence(self.step, path, self.selected) {
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

    /// Records what the stage's directory holds already, and how long it took.
    fn before(&mut self) {
        let StageCheck { recipe, step, selected, .. } = *self;
        let seconds = seconds_of(&step.dir).map(human_time);
        if !recipe.remains(step, selected) {
            self.facts.push(format!("done already{}", seconds.map_or(String::new(), |time| format!(" in {time}"))));
        } else if let Some(time) = seconds.or_else(|| aside::seconds_before(&recipe.out, &step.name).map(human_time)) {
            self.facts.push(match recipe.is_done(step) || !step.dir.exists() {
                true => format!("it took {time} before"),
                false => format!("begun, {time} so far"),
            });
        }
        if !selected.is_anew(recipe, step) {
            let standing = recipe.standing(step, &selected.anew).map_err(|error| recipe.refused(step, error));
            self.faults.take(standing);
        }
    }

    /// Executes the stage up to its memory plan.
    fn rehearse(&mut self, outlines: &mut Outlines<'_>) {
        let own = &self.step.planned;
        if self.whole {
            return self.rehearse_with(own, outlines);
        }
        let Some(outlined) = self.faults.take(outlines.planned(self.step)).flatten() else { return };
        self.rehearse_with(&outlined, outlines);
    }

    fn rehearse_with(&mut self, planned: &Planned, outlines: &Outlines<'_>) {
        let fault = |error: anyhow::Error| anyhow::anyhow!(outlines.in_words(&format!("{error:#}")));
        if self.faults.take((planned.check_inputs)().map_err(fault)).is_none() || !planned.plans_memory {
            return;
        }
        let ranks = &self.context.ranks;
        let context = StageContext::rehearsal().with_ranks(ranks.clone());
        if let Err(error) = (planned.work)(&context) {
            self.facts.extend(context.left_out().iter().map(|line| outlines.in_words(line)));
            match error.downcast_ref::<PlanOnly>() {
                Some(PlanOnly(need)) if ranks.size() > 1 => {
                    self.facts.push(format!("memory of each of {} processes {need}", ranks.size()));
                }
                Some(PlanOnly(need)) => self.facts.push(format!("memory {need}")),
                None => self.faults.add(fault(error)),
            }
        }
    }
}

impl Recipe {
    /// Whether a stage is unfinished or is to be run again.
    fn remains(&self, step: &Step, selected: &Selected) -> bool {
        selected.is_anew(self, step) || !self.is_done(step)
    }

    /// Whether `path`, which `step` reads, can be opened.
    fn presence<'a>(&'a self, step: &Step, path: &Path, selected: &Selected) -> Presence<'a> {
        let earlier = self.steps.iter().take_while(|other| other.name != step.name);
        let to_do = earlier.filter(|other| self.remains(other, selected)).find(|other| path.starts_with(&other.dir));
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
