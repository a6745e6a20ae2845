//! Threads that play the processes of a run, for tests.

use super::{Comm, CommError};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// How long a thread waits for the others before it gives up: a test that hangs says nothing.
const DEADLINE: Duration = Duration::from_secs(120);

/// One of the processes made by [`in_process`].
#[derive(Debug)]
pub struct InProcess {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
    /// Operations so far: the same number everywhere, as all call the same ones.
    operations: AtomicU64,
    sent: AtomicU64,
}

#[derive(Debug, Default)]
struct Shared {
    /// What was sent and not fetched yet: (operation, from, to).
    letters: Mutex<HashMap<(u64, usize, usize), Vec<u8>>>,
    arrived: Condvar,
    gone: AtomicBool,
}

/// The processes of a run within this one, one for each thread.
///
/// ```
/// use salsa_engine::comm::{Comm, in_process};
/// let sums: Vec<u8> = std::thread::scope(|scope| {
///     let threads = in_process(3).into_iter().map(|comm| {
///         scope.spawn(move || {
///             let mut bytes = [0; 3];
///             bytes[comm.rank()] = 10 + comm.rank() as u8;
///             comm.gather(&mut bytes, &[0..1, 1..2, 2..3]).unwrap();
///             bytes.iter().sum()
///         })
///     });
///     threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().unwrap()).collect()
/// });
/// assert_eq!(sums, [33, 33, 33]);
/// ```
pub fn in_process(size: usize) -> Vec<InProcess> {
    let shared = Arc::new(Shared::default());
    let process =
        |rank| InProcess { rank, size, shared: shared.clone(), operations: AtomicU64::new(0), sent: AtomicU64::new(0) };
    (0..size).map(process).collect()
}

impl InProcess {
    /// Sends `letters` (to, bytes) and waits for the bytes of `from`.
    fn swap(&self, operation: &str, letters: Vec<(usize, Vec<u8>)>, from: &[usize]) -> Result<Vec<Vec<u8>>, CommError> {
        let number = self.operations.fetch_add(1, SeqCst);
        let fail =
            |reason: String| CommError { rank: self.rank, size: self.size, operation: operation.to_owned(), reason };
        let mut box_ = self.shared.letters.lock().expect("no thread panics while it holds the lock");
        for (to, bytes) in letters {
            self.sent.fetch_add(bytes.len() as u64, SeqCst);
            box_.insert((number, self.rank, to), bytes);
        }
        self.shared.arrived.notify_all();
        let mut received = Vec::new();
        for &from in from {
            loop {
                if let Some(bytes) = box_.remove(&(number, from, self.rank)) {
                    received.push(bytes);
                    break;
                }
                if self.shared.gone.load(SeqCst) {
                    return Err(fail("another process ended".into()));
                }
                let (guard, waited) =
                    self.shared.arrived.wait_timeout(box_, DEADLINE).expect("no thread panics while it holds the lock");
                box_ = guard;
                if waited.timed_out() {
                    return Err(fail(format!("nothing from process {from} for {DEADLINE:?}")));
                }
            }
        }
        Ok(received)
    }

    fn others(&self) -> Vec<usize> {
        (0..self.size).filter(|&rank| rank != self.rank).collect()
    }
}

impl Comm for InProcess {
    fn rank(&self) -> usize {
        self.rank
    }
    fn size(&self) -> usize {
        self.size
    }
    fn local_rank(&self) -> usize {
        self.rank
    }
    fn local_size(&self) -> usize {
        self.size
    }
    fn barrier(&self) -> Result<(), CommError> {
        let letters = self.others().into_iter().map(|to| (to, Vec::new())).collect();
        self.swap("barrier", letters, &self.others()).map(|_| ())
    }
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError> {
        let operation = format!("broadcast from process {root}");
        if self.rank == root {
            let letters = self.others().into_iter().map(|to| (to, bytes.to_vec())).collect();
            return self.swap(&operation, letters, &[]).map(|_| ());
        }
        bytes.copy_from_slice(&self.swap(&operation, Vec::new(), &[root])?[0]);
        Ok(())
    }
    fn gather(&self, buffer: &mut [u8], ranges: &[Range<usize>]) -> Result<(), CommError> {
        let mine = &buffer[ranges[self.rank].clone()];
        let letters = self.others().into_iter().map(|to| (to, mine.to_vec())).collect();
        for (from, bytes) in self.others().into_iter().zip(self.swap("gather", letters, &self.others())?) {
            buffer[ranges[from].clone()].copy_from_slice(&bytes);
        }
        Ok(())
    }
    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<(), CommError> {
        receive[self.rank].copy_from_slice(send[self.rank]);
        let letters = self.others().into_iter().map(|to| (to, send[to].to_vec())).collect();
        for (from, bytes) in self.others().into_iter().zip(self.swap("exchange", letters, &self.others())?) {
            receive[from].copy_from_slice(&bytes);
        }
        Ok(())
    }
    fn sent(&self) -> u64 {
        self.sent.load(SeqCst)
    }
    fn abort(&self, code: i32) -> ! {
        self.shared.gone.store(true, SeqCst);
        self.shared.arrived.notify_all();
        panic!("process {} of {} ended all others with code {code}", self.rank, self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_all<R: Send>(size: usize, f: impl Fn(&dyn Comm) -> R + Sync) -> Vec<R> {
        std::thread::scope(|scope| {
            let threads: Vec<_> = in_process(size).into_iter().map(|comm| scope.spawn(|| f(&{ comm }))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn bytes_of_any_length_reach_all() {
        let gathered = on_all(4, |comm| comm.gather_all(&vec![comm.rank() as u8; comm.rank() * 2]).unwrap());
        assert!(gathered.iter().all(|all| *all == [vec![], vec![1; 2], vec![2; 4], vec![3; 6]]));
        let said = on_all(3, |comm| comm.broadcast_all(1, vec![comm.rank() as u8; 5 + comm.rank()]).unwrap());
        assert!(said.iter().all(|said| *said == [1; 6]));
    }

    #[test]
    fn every_pair_exchanges_its_own_bytes() {
        let received = on_all(3, |comm| {
            let send: Vec<Vec<u8>> = (0..3).map(|to| vec![(comm.rank() * 10 + to) as u8; to + 1]).collect();
            let mut receive = vec![vec![0u8; comm.rank() + 1]; 3];
            let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
            comm.exchange(&send, &mut receive.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>()).unwrap();
            comm.barrier().unwrap();
            (receive, comm.sent())
        });
        assert_eq!(received[2], (vec![vec![2; 3], vec![12; 3], vec![22; 3]], 3));
        assert_eq!(received[0], (vec![vec![0], vec![10], vec![20]], 5));
    }
}
