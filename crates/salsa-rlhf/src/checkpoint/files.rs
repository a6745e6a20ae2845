//! Which file contains which tensor: headers are read and checked before any weight.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use salsa_engine::{Head, ModelSpec};
use serde_json::Value;

use super::{
    config,
    dtype::Dtype,
    family::Family,
    names::{self, Named},
    read_json,
};
use crate::input;

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// Location of a tensor and its description in the header.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Entry {
    /// The shape in the header.
    pub(super) fn shape(&self) -> &[usize] {
        &self.shape
    }
}

/// The tensors of a checkpoint's files, by name.
#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
    dir: PathBuf,
    /// Tensors in the index but in no file, and the files they should be in. The model may need none of them.
    absent: BTreeMap<String, String>,
    ignored: Vec<String>,
}

/// A tensor of the model and its file.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub file: usize,
    pub dtype: Dtype,
    pub bytes: Range<usize>,
}

/// The model's tensors and their files.
#[derive(Debug)]
pub(super) struct Stored {
    pub paths: Vec<PathBuf>,
    /// One for each of `spec.tensors()`, in that order.
    pub tensors: Vec<Placed>,
    /// Their names.
    pub names: Vec<String>,
    /// An `lm_head.weight` next to tied embeddings.
    pub tied_copy: Option<Placed>,
    /// A line for each kind of ignored tensor.
    pub ignored: Vec<String>,
}

/// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
pub(super) fn list(dir: &Path, family: Family, head: Head) -> Result<Files> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    let mut files = Files::none(dir);
    if single.exists() {
        files.add(single)?;
        return Ok(files);
    }
    if !index.exists() {
        return Err(no_weights(dir, family, head));
    }
    let map = weight_map(&index)?;
    let mut shards: Vec<&String> = map.values().collect();
    shards.sort();
    shards.dedup();
    for shard in shards {
        if shard.contains(['/', '\\']) || shard == ".." || shard.is_empty() {
            bail!(
                "{} names the file {shard:?}, which is not inside the folder: do not trust this checkpoint",
                index.display()
            );
        }
        let path = dir.join(shard);
        if !path.exists() {
            bail!("{} names {shard}, which is not there: download the checkpoint again, completely", index.display());
        }
        files.add(path)?;
    }
    for (tensor, shard) in map {
        let tensor = names::plain(&tensor);
        match files.entries.get(&tensor).map(|entry| &files.paths[entry.file]) {
            None => drop(files.absent.insert(tensor, shard)),
            Some(path) if path.file_name().is_some_and(|name| name == shard.as_str()) => {}
            Some(_) => bail!("{}", files.not_where_the_index_says(&tensor, &shard)),
        }
    }
    Ok(files)
}

pub(super) fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json(index)?;
    let map = json["weight_map"].as_object().ok_or_else(|| anyhow!("{} has no weight_map", index.display()))?;
    let pair = |(tensor, file): (&String, &Value)| {
        let file =
            file.as_str().ok_or_else(|| anyhow!("{}: weight_map of {tensor} is no file name", index.display()))?;
        Ok((tensor.clone(), file.to_string()))
    };
    let map: BTreeMap<String, String> = map.iter().map(pair).collect::<Result<_>>()?;
    if map.is_empty() {
        bail!("{} has an empty weight_map", index.display());
    }
    Ok(map)
}

fn no_weights(dir: &Path, family: Family, head: Head) -> anyhow::Error {
    let shown = dir.display();
    let pickle = ["pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"];
    if let Some(found) = pickle.into_iter().find(|name| dir.join(name).exists()) {
        let class = if head == Head::Scalar { "AutoModelForSequenceClassification" } else { "AutoModelForCausalLM" };
        return anyhow!(
            "{shown} has its weights in {found}, a pickle file, which can run code when it is read. Convert it: python -c \"from transformers import {class}; {class}.from_pretrained('{shown}').save_pretrained('{shown}', safe_serialization=True)\""
        );
    }
    anyhow!(
        "{shown} has a config.json of a {family} model but no model.safetensors and no model.safetensors.index.json: download the weights too"
    )
}

/// Maps a file into memory.
pub(super) fn map(path: &Path) -> Result<Mmap> {
    let file = input::open(path)?;
    let meta = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    if meta.len() == 0 {
        bail!("{} is empty: download it again", path.display());
    }
    // SAFETY: the map is read-only, and no reference into it outlives it. The file must not be truncated meanwhile, a
    // condition of every reader of memory-mapped weights; weights are replaced by renaming.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {} into memory", path.display()))
}

impl Files {
    /// Whether one of the files has a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensors of one file.
    pub(super) fn of(dir: &Path, path: PathBuf) -> Result<Files> {
        let mut files = Files::none(dir);
        files.add(path)?;
        Ok(files)
    }

    fn none(dir: &Path) -> Files {
        Files {
            paths: Vec::new(),
            entries: BTreeMap::new(),
            dir: dir.to_path_buf(),
            absent: BTreeMap::new(),
            ignored: Vec::new(),
        }
    }

    /// The tensors' names and locations.
    pub(super) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.entries
    }

    /// The first file.
    pub(super) fn first_path(&self) -> &Path {
        &self.paths[0]
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let bytes = map(&path)?;
        let (length, header) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&path, &bytes, e))?;
        for name in header.offset_keys() {
            let info = header.info(&name).ok_or_else(|| anyhow!("{}: {name} is not in its header", path.display()))?;
            let start = 8 + length;
            let entry = Entry {
                file: self.paths.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: start + info.data_offsets.0..start + info.data_offsets.1,
            };
            let plain = names::plain(&name);
            if let Some(other) = self.entries.get(&plain) {
                let first = self.paths.get(other.file).unwrap_or(&path);
                bail!("{plain} is in {} and again in {}: remove one", first.display(), path.display());
            }
            self.entries.insert(plain, entry);
        }
        self.paths.push(path);
        Ok(())
    }

    /// Returns the model's shape with the head that its tensors and the class names of its config imply; a head of
    /// another name becomes `score.weight`.
    ///
    /// # Errors
    /// When the tensors imply a reward model with several labels.
    pub(super) fn with_found_head(&mut self, spec: ModelSpec, named: Named, config: &Value) -> Result<ModelSpec> {
        let score = names::of_score(config).into_iter().find(|name| self.has(name));
        let Some(score) = score else { return Ok(spec) };
        let is_tied = spec.tied_embeddings && named == Named::LanguageModel;
        let is_reward_model = named == Named::Reward || !(is_tied || self.has("lm_head.weight"));
        if score != "score.weight" {
            if !is_reward_model {
                return Ok(spec);
            }
            let entry = self.entries.remove(&score).expect("it was found");
            self.entries.insert("score.weight".to_owned(), entry);
        }
        match (named, is_reward_model) {
            (Named::Reward, _) => Ok(spec),
            (_, true) => {
                config::one_label(config)?;
                self.ignored.push(format!(
                    "{}: {}, but there is {score} and no lm_head.weight: it is read as a reward model",
                    self.dir.display(),
                    if named == Named::None {
                        "config.json names no architectures"
                    } else {
                        "architectures names a language model"
                    },
                ));
                Ok(spec.with_head(Head::Scalar))
            }
            (_, false) => Ok(spec.with_head(Head::LanguageModelWithValue)),
        }
    }

    /// Removes the tensors of these names and records why.
    fn ignore(&mut self, why: &str, is_one: impl Fn(&str) -> bool) {
        let mut found: Vec<String> = self.entries.keys().filter(|name| is_one(name)).cloned().collect();
        self.entries.retain(|name, _| !is_one(name));
        if found.is_empty() {
            return;
        }
        let more = found.split_off(found.len().min(3)).len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        self.ignored.push(format!("{}: {}{more} ignored: {why}", self.dir.display(), found.join(", ")));
    }

    /// Finds every tensor of the model, in its shape and a supported type, and refuses others.
    pub(super) fn match_with(mut self, spec: &ModelSpec) -> Result<Stored> {
        let embedding = "model.embed_tokens.weight";
        if spec.tied_embeddings && !self.has(embedding) {
            // The tensor has two names and was stored under the other.
            let entry = self.entries.remove("lm_head.weight");
            self.entries.extend(entry.map(|entry| (embedding.to_owned(), entry)));
        }
        let expected = spec.tensors();
        let mut tensors = Vec::with_capacity(expected.len());
        for tensor in &expected {
            let entry = self.entries.remove(&tensor.name).ok_or_else(|| self.missing(&tensor.name, spec))?;
            tensors.push(self.place(&tensor.name, &tensor.shape, &entry)?);
        }
        self.ignore("rotary frequencies are computed from config.json", |name| name.ends_with(".rotary_emb.inv_freq"));
        if spec.head == Head::Scalar {
            self.ignore("a reward model has no use for it", |name| name == "lm_head.weight");
        } else {
            self.ignore("the value head of a PPO is no part of the language model", |name| name.starts_with("v_head."));
        }
        let tied_copy = self.entries.remove("lm_head.weight");
        let tied_copy = tied_copy
            .map(|entry| self.place("lm_head.weight", &[spec.vocab_size, spec.hidden_size], &entry))
            .transpose()?;
        if let Some((name, entry)) = self.entries.iter().next() {
            bail!(
                "{} has the tensor {name}{}, which the model that config.json describes does not have: the result would be wrong without it",
                self.paths[entry.file].display(),
                if self.entries.len() > 1 { format!(" and {} more", self.entries.len() - 1) } else { String::new() }
            );
        }
        let names = expected.into_iter().map(|tensor| tensor.name).collect();
        Ok(Stored { paths: self.paths, tensors, names, tied_copy, ignored: self.ignored })
    }

    pub(super) fn place(&self, name: &str, shape: &[usize], entry: &Entry) -> Result<Placed> {
        let path = self.paths[entry.file].display();
        if entry.shape != shape {
            bail!("{path}: {name} has shape {:?}, but config.json describes {shape:?}", entry.shape);
        }
        let dtype = Dtype::of(entry.dtype).ok_or_else(|| {
            anyhow!(
                "{path}: {name} is stored as {:?}; supported are F32, BF16 and F16: save the model in one of them",
                entry.dtype
            )
        })?;
        Ok(Placed { file: entry.file, dtype, bytes: entry.bytes.clone() })
    }

    fn not_where_the_index_says(&self, tensor: &str, shard: &str) -> String {
        let index = self.dir.join(INDEX);
        format!("{} says that {tensor} is in {shard}, but it is not: download the checkpoint again", index.display())
    }

    fn missing(&self, name: &str, spec: &ModelSpec) -> anyhow::Error {
        let dir = self.dir.display();
        match name {
            _ if self.absent.contains_key(name) => anyhow!(self.not_where_the_index_says(name, &self.absent[name])),
            "score.weight" => {
                let found: Vec<&str> = self
                    .entries
                    .keys()
                    .map(String::as_str)
                    .filter(|n| !n.starts_with("model.layers.") && !n.starts_with("model.embed"))
                    .take(4)
                    .collect();
                let found =
                    if found.is_empty() { String::new() } else { format!(" (it does have {})", found.join(", ")) };
                anyhow!(
                    "{dir} is a reward model without its head: score.weight [1, {}] is missing{found}. Its scores would be random; train it again or take the complete checkpoint",
                    spec.hidden_size
                )
            }
            "lm_head.weight" => anyhow!(
                "{dir}: lm_head.weight is missing. If the model shares it with the embedding, set \"tie_word_embeddings\": true in config.json; else download the weights again"
            ),
            _ => {
                let other = self.entries.keys().next().map_or(String::new(), |n| format!(" (the files do have {n})"));
                anyhow!(
                    "{dir}: the tensor {name} is missing{other}: the weights are incomplete or not of this config.json"
                )
            }
        }
    }
}

impl Stored {
    /// The type of most numbers.
    pub(super) fn main_dtype(&self) -> Dtype {
        let held = |dtype: Dtype| {
            let bytes: usize = self.tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.bytes.len()).sum();
            bytes / dtype.size()
        };
        [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().max_by_key(|dtype| held(*dtype)).unwrap_or(Dtype::F32)
    }
}

fn damaged(path: &Path, bytes: &[u8], error: SafeTensorError) -> anyhow::Error {
    let shown = path.display();
    let again = "download or copy it again";
    match error {
        _ if bytes.starts_with(b"version https://git-lfs") => {
            anyhow!("{shown} is a Git LFS pointer, not the weights: run `git lfs pull` in its folder")
        }
        SafeTensorError::HeaderTooSmall | SafeTensorError::InvalidHeaderLength => {
            anyhow!("{shown} ends within its header: it is cut off or no safetensors file; {again}")
        }
        SafeTensorError::HeaderTooLarge => {
            anyhow!("{shown} claims a header of over 100 MB: it is damaged or no safetensors file; {again}")
        }
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            anyhow!("{shown} has no readable header ({error}): it is damaged or no safetensors file; {again}")
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            anyhow!("{shown} is shorter or longer than its header says: it is cut off; {again}")
        }
        SafeTensorError::InvalidOffset(tensor) => {
            anyhow!("{shown}: the bytes of {tensor} overlap others or leave a gap: the file is damaged; {again}")
        }
        other => anyhow!("{shown} is damaged: {other}; {again}"),
    }
}
