//! The processes of one run and the bytes they exchange.
//!
//! Nothing here adds numbers: libraries choose the order of a sum by message size, topology and version, so their sums
//! differ from run to run. Bytes are moved, and added in a fixed order by who needs the sum.
//!
//! All processes call the same operations in the same order, each from one thread at a time.

mod in_process;
mod launch;
mod mpi;
mod peers;
mod settings;
mod watch;

pub use in_process::{InProcess, in_process};
pub use launch::{Joined, LaunchError, Launched, Launcher, from_environment, launched};
pub use peers::{Peers, host};

use settings::Settings;
use std::ops::Range;
use thiserror::Error;

/// Why an exchange failed; the run cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("process {rank} of {size}: {operation}: {reason}")]
pub struct CommError {
    /// The process that noticed.
    pub rank: usize,
    /// The number of processes.
    pub size: usize,
    /// What it was doing, such as `broadcast from process 0`.
    pub operation: String,
    /// What went wrong.
    pub reason: String,
}

/// One of the processes of a run.
pub trait Comm: std::fmt::Debug + Send + Sync {
    /// This process, counted from 0.
    fn rank(&self) -> usize;

    /// The number of processes.
    fn size(&self) -> usize;

    /// This process among those of its machine, counted from 0.
    fn local_rank(&self) -> usize;

    /// The number of processes on its machine.
    fn local_size(&self) -> usize;

    /// Returns when all processes have called it.
    ///
    /// # Errors
    ///
    /// If a process is gone or the deadline has passed.
    fn barrier(&self) -> Result<(), CommError>;

    /// Copies `bytes` of process `root` to all; the length is the same everywhere.
    ///
    /// # Errors
    ///
    /// As [`Comm::barrier`].
    fn broadcast(&self, root: usize, bytes: &mut [u8]) -> Result<(), CommError>;

    /// Copies `buffer[ranges[r]]` of process `r` to all, for every `r`. Buffers have the same length and ranges
    /// everywhere; ranges do not overlap and may be empty.
    ///
    /// # Errors
    ///
    /// As [`Comm::barrier`].
    fn gather(&self, buffer: &mut [u8], ranges: &[Range<usize>]) -> Result<(), CommError>;

    /// Sends `send[r]` to process `r` and fills `receive[r]` with what `r` sent here; both sides know the lengths.
    /// `send[rank]` is copied to `receive[rank]`.
    ///
    /// # Errors
    ///
    /// As [`Comm::barrier`].
    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<(), CommError>;

    /// Waits until process `root` calls it too, for as long as that works alone: there is no deadline.
    ///
    /// # Errors
    ///
    /// If a process is gone.
    fn wait_for(&self, root: usize) -> Result<(), CommError> {
        self.broadcast(root, &mut [0])
    }

    /// Bytes sent to other processes so far.
    fn sent(&self) -> u64;

    /// Ends this process and all others with exit code `code`.
    fn abort(&self, code: i32) -> !;
}

impl dyn Comm + '_ {
    /// Whether this process writes what all have made: the first one.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The bytes of every process, in the order of ranks; lengths may differ.
    ///
    /// # Errors
    ///
    /// As [`Comm::barrier`].
    pub fn gather_all(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let word = |rank: usize| rank * 8..rank * 8 + 8;
        let mut lengths = vec![0u8; self.size() * 8];
        lengths[word(self.rank())].copy_from_slice(&(mine.len() as u64).to_le_bytes());
        self.gather(&mut lengths, &(0..self.size()).map(word).collect::<Vec<_>>())?;
        let mut end = 0;
        let ranges: Vec<Range<usize>> = lengths
            .as_chunks::<8>()
            .0
            .iter()
            .map(|length| {
                let start = end;
                end += u64::from_le_bytes(*length) as usize;
                start..end
            })
            .collect();
        let mut buffer = vec![0u8; end];
        buffer[ranges[self.rank()].clone()].copy_from_slice(mine);
        self.gather(&mut buffer, &ranges)?;
        Ok(ranges.into_iter().map(|range| buffer[range].to_vec()).collect())
    }

    /// The bytes of process `root`, at all; those that others pass are ignored.
    ///
    /// # Errors
    ///
    /// As [`Comm::barrier`].
    pub fn broadcast_all(&self, root: usize, bytes: Vec<u8>) -> Result<Vec<u8>, CommError> {
        let mut length = (bytes.len() as u64).to_le_bytes();
        self.broadcast(root, &mut length)?;
        let mut bytes = if self.rank() == root { bytes } else { vec![0; u64::from_le_bytes(length) as usize] };
        self.broadcast(root, &mut bytes)?;
        Ok(bytes)
    }
}

/// `buffer[ranges[r]]` for every `r`; ranges do not overlap.
fn parts<'a>(mut buffer: &'a mut [u8], ranges: &[Range<usize>]) -> Vec<&'a mut [u8]> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&rank| (ranges[rank].start, ranges[rank].end));
    let (mut at, mut parts) = (0, Vec::new());
    for rank in order {
        let (before, after) = buffer.split_at_mut(ranges[rank].end - at);
        parts.push((rank, &mut before[ranges[rank].start - at..]));
        (buffer, at) = (after, ranges[rank].end);
    }
    parts.sort_by_key(|(rank, _)| *rank);
    parts.into_iter().map(|(_, part)| part).collect()
}

/// The only process of a run: exchanges nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Solo;

impl Comm for Solo {
    fn rank(&self) -> usize {
        0
    }
    fn size(&self) -> usize {
        1
    }
    fn local_rank(&self) -> usize {
        0
    }
    fn local_size(&self) -> usize {
        1
    }
    fn barrier(&self) -> Result<(), CommError> {
        Ok(())
    }
    fn broadcast(&self, _: usize, _: &mut [u8]) -> Result<(), CommError> {
        Ok(())
    }
    fn gather(&self, _: &mut [u8], _: &[Range<usize>]) -> Result<(), CommError> {
        Ok(())
    }
    fn exchange(&self, send: &[&[u8]], receive: &mut [&mut [u8]]) -> Result<(), CommError> {
        receive[0].copy_from_slice(send[0]);
        Ok(())
    }
    fn sent(&self) -> u64 {
        0
    }
    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn a_buffer_is_cut_in_the_order_of_ranks_wherever_they_lie() {
        let cut =
            |ranges: &[_]| parts(&mut [0, 1, 2, 3, 4, 5], ranges).iter().map(|part| part.to_vec()).collect::<Vec<_>>();
        assert_eq!(cut(&[4..6, 0..1, 1..1, 1..3]), [vec![4, 5], vec![0], vec![], vec![1, 2]]);
        assert_eq!(cut(&[2..2, 2..4]), [vec![], vec![2, 3]]);
    }
}
