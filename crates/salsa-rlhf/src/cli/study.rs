//! `salsa study STUDY.yaml`
use std::path::PathBuf;

use super::print;
use crate::{
    config::Usage,
    hub::Network,
    study::{Only, Study, work_for_a_study},
};

/// A study and how much of it.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  salsa study recipes/study.yaml --check\n  \
    salsa study recipes/study.yaml --out runs/study --jobs 2\n  \
    salsa study recipes/study.yaml --only arm=salsa,ppo --only kl_coef=0.1\n\n\
    How to write one, and what each number of its report means: docs/study.md.")]
pub(super) struct Arguments {
    /// The study.
    #[arg(required_unless_present = "worker")]
    study: Option<PathBuf>,
    /// Where its stages, cells and report go; the study's own `out` if absent.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Stages that run at a time, each with a part of the cores; changes no result.
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,
    /// Only the cells of these arms, or with these values of a factor; may be repeated.
    #[arg(long, value_name = "NAME=VALUE,…")]
    only: Vec<String>,
    /// Says how many stages are missing, how long they take and how much disk, and stops.
    #[arg(long)]
    check: bool,
    /// Runs the one stage that standard input names; `--jobs` starts such processes.
    #[arg(long, hide = true)]
    worker: bool,
}

/// Runs what is missing and writes `study.json` and `study.html`.
pub(super) fn main(arguments: &Arguments) -> anyhow::Result<()> {
    let context = super::context()?;
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
