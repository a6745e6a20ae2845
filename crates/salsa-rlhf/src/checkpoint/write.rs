//! Writing a model directory.

use std::fs;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use rayon::prelude::*;
use salsa_engine::{Head, ModelSpec, TensorView};
use serde_json::{Map, Value, json};

use super::Checkpoint;
use super::companions::Companions;
use super::dtype::Dtype;
use super::family::Family;
use super::{SpecialTokens, save_config};
use crate::atomic;

/// Numbers converted by one task, and tasks per write: 64 MiB of float32 at a time.
const BLOCK: usize = 1 << 18;
const BLOCKS: usize = 64;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How a model is saved.
#[derive(Clone, Debug)]
pub struct SaveOptions {
    /// As which architecture.
    pub family: Family,
    /// The special tokens, for `config.json` and `generation_config.json`.
    pub tokens: SpecialTokens,
    /// The type on disk.
    pub dtype: Dtype,
    /// The most bytes of weights in one file; a single larger tensor gets a file of its own.
    pub max_shard_bytes: u64,
}

impl SaveOptions {
    /// In shards of 5 GB.
    pub fn new(family: Family, tokens: SpecialTokens, dtype: Dtype) -> SaveOptions {
        SaveOptions { family, tokens, dtype, max_shard_bytes: 5_000_000_000 }
    }

    /// As `checkpoint` is: its family, its special tokens and its type.
    pub fn like(checkpoint: &Checkpoint) -> SaveOptions {
        SaveOptions::new(checkpoint.family, checkpoint.tokens.clone(), checkpoint.dtype)
    }
}

/// Writes a Hugging Face directory that transformers 4 and 5 load: weights (rounded to nearest, ties to even), an index
/// where there are several files, the companions, `generation_config.json` (of language models; the companions' if they
/// have one) and, last, `config.json` with `extra_config` added.
///
/// Each file is replaced whole; a `config.json` that was there is removed first, so that an interrupted save is seen as
/// such. The same input gives the same bytes. Memory beside `weights` stays below 100 MB.
///
/// # Errors
/// When the weights do not fit the model, one is not finite or too large for the type (the tensor is named), the model
/// is not one of this family, or a file cannot be written.
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
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    remove_if_there(&dir.join("config.json"))?;
    let shards = shards(&tensors, options);
    let name = |i: usize| match shards.len() {
        1 => SINGLE.to_string(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    for (i, shard) in shards.iter().enumerate() {
        write_shard(&dir.join(name(i)), &tensors[shard.clone()], weights, options.dtype)?;
    }
    let written: Vec<String> = (0..shards.len()).map(name).collect();
    remove_other_weights(dir, &written)?;
    if shards.len() > 1 {
        let index = index(&tensors, &shards, &written, parameters, options.dtype);
        atomic::write(&dir.join(INDEX), format!("{index:#}\n").as_bytes())?;
    }
    let scalar = spec.head == Head::Scalar;
    companions.write(dir, if scalar { &["generation_config.json"] } else { &[] })?;
    if !scalar && !companions.has("generation_config.json") {
        let generation = save_config::generation_config(&options.tokens);
        atomic::write(&dir.join("generation_config.json"), format!("{generation:#}\n").as_bytes())?;
    }
    atomic::write(&dir.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())
}

/// Runs of tensors for one file each.
fn shards(tensors: &[TensorView], options: &SaveOptions) -> Vec<Range<usize>> {
    let bytes = |tensor: &TensorView| (tensor.range.len() * options.dtype.size()) as u64;
    let (mut shards, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > start && held + bytes(tensor) > options.max_shard_bytes {
            shards.push(start..i);
            (start, held) = (i, 0);
        }
        held += bytes(tensor);
    }
    shards.push(start..tensors.len());
    shards
}

fn write_shard(path: &Path, tensors: &[TensorView], weights: &[f32], dtype: Dtype) -> Result<()> {
    atomic::write_with(path, |out| {
        out.write_all(&header(tensors, dtype))?;
        tensors.iter().try_for_each(|tensor| write_tensor(out, tensor, &weights[tensor.range.clone()], dtype))
    })
}

/// Eight bytes of length, then JSON padded with spaces so that the numbers begin at a multiple of eight.
fn header(tensors: &[TensorView], dtype: Dtype) -> Vec<u8> {
    let mut json = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.range.len() * dtype.size();
        let entry = json!({ "dtype": dtype.safetensors_name(), "shape": tensor.shape, "data_offsets": [at, end] });
        json.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(json).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

fn write_tensor(out: &mut dyn Write, tensor: &TensorView, numbers: &[f32], dtype: Dtype) -> Result<()> {
    for (i, part) in numbers.chunks(BLOCK * BLOCKS).enumerate() {
        let encode = |(j, block): (usize, &[f32])| {
            let mut bytes = Vec::new();
            dtype.encode(block, &mut bytes).map_err(|at| {
                let (at, value) = ((i * BLOCKS + j) * BLOCK + at, block[at]);
                let why = if value.is_finite() {
                    format!("which is too large for {dtype}: save as bfloat16 or float32")
                } else {
                    "so training has diverged: lower the learning rate".to_string()
                };
                anyhow!("number {at} of {} is {value}, {why}", tensor.name)
            })?;
            Ok(bytes)
        };
        let encoded: Vec<Vec<u8>> = part.par_chunks(BLOCK).enumerate().map(encode).collect::<Result<_>>()?;
        encoded.iter().try_for_each(|bytes| out.write_all(bytes))?;
    }
    Ok(())
}

fn index(tensors: &[TensorView], shards: &[Range<usize>], names: &[String], parameters: usize, dtype: Dtype) -> Value {
    let mut map: Vec<(String, Value)> = Vec::with_capacity(tensors.len());
    for (shard, name) in shards.iter().zip(names) {
        map.extend(tensors[shard.clone()].iter().map(|tensor| (tensor.name.clone(), json!(name))));
    }
    map.sort_by(|a, b| a.0.cmp(&b.0));
    let metadata = json!({ "total_parameters": parameters, "total_size": parameters * dtype.size() });
    json!({ "metadata": metadata, "weight_map": Map::from_iter(map) })
}

/// Weights of an earlier save would be taken for this one's.
fn remove_other_weights(dir: &Path, written: &[String]) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", dir.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let file = name.strip_suffix(".tmp").unwrap_or(&name);
        if (is_weights(file) && !written.contains(&name)) || name == INDEX {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// `model.safetensors` or `model-00001-of-00002.safetensors`.
fn is_weights(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let shard = name.strip_prefix("model-").and_then(|rest| rest.strip_suffix(".safetensors"));
    name == SINGLE || shard.and_then(|rest| rest.split_once("-of-")).is_some_and(|(i, n)| digits(i) && digits(n))
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(anyhow!("cannot remove the earlier {}: {e}", path.display()))
        }
        _ => Ok(()),
    }
}
