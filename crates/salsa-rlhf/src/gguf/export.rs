//! Checkpoints to GGUF.

use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rayon::prelude::*;
use salsa_engine::{Head, ModelSpec, RopeScaling, TensorView, Weights};
use serde_json::Value;

use super::architecture::{self, Architecture, Stored};
use super::block::BlockType;
use super::file_type::{FileType, Place};
use super::quantize::quantize;
use super::rope_factors::{Llama3, ROPE_FACTORS};
use super::tokenizer_keys;
use super::writer::{self, NewTensor, Pairs};
use crate::checkpoint::{Checkpoint, Delta, StoredWeights};
use crate::progress::Progress;

/// Numbers encoded at a time by a thread.
const BLOCK: usize = 1 << 18;
/// The unit of the progress bar.
const MB: u64 = 1_000_000;

/// What was written.
#[derive(Clone, Debug)]
pub struct Exported {
    /// `general.architecture`.
    pub architecture: &'static str,
    /// The number of weights.
    pub parameters: usize,
    /// Bytes of the tensors.
    pub bytes: u64,
}

/// The architecture of a language model; refuses others.
fn architecture_of(checkpoint: &Checkpoint) -> Result<&'static Architecture> {
    let shown = checkpoint.dir().display();
    ensure!(
        checkpoint.spec.head.has_language_model(),
        "{shown} is a reward model: llama.cpp runs language models; export the policy"
    );
    let name = checkpoint.family.model_type();
    Architecture::of_model_type(name).with_context(|| {
        format!("{shown} is a {name} model, which is not supported; supported are {}", architecture::names())
    })
}

/// Writes a language model with its tokenizer and chat template as a GGUF file that llama.cpp and Ollama run. An
/// adapter is merged with its base. Memory does not grow with the size of the model.
///
/// # Errors
/// When the model or its tokenizer is of a kind that llama.cpp has not, a weight is not finite or too large for the
/// type, or the file cannot be written.
pub fn export(checkpoint: &Checkpoint, path: &Path, kind: FileType) -> Result<Exported> {
    let architecture = architecture_of(checkpoint)?;
    let spec = checkpoint.spec.with_head(Head::LanguageModel);
    let mut pairs = Pairs::default();
    pairs.text("general.architecture", architecture.name);
    pairs.text("general.type", "model");
    add_name(checkpoint.dir(), &mut pairs);
    add_shape(checkpoint, &spec, architecture, &mut pairs)?;
    tokenizer_keys::add(checkpoint, &mut pairs)?;
    pairs.whole("general.file_type", kind.id() as usize);
    pairs.whole("general.quantization_version", 2);
    let source = Source::open(checkpoint, &spec, architecture)?;
    let mut tensors = source.new_tensors(&spec, architecture, kind)?;
    let factors = factors(&spec);
    let own = tensors.len();
    tensors.extend(factors.as_ref().map(|factors| NewTensor {
        name: ROPE_FACTORS.to_owned(),
        shape: vec![factors.len()],
        kind: BlockType::F32,
    }));
    let bytes = tensors.iter().map(NewTensor::bytes).sum();
    let progress = Progress::new("export", bytes / MB, "MB");
    let done = AtomicU64::new(0);
    writer::write(path, &pairs, &tensors, |number, out| {
        if number == own {
            let factors = factors.as_deref().unwrap_or_default();
            return Ok(factors.iter().try_for_each(|factor| out.write_all(&factor.to_le_bytes()))?);
        }
        source.write(number, tensors[number].kind, out, &|bytes| {
            progress.set((done.fetch_add(bytes, Ordering::Relaxed) + bytes) / MB);
        })
    })?;
    progress.finish("");
    Ok(Exported { architecture: architecture.name, parameters: spec.parameters(), bytes })
}

/// Writes the adapter of a PEFT directory as a GGUF file for llama.cpp's `--lora`, beside a GGUF of its base.
///
/// # Errors
/// When the checkpoint is no adapter of a language model, `kind` has blocks, or the file cannot be written.
pub fn export_adapter(checkpoint: &Checkpoint, path: &Path, kind: FileType) -> Result<Exported> {
    let adapter = checkpoint.adapter().with_context(|| {
        format!("{} is no adapter but a whole model: export it without --adapter", checkpoint.dir().display())
    })?;
    ensure!(kind.is_plain(), "adapters are written as f32, f16 or bf16, not as {kind}");
    let (architecture, spec) = (architecture_of(checkpoint)?, &checkpoint.spec.with_head(Head::LanguageModel));
    let weights = adapter.read(&checkpoint.spec)?;
    let mut pairs = Pairs::default();
    pairs.text("general.architecture", architecture.name);
    pairs.text("general.type", "adapter");
    add_name(adapter.dir(), &mut pairs);
    pairs.text("adapter.type", "lora");
    // llama.cpp divides by the rank.
    pairs.float("adapter.lora.alpha", adapter.lora.scale() * adapter.lora.rank as f32);
    pairs.whole("general.file_type", kind.id() as usize);
    pairs.whole("general.quantization_version", 2);
    let base = architecture.tensors(spec);
    let (mut tensors, mut factors) = (Vec::new(), Vec::new());
    for view in adapter.lora.tensors(spec) {
        let (name, ending) = match view.name.strip_suffix(".lora_A.weight") {
            Some(name) => (name, "lora_a"),
            None => (view.name.strip_suffix(".lora_B.weight").context("a factor has an unknown name")?, "lora_b"),
        };
        let of = base.iter().find(|stored| stored.name.strip_suffix(".weight") == Some(name));
        let of = of.with_context(|| format!("{} is no matrix of the model", view.name))?;
        let (stored, columns) = (of.stored.as_deref().unwrap_or_default(), view.shape[1]);
        let rows = (0..view.shape[0]).flat_map(|row| {
            let row = if ending == "lora_b" { of.row_in_model(row) } else { row };
            &weights[view.range.start + row * columns..][..columns]
        });
        let numbers: Vec<f32> = rows.copied().collect();
        let place = Place { name: stored, dimensions: 2, columns, layers: spec.layers, tied: false, is_70b: false };
        tensors.push(NewTensor { name: format!("{stored}.{ending}"), shape: view.shape, kind: kind.of_tensor(&place) });
        factors.push(numbers);
    }
    writer::write(path, &pairs, &tensors, |number, out| {
        let mut bytes = Vec::new();
        let NewTensor { name, kind, .. } = &tensors[number];
        quantize(*kind, &factors[number], &mut bytes).map_err(|at| refused(name, at, factors[number][at], *kind))?;
        Ok(out.write_all(&bytes)?)
    })?;
    let parameters = factors.iter().map(Vec::len).sum();
    Ok(Exported { architecture: architecture.name, parameters, bytes: tensors.iter().map(NewTensor::bytes).sum() })
}

/// The name of the directory is the name of the model.
fn add_name(dir: &Path, pairs: &mut Pairs) {
    let name = dir.canonicalize().ok().and_then(|dir| Some(dir.file_name()?.to_string_lossy().into_owned()));
    name.into_iter().for_each(|name| pairs.text("general.name", &name));
}

fn add_shape(checkpoint: &Checkpoint, spec: &ModelSpec, architecture: &Architecture, pairs: &mut Pairs) -> Result<()> {
    let key = |name: &str| format!("{}.{name}", architecture.name);
    // Of scaled positions, the length before scaling.
    let written = checkpoint.config["max_position_embeddings"].as_u64().and_then(|n| usize::try_from(n).ok());
    let numbers = [
        ("block_count", spec.layers),
        ("context_length", written.unwrap_or(spec.max_positions)),
        ("embedding_length", spec.hidden_size),
        ("feed_forward_length", spec.intermediate_size),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
        ("rope.dimension_count", spec.head_dim),
        ("vocab_size", spec.vocab_size),
    ];
    numbers.into_iter().for_each(|(name, number)| pairs.whole(&key(name), number));
    pairs.float(&key("attention.layer_norm_rms_epsilon"), spec.rms_norm_eps);
    pairs.float(&key("rope.freq_base"), spec.rope.theta as f32);
    if let RopeScaling::Linear { factor } = spec.rope.scaling {
        pairs.text(&key("rope.scaling.type"), "linear");
        pairs.float(&key("rope.scaling.factor"), factor as f32);
    }
    for extra in architecture.extra {
        match &checkpoint.config[extra.config] {
            Value::Number(number) if number.is_u64() => {
                pairs.whole(&key(extra.key), number.as_u64().unwrap_or_default() as usize)
            }
            Value::Number(number) => pairs.float(&key(extra.key), number.as_f64().unwrap_or_default() as f32),
            Value::Null => {}
            other => bail!("{} is {other}: expected a number", extra.config),
        }
    }
    let has_window = architecture.extra.iter().any(|extra| extra.config == "sliding_window");
    if let Some(window) = spec.sliding_window.filter(|window| !has_window && *window < spec.max_positions) {
        let note = format!(
            "note: llama.cpp gives {} models no attention window; beyond {window} tokens its answers differ",
            checkpoint.family
        );
        let _ = writeln!(std::io::stderr(), "{note}");
    }
    Ok(())
}

fn factors(spec: &ModelSpec) -> Option<Vec<f32>> {
    let RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_max_positions: positions } =
        spec.rope.scaling
    else {
        return None;
    };
    Some(Llama3 { factor, low, high, positions }.factors(spec.rope.theta, spec.head_dim))
}

/// The weights of a checkpoint, by tensors of a file.
struct Source<'a> {
    weights: StoredWeights<'a>,
    delta: Option<Delta>,
    stored: Vec<Stored>,
    views: Vec<TensorView>,
    path: &'a Path,
}

impl<'a> Source<'a> {
    fn open(checkpoint: &'a Checkpoint, spec: &ModelSpec, architecture: &Architecture) -> Result<Source<'a>> {
        Ok(Source {
            weights: checkpoint.stored_weights(Head::LanguageModel)?,
            delta: checkpoint.delta()?,
            stored: architecture.tensors(spec),
            views: spec.tensors(),
            path: checkpoint.dir(),
        })
    }

    fn new_tensors(&self, spec: &ModelSpec, architecture: &Architecture, kind: FileType) -> Result<Vec<NewTensor>> {
        let new = |stored: &Stored| {
            let name = stored.stored.clone().with_context(|| format!("llama.cpp has no {}", stored.name))?;
            let place = Place {
                name: &name,
                dimensions: stored.shape.len(),
                columns: stored.columns(),
                layers: spec.layers,
                tied: spec.tied_embeddings,
                is_70b: spec.layers == 80 && ["llama", "qwen2"].contains(&architecture.name),
            };
            Ok(NewTensor { kind: kind.of_tensor(&place), shape: stored.shape.clone(), name })
        };
        self.stored.iter().map(new).collect()
    }

    /// Writes a tensor, some pieces at a time, which all threads encode.
    fn write(&self, number: usize, kind: BlockType, out: &mut dyn Write, done: &dyn Fn(u64)) -> Result<()> {
        let stored = &self.stored[number];
        let step = (BLOCK / stored.columns()).max(1);
        let pieces: Vec<Range<usize>> =
            (0..stored.rows()).step_by(step).map(|start| start..stored.rows().min(start + step)).collect();
        for pieces in pieces.chunks(rayon::current_num_threads()) {
            let encoded = pieces.par_iter().map(|rows| self.encoded(number, rows.clone(), kind));
            for bytes in encoded.collect::<Vec<Result<Vec<u8>>>>() {
                let bytes = bytes?;
                out.write_all(&bytes)?;
                done(bytes.len() as u64);
            }
        }
        Ok(())
    }

    /// Rows of the file's tensor.
    fn encoded(&self, number: usize, rows: Range<usize>, kind: BlockType) -> Result<Vec<u8>> {
        let (stored, view) = (&self.stored[number], &self.views[number]);
        let columns = stored.columns();
        let mut numbers = Vec::with_capacity(rows.len() * columns);
        let same = rows.clone().all(|row| stored.row_in_model(row) == row);
        let runs: Vec<Range<usize>> = match same {
            true => vec![rows.clone()],
            false => rows.clone().map(|row| stored.row_in_model(row)).map(|row| row..row + 1).collect(),
        };
        let mut room = Vec::new();
        for run in runs {
            let start = run.start * columns;
            self.weights.read(view.range.start + start..view.range.start + run.end * columns, &mut room)?;
            if let Some(delta) = &self.delta {
                delta.add_at(view, start, &mut room);
            }
            numbers.extend_from_slice(&room);
        }
        if stored.shift != 0.0 {
            numbers.iter_mut().for_each(|number| *number += stored.shift);
        }
        let mut bytes = Vec::new();
        quantize(kind, &numbers, &mut bytes).map_err(|at| {
            refused(&stored.name, rows.start * columns + at, numbers[at], kind).context(self.path.display().to_string())
        })?;
        Ok(bytes)
    }
}

fn refused(name: &str, at: usize, value: f32, kind: BlockType) -> anyhow::Error {
    match value.is_finite() {
        true => anyhow!("number {at} of {name} is {value}, which is too large for {kind}: take --type bf16 or f32"),
        false => anyhow!("number {at} of {name} is {value}: the model is broken, take an earlier checkpoint"),
    }
}
