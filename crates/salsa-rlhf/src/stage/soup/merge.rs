//! The pass over the weights: read a piece of every ingredient, combine, write.
use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::{anyhow, bail};
use salsa_algo::soup::Gram;

use super::{arithmetic::Arithmetic, bf16, geometry::Geometry, ingredients::Ingredients};
use crate::{
    checkpoint::{Dtype, NewTensor, RawTensors, Writer},
    progress::Progress,
    stage::StageContext,
};

/// Numbers of a piece where elements are independent: all of it, from all ingredients, stays in a core's own cache.
const PIECE: usize = 1 << 17;

/// The unit of the progress bar.
const MB: u64 = 1_000_000;

/// Where whole tensors are needed, no more of them are worked on at a time than fit here; one always is.
const WHOLE_TENSOR_BYTES: usize = 256 << 20;

/// Everything the pass needs; nothing in it changes.
pub(super) struct Merge<'a> {
    models: Vec<RawTensors<'a>>,
    base: Option<RawTensors<'a>>,
    arithmetic: &'a Arithmetic,
    tensors: &'a [NewTensor],
    ingredients: &'a Ingredients,
    report: bool,
}

/// A run of numbers of one tensor.
#[derive(Clone, Copy)]
struct Piece {
    tensor: usize,
    start: usize,
    len: usize,
}

/// The buffers of one thread.
#[derive(Default)]
struct Scratch {
    stored: Vec<Vec<u8>>,
    wide: Vec<Vec<f32>>,
    base: Vec<f32>,
    mixed: Vec<f32>,
    out: Vec<u8>,
}

impl<'a> Merge<'a> {
    pub fn new(
        ingredients: &'a Ingredients,
        arithmetic: &'a Arithmetic,
        tensors: &'a [NewTensor],
        report: bool,
    ) -> anyhow::Result<Merge<'a>> {
        let models = ingredients.models.iter().map(|model| model.raw()).collect::<anyhow::Result<_>>()?;
        let base = ingredients.base.as_ref().map(|base| base.raw()).transpose()?;
        Ok(Merge { models, base, arithmetic, tensors, ingredients, report })
    }

    /// Writes all of the soup's weights; all cores share the pieces, in order.
    pub fn run(&self, writer: &Writer, context: &StageContext) -> anyhow::Result<Option<Geometry>> {
        let pieces = self.pieces();
        let grams: Vec<Mutex<Option<Gram>>> = pieces.iter().map(|_| Mutex::new(None)).collect();
        let progress = Progress::new("soup", writer.bytes() / MB, "MB");
        let (next, stop, done) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
        let (failed, budget) = (Mutex::new(None), Budget::default());
        let work = || {
            let mut scratch = Scratch::default();
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(piece) = pieces.get(i) else { break };
                let result = match context.interrupted() {
                    true => Err(anyhow!("interrupted; no soup was made, the same command starts anew")),
                    false => budget.hold(self.whole_bytes(piece), || self.mix(*piece, writer, &mut scratch)),
                };
                match result {
                    Ok(gram) => *lock(&grams[i]) = gram,
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = lock(&failed);
                        if failed.as_ref().is_none_or(|(earlier, _)| i < *earlier) {
                            *failed = Some((i, error));
                        }
                    }
                }
                let bytes = piece.len * self.tensors[piece.tensor].dtype.size();
                progress.set((done.fetch_add(bytes, Ordering::Relaxed) + bytes) as u64 / MB);
            }
        };
        thread::scope(|scope| {
            (1..rayon::current_num_threads()).for_each(|_| drop(scope.spawn(work)));
            work();
        });
        if let Some((_, error)) = lock(&failed).take() {
            return Err(error);
        }
        progress.finish("");
        let grams = pieces.iter().zip(grams).filter_map(|(piece, gram)| {
            Some((piece.tensor, gram.into_inner().unwrap_or_else(PoisonError::into_inner)?))
        });
        Ok(self.report.then(|| Geometry::new(self.ingredients, self.arithmetic, self.tensors, grams)))
    }

    fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (tensor, new) in self.tensors.iter().enumerate() {
            let numbers: usize = new.shape.iter().product();
            let len = if self.arithmetic.mean().is_some() { PIECE } else { numbers };
            let piece = |start| Piece { tensor, start, len: len.min(numbers - start) };
            pieces.extend((0..numbers).step_by(len.max(1)).map(piece));
        }
        pieces
    }

    /// The memory that a whole tensor takes, its ingredients included; pieces need no permission.
    fn whole_bytes(&self, piece: &Piece) -> usize {
        let copies = self.models.len() + 3;
        if self.arithmetic.mean().is_some() { 0 } else { piece.len * 4 * copies }
    }

    /// One piece, from all the files into one.
    fn mix(&self, piece: Piece, writer: &Writer, scratch: &mut Scratch) -> anyhow::Result<Option<Gram>> {
        if !self.report && self.mix_bf16(piece, writer, scratch)? {
            return Ok(None);
        }
        self.mix_f32(piece, writer, scratch)
    }

    /// The short way for a mean of bfloat16 into bfloat16; says whether it could be gone.
    fn mix_bf16(&self, piece: Piece, writer: &Writer, scratch: &mut Scratch) -> anyhow::Result<bool> {
        let Some(weights) = self.arithmetic.mean() else { return Ok(false) };
        let reads = self.arithmetic.reads();
        let all_bf16 = self.tensors[piece.tensor].dtype == Dtype::BF16
            && reads.iter().all(|i| self.models[*i].dtype(piece.tensor) == Dtype::BF16);
        if !all_bf16 || !bf16::is_exact(weights.values(), weights.sum_to_one()) {
            return Ok(false);
        }
        scratch.stored.resize_with(reads.len(), Vec::new);
        for (i, bytes) in reads.iter().zip(&mut scratch.stored) {
            bytes.resize(piece.len * 2, 0);
            self.models[*i].read(piece.tensor, piece.start, bytes)?;
        }
        let stored: Vec<&[u8]> = scratch.stored.iter().map(Vec::as_slice).collect();
        scratch.out.resize(piece.len * 2, 0);
        // What is not finite is found and named on the long way.
        let finite = bf16::weighted_sum(&stored, weights.values(), &mut scratch.out);
        if finite {
            writer.write(piece.tensor, piece.start, &scratch.out)?;
        }
        Ok(finite)
    }

    fn mix_f32(&self, piece: Piece, writer: &Writer, scratch: &mut Scratch) -> anyhow::Result<Option<Gram>> {
        let Piece { tensor, start, len } = piece;
        let used = self.arithmetic.reads();
        let reads = if self.report { (0..self.models.len()).collect() } else { used.clone() };
        scratch.wide.resize_with(self.models.len(), Vec::new);
        for &i in &reads {
            scratch.wide[i].resize(len, 0.0);
            self.read(&self.models[i], piece, &mut scratch.wide[i])?;
        }
        scratch.base.clear();
        if let Some(base) = self.base.as_ref().filter(|_| self.report || self.arithmetic.reads_base()) {
            scratch.base.resize(len, 0.0);
            self.read(base, piece, &mut scratch.base)?;
        }
        let ingredients: Vec<&[f32]> = used.iter().map(|i| scratch.wide[*i].as_slice()).collect();
        scratch.mixed.resize(len, 0.0);
        self.arithmetic.apply(tensor, &scratch.base, &ingredients, &mut scratch.mixed);

        let dtype = self.tensors[tensor].dtype;
        for (block, numbers) in scratch.mixed.chunks_mut(PIECE).enumerate() {
            let start = start + block * PIECE;
            dtype.encode(numbers, &mut scratch.out).map_err(|at| self.not_in_range(tensor, start + at, numbers[at]))?;
            writer.write(tensor, start, &scratch.out)?;
            if self.report {
                dtype.widen(&scratch.out, numbers);
            }
        }
        if !self.report {
            return Ok(None);
        }
        // Seen from the base; without one, from the first ingredient.
        let mut points: Vec<&[f32]> = scratch.wide.iter().map(Vec::as_slice).collect();
        points.push(&scratch.mixed);
        let mut gram = Gram::new(points.len());
        gram.add(if scratch.base.is_empty() { points[0] } else { &scratch.base }, &points);
        Ok(Some(gram))
    }

    /// Reads a piece and refuses a broken model.
    fn read(&self, model: &RawTensors<'_>, piece: Piece, out: &mut [f32]) -> anyhow::Result<()> {
        model.read_f32(piece.tensor, piece.start, out)?;
        // Without an early exit the compiler looks at many numbers at once.
        if out.iter().fold(true, |all, x| all & x.is_finite()) {
            return Ok(());
        }
        let at = out.iter().position(|x| !x.is_finite()).unwrap_or_default();
        bail!(
            "{}: number {} of {} is {}: the model is broken, leave it out or take an earlier checkpoint",
            model.path(piece.tensor).display(),
            piece.start + at,
            self.tensors[piece.tensor].name,
            out[at]
        )
    }

    fn not_in_range(&self, tensor: usize, at: usize, value: f32) -> anyhow::Error {
        let NewTensor { name, dtype, .. } = &self.tensors[tensor];
        anyhow!(
            "number {at} of {name} is {value} in the soup, which {dtype} cannot hold; take another dtype (--dtype float32) or smaller weights"
        )
    }
}

/// Lets as many tasks run at a time as have room for their memory, and one in any case.
#[derive(Default)]
struct Budget {
    held: Mutex<usize>,
    freed: Condvar,
}

impl Budget {
    fn hold<T>(&self, bytes: usize, task: impl FnOnce() -> T) -> T {
        let mut held = lock(&self.held);
        while *held > 0 && *held + bytes > WHOLE_TENSOR_BYTES {
            held = self.freed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        *held += bytes;
        drop(held);
        let result = task();
        *lock(&self.held) -= bytes;
        self.freed.notify_all();
        result
    }
}

/// A panic in one thread is passed on by the scope; until then the others may go on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
