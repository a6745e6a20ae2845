//! Processes started by an MPI launcher. The library is loaded when the program runs; nothing of MPI is needed to build.
//!
//! A dozen functions are used, all data are `MPI_BYTE`, and no operation of MPI adds numbers. Messages are sent and
//! received without blocking, so that an operation can name the process it waits for when its deadline has passed.

mod abi;
mod library;
mod transfer;

use super::launch::{Launched, Launcher};
use super::peers::{self, Peers};
use super::{Comm, CommError, Joined, LaunchError, Settings, parts, watch};
use abi::{Abi, Constants, Functions, Handle};
use library::Library;
use std::ffi::c_int;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::{self, ThreadId};
use std::time::Duration;
use transfer::Operation;

/// How long `MPI_Abort` may take before the process ends by itself.
const ABORT: Duration = Duration::from_secs(10);

/// A process of an MPI job, whose handles are `H`.
#[derive(Debug)]
struct Mpi<H: Handle> {
    functions: Functions<H>,
    constants: Constants<H>,
    rank: usize,
    size: usize,
    settings: Settings,
    /// The thread that started MPI, which alone may call it.
    thread: ThreadId,
    peers: OnceLock<Peers>,
    /// Operations so far, the same number everywhere.
    operations: AtomicU64,
    sent: AtomicU64,
}

/// Starts MPI and meets the other processes.
///
/// # Errors
///
/// If no library is found, or it does not know of the processes that the launcher has started.
pub(super) fn join(launched: Launched, settings: Settings) -> Result<Joined, LaunchError> {
    let library = library::load(launched.launcher)?;
    if launched.launcher == Launcher::OpenMpi && library.abi == Abi::Mpich {
        // It would end the process when it starts.
        return Err(LaunchError(format!(
            "{} ({}) belongs to another MPI than the launcher, Open MPI's mpirun, which started this process as rank {} \
             of {}; start it with the mpiexec of that library, or name Open MPI's library in SALSA_MPI_LIBRARY",
            library.version, library.file, launched.rank, launched.size
        )));
    }
    match library.abi {
        Abi::Standard => Mpi::start(&library, abi::STANDARD, launched, settings),
        Abi::Mpich => Mpi::start(&library, abi::MPICH, launched, settings),
        Abi::OpenMpi => {
            let constants = abi::open_mpi(library.symbols);
            let constants = constants.map_err(|error| LaunchError(format!("{}: {error}", library.file)))?;
            Mpi::start(&library, constants, launched, settings)
        }
    }
}

impl<H: Handle> Mpi<H> {
    fn start(
        library: &Library,
        constants: Constants<H>,
        launched: Launched,
        settings: Settings,
    ) -> Result<Joined, LaunchError> {
        let Library { file, version, .. } = library;
        let failed = |what: String| LaunchError(format!("{version} ({file}): {what}"));
        // SAFETY: `library::open` has found that the library's handles are those of `constants`.
        let functions = unsafe { Functions::of(library.symbols) }.map_err(|error| failed(error.to_string()))?;
        let (rank, size) = initialise(&functions, &constants, &settings, launched).map_err(failed)?;
        let mpi = Mpi {
            functions,
            constants,
            rank,
            size,
            settings,
            thread: thread::current().id(),
            peers: OnceLock::new(),
            operations: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        };
        let peers = Peers::meet(&mpi).map_err(|error| LaunchError(error.to_string()))?;
        mpi.peers.set(peers.clone()).expect("it is set once");
        let file = Path::new(file).file_name().unwrap_or_default().display();
        Ok(Joined { comm: Arc::new(mpi), transport: format!("{version}, {file}"), peers })
    }

    /// The processes of ranks `ranks`, with their hosts.
    fn name(&self, ranks: &[usize]) -> String {
        let host = |rank: &usize| self.peers.get().map(|peers| format!(" on {}", peers.hosts[*rank]));
        let names = ranks.iter().map(|rank| format!("{rank}{}", host(rank).unwrap_or_default()));
        format!("process{} {}", if ranks.len() == 1 { "" } else { "es" }, names.collect::<Vec<_>>().join(", "))
    }

    /// Sends the bytes of `root` along a binary tree whose first node it is; a piece is sent on while the next one arrives.
    fn spread<'b>(&self, mut operation: Operation<'_, 'b, H>, root: usize, bytes: &'b mut [u8]) {
        let place = (self.rank + self.size - root) % self.size;
        let process = |place: usize| (place + root) % self.size;
        let children: Vec<usize> = [2 * place + 1, 2 * place + 2].into_iter().filter(|&p| p < self.size).collect();
        for piece in bytes.chunks_mut(self.settings.piece()) {
            if place > 0 {
                let mut arrival = operation.part();
                arrival.receive(process((place - 1) / 2), &mut *piece);
                arrival.complete();
            }
            let piece: &[u8] = piece;
            children.iter().for_each(|&child| operation.send(process(child), piece));
        }
        operation.complete();
    }

    /// The other processes, this one's right neighbour first, so that not all send to the same one at first.
    fn others(&self) -> impl DoubleEndedIterator<Item = usize> + use<H> {
        let (rank, size) = (self.rank, self.size);
        (1..size).map(move |step| (rank + step) % size)
    }
}

/// Starts MPI; returns rank and size.
fn initialise<H: Handle>(
    functions: &Functions<H>,
    constants: &Constants<H>,
    settings: &Settings,
    launched: Launched,
) -> Result<(usize, usize), String> {
    let (mut provided, mut rank, mut size) = (0, 0, 0);
    let name = format!("rank {} of {} on {}", launched.rank, launched.size, peers::host());
    let late = format!("{name}: MPI_Init_thread has not returned for {}", settings.in_words());
    // SAFETY: the pointers are null, as MPI allows, or refer to locals.
    let code = watch::within(settings.limit(), late, 1, || unsafe {
        (functions.init_thread)(std::ptr::null_mut(), std::ptr::null_mut(), constants.funneled, &mut provided)
    });
    if code != 0 || provided < constants.funneled {
        return Err(format!("{name}: MPI_Init_thread returned {code} and thread level {provided}"));
    }
    // SAFETY: MPI was started; the pointers refer to locals.
    let codes = unsafe {
        [
            (functions.set_errhandler)(constants.world, constants.errors_return),
            (functions.rank)(constants.world, &mut rank),
            (functions.size)(constants.world, &mut size),
        ]
    };
    if codes != [0; 3] {
        return Err(format!("{name}: MPI does not tell rank and size: codes {codes:?}"));
    }
    let (rank, size) = (rank as usize, size as usize);
    if (rank, size) != (launched.rank, launched.size) {
        return Err(format!(
            "this library says rank {rank} of {size}, but {} started this process as rank {} of {}: launcher and \
             library belong to different MPIs, or Slurm's --mpi does not fit; use the launcher of this library, or name \
             the launcher's library in SALSA_MPI_LIBRARY",
            launched.launcher, launched.rank, launched.size
        ));
    }
    Ok((rank, size))
}

impl<H: Handle> Comm for Mpi<H> {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn local_rank(&self) -> usize {
        self.peers.get().map_or(0, |peers| peers.local_rank)
    }
    fn local_size(&self) -> usize {
        self.peers.get().map_or(1, |peers| peers.local_size)
    }

    /// All report to the first process, which answers. It knows who is missing; the others, who only see that it does not
    /// answer, leave it to the first process to say so.
    fn barrier(&self) -> Result<(), CommError> {
        let mut operation = self.begin("barrier".into())?;
        if self.rank > 0 {
            operation = operation.after_others();
            operation.send(0, &[]);
            operation.receive(0, &mut []);
            operation.complete();
            return Ok(());
        }
        self.others().for_each(|from| operation.receive(from, &mut []));
        operation.complete();
        self.others().for_each(|to| operation.send(to, &[]));
        operation.complete();
        Ok(())
    }

    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        self.spread(self.begin(format!("broadcast from process {root}"))?, root, bytes);
        Ok(())
    }

    fn wait_for(&self, root: usize) -> Result<(), CommError> {
        self.spread(self.begin(format!("wait for process {root}"))?.without_deadline(), root, &mut [0]);
        Ok(())
    }

    fn gather(&self, buffer: &mut [u8], ranges: &[Range<usize>]) -> Result<(), CommError> {
        let mut operation = self.begin("gather".into())?;
        let mut parts: Vec<Option<&mut [u8]>> = parts(buffer, ranges).into_iter().map(Some).collect();
        let mine = parts[self.rank].take().expect("ranges has an entry for each rank");
        for from in self.others().rev() {
            operation.receive(from, parts[from].take().expect("each rank is received from once"));
        }
        self.others().for_each(|to| operation.send(to, mine));
        operation.complete();
        Ok(())
    }

    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<(), CommError> {
        let mut operation = self.begin("exchange".into())?;
        receive[self.rank].copy_from_slice(send[self.rank]);
        for (from, bytes) in receive.iter_mut().enumerate().filter(|(from, _)| *from != self.rank) {
            operation.receive(from, bytes);
        }
        self.others().for_each(|to| operation.send(to, send[to]));
        operation.complete();
        Ok(())
    }

    fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    fn abort(&self, code: i32) -> ! {
        let late = format!("process {} of {}: MPI_Abort has not ended this process", self.rank, self.size);
        // SAFETY: MPI was started; the call takes no pointer.
        watch::within(ABORT, late, code, || unsafe { (self.functions.abort)(self.constants.world, code as c_int) });
        watch::exit(code)
    }
}

impl<H: Handle> Drop for Mpi<H> {
    fn drop(&mut self) {
        if thread::panicking() {
            // The others wait for this process; MPI_Finalize would wait for them.
            self.abort(101);
        }
        let late = format!("process {} of {}: MPI_Finalize has not returned", self.rank, self.size);
        // SAFETY: MPI was started and no request is pending, as each operation completes its own.
        watch::within(self.settings.limit(), late, 1, || unsafe { (self.functions.finalize)() });
    }
}
