//! `salsa run RECIPE.yaml`
use std::path::PathBuf;

use super::{next, print, ranks::Ranks};
use crate::{
    config::Usage,
    hub::Network,
    input,
    recipe::{Changes, Recipe, Selected, Selection},
    report::{self, Summary},
    stage::{StageContext, table::STAGES},
};

/// A recipe and changes to it.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  salsa run recipes/hh-small.yaml --out runs/try-1 --set stages.ppo.kl_coef=0.1\n  \
    salsa run recipes/hh-small.yaml --from reward\n  salsa run runs/try-1/recipe.yaml --only ppo --rerun ppo"
)]
pub(super) struct Arguments {
    /// The recipe.
    recipe: PathBuf,
    /// Directory of the run; overrides the recipe's own `out`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Changes a value of the recipe; may be repeated.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    /// Open every model and data set that the recipe names, report what each stage reads and needs, and stop.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    stages: Stages,
}

/// Which stages run, and which are run again.
#[derive(clap::Args)]
pub(super) struct Stages {
    /// Run these stages again even if done or begun; their old results are set aside in OUT/.aside. Several: a,b or
    /// repeated.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    rerun: Vec<String>,
    /// The same for a stage and all stages that read its results, directly or indirectly.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    from: Vec<String>,
    /// Run only these stages; the stages whose results they read must be done.
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    only: Vec<String>,
}

impl Stages {
    /// Selects these stages of a recipe.
    pub(super) fn of(&self, recipe: &Recipe) -> anyhow::Result<Selected> {
        let Stages { rerun, from, only } = self;
        recipe.select(&Selection { rerun: rerun.clone(), from: from.clone(), only: only.clone() })
    }
}

/// Runs all stages that are not done yet.
pub(super) fn main(arguments: &Arguments, ranks: &Ranks) -> anyhow::Result<()> {
    let set = changes(&arguments.set)?;
    let changes = Changes { out: arguments.out.as_deref(), set: &set, ..Changes::default() };
    if arguments.check {
        return check(arguments, ranks, Changes { network: Network::Offline, ..changes });
    }
    run_and_report(&Recipe::read(&arguments.recipe, changes, STAGES)?, &arguments.stages, &[], ranks)
}

/// Prints some lines about every stage; returns an error for each fault.
fn check(arguments: &Arguments, ranks: &Ranks, changes: Changes<'_>) -> anyhow::Result<()> {
    let path = &arguments.recipe;
    let (recipe, mut faults) = Recipe::read_what_can_be(path, changes, STAGES)?;
    let selected = if faults.is_empty() { arguments.stages.of(&recipe)? } else { recipe.all() };
    let rehearsal = StageContext::rehearsal().with_ranks(ranks.comm().clone());
    let checked = recipe.check_together(&selected, &rehearsal);
    print(&checked.stages.iter().map(|stage| format!("{stage}\n")).collect::<String>())?;
    faults.extend(checked.faults, |fault| fault.context(path.display().to_string()));
    faults.none_or(())?;
    super::context(ranks)?.say(&format!("{}: {} stages, no mistakes found", path.display(), recipe.steps.len()));
    Ok(())
}

/// Runs a recipe, prints the path of the report and the table of its evaluation, and suggests next steps and those in
/// `more`.
pub(super) fn run_and_report(
    recipe: &Recipe,
    stages: &Stages,
    more: &[(&str, &str)],
    ranks: &Ranks,
) -> anyhow::Result<()> {
    let selected = stages.of(recipe)?;
    let context = super::context(ranks)?;
    recipe.run_selected(&selected, &context)?;
    context.say(&format!("done: {}", recipe.out.join("report.html").display()));
    let summary = recipe.out.join("summary.json");
    if summary.exists() {
        let summary: Summary = serde_json::from_slice(&input::read(&summary)?)?;
        print(&report::table(&summary, super::columns()))?;
    }
    next::after_run(recipe, more, &context);
    Ok(())
}

/// Parses repeated `key.path=value`.
pub(super) fn changes(set: &[String]) -> Result<Vec<(String, String)>, Usage> {
    set.iter().map(|text| change(text)).collect()
}

fn change(text: &str) -> Result<(String, String), Usage> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Usage(format!("--set {text}: write it as key.path=value"))),
    }
}
