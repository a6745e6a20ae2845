//! GGUF to a Hugging Face directory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use serde_json::Value;

use super::architecture::{self, Architecture, Stored};
use super::block::BlockType;
use super::config::config;
use super::dequantize::dequantize;
use super::reader::{Gguf, Part, Tensor};
use super::rope_factors::ROPE_FACTORS;
use super::vocabulary::Vocabulary;
use crate::checkpoint::{
    self, Companions, Dtype, Durability, NewTensor, SaveOptions, SpecialTokens, Writer, finish, parse_config,
};
use crate::progress::Progress;
use crate::tokenizer::Tokenizer;

/// Numbers decoded at a time by a thread.
const BLOCK: usize = 1 << 18;
/// The unit of the progress bar.
const MB: u64 = 1_000_000;

/// How a file is converted.
#[derive(Clone, Debug)]
pub struct ConvertOptions {
    /// The type of the weights; by default the file's own, and bfloat16 for quantised ones.
    pub dtype: Option<Dtype>,
    /// A directory whose tokenizer files are taken instead of the file's vocabulary.
    pub tokenizer: Option<std::path::PathBuf>,
    /// Maximum bytes of a weight file.
    pub max_shard_bytes: u64,
}

/// What was converted.
#[derive(Clone, Debug)]
pub struct Converted {
    /// `general.architecture`.
    pub architecture: String,
    /// The number of parameters.
    pub parameters: usize,
    /// The type of the weights written.
    pub dtype: Dtype,
}

/// Writes the model of a GGUF file (or of all parts of a divided one) as a directory that transformers loads:
/// weights as `dtype`, `config.json`, `generation_config.json`, tokenizer and chat template. Weights are read, decoded
/// and written in pieces.
///
/// # Errors
/// When the file is damaged or of an unsupported kind, `dir` is not empty, a weight is not finite, or a file cannot be
/// written. All of the header is checked before anything is written.
pub fn convert(path: &Path, dir: &Path, options: &ConvertOptions) -> Result<Converted> {
    let shown = dir.display();
    if dir.exists() && fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))?.next().is_some() {
        bail!("{shown} is not empty; choose another output directory");
    }
    let gguf = Gguf::open(path)?;
    let plan = Plan::new(&gguf, options).with_context(|| gguf.path().display().to_string())?;
    let dtype = options.dtype.unwrap_or_else(|| own_dtype(&gguf));
    let new = |tensor: &Stored| NewTensor { name: tensor.name.clone(), shape: tensor.shape.clone(), dtype };
    let tensors = plan.tensors.iter().map(|(stored, ..)| new(stored)).collect();
    let writer = Writer::create(dir, tensors, options.max_shard_bytes, Durability::Synced)?;
    let progress = Progress::new("convert", writer.bytes() / MB, "MB");
    plan.write(&writer, dtype, &progress).with_context(|| gguf.path().display().to_string())?;
    progress.finish("");
    let save = SaveOptions {
        max_shard_bytes: options.max_shard_bytes,
        ..SaveOptions::new(plan.family, plan.tokens.clone(), dtype)
    };
    finish(writer, dir, &plan.spec, &plan.companions, &[], &save)?;
    let parameters = plan.spec.parameters();
    Ok(Converted { architecture: plan.architecture.name.to_owned(), parameters, dtype })
}

/// The type of most numbers of matrices, if it is none of blocks.
fn own_dtype(gguf: &Gguf) -> Dtype {
    let all = || gguf.parts.iter().flat_map(|part| &part.tensors).filter(|tensor| tensor.shape.len() > 1);
    let bytes = |kind: BlockType| all().filter(|tensor| tensor.kind == kind).map(|tensor| tensor.bytes).sum::<u64>();
    let total: u64 = all().map(|tensor| tensor.bytes).sum();
    let plain = [(BlockType::F32, Dtype::F32), (BlockType::F16, Dtype::F16)];
    plain.into_iter().find(|(kind, _)| bytes(*kind) * 2 > total).map_or(Dtype::BF16, |(_, dtype)| dtype)
}

/// All that is known before anything is written.
struct Plan<'a> {
    architecture: &'static Architecture,
    family: checkpoint::Family,
    spec: salsa_engine::ModelSpec,
    tokens: SpecialTokens,
    companions: Companions,
    tensors: Vec<(Stored, &'a Part, &'a Tensor)>,
}

impl<'a> Plan<'a> {
    fn new(gguf: &'a Gguf, options: &ConvertOptions) -> Result<Plan<'a>> {
        let metadata = gguf.metadata();
        match metadata.text("general.type")? {
            None | Some("model") => {}
            Some(other) => bail!("its general.type is {other:?}: only whole models can be converted"),
        }
        let name = metadata.text("general.architecture")?.context("general.architecture is missing")?;
        let architecture = Architecture::named(name).with_context(|| {
            format!("its architecture {name:?} is not supported; supported are {}", architecture::names())
        })?;
        let (family, spec) = parse_config(&Value::Object(config(gguf, architecture)?))?;
        let vocabulary = Vocabulary::read(metadata, spec.vocab_size)?;
        let ends = vocabulary.eos.into_iter().chain(vocabulary.turn_ends.iter().copied()).collect();
        let (mut tokens, companions) = (
            SpecialTokens { bos: vocabulary.bos, eos: ends, pad: vocabulary.pad },
            match &options.tokenizer {
                Some(dir) => Companions::from_dir(dir)?,
                None => companions(vocabulary, architecture, spec.max_positions)?,
            },
        );
        if let Some(dir) = &options.tokenizer {
            Tokenizer::from_dir(dir)?.for_embeddings(spec.vocab_size).with_context(|| dir.display().to_string())?;
            tokens = SpecialTokens::from_dir(dir)?;
        }
        let companions = match metadata.text("tokenizer.chat_template")? {
            Some(template) if options.tokenizer.is_none() => companions.with_chat_template(template),
            _ => companions,
        };
        let tensors = matched(gguf, architecture.tensors(&spec))?;
        Ok(Plan { architecture, family, spec, tokens, companions, tensors })
    }

    fn write(&self, writer: &Writer, dtype: Dtype, progress: &Progress) -> Result<()> {
        let done = AtomicU64::new(0);
        for (number, (stored, part, tensor)) in self.tensors.iter().enumerate() {
            let (rows, columns) = (stored.rows(), stored.columns());
            let step = (BLOCK / columns).max(1);
            (0..rows.div_ceil(step)).into_par_iter().try_for_each(|piece| {
                let rows = piece * step..rows.min((piece + 1) * step);
                let mut numbers = vec![0f32; rows.len() * columns];
                read_rows(part, tensor, stored, rows.clone(), &mut numbers)?;
                let mut bytes = Vec::new();
                dtype
                    .encode(&numbers, &mut bytes)
                    .map_err(|at| refused(stored, rows.start * columns + at, numbers[at], dtype))?;
                writer.write(number, rows.start * columns, &bytes)?;
                progress.set((done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64) / MB);
                Ok::<_, anyhow::Error>(())
            })?;
        }
        Ok(())
    }
}

/// The tokenizer files of the file's vocabulary, which the library has read.
fn companions(vocabulary: Vocabulary, architecture: &Architecture, context: usize) -> Result<Companions> {
    let mut companions = Companions::none();
    for (name, value) in vocabulary.files(architecture.pieces, context)? {
        let bytes = format!("{value:#}\n").into_bytes();
        if name == "tokenizer.json" {
            Tokenizer::from_json(&bytes).context("its vocabulary makes no tokenizer")?;
        }
        companions = companions.with(name, bytes);
    }
    Ok(companions)
}

/// Finds every tensor of the model, in its shape, and refuses others.
fn matched(gguf: &Gguf, tensors: Vec<Stored>) -> Result<Vec<(Stored, &Part, &Tensor)>> {
    let mut left = gguf.names();
    left.remove(ROPE_FACTORS);
    let mut found = Vec::new();
    for stored in tensors {
        let name = stored.stored.as_deref().with_context(|| format!("the architecture has no {}", stored.name))?;
        let (part, tensor) = gguf.tensor(name).with_context(|| format!("the tensor {name} is missing"))?;
        ensure!(
            tensor.shape == stored.shape,
            "the tensor {name} has shape {:?}, and its metadata describe {:?}",
            tensor.shape,
            stored.shape
        );
        left.remove(name);
        found.push((stored, part, tensor));
    }
    match left.first() {
        None => Ok(found),
        Some(name) => bail!("the tensor {name} belongs to no part of the model: it is not supported"),
    }
}

/// Rows of Hugging Face's tensor.
fn read_rows(
    part: &Part,
    tensor: &Tensor,
    stored: &Stored,
    rows: std::ops::Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let columns = stored.columns();
    let row_bytes = tensor.kind.bytes_of(columns);
    let mut bytes = vec![0; row_bytes * rows.len()];
    // A piece of rows is read at once where they have the same order.
    let same = rows.clone().all(|row| stored.row_in_file(row) == row);
    if same {
        part.read(tensor, (rows.start * row_bytes) as u64, &mut bytes)?;
    } else {
        for (row, bytes) in rows.zip(bytes.chunks_exact_mut(row_bytes)) {
            part.read(tensor, (stored.row_in_file(row) * row_bytes) as u64, bytes)?;
        }
    }
    dequantize(tensor.kind, &bytes, out);
    if stored.shift != 0.0 {
        out.iter_mut().for_each(|number| *number -= stored.shift);
    }
    Ok(())
}

fn refused(stored: &Stored, at: usize, value: f32, dtype: Dtype) -> anyhow::Error {
    let why = match value.is_finite() {
        true => format!("which is too large for {dtype}: convert to bfloat16 or float32"),
        false => "so the file is damaged: fetch it again".to_owned(),
    };
    anyhow!("number {at} of {} is {value}, {why}", stored.stored.as_deref().unwrap_or_default())
}
