//! The pass over the weights: reads a piece of every ingredient, combines, writes.
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use anyhow::anyhow;
use salsa_algo::soup::{Gram, SlerpStream};
use salsa_engine::TensorView;

use super::{
    arithmetic::Arithmetic, bf16, digest::FileDigest, geometry::Geometry, ingredients::Ingredients,
    provenance::Digests, rule::TensorRule,
};
use crate::{
    checkpoint::{Checkpoint, Delta, Dtype, NewTensor, RawTensors, Writer},
    progress::Progress,
    stage::StageContext,
};

/// Numbers per piece: a piece of all ingredients fits into a core's own cache. At most one piece of a tensor is in
/// memory at a time, for every method.
const PIECE: usize = 1 << 17;
const _: () = assert!(PIECE.is_multiple_of(SlerpStream::STEP));

/// The unit of the progress bar.
const MB: u64 = 1_000_000;

/// Everything the pass needs; immutable.
pub(super) struct Merge<'a> {
    models: Vec<Source<'a>>,
    base: Option<Source<'a>>,
    arithmetic: &'a Arithmetic,
    rules: Vec<TensorRule>,
    tensors: &'a [NewTensor],
    ingredients: &'a Ingredients,
    /// Digests of the soup's files; empty if not requested.
    soup: &'a [FileDigest],
    report: bool,
}

/// An input model and the digests of its files.
struct Source<'a> {
    raw: RawTensors<'a>,
    digests: &'a [FileDigest],
    /// The index of the model's tensor for each of the soup's tensors.
    places: Vec<usize>,
    views: Vec<TensorView>,
    /// The contribution of its adapter.
    delta: Option<Delta>,
}

/// A range of a tensor.
#[derive(Clone, Copy)]
struct Piece {
    tensor: usize,
    start: usize,
    len: usize,
}

/// Unit of work of a thread: a piece if elements are independent of each other, otherwise a tensor, piece by piece.
#[derive(Clone, Copy)]
enum Job {
    Piece(Piece),
    Tensor { tensor: usize, len: usize },
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
    pub(super) fn new(
        ingredients: &'a Ingredients,
        arithmetic: &'a Arithmetic,
        tensors: &'a [NewTensor],
        digests: &'a Digests,
        report: bool,
    ) -> anyhow::Result<Merge<'a>> {
        let mut files = digests.models.iter().map(Vec::as_slice);
        let mut source = |model: &'a Checkpoint| -> anyhow::Result<Source<'a>> {
            Ok(Source {
                raw: model.raw()?,
                digests: files.next().unwrap_or_default(),
                places: ingredients.places(model),
                views: model.spec.tensors(),
                delta: model.delta()?,
            })
        };
        let models = ingredients.models.iter().map(&mut source).collect::<anyhow::Result<_>>()?;
        let base = ingredients.base.as_ref().map(&mut source).transpose()?;
        let layers = ingredients.spec.layers;
        let rules = arithmetic.rules(tensors.iter().map(|tensor| tensor.name.as_str()), layers)?;
        Ok(Merge { models, base, arithmetic, rules, tensors, ingredients, soup: &digests.soup, report })
    }

    /// Writes all weights of the soup; all cores take jobs in order.
    pub(super) fn run(&self, writer: &Writer, context: &StageContext) -> anyhow::Result<Option<Geometry>> {
        let jobs = self.jobs();
        let grams: Vec<Mutex<Option<Gram>>> = jobs.iter().map(|_| Mutex::new(None)).collect();
        let progress = Progress::new("soup", writer.bytes() / MB, "MB");
        let (next, stop, done) = (AtomicUsize::new(0), AtomicBool::new(false), AtomicUsize::new(0));
        let failed = Mutex::new(None);
        let work = || {
            let mut scratch = Scratch::default();
            while !stop.load(Ordering::Relaxed) {
                let i = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(i) else { break };
                let advance = |piece: Piece| {
                    let bytes = piece.len * self.tensors[piece.tensor].dtype.size();
                    progress.set((done.fetch_add(bytes, Ordering::Relaxed) + bytes) as u64 / MB);
                    match context.interrupted() {
                        true => Err(anyhow!("interrupted; no soup was made, the same command starts anew")),
                        false => Ok(()),
                    }
                };
                match self.work(*job, writer, &mut scratch, &advance) {
                    Ok(gram) => *lock(&grams[i]) = gram,
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        let mut failed = lock(&failed);
                        if failed.as_ref().is_none_or(|(earlier, _)| i < *earlier) {
                            *failed = Some((i, error));
                        }
                    }
                }
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
        let grams = jobs
            .iter()
            .zip(grams)
            .filter_map(|(job, gram)| Some((job.tensor(), gram.into_inner().unwrap_or_else(PoisonError::into_inner)?)));
        Ok(self.report.then(|| Geometry::new(self.ingredients, self.arithmetic, self.tensors, grams)))
    }

    /// Jobs in file order if elements are independent; otherwise the largest tensors first, so that the threads finish
    /// together.
    fn jobs(&self) -> Vec<Job> {
        let (mut jobs, mut whole) = (Vec::new(), Vec::new());
        for (tensor, (new, rule)) in self.tensors.iter().zip(&self.rules).enumerate() {
            let len: usize = new.shape.iter().product();
            match rule.mean() {
                Some(_) => jobs.extend(pieces(tensor, len).map(Job::Piece)),
                None => whole.push(Job::Tensor { tensor, len }),
            }
        }
        whole.sort_by_key(|job| std::cmp::Reverse(job.len()));
        jobs.extend(whole);
        jobs
    }

    fn work(
        &self,
        job: Job,
        writer: &Writer,
        scratch: &mut Scratch,
        advance: &dyn Fn(Piece) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<Gram>> {
        let tensor = job.tensor();
        if let Job::Piece(piece) = job
            && !self.report
            && self.mix_bf16(piece, writer, scratch)?
        {
            advance(piece)?;
            return Ok(None);
        }
        let mut stream = self.rules[tensor].stream(&self.tensors[tensor].shape);
        let pieces = job.pieces();
        // A tensor with a single piece is read once.
        let mut held = false;
        while stream.needs_scan() {
            for &piece in &pieces {
                if !held {
                    self.read_all(piece, scratch)?;
                }
                held = pieces.len() == 1;
                stream.look(&scratch.base, &self.used(tensor, scratch));
            }
            stream.looked();
        }
        let mut sum: Option<Gram> = None;
        for piece in pieces {
            if !held {
                self.read_all(piece, scratch)?;
            }
            let mut mixed = std::mem::take(&mut scratch.mixed);
            mixed.resize(piece.len, 0.0);
            stream.apply(&scratch.base, &self.used(tensor, scratch), &mut mixed);
            scratch.mixed = mixed;
            self.write(piece, writer, scratch)?;
            if let Some(gram) = self.measure(scratch) {
                match &mut sum {
                    Some(sum) => sum.merge(&gram),
                    None => sum = Some(gram),
                }
            }
            advance(piece)?;
        }
        Ok(sum)
    }

    /// Fast path for a mean of bfloat16 into bfloat16; returns whether it applied.
    fn mix_bf16(&self, piece: Piece, writer: &Writer, scratch: &mut Scratch) -> anyhow::Result<bool> {
        let rule = &self.rules[piece.tensor];
        let Some(weights) = rule.mean() else { return Ok(false) };
        let reads = rule.reads();
        let all_bf16 = self.tensors[piece.tensor].dtype == Dtype::BF16
            && reads.iter().all(|i| self.models[*i].is_plain_bf16(piece.tensor));
        if !all_bf16 || !bf16::is_exact(weights) {
            return Ok(false);
        }
        scratch.stored.resize_with(reads.len(), Vec::new);
        for (i, bytes) in reads.iter().zip(&mut scratch.stored) {
            self.models[*i].read(piece, bytes)?;
        }
        let stored: Vec<&[u8]> = scratch.stored.iter().map(Vec::as_slice).collect();
        scratch.out.resize(piece.len * 2, 0);
        // Non-finite values are found and named on the slow path.
        let finite = bf16::weighted_mean(&stored, weights, &mut scratch.out);
        if finite {
            self.put(piece, writer, &scratch.out)?;
        }
        Ok(finite)
    }

    /// Reads a piece of everything that the method or the report needs.
    fn read_all(&self, piece: Piece, scratch: &mut Scratch) -> anyhow::Result<()> {
        let rule = &self.rules[piece.tensor];
        let reads = if self.report { (0..self.models.len()).collect() } else { rule.reads() };
        scratch.wide.resize_with(self.models.len(), Vec::new);
        scratch.stored.resize_with(1, Vec::new);
        for &i in &reads {
            self.read(&self.models[i], piece, &mut scratch.stored[0], &mut scratch.wide[i])?;
        }
        scratch.base.clear();
        if let Some(base) = self.base.as_ref().filter(|_| self.report || rule.reads_base()) {
            self.read(base, piece, &mut scratch.stored[0], &mut scratch.base)?;
        }
        Ok(())
    }

    /// The ingredients that the method uses.
    fn used<'s>(&self, tensor: usize, scratch: &'s Scratch) -> Vec<&'s [f32]> {
        self.rules[tensor].reads().iter().map(|i| scratch.wide[*i].as_slice()).collect()
    }

    /// Rounds and writes the result; for the report, leaves the rounded values in `mixed`.
    fn write(&self, piece: Piece, writer: &Writer, scratch: &mut Scratch) -> anyhow::Result<()> {
        let (dtype, numbers) = (self.tensors[piece.tensor].dtype, &mut scratch.mixed);
        dtype
            .encode(numbers, &mut scratch.out)
            .map_err(|at| self.not_in_range(piece.tensor, piece.start + at, numbers[at]))?;
        self.put(piece, writer, &scratch.out)?;
        if self.report {
            dtype.widen(&scratch.out, numbers);
        }
        Ok(())
    }

    fn put(&self, piece: Piece, writer: &Writer, bytes: &[u8]) -> anyhow::Result<()> {
        writer.write(piece.tensor, piece.start, bytes)?;
        let (file, offset) = writer.position(piece.tensor, piece.start);
        if let Some(digest) = self.soup.get(file) {
            digest.pass(offset, bytes);
        }
        Ok(())
    }

    /// Inner products of the inputs and the result, relative to the base or, without one, to the first ingredient.
    fn measure(&self, scratch: &Scratch) -> Option<Gram> {
        if !self.report {
            return None;
        }
        let mut points: Vec<&[f32]> = scratch.wide.iter().map(Vec::as_slice).collect();
        points.push(&scratch.mixed);
        let mut gram = Gram::new(points.len());
        gram.add(if scratch.base.is_empty() { points[0] } else { &scratch.base }, &points);
        Some(gram)
    }

    /// Reads a piece and fails if the model is broken.
    fn read(&self, model: &Source<'_>, piece: Piece, stored: &mut Vec<u8>, out: &mut Vec<f32>) -> anyhow::Result<()> {
        model.read(piece, stored)?;
        out.resize(piece.len, 0.0);
        let place = model.places[piece.tensor];
        let broken = |at: usize, value: f32| {
            anyhow!(
                "{}: number {} of {} is {value}: the model is broken, leave it out or take an earlier checkpoint",
                model.raw.path(place).display(),
                piece.start + at,
                self.tensors[piece.tensor].name
            )
        };
        model.raw.dtype(place).decode(stored, out).map_err(|at| broken(at, out[at]))?;
        let Some(delta) = &model.delta else { return Ok(()) };
        delta.add_at(&model.views[place], piece.start, out);
        match out.iter().position(|number| !number.is_finite()) {
            Some(at) => Err(broken(at, out[at]).context("with its adapter merged into it")),
            None => Ok(()),
        }
    }

    fn not_in_range(&self, tensor: usize, at: usize, value: f32) -> anyhow::Error {
        let NewTensor { name, dtype, .. } = &self.tensors[tensor];
        anyhow!(
            "number {at} of {name} is {value} in the soup, which {dtype} cannot hold; take another dtype (--dtype float32) or smaller weights"
        )
    }
}

impl Source<'_> {
    /// Whether the bytes of the soup's tensor are bfloat16 numbers that can be used unchanged.
    fn is_plain_bf16(&self, tensor: usize) -> bool {
        self.delta.is_none() && self.raw.dtype(self.places[tensor]) == Dtype::BF16
    }

    /// Reads the stored bytes of a piece and passes them to its digest.
    fn read(&self, piece: Piece, bytes: &mut Vec<u8>) -> anyhow::Result<()> {
        let Piece { tensor, start, len } = piece;
        let tensor = self.places[tensor];
        bytes.resize(len * self.raw.dtype(tensor).size(), 0);
        self.raw.read(tensor, start, bytes)?;
        let (file, offset) = self.raw.position(tensor, start);
        if let Some(digest) = self.digests.get(file) {
            digest.pass(offset, bytes);
        }
        Ok(())
    }
}

impl Job {
    fn tensor(self) -> usize {
        match self {
            Job::Piece(Piece { tensor, .. }) | Job::Tensor { tensor, .. } => tensor,
        }
    }

    fn len(self) -> usize {
        match self {
            Job::Piece(Piece { len, .. }) | Job::Tensor { len, .. } => len,
        }
    }

    /// The pieces of the job in order.
    fn pieces(self) -> Vec<Piece> {
        match self {
            Job::Piece(piece) => vec![piece],
            Job::Tensor { tensor, len } => pieces(tensor, len).collect(),
        }
    }
}

/// Splits a tensor into pieces.
fn pieces(tensor: usize, len: usize) -> impl Iterator<Item = Piece> {
    (0..len).step_by(PIECE).map(move |start| Piece { tensor, start, len: PIECE.min(len - start) })
}

/// Ignores poisoning: the scope propagates a panic; until then other threads may continue.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
