//! `salsa study STUDY.yaml`
use std::path::PathBuf;

use super::{print, ranks::Ranks};
use crate::{
    config::Usage,
    hub::Network,
    study::{Only, Study, work_for_a_study},
};

/// A study and the part of it to run.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  salsa study recipes/study.yaml --check\n  \
    salsa study recipes/study.yaml --out runs/study --jobs 2\n  \
    salsa study recipes/study.yaml --only arm=salsa,ppo --only kl_coef=0.1\n\n\
    How to write one, and what each number of its report means: docs/study.md.")]
pub(super) struct Arguments {
    /// Study file.
    #[arg(required_unless_present = "worker")]
    study: Option<PathBuf>,
    /// Directory of the stages, cells and report; overrides the study's own `out`.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Number of stages to run at a time, each with a share of the cores; does not affect results.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Run only the cells of these arms, or with these values of a factor; may be repeated.
    #[arg(long, value_name = "NAME=VALUE,…")]
    only: Vec<String>,
    /// Report how many stages are missing, their expected time and disk space, and stop.
    #[arg(long)]
    check: bool,
    /// Run the single stage that standard input names; used internally by `--jobs`.
    #[arg(long, hide = true)]
    worker: bool,
}

/// Runs the missing stages and writes `study.json` and `study.html`.
pub(super) fn main(arguments: &Arguments, ranks: &Ranks) -> anyhow::Result<()> {
    let context = super::context(ranks)?;
    let Some(path) = arguments.study.as_deref().filter(|_| !arguments.worker) else {
        return work_for_a_study(&context);
    };
    if arguments.jobs == 0 {
        return Err(Usage("--jobs is 0; at least one stage runs at a time".to_owned()).into());
    }
    let only = Only::parse(&arguments.only)?;
    let network = if arguments.check { Network::Offline } else { Network::Online };
    let study = Study::read(path, arguments.out.as_deref(), network)?;
    let arms: Vec<&str> = study.arms.iter().map(|arm| arm.name.as_str()).collect();
    only.check(&study.factors, &arms)?;
    if arguments.check {
        let (lines, faults) = study.check(&only)?;
        print(&lines.iter().map(|line| format!("{line}\n")).collect::<String>())?;
        return Ok(faults.none_or(())?);
    }
    study.run(&only, arguments.jobs, &context)?;
    context.say(&format!("done: {}", study.out.join("study.html").display()));
    print(&study.table()?)
}
