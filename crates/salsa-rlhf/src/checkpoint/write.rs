//! Writing a model directory.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use rayon::prelude::*;
use salsa_engine::{Head, ModelSpec, TensorView};
use serde_json::Value;

use super::Checkpoint;
use super::companions::Companions;
use super::dtype::Dtype;
use super::family::Family;
use super::writer::{Durability, NewTensor, Writer, write_file};
use super::{SpecialTokens, save_config};
use crate::atomic;

/// Numbers converted per task.
const BLOCK: usize = 1 << 18;

/// How a model is saved.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// The architecture.
    pub family: Family,
    /// The special tokens, for `config.json` and `generation_config.json`.
    pub tokens: SpecialTokens,
    /// The type on disk.
    pub dtype: Dtype,
    /// Maximum bytes of weights per file; a larger single tensor gets its own file.
    pub max_shard_bytes: u64,
}

impl SaveOptions {
    /// Options with shards of 5 GB.
    pub fn new(family: Family, tokens: SpecialTokens, dtype: Dtype) -> SaveOptions {
        SaveOptions { family, tokens, dtype, max_shard_bytes: 5_000_000_000 }
    }

    /// The family, special tokens and type of `checkpoint`.
    pub fn like(checkpoint: &Checkpoint) -> SaveOptions {
        SaveOptions::new(checkpoint.family, checkpoint.tokens.clone(), checkpoint.dtype)
    }
}

/// Writes a Hugging Face directory that transformers 4 and 5 load: weights (rounded to nearest, ties to even), an index
/// where there are several files, the companions, `generation_config.json` (of language models; the companions' if they
/// have one) and, last, `config.json` with `extra_config` added.
///
/// Each file is replaced atomically; an existing `config.json` is removed first, so that an interrupted save is
/// detectable. The same input gives the same bytes. Memory besides `weights` stays below 100 MB.
///
/// # Errors
/// When the weights do not fit the model, one is not finite or overflows the type (names the tensor), the family does
/// not support the model, or a file cannot be written.
pub fn save(
    dir: &Path,
    spec: &ModelSpec,
    weights: &[f32],
    companions: &Companions,
    extra_config: &[(&str, Value)],
    options: &SaveOptions,
) -> Result<()> {
    let mut config = save_config::config(options.family, spec, &options.tokens, options.dtype)?;
    for (key, value) in extra_config {
        config.insert((*key).to_string(), value.clone());
    }
    let tensors = spec.tensors();
    let parameters = tensors.last().map_or(0, |tensor| tensor.range.end);
    if weights.len() != parameters {
        bail!("cannot save {}: {} weights for a model of {parameters}", dir.display(), weights.len());
    }
    let new = |tensor: &TensorView| NewTensor {
        name: tensor.name.clone(),
        shape: tensor.shape.clone(),
        dtype: options.dtype,
    };
    let writer = Writer::create(dir, tensors.iter().map(new).collect(), options.max_shard_bytes, Durability::Synced)?;
    for (i, tensor) in tensors.iter().enumerate() {
        write_tensor(&writer, i, tensor, &weights[tensor.range.clone()], options.dtype)?;
    }
    writer.finish()?;
    let scalar = spec.head == Head::Scalar;
    companions.write(dir, if scalar { &["generation_config.json"] } else { &[] })?;
    if !scalar && !companions.has("generation_config.json") {
        let generation = save_config::generation_config(&options.tokens);
        atomic::write(&dir.join("generation_config.json"), format!("{generation:#}\n").as_bytes())?;
    }
    atomic::write(&dir.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())
}

/// Completes a model directory whose weights are written: the companions, a generated `generation_config.json` for
/// language models, and last `config.json` with `extra_config` added.
///
/// # Errors
/// When the family does not support the model, or a file cannot be written.
pub(crate) fn finish(
    writer: Writer,
    dir: &Path,
    spec: &ModelSpec,
    companions: &Companions,
    extra_config: &[(&str, Value)],
    options: &SaveOptions,
) -> Result<()> {
    let mut config = save_config::config(options.family, spec, &options.tokens, options.dtype)?;
    config.extend(extra_config.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    writer.finish()?;
    for (name, bytes) in companions.files().filter(|(name, _)| *name != "generation_config.json") {
        write_file(&dir.join(name), bytes, Durability::Synced)?;
    }
    let write =
        |name: &str, value: &Value| write_file(&dir.join(name), format!("{value:#}\n").as_bytes(), Durability::Synced);
    if spec.head != Head::Scalar {
        write("generation_config.json", &save_config::generation_config(&options.tokens))?;
    }
    write("config.json", &Value::Object(config))
}

/// Writes a model directory of which only the shape matters: its weights are a hole in the file and take no disk space.
///
/// # Errors
/// When the family does not support the model, or a file cannot be written.
pub fn outline(
    dir: &Path,
    spec: &ModelSpec,
    companions: &Companions,
    extra_config: &[(&str, Value)],
    options: &SaveOptions,
) -> Result<()> {
    let tensors = spec.tensors().into_iter();
    let new = |tensor: TensorView| NewTensor { name: tensor.name, shape: tensor.shape, dtype: options.dtype };
    let writer = Writer::create(dir, tensors.map(new).collect(), options.max_shard_bytes, Durability::Cached)?;
    writer.leave_empty()?;
    finish(writer, dir, spec, companions, extra_config, options)
}

fn write_tensor(writer: &Writer, i: usize, tensor: &TensorView, numbers: &[f32], dtype: Dtype) -> Result<()> {
    numbers.par_chunks(BLOCK).enumerate().try_for_each_init(Vec::new, |bytes, (block, numbers)| {
        dtype.encode(numbers, bytes).map_err(|at| {
            let value = numbers[at];
            let why = if value.is_finite() {
                format!("which is too large for {dtype}: save as bfloat16 or float32")
            } else {
                "so training has diverged: lower the learning rate".to_string()
            };
            anyhow!("number {} of {} is {value}, {why}", block * BLOCK + at, tensor.name)
        })?;
        writer.write(i, block * BLOCK, bytes)
    })
}
