//! Runs the missing stages of a study.
use std::{
    fs,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};

use super::{
    factors::Only,
    plan::{Cell, Node, Study},
    worker::Order,
};
use crate::{
    atomic,
    stage::{Outcome, StageContext, lifecycle::lock::Lock, run_stage},
};

/// Maximum time for a killed process to release its stage.
const PATIENCE: Duration = Duration::from_secs(120);

/// The state of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No selected cell needs it.
    Unwanted,
    Waiting,
    Running,
    Done,
    Failed,
}

/// The state of a run.
struct Progress<'a> {
    study: &'a Study,
    context: &'a StageContext,
    states: Vec<State>,
    wanted: Vec<&'a Cell>,
    assembled: Vec<bool>,
    faults: Vec<anyhow::Error>,
}

impl Study {
    /// Runs the unfinished stages of all selected cells, `jobs` at a time, and writes `study.json` and `study.html`. A
    /// failed stage affects only the cells that need it.
    ///
    /// # Errors
    /// If another process works on the study, the disk is too small, or the run is interrupted; at the end the first
    /// failure of a stage.
    pub fn run(&self, only: &Only, jobs: usize, context: &StageContext) -> anyhow::Result<()> {
        self.check_disk()?;
        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let _lock = Lock::take(&self.out)?;
        atomic::write(&self.out.join("study.yaml"), self.file.text.as_bytes())?;
        let mut progress = Progress::new(self, only, context);
        match jobs {
            0 | 1 => progress.one_by_one()?,
            jobs => progress.several(jobs)?,
        }
        let faults = progress.faults;
        self.write_results()?;
        match faults.len() {
            0 => Ok(()),
            count => {
                let first = faults.into_iter().next().expect("there is one");
                Err(first.context(format!("{count} of the stages failed; the first of them")))
            }
        }
    }
}

impl<'a> Progress<'a> {
    fn new(study: &'a Study, only: &Only, context: &'a StageContext) -> Progress<'a> {
        let is_wanted = |cell: &&Cell| only.has(&study.factors, &study.arms[cell.arm].name, &cell.setting);
        let wanted: Vec<&Cell> = study.cells.iter().filter(is_wanted).collect();
        let mut states = vec![State::Unwanted; study.nodes.len()];
        for (_, node) in wanted.iter().flat_map(|cell| &cell.stages) {
            states[*node] = State::Waiting;
        }
        let assembled = vec![false; wanted.len()];
        Progress { study, context, states, wanted, assembled, faults: Vec::new() }
    }

    fn one_by_one(&mut self) -> anyhow::Result<()> {
        let study = self.study;
        while let Some(at) = self.next() {
            self.begin(at)?;
            let result = make(&study.nodes[at], self.context);
            self.end(at, result)?;
        }
        Ok(())
    }

    /// Runs stages in several processes, which share the cores; finished stages are only verified.
    fn several(&mut self, jobs: usize) -> anyhow::Result<()> {
        thread::scope(|scope| {
            let result = self.schedule(jobs, scope);
            if result.is_err() {
                // The other processes stop at a point from which they can be resumed.
                self.context.interrupt();
            }
            result
        })
    }

    fn schedule<'s>(&mut self, jobs: usize, scope: &'s thread::Scope<'s, '_>) -> anyhow::Result<()>
    where
        'a: 's,
    {
        let (study, context) = (self.study, self.context);
        let threads = (salsa_engine::threads() / jobs).max(1);
        let (done, ended) = mpsc::channel();
        let mut running = 0;
        loop {
            let next = if running < jobs && !context.interrupted() { self.next() } else { None };
            match next {
                Some(at) if study.nodes[at].is_done() => {
                    self.begin(at)?;
                    let result = make(&study.nodes[at], context);
                    self.end(at, result)?;
                }
                Some(at) => {
                    self.begin(at)?;
                    wait_for_the_lock(&study.nodes[at])?;
                    let (order, done) = (Order::new(&study.nodes[at]), done.clone());
                    running += 1;
                    scope.spawn(move || {
                        let start = Instant::now();
                        let result = order.carry_out(threads, context).map(|()| Some(start.elapsed().as_secs_f64()));
                        // The receiver is closed only if the whole run failed.
                        let _ = done.send((at, result));
                    });
                }
                None if running > 0 => {
                    let (at, result) = ended.recv().expect("this function holds a sender");
                    running -= 1;
                    self.end(at, result)?;
                }
                None if context.interrupted() => bail!("interrupted; the same command goes on from there"),
                None => return Ok(()),
            }
        }
    }

    /// The first waiting stage whose inputs are all done.
    fn next(&self) -> Option<usize> {
        let is_ready = |at: &usize| {
            let needs = &self.study.nodes[*at].needs;
            self.states[*at] == State::Waiting && needs.iter().all(|&need| self.states[need] == State::Done)
        };
        (0..self.states.len()).find(is_ready)
    }

    fn begin(&mut self, at: usize) -> anyhow::Result<()> {
        if self.context.interrupted() {
            bail!("interrupted before {}; the same command goes on from there", self.study.nodes[at].dir.display());
        }
        self.states[at] = State::Running;
        if !self.study.nodes[at].is_done() {
            self.context.say(&format!("{} {}", self.place(), self.in_words(at)));
        }
        Ok(())
    }

    /// Records the result of a stage, with its seconds if it ran, and assembles the cells that are complete now.
    fn end(&mut self, at: usize, result: anyhow::Result<Option<f64>>) -> anyhow::Result<()> {
        match result {
            Ok(seconds) => {
                self.states[at] = State::Done;
                if let Some(seconds) = seconds {
                    self.context.say(&format!("{} {} done in {seconds:.1} s", self.place(), self.in_words(at)));
                }
            }
            Err(error) => {
                let name = self.in_words(at);
                if self.context.interrupted() {
                    return Err(error.context(name));
                }
                self.states[at] = State::Failed;
                self.context.say(&format!("{name} failed: {error:#}"));
                self.faults.push(error.context(name));
            }
        }
        for (cell, assembled) in self.wanted.iter().zip(&mut self.assembled) {
            if !*assembled && cell.stages.iter().all(|(_, node)| self.states[*node] == State::Done) {
                self.study.assemble(cell)?;
                *assembled = true;
            }
        }
        Ok(())
    }

    fn place(&self) -> String {
        let wanted = self.states.iter().filter(|state| **state != State::Unwanted).count();
        let done = self.states.iter().filter(|state| **state == State::Done).count();
        format!("[{done}/{wanted}]")
    }

    /// Describes a stage and the first cell that needs it.
    fn in_words(&self, at: usize) -> String {
        let node = &self.study.nodes[at];
        let cells = self.wanted.iter().filter(|cell| cell.stages.iter().any(|(_, other)| *other == at));
        let (first, count) = (cells.clone().next(), cells.count());
        let cell = first.map_or(String::new(), |cell| self.study.name_of(cell));
        let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
        format!("{} ({}) of {cell}{more}", node.name, node.kind.name)
    }
}

/// Runs a stage in this process; returns its seconds if it was not done.
fn make(node: &Node, context: &StageContext) -> anyhow::Result<Option<f64>> {
    if !node.is_done() {
        wait_for_the_lock(node)?;
    }
    let config = (node.planned.config.clone(), node.planned.places.clone());
    match run_stage(node.kind.name, &node.dir, config, context, &node.planned.work)? {
        Outcome::Done { seconds, .. } => Ok(Some(seconds)),
        Outcome::Skipped { .. } => Ok(None),
    }
}

/// Waits for the lock of a stage: a worker whose study was killed stops by itself after its current step.
fn wait_for_the_lock(node: &Node) -> anyhow::Result<()> {
    let start = Instant::now();
    while node.dir.exists() {
        match Lock::take(&node.dir) {
            Ok(_) => break,
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
    Ok(())
}
