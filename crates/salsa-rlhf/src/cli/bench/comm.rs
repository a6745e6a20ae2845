//! `salsa bench comm`: the operations of the processes of a run, with bytes that each receiver knows.
use std::time::Instant;

use anyhow::ensure;
use salsa_engine::comm::{Comm, CommError};
use serde_json::{Map, Value, json};

use super::{CommWork, print};

/// What process `from` sends to `to` in repetition `turn`, at place `at`.
fn byte(from: usize, to: usize, turn: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(17) ^ (from * 7 + to * 13 + turn * 29)) as u8
}

fn bytes(from: usize, to: usize, turn: usize, count: usize) -> Vec<u8> {
    (0..count).map(|at| byte(from, to, turn, at)).collect()
}

/// One operation: prepares its buffers, runs it, checks them. Returns the seconds of the run.
type Operation = fn(&dyn Comm, usize, usize) -> anyhow::Result<f64>;

const OPERATIONS: [(&str, Operation); 4] =
    [("barrier", barrier), ("broadcast", broadcast), ("gather", gather), ("exchange", exchange)];

/// Runs every operation, checks what arrives, prints seconds and bytes per second.
pub(super) fn measure(work: &CommWork, comm: &dyn Comm) -> anyhow::Result<()> {
    let (size, mut results) = (comm.size(), Map::new());
    let mut table = format!("{size} processes, {} bytes\n", work.bytes);
    for (name, operation) in OPERATIONS {
        let sent = comm.sent();
        let mut times =
            (0..work.repeat).map(|turn| operation(comm, work.bytes, turn)).collect::<anyhow::Result<Vec<_>>>()?;
        times.sort_by(f64::total_cmp);
        let (best, median) = (times[0], times[times.len() / 2]);
        let sent = (comm.sent() - sent) / work.repeat as u64;
        results.insert(name.to_owned(), json!({"best_s": best, "median_s": median, "sent": sent}));
        table += &format!(
            "{name:10} best {best:.6} s, median {median:.6} s, {:.3} GB/s sent by process 0\n",
            sent as f64 / best / 1e9
        );
    }
    let mut object = json!({"bench": "comm", "processes": size, "bytes": work.bytes});
    object["operations"] = Value::Object(results);
    print(&if work.json { format!("{object}\n") } else { table })
}

/// Runs an operation when all have come to it.
fn timed(comm: &dyn Comm, operation: impl FnOnce() -> Result<(), CommError>) -> anyhow::Result<f64> {
    comm.barrier()?;
    let start = Instant::now();
    operation()?;
    Ok(start.elapsed().as_secs_f64())
}

fn barrier(comm: &dyn Comm, _: usize, _: usize) -> anyhow::Result<f64> {
    timed(comm, || comm.barrier())
}

fn broadcast(comm: &dyn Comm, count: usize, turn: usize) -> anyhow::Result<f64> {
    let (rank, root) = (comm.rank(), turn % comm.size());
    let mut buffer = if rank == root { bytes(root, root, turn, count) } else { vec![0; count] };
    let seconds = timed(comm, || comm.broadcast(root, &mut buffer))?;
    check("broadcast", &buffer, &bytes(root, root, turn, count))?;
    Ok(seconds)
}

/// Parts of different lengths, in reverse order, with a gap between them.
fn gather(comm: &dyn Comm, count: usize, turn: usize) -> anyhow::Result<f64> {
    let (mut end, mut ranges) = (0, Vec::new());
    for rank in (0..comm.size()).rev() {
        ranges.push(end..end + count.saturating_sub(rank * turn));
        end += count + 1;
    }
    ranges.reverse();
    let (mut buffer, mut expected) = (vec![0; end], vec![0; end]);
    for (rank, range) in ranges.iter().enumerate() {
        expected[range.clone()].copy_from_slice(&bytes(rank, rank, turn, range.len()));
    }
    let mine = ranges[comm.rank()].clone();
    buffer[mine.clone()].copy_from_slice(&expected[mine]);
    let seconds = timed(comm, || comm.gather(&mut buffer, &ranges))?;
    check("gather", &buffer, &expected)?;
    Ok(seconds)
}

/// A length of its own for each pair.
fn exchange(comm: &dyn Comm, count: usize, turn: usize) -> anyhow::Result<f64> {
    let (rank, ranks) = (comm.rank(), 0..comm.size());
    let length = |from: usize, to: usize| count.saturating_sub(from + 3 * to);
    let send: Vec<Vec<u8>> = ranks.clone().map(|to| bytes(rank, to, turn, length(rank, to))).collect();
    let mut receive: Vec<Vec<u8>> = ranks.clone().map(|from| vec![0; length(from, rank)]).collect();
    let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
    let mut into: Vec<&mut [u8]> = receive.iter_mut().map(Vec::as_mut_slice).collect();
    let seconds = timed(comm, || comm.exchange(&send, &mut into))?;
    for (from, received) in ranks.zip(&receive) {
        check("exchange", received, &bytes(from, rank, turn, received.len()))?;
    }
    Ok(seconds)
}

fn check(operation: &str, found: &[u8], expected: &[u8]) -> anyhow::Result<()> {
    let wrong = found.iter().zip(expected).position(|(found, expected)| found != expected);
    ensure!(wrong.is_none(), "{operation}: byte {} is wrong: the transport damages data", wrong.unwrap_or_default());
    Ok(())
}
