//! Runs the stages of a recipe in order.
use std::fs;

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

use super::{Recipe, Selected, Step, aside};
use crate::{
    atomic,
    config::paths::Places,
    stage::{
        Outcome, StageContext,
        lifecycle::{agreement, inputs::Input},
        ranks, run_stage,
    },
};

impl Recipe {
    /// Runs every stage that is not done yet; returns the outcome of each stage.
    ///
    /// # Errors
    /// As [`Recipe::run_selected`].
    pub fn run(&self, context: &StageContext) -> anyhow::Result<Vec<Outcome>> {
        self.run_selected(&self.all(), context)
    }

    /// Runs the selected stages that are not done or are to be run again; returns the outcome of each.
    ///
    /// `OUT/recipe.yaml` is the recipe as it was run, `OUT/resolved.json` holds all its values; at the end
    /// `OUT/report.html` and, if the recipe evaluates, `OUT/summary.json` are written. Old results of stages that are
    /// run again are moved to `OUT/.aside`.
    ///
    /// # Errors
    /// Before anything is written, every stage whose directory holds the results of another configuration. Then the
    /// first error of a stage, with the stage's name; finished stages stay done.
    pub fn run_selected(&self, selected: &Selected, context: &StageContext) -> anyhow::Result<Vec<Outcome>> {
        let steps: Vec<&Step> = selected.run.iter().map(|&i| &self.steps[i]).collect();
        let names: Vec<&String> = steps.iter().map(|step| &step.name).collect();
        let values = json!({"out": self.out, "selected": names, "stages": self.values()});
        agreement::check(&*context.ranks, &values, &Places::default())?;
        ranks::from_first(&*context.ranks, || self.begin(selected, context))?;
        let width = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0);
        let mut outcomes = Vec::new();
        for (i, step) in steps.iter().enumerate() {
            if context.any_interrupted()? {
                bail!("interrupted before stage {}; the same command goes on from there", step.name);
            }
            context.say(&format!("[{}/{}] {} ({})", i + 1, steps.len(), step.name, step.kind.name));
            if step.planned.is_dry_run {
                let command = step.kind.command.join(" ");
                bail!("stage {}: a dry run leaves nothing for a recipe; use `salsa {command}` for it", step.name);
            }
            let config = (step.planned.config.clone(), step.planned.places.clone());
            let outcome = run_stage(step.kind.name, &step.dir, config, context, &step.planned.work)
                .map_err(|error| self.with_stage_name(step, error))?;
            context.say(&format!("{:width$}  {}", step.name, line(&outcome)));
            outcomes.push(outcome);
        }
        ranks::from_first(&*context.ranks, || {
            super::report::write(&self.out)?;
            aside::finish(&self.out)
        })?;
        Ok(outcomes)
    }

    /// Checks what stands in the directory of the recipe, and writes there what is run.
    fn begin(&self, selected: &Selected, context: &StageContext) -> anyhow::Result<()> {
        let moves = self.moves(selected)?;
        self.check_standing(&Selected { run: selected.run.clone(), anew: moves.anew.clone() })?;
        let (resolved, as_run) =
            (serde_json::to_string_pretty(&self.resolved()?).context("JSON")? + "\n", self.as_run()?);
        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        moves.carry_out(context)?;
        atomic::write(&self.out.join("recipe.yaml"), as_run.as_bytes())?;
        atomic::write(&self.out.join("resolved.json"), resolved.as_bytes())
    }

    /// All values of all stages.
    fn values(&self) -> Map<String, Value> {
        let entry = |step: &Step| json!({"kind": step.kind.name, "config": step.planned.config});
        self.steps.iter().map(|step| (step.name.clone(), entry(step))).collect()
    }

    /// All values of the recipe, and its inputs from outside.
    fn resolved(&self) -> anyhow::Result<Value> {
        let mut inputs: Vec<Input> = Vec::new();
        for step in &self.steps {
            for path in step.planned.inputs.iter().filter(|path| !path.starts_with(&self.out)) {
                if !inputs.iter().any(|input| input.path == *path) {
                    inputs.push(Input::read(path).with_context(|| format!("stage {}", step.name))?);
                }
            }
        }
        let stages = self.values();
        let version = env!("CARGO_PKG_VERSION");
        Ok(
            json!({"name": self.name, "version": version, "seed": self.seed, "out": self.out, "stages": stages, "inputs": inputs}),
        )
    }
}

/// One line about a finished stage: time and the first few numbers of its results.
fn line(outcome: &Outcome) -> String {
    let mut line = match outcome {
        Outcome::Done { seconds, .. } => format!("done in {seconds:.1} s"),
        Outcome::Skipped { .. } => "done before, skipped".to_owned(),
    };
    let mut numbers = Vec::new();
    collect(outcome.results(), "", &mut numbers);
    for (path, number) in numbers.iter().take(5) {
        // The last two components suffice (`train.loss`), unless others end alike (`arms.ppo.test.score`).
        let short = |path: &str| {
            let start = path.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
            path[start..].to_owned()
        };
        let is_alone = numbers.iter().filter(|(other, _)| short(other) == short(path)).count() == 1;
        let name = if is_alone { short(path) } else { path.strip_prefix("arms.").unwrap_or(path).to_owned() };
        line += &format!("  {name} {number}");
    }
    line
}

/// The numbers of a JSON value with their paths.
pub(super) fn collect(value: &Value, path: &str, numbers: &mut Vec<(String, String)>) {
    match value {
        Value::Number(number) if number.is_f64() => {
            numbers.push((path.to_owned(), format!("{:.4}", number.as_f64().unwrap_or(f64::NAN))));
        }
        Value::Number(number) => numbers.push((path.to_owned(), number.to_string())),
        Value::Object(fields) => {
            for (name, field) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                collect(field, &path, numbers);
            }
        }
        _ => {}
    }
}
