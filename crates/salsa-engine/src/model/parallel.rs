//! Gradients of several units of a step, added in an order that does not depend on the number of processes.
//!
//! ```text
//! unit    a part of a step's examples; its gradient is computed alone, into zeros
//! sum     of units 0..U, U a power of two, along one binary tree: ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7))
//! process r of P, which divides U, computes units r U/P .. (r + 1) U/P: a subtree
//! ```
//!
//! The upper part of the tree joins the processes: the flat gradient is cut into P slices, every process sends each
//! slice to its owner, and the owner adds them. It keeps the optimizer's moments of its slice alone (ZeRO-1,
//! Rajbhandari et al. 2020), updates its weights and sends them to all. Slices begin at the borders of the blocks in
//! which squares are summed, so the norm has the same bits as that of one process.

use crate::backend::Backend;
use crate::backend::cpu::adamw::{BLOCK, add, sums_of_squares};
use crate::comm::{Comm, CommError};
use crate::error::ModelError;
use std::ops::Range;
use std::sync::Arc;

/// Numbers of a slice that are exchanged at a time: what bounds the memory for it.
const PIECE: usize = 1 << 18;

/// The units of a step and the processes that compute them.
pub(super) struct Parallel<F> {
    comm: Arc<dyn Comm>,
    units: usize,
    /// Units of this step that this process has finished.
    finished: usize,
    /// Their sums, at most one of each size: that at place `l` is of `2^l` units.
    sums: Vec<Option<F>>,
    /// Memory for more.
    free: Vec<F>,
    /// The part of the flat buffers that each process owns.
    slices: Vec<Range<usize>>,
}

impl<F> Parallel<F> {
    /// `units` units on the processes of `comm`, for flat buffers of `len` numbers.
    ///
    /// # Errors
    ///
    /// If `units` is no power of two, or no multiple of the number of processes.
    pub(super) fn new(comm: Arc<dyn Comm>, units: usize, len: usize) -> Result<Parallel<F>, ModelError> {
        let processes = comm.size();
        if !units.is_power_of_two() || !units.is_multiple_of(processes) {
            return Err(ModelError::Shared(format!(
                "{units} gradient units cannot be dealt to {processes} processes; both must be powers of two, and the \
                 processes at most as many as the units"
            )));
        }
        let blocks = len.div_ceil(BLOCK);
        let border = |process: usize| (blocks * process / processes * BLOCK).min(len);
        let slices = (0..processes).map(|process| border(process)..border(process + 1)).collect();
        Ok(Parallel { comm, units, finished: 0, sums: Vec::new(), free: Vec::new(), slices })
    }

    /// The number of units.
    pub(super) fn units(&self) -> usize {
        self.units
    }

    /// Those of this process.
    pub(super) fn own_units(&self) -> Range<usize> {
        let own = self.units / self.slices.len();
        self.comm.rank() * own..(self.comm.rank() + 1) * own
    }

    /// The processes.
    pub(super) fn comm(&self) -> &dyn Comm {
        &*self.comm
    }

    /// The slice that this process owns.
    pub(super) fn own(&self) -> Range<usize> {
        self.slices[self.comm.rank()].clone()
    }

    /// Forgets the units of this step.
    pub(super) fn forget(&mut self) {
        self.finished = 0;
        self.free.extend(self.sums.drain(..).flatten());
    }

    /// Adds the gradient of a unit to those before it. Afterwards `gradients` is zero, or, after the last unit of this
    /// process, their sum.
    pub(super) fn finish<B: Backend<Flat = F>>(&mut self, backend: &B, gradients: &mut F) {
        self.finished += 1;
        let mut level = 0;
        while let Some(mut left) = self.sums.get_mut(level).and_then(Option::take) {
            add(host(backend, gradients), host(backend, &mut left));
            self.free.push(left);
            level += 1;
        }
        if self.finished == self.own_units().len() {
            return;
        }
        let next = match self.free.pop() {
            Some(mut used) => {
                backend.clear(&mut used);
                used
            }
            None => backend.flat_zeros(host(backend, gradients).len()),
        };
        self.sums.resize_with(self.sums.len().max(level + 1), || None);
        self.sums[level] = Some(std::mem::replace(gradients, next));
    }

    /// Adds the gradients of all processes: the slice of `gradients` that this one owns becomes the sum, the rest is
    /// unspecified. Returns the norm of the whole sum.
    ///
    /// # Errors
    ///
    /// If the processes cannot exchange bytes.
    ///
    /// # Panics
    ///
    /// If a unit of this process is not finished.
    pub(super) fn reduce(&mut self, gradients: &mut [f32]) -> Result<f64, CommError> {
        assert_eq!(self.finished, self.own_units().len(), "every unit of a step is finished once");
        if self.slices.len() > 1 {
            for pieces in self.pieces() {
                self.reduce_pieces(gradients, &pieces)?;
            }
        }
        let own = sums_of_squares(&gradients[self.own()]);
        let own: Vec<u8> = own.iter().flat_map(|sum| sum.to_le_bytes()).collect();
        let blocks = |slice: &Range<usize>| slice.start.div_ceil(BLOCK) * 8..slice.end.div_ceil(BLOCK) * 8;
        let ranges: Vec<Range<usize>> = self.slices.iter().map(blocks).collect();
        let mut sums = vec![0; ranges.last().map_or(0, |range| range.end)];
        sums[ranges[self.comm.rank()].clone()].copy_from_slice(&own);
        self.comm.gather(&mut sums, &ranges)?;
        Ok(sums.as_chunks::<8>().0.iter().map(|sum| f64::from_le_bytes(*sum)).sum::<f64>().sqrt())
    }

    /// Sends a piece of each slice to its owner, and adds those of the own one.
    fn reduce_pieces(&self, gradients: &mut [f32], pieces: &[Range<usize>]) -> Result<(), CommError> {
        let (rank, processes) = (self.comm.rank(), self.slices.len());
        let own = pieces[rank].clone();
        let other = |process: usize| process != rank;
        let to = |process| if other(process) { bytes(&gradients[pieces[process].clone()]) } else { Vec::new() };
        let from = |process| vec![0; if other(process) { 4 * own.len() } else { 0 }];
        let send: Vec<Vec<u8>> = (0..processes).map(to).collect();
        let mut received: Vec<Vec<u8>> = (0..processes).map(from).collect();
        let send: Vec<&[u8]> = send.iter().map(Vec::as_slice).collect();
        self.comm.exchange(&send, &mut received.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;
        let mut sums: Vec<Vec<f32>> = received.iter().map(|received| numbers(received)).collect();
        sums[rank] = gradients[own.clone()].to_vec();
        let mut stride = 1;
        while stride < processes {
            for left in (0..processes).step_by(2 * stride) {
                let (sums, others) = sums.split_at_mut(left + stride);
                add(&mut sums[left], &others[0]);
            }
            stride *= 2;
        }
        gradients[own].copy_from_slice(&sums[0]);
        Ok(())
    }

    /// Copies the slice of every process to all.
    ///
    /// # Errors
    ///
    /// If the processes cannot exchange bytes.
    pub(super) fn gather(&self, flat: &mut [f32]) -> Result<(), CommError> {
        let rank = self.comm.rank();
        if self.slices.len() == 1 {
            return Ok(());
        }
        for pieces in self.pieces() {
            let mut end = 0;
            let range = |piece: &Range<usize>| {
                let start = end;
                end += 4 * piece.len();
                start..end
            };
            let ranges: Vec<Range<usize>> = pieces.iter().map(range).collect();
            let mut buffer = vec![0; end];
            buffer[ranges[rank].clone()].copy_from_slice(&bytes(&flat[pieces[rank].clone()]));
            self.comm.gather(&mut buffer, &ranges)?;
            for (piece, range) in pieces.into_iter().zip(ranges) {
                flat[piece].copy_from_slice(&numbers(&buffer[range]));
            }
        }
        Ok(())
    }

    /// Calls `each` on the first process with the numbers of all slices in order, piece by piece; `own` are those of
    /// this process.
    ///
    /// # Errors
    ///
    /// If the processes cannot exchange bytes, or `each` fails.
    pub(super) fn to_first<E: From<ModelError>>(
        &self,
        own: &[f32],
        mut each: impl FnMut(&[f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (rank, processes) = (self.comm.rank(), self.slices.len());
        for (owner, slice) in self.slices.iter().enumerate() {
            for start in (0..slice.len()).step_by(PIECE) {
                let piece = start..slice.len().min(start + PIECE);
                if owner == 0 {
                    if rank == 0 {
                        each(&own[piece])?;
                    }
                    continue;
                }
                let (mut sent, mut received) = (vec![Vec::new(); processes], vec![Vec::new(); processes]);
                if rank == owner {
                    sent[0] = bytes(&own[piece.clone()]);
                } else if rank == 0 {
                    received[owner] = vec![0; 4 * piece.len()];
                }
                let send: Vec<&[u8]> = sent.iter().map(Vec::as_slice).collect();
                let mut receive: Vec<&mut [u8]> = received.iter_mut().map(Vec::as_mut_slice).collect();
                self.comm.exchange(&send, &mut receive).map_err(ModelError::from)?;
                if rank == 0 {
                    each(&numbers(&received[owner]))?;
                }
            }
        }
        Ok(())
    }

    /// All slices, in pieces: the first piece of each, the second of each, and so on; those of shorter slices may be
    /// empty.
    fn pieces(&self) -> impl Iterator<Item = Vec<Range<usize>>> + use<F> {
        let slices = self.slices.clone();
        let longest = slices.iter().map(Range::len).max().unwrap_or(0);
        (0..longest).step_by(PIECE).map(move |at| {
            slices
                .iter()
                .map(|slice| slice.end.min(slice.start + at)..slice.end.min(slice.start + at + PIECE))
                .collect()
        })
    }
}

/// The numbers of flat memory.
///
/// # Panics
///
/// If they are not the CPU's; no such model is shared.
pub(super) fn host<'a, B: Backend>(backend: &B, flat: &'a mut B::Flat) -> &'a mut [f32] {
    backend.host(flat).expect("a shared model is on the CPU")
}

/// Little-endian bytes of numbers.
fn bytes(numbers: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * numbers.len()];
    bytes.as_chunks_mut::<4>().0.iter_mut().zip(numbers).for_each(|(bytes, number)| *bytes = number.to_le_bytes());
    bytes
}

/// The numbers of little-endian bytes.
fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
