//! Checkpoints of random weights, of any shape, without a download.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow, bail};
use rayon::prelude::*;
use salsa_engine::{ModelSpec, TensorView};

use super::{
    Companions, Dtype, SaveOptions, SpecialTokens, config as shape, read_json,
    write::finish,
    writer::{Durability, NewTensor, Writer},
};
use crate::tokenizer::Tokenizer;

/// Numbers encoded at a time.
const BLOCK: usize = 1 << 18;

/// The shape described by a `config.json` file, or by that of a directory.
///
/// # Errors
/// When the shape is not supported.
pub fn shape_of(config: &Path) -> Result<ModelSpec> {
    let file = if config.is_dir() { config.join("config.json") } else { config.to_owned() };
    let (_, spec) = shape::parse(&read_json(&file)?).with_context(|| format!("in {}", file.display()))?;
    spec.validate().map_err(|error| anyhow!("{}: {error}", file.display()))?;
    Ok(spec)
}

/// Writes a model directory of the shape described by the `config.json` at `config`, with initial weights for training
/// from scratch, and with the tokenizer and special tokens of `tokenizer` if given. Memory holds at most one tensor per
/// thread.
///
/// # Errors
/// When the shape is not supported, the tokenizer has more ids than the model embeddings, `dir` is not empty, or a file
/// cannot be written.
pub fn init(config: &Path, tokenizer: Option<&Path>, dir: &Path, seed: u64, options: (Dtype, u64)) -> Result<usize> {
    let shown = dir.display();
    if dir.exists() && fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))?.next().is_some() {
        bail!("{shown} is not empty; choose another output directory");
    }
    let described = read_json(config)?;
    let (family, spec) = shape::parse(&described).with_context(|| format!("in {}", config.display()))?;
    spec.validate().map_err(|error| anyhow!("{}: {error}", config.display()))?;
    let (tokens, companions) = match tokenizer {
        None => (SpecialTokens::read(dir, &described)?, Companions::none()),
        Some(from) => {
            let fits = Tokenizer::from_dir(from)?.for_embeddings(spec.vocab_size);
            fits.with_context(|| format!("{} (raise vocab_size in {})", from.display(), config.display()))?;
            let mut tokens = SpecialTokens::from_dir(from)?;
            tokens.pad = tokens.pad.filter(|pad| (*pad as usize) < spec.vocab_size);
            (tokens, Companions::from_dir(from)?)
        }
    };
    let (dtype, max_shard_bytes) = options;
    let tensors = spec.tensors();
    let new = |tensor: &TensorView| NewTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype };
    let writer = Writer::create(dir, tensors.iter().map(new).collect(), max_shard_bytes, Durability::Synced)?;
    tensors.par_iter().enumerate().try_for_each(|(i, tensor)| {
        let numbers = spec.initial(i, seed);
        let mut bytes = Vec::new();
        for (block, numbers) in numbers.chunks(BLOCK).enumerate() {
            let at = dtype.encode(numbers, &mut bytes);
            at.map_err(|at| anyhow!("{} of {} cannot be saved as {dtype}", numbers[at], tensor.name))?;
            writer.write(i, block * BLOCK, &bytes)?;
        }
        Ok::<_, anyhow::Error>(())
    })?;
    finish(writer, dir, &spec, &companions, &[], &SaveOptions::new(family, tokens, dtype))?;
    Ok(spec.parameters())
}
