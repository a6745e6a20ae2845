//! `salsa run RECIPE.yaml`
use std::path::{Path, PathBuf};

use super::print;
use crate::{
    config::Usage,
    hub::Network,
    input,
    recipe::{Changes, Recipe},
    report::{self, Summary},
    stage::table::STAGES,
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
    /// Opens every model and data set that the recipe names, says what each stage reads and needs, and stops.
    #[arg(long)]
    check: bool,
}

/// Runs what is not done yet.
pub fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let set = changes(&arguments.set)?;
    let changes = Changes { out: arguments.out.as_deref(), set: &set, ..Changes::default() };
    if arguments.check {
        return check(&arguments.recipe, Changes { network: Network::Offline, ..changes });
    }
    to_the_end(&Recipe::read(&arguments.recipe, changes, STAGES)?)
}

/// Prints a line about every stage; an error for each fault.
fn check(path: &Path, changes: Changes<'_>) -> anyhow::Result<()> {
    let (recipe, mut faults) = Recipe::read_what_can_be(path, changes, STAGES)?;
    let checked = recipe.check();
    print(&checked.lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
    faults.extend(checked.faults, |fault| fault.context(path.display().to_string()));
    faults.none_or(())?;
    super::context()?.say(&format!("{}: {} stages, no mistakes found", path.display(), recipe.steps.len()));
    Ok(())
}

/// Runs a recipe, says where the report is and prints the table of its evaluation.
pub(super) fn to_the_end(recipe: &Recipe) -> anyhow::Result<()> {
    let context = super::context()?;
    recipe.run(&context)?;
    context.say(&format!("done: {}", recipe.out.join("report.html").display()));
    let summary = recipe.out.join("summary.json");
    if summary.exists() {
        let summary: Summary = serde_json::from_slice(&input::read(&summary)?)?;
        print(&report::table(&summary, super::columns()))?;
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
