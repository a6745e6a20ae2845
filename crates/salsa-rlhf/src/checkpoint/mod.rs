//! Checkpoints: opening, checking, reading and writing Hugging Face model directories.

mod companions;
mod complete;
mod config;
mod dtype;
mod family;
mod files;
mod ignored;
mod init;
mod names;
mod peft;
pub(crate) mod positioned;
mod raw;
mod read;
mod rope;
mod save_config;
mod scores;
mod stored_weights;
#[cfg(test)]
mod tests;
mod write;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use salsa_engine::ModelSpec;
use serde_json::Value;

pub use self::companions::Companions;
pub(crate) use self::complete::missing_file;
pub(crate) use self::config::parse as parse_config;
pub use self::dtype::Dtype;
pub(crate) use self::dtype::round_to_bf16;
pub use self::family::Family;
use self::files::Stored;
pub use self::init::{init, shape_of};
pub(crate) use self::peft::Delta;
pub use self::peft::{AdapterToSave, PeftAdapter, merge, save_adapter};
pub use self::raw::RawTensors;
pub use self::stored_weights::StoredWeights;
pub(crate) use self::write::finish;
pub use self::write::{SaveOptions, outline, save};
pub use self::writer::{Durability, NewTensor, Writer, write_file};
use crate::{input, tokenizer::Tokenizer};

/// The ids of the special tokens, each from the first of `generation_config.json`, `config.json` and
/// `tokenizer_config.json` that has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<u32>,
    /// Every id that ends a response; may be empty.
    pub eos: Vec<u32>,
    /// Padding.
    pub pad: Option<u32>,
}

/// A model directory whose config, headers, tensor names, shapes and types have been checked; no weight is read yet.
/// A PEFT directory represents its adapter merged into its base.
#[derive(Debug)]
pub struct Checkpoint {
    /// The architecture, for saving a model of the same kind.
    pub family: Family,
    /// The shape of the model.
    pub spec: ModelSpec,
    /// The content of `config.json`.
    pub config: Value,
    /// The ids of the special tokens.
    pub tokens: SpecialTokens,
    /// The type of most of the weights.
    pub dtype: Dtype,
    dir: PathBuf,
    stored: Stored,
    adapter: Option<PeftAdapter>,
    /// Mean and standard deviation of the scores.
    scores: Option<(f64, f64)>,
}

impl Checkpoint {
    /// Whether the embedding is stored in bfloat16 (for a PEFT directory: that of its base).
    pub fn embedding_is_bf16(&self) -> bool {
        let at = self.stored.names.iter().position(|name| name == "model.embed_tokens.weight");
        at.is_some_and(|at| self.stored.tensors[at].dtype == Dtype::BF16)
    }

    /// Opens a model directory: reads `config.json` and the headers of the safetensors files, and checks that every
    /// tensor of the model exists in its shape, and no tensor that would change what the model computes.
    ///
    /// Ignored, with a line on stderr, are `…rotary_emb.inv_freq` (recomputed), `lm_head.weight` of a reward model
    /// (unused), and `v_head.…` of a language model (the critic of a finished PPO). With tied embeddings
    /// `lm_head.weight` must be a copy, which is checked when the weights are read. Name prefixes of torch.compile,
    /// FSDP and DDP are removed.
    ///
    /// A language model with a `score.weight` is a [`salsa_engine::Head::LanguageModelWithValue`]; with a
    /// `score.weight` and no language-model head it is a reward model, whichever class the config names.
    ///
    /// ```
    /// use salsa_engine::tiny;
    /// use salsa_rlhf::checkpoint::{self, Checkpoint, Companions, Dtype, Family, SaveOptions, SpecialTokens};
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// let options = SaveOptions::new(Family::Llama, SpecialTokens::default(), Dtype::F32);
    /// checkpoint::save(dir, &tiny(), &tiny().init(1), &Companions::none(), &[], &options)?;
    ///
    /// let checkpoint = Checkpoint::open(dir)?;             // config.json and the headers, no weights yet
    /// assert_eq!((checkpoint.family, checkpoint.spec.vocab_size), (Family::Llama, 11));
    /// assert_eq!(checkpoint.read_weights()?, tiny().init(1));
    /// # Ok::<(), anyhow::Error>(())
    /// ```
    ///
    /// # Errors
    /// When anything is missing, damaged or not supported; names the file, tensor or key, and the remedy.
    pub fn open(dir: &Path) -> Result<Checkpoint> {
        if PeftAdapter::is_one(dir) {
            return Checkpoint::open_adapted(dir);
        }
        let config = read_config(dir)?;
        let in_config = || format!("in {}", dir.join("config.json").display());
        let (family, spec) = config::parse(&config).with_context(in_config)?;
        let mut files = files::list(dir, family, spec.head)?;
        let spec = files.with_found_head(spec, config::named(&config, family)?, &config).with_context(in_config)?;
        spec.validate().map_err(|e| anyhow!("{}: {e}", dir.join("config.json").display()))?;
        let stored = files.match_with(&spec)?;
        stored.ignored.iter().for_each(|line| ignored::say(line));
        let tokens = SpecialTokens::read(dir, &config)?;
        if let Some(end) = tokens.eos.iter().find(|end| **end as usize >= spec.vocab_size) {
            bail!(
                "{}: the end token {end} (eos_token_id) is none of the model's {} tokens: set it to the token that ends \
                 responses",
                dir.display(),
                spec.vocab_size
            );
        }
        let scores = scores::normalization(&config, spec.head).with_context(in_config)?;
        Ok(Checkpoint {
            family,
            spec,
            config,
            tokens,
            dtype: stored.main_dtype(),
            dir: dir.to_path_buf(),
            stored,
            adapter: None,
            scores,
        })
    }

    /// All weights as float32, in the order of `spec.tensors()`.
    ///
    /// # Errors
    /// When a weight is not a finite number (names the tensor), when the copy of tied embeddings differs from them, or
    /// when the files changed since they were opened.
    pub fn read_weights(&self) -> Result<Vec<f32>> {
        if let Some(adapter) = &self.adapter {
            return self.read_merged(adapter);
        }
        let weights = self.stored.read(&self.spec)?;
        self.raw()?.check_tied_copy()?;
        Ok(weights)
    }

    /// The adapter, if the checkpoint is a PEFT directory.
    pub fn adapter(&self) -> Option<&PeftAdapter> {
        self.adapter.as_ref()
    }

    /// The folder of the full weights: the checkpoint's own, or that of its base.
    pub fn base_dir(&self) -> &Path {
        self.adapter.as_ref().map_or(&self.dir, |adapter| &adapter.base_dir)
    }

    /// The folder of tokenizer and companions: the checkpoint's; for an adapter without a tokenizer, that of its base.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The tokenizer of the directory, for this model ([`Tokenizer::for_embeddings`]).
    ///
    /// # Errors
    /// When there is none, or it has ids that the model has no embedding for.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let tokenizer = Tokenizer::from_dir(&self.dir)?;
        tokenizer.for_embeddings(self.spec.vocab_size).with_context(|| self.dir.display().to_string())
    }
}

/// The shape described by a `config.json`.
///
/// # Errors
/// When the shape is not supported.
#[cfg(test)]
pub(crate) fn spec_of(config: &Value) -> Result<ModelSpec> {
    config::parse(config).map(|(_, spec)| spec)
}

impl SpecialTokens {
    /// The special tokens of a directory, which need not contain weights.
    ///
    /// # Errors
    /// When an existing file cannot be read.
    pub fn from_dir(dir: &Path) -> Result<SpecialTokens> {
        let path = dir.join("config.json");
        let config = if path.exists() { read_json(&path)? } else { Value::Null };
        SpecialTokens::read(dir, &config)
    }

    fn read(dir: &Path, config: &Value) -> Result<SpecialTokens> {
        let path = dir.join("generation_config.json");
        let generation = if path.exists() { read_json(&path)? } else { Value::Null };
        let mut tokens = SpecialTokens::default();
        for (file, source) in [("generation_config.json", &generation), ("config.json", config)] {
            let ids = |key: &str| ids(source, key).with_context(|| format!("in {}", dir.join(file).display()));
            tokens.bos = tokens.bos.or(ids("bos_token_id")?.first().copied());
            tokens.pad = tokens.pad.or(ids("pad_token_id")?.first().copied());
            let eos = ids("eos_token_id")?;
            if tokens.eos.is_empty() {
                tokens.eos = eos;
            }
        }
        if dir.join("tokenizer.json").exists()
            && (tokens.bos.is_none() || tokens.eos.is_empty() || tokens.pad.is_none())
        {
            let tokenizer = Tokenizer::from_dir(dir)?;
            tokens.bos = tokens.bos.or(tokenizer.bos());
            // A padding token without an embedding must not be written to a config.
            let rows = config["vocab_size"].as_u64().unwrap_or(u64::MAX);
            tokens.pad = tokens.pad.or(tokenizer.pad().filter(|pad| u64::from(*pad) < rows));
            if tokens.eos.is_empty() {
                tokens.eos = tokenizer.eos().into_iter().collect();
            }
        }
        Ok(tokens)
    }
}

/// One id or a list of them; null and negative ones mean none.
fn ids(config: &Value, key: &str) -> Result<Vec<u32>> {
    let id = |value: &Value| match (value.as_u64().map(u32::try_from), value.as_i64()) {
        (Some(Ok(id)), _) => Ok(Some(id)),
        (None, Some(_)) => Ok(None),
        _ if value.is_null() => Ok(None),
        _ => Err(anyhow!("{key} is {}: expected the id of a token, or a list of ids", config[key])),
    };
    match &config[key] {
        Value::Array(list) => list.iter().filter_map(|value| id(value).transpose()).collect(),
        one => Ok(id(one)?.into_iter().collect()),
    }
}

fn read_config(dir: &Path) -> Result<Value> {
    let path = dir.join("config.json");
    if path.exists() {
        return read_json(&path);
    }
    let shown = dir.display();
    if !dir.exists() {
        bail!("there is no model at {shown}: give the folder of a Hugging Face checkpoint");
    }
    if !dir.is_dir() {
        bail!("{shown} is a file: give the folder that holds config.json and the safetensors files");
    }
    let inside = models_in(dir);
    if !inside.is_empty() {
        bail!("{shown} has no config.json: it is no model, but holds some: {}", inside.join(", "));
    }
    bail!("{shown} has no config.json: it is no Hugging Face checkpoint, or writing it was interrupted");
}

/// Up to eight folders directly inside `dir`, by name, that look like models or adapters.
fn models_in(dir: &Path) -> Vec<String> {
    const SHOWN: usize = 8;
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let is_model = |path: &PathBuf| ["config.json", "adapter_config.json"].iter().any(|name| path.join(name).is_file());
    let mut found: Vec<String> =
        entries.map(|entry| entry.path()).filter(is_model).map(|path| path.display().to_string()).collect();
    found.sort();
    if found.len() > SHOWN {
        let more = found.len() - SHOWN;
        found.truncate(SHOWN);
        found.push(format!("and {more} more"));
    }
    found
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = input::read(path)?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no valid JSON", path.display()))
}
