//! `salsa report RUN…`
use std::path::PathBuf;

use super::print;
use crate::recipe;

/// Runs.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa report runs/hh-small")]
pub(super) struct Arguments {
    /// Directories that `salsa run` filled.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
}

/// Writes the report of each run anew and prints where it is.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    for run in &arguments.runs {
        let path = recipe::report::write(run)?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
