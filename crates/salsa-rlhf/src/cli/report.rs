//! `salsa report RUN…`
use std::path::PathBuf;

use super::print;
use crate::recipe;

/// Runs to report on.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  salsa report runs/hh-small")]
pub(super) struct Arguments {
    /// Run directories of `salsa run`.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
}

/// Rewrites the report of each run and prints its path.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    for run in &arguments.runs {
        let path = recipe::report::write(run)?;
        print(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
