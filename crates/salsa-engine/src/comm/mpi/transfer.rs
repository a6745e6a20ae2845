//! Messages of one operation: sent and received without blocking, awaited until a deadline.

use super::super::{Comm, CommError, watch};
use super::Mpi;
use super::abi::{Handle, Status};
use std::ffi::{c_char, c_int};
use std::marker::PhantomData;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

/// Tests of all requests before a waiting process sleeps between two of them.
const YIELDS: u32 = 500;
/// The sleep: what arrives meanwhile at 10 Gb/s fits the buffers of a socket.
const PAUSE: Duration = Duration::from_micros(50);
/// How much later a process gives up that does not know which one is missing.
const LATER: Duration = Duration::from_secs(2);
/// Tags below this are valid in every MPI.
const TAGS: u64 = 1 << 15;

/// An operation in progress. Its buffers are lent until it is complete.
pub(super) struct Operation<'a, 'b, H: Handle> {
    mpi: &'a Mpi<H>,
    name: String,
    tag: c_int,
    limit: Duration,
    pending: Vec<Pending<H>>,
    buffers: PhantomData<&'b mut [u8]>,
}

/// A message under way.
struct Pending<H> {
    request: H,
    peer: usize,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To the peer.
    Out,
    /// From the peer: this many bytes.
    In(usize),
}

impl<H: Handle> Mpi<H> {
    /// Begins an operation. Its number is its tag, so that processes which do different things do not take each other's
    /// messages for their own.
    pub(super) fn begin<'b>(&self, name: String) -> Result<Operation<'_, 'b, H>, CommError> {
        if thread::current().id() != self.thread {
            let reason = "called from another thread than the one that started MPI".to_owned();
            return Err(CommError { rank: self.rank, size: self.size, operation: name, reason });
        }
        let tag = (self.operations.fetch_add(1, Relaxed) % TAGS) as c_int;
        Ok(Operation { mpi: self, name, tag, limit: self.settings.limit(), pending: Vec::new(), buffers: PhantomData })
    }
}

impl<'a, 'b, H: Handle> Operation<'a, 'b, H> {
    /// A part of this operation that is completed before it goes on.
    pub(super) fn part<'c>(&self) -> Operation<'a, 'c, H> {
        let Operation { mpi, tag, limit, .. } = *self;
        Operation { mpi, name: self.name.clone(), tag, limit, pending: Vec::new(), buffers: PhantomData }
    }

    /// The operation, whose deadline is after that of the processes that know more.
    pub(super) fn after_others(mut self) -> Self {
        self.limit = self.limit.saturating_add(LATER);
        self
    }

    /// The operation, which now waits for as long as it takes.
    pub(super) fn without_deadline(mut self) -> Self {
        self.limit = Duration::MAX;
        self
    }

    /// Begins to send `bytes`, in pieces that MPI can count.
    pub(super) fn send(&mut self, to: usize, bytes: &'b [u8]) {
        let (mpi, world, byte) = (self.mpi, self.mpi.constants.world, self.mpi.constants.byte);
        for piece in pieces(bytes.len(), mpi.settings.chunk) {
            let (piece, mut request) = (&bytes[piece], H::UNSET);
            let (data, count) = (piece.as_ptr().cast(), piece.len() as c_int);
            // SAFETY: the bytes stay borrowed until the request is complete: this value completes all its requests before
            // it ends, or the process ends.
            let code = unsafe { (mpi.functions.isend)(data, count, byte, to as c_int, self.tag, world, &mut request) };
            self.check("MPI_Isend", code);
            self.pending.push(Pending { request, peer: to, way: Way::Out });
        }
        mpi.sent.fetch_add(bytes.len() as u64, Relaxed);
    }

    /// Begins to fill `bytes`.
    pub(super) fn receive(&mut self, from: usize, bytes: &'b mut [u8]) {
        let (mpi, world, byte) = (self.mpi, self.mpi.constants.world, self.mpi.constants.byte);
        for piece in pieces(bytes.len(), mpi.settings.chunk) {
            let (piece, mut request) = (&mut bytes[piece], H::UNSET);
            let (data, count) = (piece.as_mut_ptr().cast(), piece.len() as c_int);
            // SAFETY: as in `send`; nothing else uses the bytes meanwhile, as they are borrowed mutably.
            let code =
                unsafe { (mpi.functions.irecv)(data, count, byte, from as c_int, self.tag, world, &mut request) };
            self.check("MPI_Irecv", code);
            self.pending.push(Pending { request, peer: from, way: Way::In(count as usize) });
        }
    }

    /// Waits until all messages have left or arrived. It ends the process if nothing has for as long as the deadline: the
    /// buffers cannot be given back while another process may still write to them.
    pub(super) fn complete(&mut self) {
        let (mut since, mut idle) = (Instant::now(), 0);
        while !self.pending.is_empty() {
            let mut pending = std::mem::take(&mut self.pending);
            let before = pending.len();
            pending.retain_mut(|message| !self.is_done(message));
            self.pending = pending;
            if self.pending.len() < before {
                (since, idle) = (Instant::now(), 0);
                continue;
            }
            idle += 1;
            if idle < YIELDS {
                thread::yield_now();
            } else {
                thread::sleep(PAUSE);
            }
            if since.elapsed() > self.limit {
                self.fail(&self.late());
            }
        }
    }

    fn is_done(&self, message: &mut Pending<H>) -> bool {
        let (functions, mut done, mut status, mut count) = (&self.mpi.functions, 0, Status::new(), 0);
        // SAFETY: the request is pending; the other pointers refer to locals, the status to more bytes than any MPI fills.
        let code = unsafe { (functions.test)(&mut message.request, &mut done, &mut status) };
        self.check("MPI_Test", code);
        if let (true, Way::In(expected)) = (done != 0, message.way) {
            // SAFETY: the status was filled, and the count is a local.
            let code = unsafe { (functions.get_count)(&status, self.mpi.constants.byte, &mut count) };
            self.check("MPI_Get_count", code);
            if count as usize != expected {
                let from = self.mpi.name(&[message.peer]);
                self.fail(&format!("{from} sent {count} bytes where {expected} were expected"));
            }
        }
        done != 0
    }

    /// Which processes were waited for.
    fn late(&self) -> String {
        let peers = |is: fn(Way) -> bool| {
            let mut peers: Vec<usize> = self.pending.iter().filter(|m| is(m.way)).map(|message| message.peer).collect();
            peers.sort_unstable();
            peers.dedup();
            peers
        };
        let (receiving, sending) = (peers(|way| way != Way::Out), peers(|way| way == Way::Out));
        let (what, peers) = if receiving.is_empty() { ("took", sending) } else { ("sent", receiving) };
        format!(
            "{} {what} nothing for {}; it hangs or was stopped, or the network between the hosts is cut \
             (SALSA_COMM_TIMEOUT sets the seconds to wait)",
            self.mpi.name(&peers),
            self.mpi.settings.in_words()
        )
    }

    fn check(&self, function: &str, code: c_int) {
        if code != 0 {
            self.fail(&format!("{function}: {}", self.mpi.error(code)));
        }
    }

    fn fail(&self, reason: &str) -> ! {
        let Mpi { rank, size, .. } = *self.mpi;
        let host = super::peers::host();
        watch::report(&format!("process {rank} of {size} on {host}: {}: {reason}", self.name));
        self.mpi.abort(1)
    }
}

impl<H: Handle> Drop for Operation<'_, '_, H> {
    fn drop(&mut self) {
        // Only a panic between two messages leaves some; the buffers cannot be given back then.
        if !self.pending.is_empty() {
            self.mpi.abort(101);
        }
    }
}

impl<H: Handle> Mpi<H> {
    /// What MPI says of an error code.
    fn error(&self, code: c_int) -> String {
        let (mut text, mut length): ([c_char; 8192], c_int) = ([0; 8192], 0);
        // SAFETY: the text has more room than `MPI_MAX_ERROR_STRING` of any MPI (at most 1024).
        unsafe { (self.functions.error_string)(code, text.as_mut_ptr(), &mut length) };
        let text: Vec<u8> = text.iter().take(length.max(0) as usize).map(|&byte| byte as u8).collect();
        let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
        format!("error {code}: {text}")
    }
}

/// Ranges of at most `limit` bytes that make up `length`; one empty range if it is 0.
fn pieces(length: usize, limit: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..length.div_ceil(limit).max(1)).map(move |i| i * limit..((i + 1) * limit).min(length))
}

#[cfg(test)]
mod tests {
    use super::pieces;

    #[test]
    fn a_message_is_cut_where_its_length_would_not_fit() {
        let of = |length, limit| pieces(length, limit).collect::<Vec<_>>();
        assert_eq!(of(0, 4), vec![0..0; 1]);
        assert_eq!(of(4, 4), vec![0..4; 1]);
        assert_eq!(of(9, 4), [0..4, 4..8, 8..9]);
        let (gib, all) = (1 << 30, (1usize << 33) + 5);
        assert_eq!(of(all, gib).len(), 9);
        assert!(pieces(all, gib).all(|piece| i32::try_from(piece.len()).is_ok()));
    }
}
