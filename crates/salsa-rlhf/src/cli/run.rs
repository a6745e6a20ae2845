//! `salsa run RECIPE.yaml`
use std::{fs, path::PathBuf};

use super::print;
use crate::{
    config::Usage,
    recipe::{Changes, Recipe},
    report::{self, Summary},
    stage::kinds::KINDS,
};

/// A recipe and what to change in it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa run recipes/hh-small.yaml --out runs/try-1 --set stages.ppo.kl_coef=0.1")]
pub struct Arguments {
    /// The recipe.
    recipe: PathBuf,
    /// Where the stages go; the recipe's own `out` if absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Changes a value of the recipe; may be repeated.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Checks the recipe and stops.
    #[arg(long)]
    check: bool,
}

/// Runs what is not done yet.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let set = changes(&arguments.set)?;
    let recipe = Recipe::read(&arguments.recipe, Changes { out: arguments.out.as_deref(), set: &set }, KINDS)?;
    if arguments.check {
        let context = super::context()?;
        context.say(&format!("{}: {} stages, no mistakes found", arguments.recipe.display(), recipe.steps.len()));
        return Ok(());
    }
    to_the_end(&recipe)
}

/// Runs a recipe, says where the report is and prints the table of its evaluation.
pub(super) fn to_the_end(recipe: &Recipe) -> anyhow::Result<()> {
    let context = super::context()?;
    recipe.run(&context)?;
    context.say(&format!("done: {}", recipe.out.join("report.html").display()));
    let summary = recipe.out.join("summary.json");
    if summary.exists() {
        let summary: Summary = serde_json::from_slice(&fs::read(&summary)?)?;
        print(&report::table(&summary))?;
    }
    Ok(())
}

/// `key.path=value`, several times.
pub(super) fn changes(set: &[String]) -> Result<Vec<(String, String)>, Usage> {
    set.iter().map(|text| change(text)).collect()
}

fn change(text: &str) -> Result<(String, String), Usage> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("--set {text}: write it as key.path=value"))),
    }
}
