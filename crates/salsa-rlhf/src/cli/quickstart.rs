//! `salsa quickstart`
use std::path::{Path, PathBuf};

use super::{
    ranks::Ranks,
    run::{self, Stages},
};
use crate::{
    recipe::{Changes, Recipe, Source},
    stage::table::STAGES,
};

/// The embedded recipe.
const RECIPE: &str = include_str!("../../../../recipes/quickstart.yaml");

/// Next steps with one's own checkpoint.
const OWN: &[(&str, &str)] =
    &[("start from your own checkpoint", "salsa sft --model CHECKPOINT --dataset CHATS --output_dir DIR")];

/// Output directory and settings.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  salsa quickstart\n  salsa quickstart --seed 2\n\n\
    The recipe it runs is recipes/quickstart.yaml; copy it to change it, and run it with `salsa run`.")]
pub(super) struct Arguments {
    /// Directory of the models, summary.json and report.html [default: runs/quickstart, for other seeds
    /// runs/quickstart-seedN].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Seed of the whole experiment.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Changes a value of the recipe; may be repeated.
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
    #[command(flatten)]
    stages: Stages,
}

/// Runs the built-in recipe.
pub(super) fn main(arguments: &Arguments, ranks: &Ranks) -> anyhow::Result<()> {
    let mut set = vec![
        ("seed".to_owned(), arguments.seed.to_string()),
        ("vars.seed_a".to_owned(), (10 * arguments.seed + 1).to_string()),
        ("vars.seed_b".to_owned(), (10 * arguments.seed + 2).to_string()),
    ];
    set.extend(run::changes(&arguments.set)?);
    let out = arguments.out.clone().unwrap_or_else(|| default_out(arguments.seed));
    let source = Source { text: RECIPE, path: Path::new("recipes/quickstart.yaml"), base: Path::new("") };
    let recipe = Recipe::new(source, Changes { out: Some(&out), set: &set, ..Changes::default() }, STAGES)?;
    run::run_and_report(&recipe, &arguments.stages, OWN, ranks)
}

/// Each seed is a separate experiment with its own directory.
fn default_out(seed: u64) -> PathBuf {
    match seed {
        1 => "runs/quickstart".into(),
        other => format!("runs/quickstart-seed{other}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_has_its_own_directory() {
        assert_eq!(default_out(1), Path::new("runs/quickstart"));
        assert_eq!(default_out(2), Path::new("runs/quickstart-seed2"));
    }
}
