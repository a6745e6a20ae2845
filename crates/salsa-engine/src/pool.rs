//! Threads for short parallel regions.
//!
//! A decoding step is a hundred regions of some microseconds each; putting a thread to sleep between two of them and
//! waking it again would cost more than the work. So a waiting thread first spins, then yields its core between checks,
//! and sleeps in the end; it sleeps at once if another process took the core, as there is then more work than cores. A
//! region is a number of tasks that threads take one by one; the calling thread takes part and never waits for a worker
//! that has not arrived yet. Results cannot depend on the assignment of tasks to threads: tasks write disjoint parts
//! and never add to each other's sums.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, OnceLock, TryLockError};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a waiting thread spins.
const SPIN: Duration = Duration::from_micros(20);
/// How long a waiting thread checks before it sleeps, yielding its core between checks.
const YIELD: Duration = Duration::from_micros(200);
/// A yield longer than this means that another process used the core.
const SLOW_YIELD: Duration = Duration::from_micros(50);

thread_local! {
    /// Maximum number of threads of regions started by this thread; 0: all.
    static LIMIT: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is inside a region; regions that it starts then run on it alone.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    /// Scratch numbers of this thread, kept from one task to the next.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with this thread's scratch array, whose length and content are unspecified.
///
/// # Panics
///
/// If `f` calls this again.
pub(crate) fn with_scratch<R>(f: impl FnOnce(&mut Vec<f32>) -> R) -> R {
    SCRATCH.with_borrow_mut(f)
}

/// Number of threads of parallel regions: `RAYON_NUM_THREADS`, at most (and by default) the available cores.
pub fn threads() -> usize {
    static DEFAULT: OnceLock<usize> = OnceLock::new();
    match LIMIT.get() {
        0 => *DEFAULT.get_or_init(|| requested_threads().map_or(cores(), |asked| asked.min(cores()))),
        limit => limit,
    }
}

/// The number of threads that `RAYON_NUM_THREADS` requests.
pub fn requested_threads() -> Option<usize> {
    std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0)
}

/// Number of cores for this process: those available to it, divided among the processes that share them.
fn cores() -> usize {
    (thread::available_parallelism().map_or(1, |n| n.get()) / SHARING.load(SeqCst).max(1)).max(1)
}

/// Processes that use the same cores, this one included.
static SHARING: AtomicUsize = AtomicUsize::new(1);

/// Divides the available cores by the number of processes that use them. Call it before any other work: the number of
/// threads is fixed when it is first needed. `RAYON_NUM_THREADS` wins.
pub fn share_cores(processes: usize) {
    if requested_threads().is_none() {
        SHARING.store(processes, SeqCst);
    }
}

/// Cores of this machine, whether this process may use them or not.
pub fn cores_of_machine() -> usize {
    // SAFETY: it takes no pointer.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_ONLN) }).unwrap_or(1).max(1)
}

/// Runs `f` with this many threads in the parallel regions that it starts.
pub fn with_threads<R>(count: usize, f: impl FnOnce() -> R) -> R {
    struct Restore(usize);
    impl Drop for Restore {
        fn drop(&mut self) {
            LIMIT.set(self.0);
        }
    }
    let _restore = Restore(LIMIT.replace(count.max(1)));
    f()
}

/// Calls `f(0)`, ..., `f(tasks - 1)`, each once, on all threads.
pub(crate) fn run(tasks: usize, f: impl Fn(usize) + Sync) {
    let workers = (threads() - 1).min(tasks.saturating_sub(1));
    if workers == 0 || INSIDE.get() {
        return (0..tasks).for_each(f);
    }
    let outcome = match pool().leader.try_lock() {
        Ok(mut spawned) => pool().lead(&mut spawned, workers, tasks, &f),
        // Another thread is using the workers: run the tasks on this one.
        Err(TryLockError::WouldBlock) => return (0..tasks).for_each(f),
        Err(TryLockError::Poisoned(_)) => unreachable!("a leader does not panic while it holds the lock"),
    };
    if let Err(payload) = outcome {
        resume_unwind(payload);
    }
}

/// Calls `f(index, part)` for every part, on all threads.
pub(crate) fn each<T: Send>(parts: impl IntoIterator<Item = T>, f: impl Fn(usize, T) + Sync) {
    let parts: Vec<Mutex<Option<T>>> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    run(parts.len(), |i| {
        let part = parts[i].lock().expect("a part is taken once").take();
        f(i, part.expect("a part is taken once"));
    });
}

/// `[f(0), ..., f(tasks - 1)]`, computed on all threads.
pub(crate) fn map<T: Send>(tasks: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..tasks).map(|_| None).collect();
    each(results.iter_mut(), |i, result| *result = Some(f(i)));
    results.into_iter().map(|result| result.expect("every task ran")).collect()
}

/// The work of a region.
#[derive(Clone, Copy)]
struct Job {
    f: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    /// Workers with a lower number take part.
    workers: usize,
}

struct Worker {
    thread: Thread,
    sleeps: Arc<AtomicBool>,
}

struct Pool {
    /// Locked by the thread that leads a region.
    leader: Mutex<Vec<Worker>>,
    job: UnsafeCell<Option<Job>>,
    /// The next task to take.
    next: AtomicUsize,
    /// Number of the region, whether it is open, and how many workers are inside: see [`OPEN`].
    gate: AtomicU64,
    panicked: Mutex<Option<Box<dyn Any + Send>>>,
    /// The leader, while it sleeps until the last worker has left.
    sleeper: Mutex<Option<Thread>>,
    sleeps: AtomicBool,
}

// SAFETY: `job` is written by the leader while the gate is closed and no worker is inside, and read inside only.
unsafe impl Sync for Pool {}
// SAFETY: the pointer in `job` refers to something `Sync`, and is not used after its region.
unsafe impl Send for Pool {}

/// The bit of the gate that admits workers. Above it is the region's number, below it the number of workers inside.
const OPEN: u64 = 1 << 16;
const NUMBER: u64 = 1 << 17;

fn pool() -> &'static Pool {
    static POOL: OnceLock<Pool> = OnceLock::new();
    POOL.get_or_init(|| Pool {
        leader: Mutex::new(Vec::new()),
        job: UnsafeCell::new(None),
        next: AtomicUsize::new(0),
        gate: AtomicU64::new(0),
        panicked: Mutex::new(None),
        sleeper: Mutex::new(None),
        sleeps: AtomicBool::new(false),
    })
}

impl Pool {
    /// Runs a region; the error is the payload of a panic in it.
    fn lead(
        &'static self,
        spawned: &mut Vec<Worker>,
        workers: usize,
        tasks: usize,
        f: &(dyn Fn(usize) + Sync),
    ) -> thread::Result<()> {
        while spawned.len() < workers {
            let Some(worker) = self.spawn(spawned.len()) else { break };
            spawned.push(worker);
        }
        // SAFETY: only the lifetime changes. The gate is closed and empty before the end of `f`'s lifetime: see below.
        let f: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(f) };
        // SAFETY: the gate is closed and no worker is inside, so there are no readers.
        unsafe { *self.job.get() = Some(Job { f, tasks, workers }) };
        self.next.store(0, SeqCst);
        self.gate.fetch_add(NUMBER + OPEN, SeqCst);
        for worker in &spawned[..workers.min(spawned.len())] {
            if worker.sleeps.swap(false, SeqCst) {
                worker.thread.unpark();
            }
        }
        let own = self.work(f, tasks);
        self.gate.fetch_sub(OPEN, SeqCst);
        self.wait_until_left();
        let other = self.panicked.lock().expect("only stores happen under this lock").take();
        own.and(other.map_or(Ok(()), Err))
    }

    /// Returns when no worker is inside.
    fn wait_until_left(&self) {
        let left = || self.gate.load(SeqCst).is_multiple_of(OPEN);
        if look(left) {
            return;
        }
        *self.sleeper.lock().expect("only stores happen under this lock") = Some(thread::current());
        self.sleeps.store(true, SeqCst);
        while !left() {
            thread::park();
        }
        self.sleeps.store(false, SeqCst);
    }

    /// Removes a worker from the region; the last one wakes a sleeping leader.
    fn leave(&self) {
        let before = self.gate.fetch_sub(1, SeqCst);
        if before % OPEN == 1 && self.sleeps.load(SeqCst) {
            let sleeper = self.sleeper.lock().expect("only stores happen under this lock");
            sleeper.iter().for_each(Thread::unpark);
        }
    }

    /// Takes tasks until none is left.
    fn work(&self, f: *const (dyn Fn(usize) + Sync), tasks: usize) -> thread::Result<()> {
        INSIDE.set(true);
        // SAFETY: the leader keeps `f` alive until the gate is closed and all workers have left.
        let f = unsafe { &*f };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, SeqCst);
                if task >= tasks {
                    return;
                }
                f(task);
            }
        }));
        INSIDE.set(false);
        if result.is_err() {
            self.next.store(tasks, SeqCst);
        }
        result
    }

    /// Starts a worker; `None` if the system refuses a thread.
    fn spawn(&'static self, index: usize) -> Option<Worker> {
        let sleeps = Arc::new(AtomicBool::new(false));
        let own = sleeps.clone();
        let builder = thread::Builder::new().name(format!("salsa-{}", index + 1));
        let handle = builder.spawn(move || self.serve(index, &own)).ok()?;
        Some(Worker { thread: handle.thread().clone(), sleeps })
    }

    fn serve(&self, index: usize, sleeps: &AtomicBool) {
        let mut served = 0;
        loop {
            self.wait(&mut served, sleeps);
            // A worker enters by incrementing the count while the gate is open; otherwise it takes the increment back.
            if self.gate.fetch_add(1, SeqCst) & OPEN != 0 {
                // SAFETY: the job does not change while a worker is inside.
                let job = unsafe { *self.job.get() };
                if let Some(job) = job.filter(|job| index < job.workers)
                    && let Err(payload) = self.work(job.f, job.tasks)
                {
                    *self.panicked.lock().expect("only stores happen under this lock") = Some(payload);
                }
            }
            self.leave();
        }
    }

    /// Returns when a region is open that this worker has not served: spins first, then sleeps.
    fn wait(&self, served: &mut u64, sleeps: &AtomicBool) {
        let fresh = |served: &mut u64| {
            let gate = self.gate.load(SeqCst);
            let new = gate & OPEN != 0 && gate / NUMBER != *served;
            if new {
                *served = gate / NUMBER;
            }
            new
        };
        while !look(|| fresh(served)) {
            sleeps.store(true, SeqCst);
            if fresh(served) {
                sleeps.store(false, SeqCst);
                return;
            }
            thread::park();
            sleeps.store(false, SeqCst);
        }
    }
}

/// Polls `has_come`: spins, then yields between checks. Returns false when it is time to sleep.
fn look(mut has_come: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    let mut now = start;
    while now - start < SPIN {
        for _ in 0..64 {
            if has_come() {
                return true;
            }
            std::hint::spin_loop();
        }
        now = Instant::now();
    }
    while now - start < YIELD {
        thread::yield_now();
        if has_come() {
            return true;
        }
        let then = std::mem::replace(&mut now, Instant::now());
        if now - then > SLOW_YIELD {
            return false;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_whoever_starts_it() {
        thread::scope(|scope| {
            for starter in 0..4usize {
                scope.spawn(move || {
                    for round in 0..300usize {
                        let tasks = (round * 7 + starter) % 40;
                        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        with_threads(1 + round % 5, || {
                            run(tasks, |i| {
                                counts[i].fetch_add(1, SeqCst);
                                // A nested region.
                                run(3, |_| {
                                    counts[i].fetch_add(1, SeqCst);
                                });
                            });
                        });
                        assert!(counts.iter().all(|count| count.load(SeqCst) == 4));
                    }
                });
            }
        });
    }

    #[test]
    fn parts_and_results_keep_their_order() {
        let mut x: Vec<usize> = (0..100).collect();
        with_threads(3, || each(x.chunks_mut(7), |i, part| part.iter_mut().for_each(|x| *x += 1000 * i)));
        assert_eq!(x[99], 99 + 14_000);
        assert_eq!(with_threads(4, || map(5, |i| i * i)), [0, 1, 4, 9, 16]);
    }

    #[test]
    fn a_panic_reaches_the_starter_and_the_pool_goes_on() {
        for _ in 0..20 {
            let result = catch_unwind(|| with_threads(3, || run(50, |i| assert!(i != 31, "task {i}"))));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            with_threads(3, || {
                run(10, |i| {
                    sum.fetch_add(i, SeqCst);
                })
            });
            assert_eq!(sum.into_inner(), 45);
        }
    }
}
