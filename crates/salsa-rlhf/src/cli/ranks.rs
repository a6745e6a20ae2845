//! The processes that a launcher has started: what they must have in common, which of them prints, how all end.
use std::{
    cell::OnceCell,
    collections::BTreeMap,
    env,
    io::Write,
    panic,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use salsa_engine::comm::{self, Comm, Joined};

use super::{tell, version};
use crate::{
    config::{Usage, wording},
    input,
    recipe::ErrorList,
    stage::{Interrupted, StageContext},
};

/// How long other processes leave it to the first one to report an error that all have.
const AFTER_FIRST: Duration = Duration::from_millis(500);

/// Whether this process prints results and progress.
static IS_FIRST: AtomicBool = AtomicBool::new(true);

/// Whether this process prints results and progress: the first one.
pub(super) fn is_first() -> bool {
    IS_FIRST.load(Ordering::Relaxed)
}

/// The processes of this run.
pub(super) struct Ranks {
    joined: Joined,
    /// The context of the work, which knows of interruptions.
    context: OnceCell<StageContext>,
}

impl Ranks {
    /// Joins the processes that the launcher has started; most programs are started alone.
    ///
    /// # Errors
    /// The exit code, if that fails; the error was printed.
    pub(super) fn join() -> Result<Ranks, ExitCode> {
        match comm::from_environment() {
            Ok(joined) => {
                let ranks = Ranks { joined, context: OnceCell::new() };
                ranks.settle();
                Ok(ranks)
            }
            Err(error) => {
                let rank =
                    comm::launched(|name| env::var(name).ok()).ok().flatten().map_or(0, |launched| launched.rank);
                if rank > 0 {
                    thread::sleep(AFTER_FIRST);
                }
                tell(&error.to_string());
                Err(ExitCode::FAILURE)
            }
        }
    }

    /// Shares the cores of a machine among its processes, and leaves printing to the first one.
    fn settle(&self) {
        salsa_engine::share_cores(self.joined.peers.sharing);
        if self.size() == 1 {
            return;
        }
        if self.comm().rank() > 0 {
            IS_FIRST.store(false, Ordering::Relaxed);
        }
        let (name, hook) = (self.name(), panic::take_hook());
        panic::set_hook(Box::new(move |info| {
            let _ = writeln!(std::io::stderr(), "error: {name}:");
            hook(info);
        }));
    }

    /// Keeps a copy of the context of the work.
    pub(super) fn remember(&self, context: StageContext) -> StageContext {
        let _ = self.context.set(context.clone());
        context
    }

    /// How processes exchange bytes.
    pub(super) fn comm(&self) -> &Arc<dyn Comm> {
        &self.joined.comm
    }

    /// The number of processes.
    pub(super) fn size(&self) -> usize {
        self.joined.comm.size()
    }

    /// Rank and host of this process.
    fn name(&self) -> String {
        let rank = self.comm().rank();
        format!("process {rank} of {} on {}", self.size(), self.joined.peers.hosts[rank])
    }

    /// Refuses to run a command that uses one process in several.
    ///
    /// # Errors
    /// If there are several.
    pub(super) fn refuse_several(&self, command: &str) -> anyhow::Result<()> {
        match self.size() {
            1 => Ok(()),
            size => Err(Usage(format!(
                "salsa {command} works in one process, and {size} were started; run it without the launcher"
            ))
            .into()),
        }
    }

    /// Checks that all processes run the same command of the same program with the same kernels, and prints who they are.
    ///
    /// # Errors
    /// If they differ: whose program, and in what.
    pub(super) fn meet(&self, command: &str) -> anyhow::Result<()> {
        if self.size() == 1 {
            return Ok(());
        }
        if is_first() {
            let _ = writeln!(std::io::stderr(), "{}", self.line());
        }
        let program = env::current_exe().context("the file of this program")?;
        let mut digest = blake3::Hasher::new();
        digest.update_reader(input::open(&program)?).with_context(|| format!("cannot read {}", program.display()))?;
        self.agree("version", &version::short())?;
        self.agree("file of the program (BLAKE3)", &digest.finalize().to_hex())?;
        self.agree("instruction set (SALSA_ISA)", salsa_engine::isa())?;
        self.agree("command", command)
    }

    /// Checks that `value` is the same in all processes.
    ///
    /// # Errors
    /// In every process: the first one that differs.
    fn agree(&self, what: &str, value: &str) -> anyhow::Result<()> {
        let values = self.comm().gather_all(value.as_bytes())?;
        let Some(rank) = values.iter().position(|other| *other != values[0]) else { return Ok(()) };
        let hosts = &self.joined.peers.hosts;
        let [theirs, first] = [rank, 0].map(|rank| String::from_utf8_lossy(&values[rank]).into_owned());
        bail!(
            "the processes were not started alike: {what} of process {rank} on {} is {theirs}, of process 0 on {} {first}; \
             install and start the same program everywhere",
            hosts[rank],
            hosts[0]
        )
    }

    /// One line: how many processes, by what they talk, where they are, how many threads each has.
    fn line(&self) -> String {
        let peers = &self.joined.peers;
        let mut hosts: BTreeMap<&str, usize> = BTreeMap::new();
        peers.hosts.iter().for_each(|host| *hosts.entry(host).or_default() += 1);
        let places = match hosts.len() {
            1..=4 => hosts.iter().map(|(host, count)| format!("{count} on {host}")).collect::<Vec<_>>().join(", "),
            many => format!("on {many} hosts"),
        };
        let (threads, transport) = (salsa_engine::threads(), &self.joined.transport);
        let mut line = format!("processes: {} ({transport}), {places}; threads of each: {threads}", self.size());
        let (usable, cores) =
            (thread::available_parallelism().map_or(1, usize::from), salsa_engine::cores_of_machine());
        if usable < cores && salsa_engine::requested_threads().is_none() {
            line += &format!(
                ", as the launcher binds them to {usable} of {cores} cores (mpirun --bind-to none, srun --cpu-bind=none)"
            );
        }
        line
    }

    /// Reports errors of this process: the first one at once, others later, as the first ends them if it has the same.
    pub(super) fn report(&self, messages: impl IntoIterator<Item = String>) {
        if is_first() {
            return messages.into_iter().for_each(|message| tell(&message));
        }
        thread::sleep(AFTER_FIRST);
        if self.context.get().is_some_and(StageContext::interrupted) {
            // The launcher ends this process, as another one has failed and has said so.
            return;
        }
        messages.into_iter().for_each(|message| tell(&format!("{}: {message}", self.name())));
    }

    /// Reports the error that ends the work of this process; returns its exit code. Unless all have stopped where they
    /// can be resumed, it ends the others, who may wait for this one.
    pub(super) fn fail(&self, error: &anyhow::Error) -> u8 {
        if error.is::<Interrupted>() {
            if is_first() {
                tell(&wording::for_people(error));
            }
            return 1;
        }
        match error.downcast_ref::<ErrorList>() {
            Some(faults) => self.report(faults.iter().map(wording::for_people)),
            None => self.report([wording::for_people(error)]),
        }
        self.end(if error.chain().any(|cause| cause.is::<Usage>()) { 2 } else { 1 })
    }

    /// Returns the exit code of an error that was reported; in several processes it ends all with it.
    pub(super) fn end(&self, code: u8) -> u8 {
        if self.size() > 1 {
            self.comm().abort(code.into());
        }
        code
    }
}
