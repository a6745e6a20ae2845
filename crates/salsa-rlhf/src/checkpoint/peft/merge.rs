//! Merging an adapter into the weights of its base: `W + scale * B A`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use salsa_engine::{TensorView, Weights};

use super::super::{Checkpoint, Companions, Dtype, Durability, NewTensor, SaveOptions, Writer, write::finish};
use super::PeftAdapter;

/// Numbers written at a time.
const BLOCK: usize = 1 << 20;

/// Writes the adapted model of a PEFT directory as a full checkpoint, tensor by tensor, in memory independent of the
/// model's size. `dtype` defaults to the base's.
///
/// # Errors
/// When it is no PEFT directory, `dir` is not empty, a weight is not finite, or a file cannot be written.
pub fn merge(checkpoint: &Checkpoint, dir: &Path, dtype: Option<Dtype>, max_shard_bytes: u64) -> Result<()> {
    let Some(adapter) = &checkpoint.adapter else {
        bail!("{} is no adapter: it is a whole model already", checkpoint.dir().display());
    };
    let shown = dir.display();
    if dir.exists() && fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))?.next().is_some() {
        bail!("{shown} is not empty; choose another output directory");
    }
    let dtype = dtype.unwrap_or(checkpoint.dtype);
    let (spec, delta) = (&checkpoint.spec, Delta::read(adapter, checkpoint)?);
    let stored = checkpoint.stored_weights(spec.head)?;
    let tensors = spec.tensors();
    let new = |tensor: &TensorView| NewTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype };
    let writer = Writer::create(dir, tensors.iter().map(new).collect(), max_shard_bytes, Durability::Synced)?;
    let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
    for (i, tensor) in tensors.iter().enumerate() {
        stored.read(tensor.range.clone(), &mut numbers)?;
        delta.add(tensor, &mut numbers);
        for (block, numbers) in numbers.chunks(BLOCK).enumerate() {
            if let Err(at) = dtype.encode(numbers, &mut bytes) {
                bail!(
                    "number {} of {} is {}: it cannot be saved as {dtype}",
                    block * BLOCK + at,
                    tensor.name,
                    numbers[at]
                );
            }
            writer.write(i, block * BLOCK, &bytes)?;
        }
    }
    let options = SaveOptions { dtype, ..SaveOptions::like(checkpoint) };
    let scores = checkpoint.score_normalization();
    let scores = scores.map(|(mean, std)| [("score_mean", mean.into()), ("score_std", std.into())]);
    let companions = Companions::from_dir(checkpoint.dir())?;
    finish(writer, dir, spec, &companions, scores.as_ref().map_or(&[], |scores| scores), &options)
}

/// The changes of an adapter to the tensors of its base: added products, and a replaced head.
pub(crate) struct Delta {
    scale: f32,
    rank: usize,
    factors: BTreeMap<String, Vec<f32>>,
}

impl Checkpoint {
    /// The changes of the checkpoint's adapter, if it has one.
    pub(crate) fn delta(&self) -> Result<Option<Delta>> {
        self.adapter.as_ref().map(|adapter| Delta::read(adapter, self)).transpose()
    }
}

impl Delta {
    pub(crate) fn read(adapter: &PeftAdapter, checkpoint: &Checkpoint) -> Result<Delta> {
        let weights = adapter.read(&checkpoint.spec)?;
        let tensors = adapter.lora.tensors(&checkpoint.spec).into_iter();
        let factors = tensors.map(|tensor| (tensor.name, weights[tensor.range].to_vec())).collect();
        Ok(Delta { scale: adapter.lora.scale(), rank: adapter.lora.rank, factors })
    }

    /// `W += scale * B A` for a matrix that has factors; a scalar head is replaced.
    pub(crate) fn add(&self, tensor: &TensorView, numbers: &mut [f32]) {
        if let Some(head) = self.factors.get(&tensor.name) {
            return numbers.copy_from_slice(head);
        }
        let factor = |name: &str| self.factors.get(&tensor.name.replace(".weight", &format!(".{name}.weight")));
        let (Some(a), Some(b)) = (factor("lora_A"), factor("lora_B")) else { return };
        let input = tensor.shape[1];
        let rows = numbers.par_chunks_mut(input).zip(b.par_chunks(self.rank));
        rows.for_each(|(row, b)| self.add_to_row(a, b, input, 0, row));
    }

    /// As [`Delta::add`], for numbers `start..` of the tensor, with the same bits, on this thread.
    pub(crate) fn add_at(&self, tensor: &TensorView, start: usize, mut numbers: &mut [f32]) {
        if let Some(head) = self.factors.get(&tensor.name) {
            return numbers.copy_from_slice(&head[start..start + numbers.len()]);
        }
        let factor = |name: &str| self.factors.get(&tensor.name.replace(".weight", &format!(".{name}.weight")));
        let (Some(a), Some(b)) = (factor("lora_A"), factor("lora_B")) else { return };
        let (input, mut at) = (tensor.shape[1], start);
        while !numbers.is_empty() {
            let (row, column) = (at / input, at % input);
            let (part, rest) = numbers.split_at_mut(numbers.len().min(input - column));
            self.add_to_row(a, &b[row * self.rank..][..self.rank], input, column, part);
            at += part.len();
            numbers = rest;
        }
    }

    /// `w += scale * b a` for the numbers of a row from `column` on.
    fn add_to_row(&self, a: &[f32], b: &[f32], input: usize, column: usize, row: &mut [f32]) {
        let mut sum = vec![0f32; row.len()];
        for (b, a) in b.iter().zip(a.chunks_exact(input)) {
            sum.iter_mut().zip(&a[column..]).for_each(|(sum, a)| *sum += b * a);
        }
        row.iter_mut().zip(sum).for_each(|(w, sum)| *w += self.scale * sum);
    }
}
