//! Which file holds which tensor: headers read and checked before any weight.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use memmap2::Mmap;
use safetensors::{SafeTensorError, SafeTensors};
use salsa_engine::{Head, ModelSpec};
use serde_json::Value;

use super::dtype::Dtype;
use super::family::Family;
use super::read_json;
use crate::input;

/// Where a tensor is and what the header says about it.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    file: usize,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The tensors of a checkpoint's files, by name.
#[derive(Debug)]
pub(super) struct Files {
    paths: Vec<PathBuf>,
    entries: BTreeMap<String, Entry>,
    dir: PathBuf,
}

/// A tensor of the model in its file.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub file: usize,
    pub dtype: Dtype,
    pub bytes: Range<usize>,
}

/// The model's tensors in their files.
#[derive(Debug)]
pub(super) struct Stored {
    pub paths: Vec<PathBuf>,
    /// One for each of `spec.tensors()`, in that order.
    pub tensors: Vec<Placed>,
    /// Their names.
    pub names: Vec<String>,
    /// An `lm_head.weight` beside tied embeddings.
    pub tied_copy: Option<Placed>,
}

/// Reads the headers of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
pub(super) fn list(dir: &Path, family: Family, head: Head) -> Result<Files> {
    let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
    let mut files = Files { paths: Vec::new(), entries: BTreeMap::new(), dir: dir.to_path_buf() };
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
    for (tensor, shard) in &map {
        let held = files.entries.get(tensor).map(|entry| &files.paths[entry.file]);
        if held.is_none_or(|path| path.file_name().is_none_or(|name| name != shard.as_str())) {
            bail!("{} says that {tensor} is in {shard}, but it is not: download the checkpoint again", index.display());
        }
    }
    Ok(files)
}

fn weight_map(index: &Path) -> Result<BTreeMap<String, String>> {
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
    // SAFETY: the map is read only, and no reference into it outlives it. That nobody shortens the file meanwhile is
    // the condition that every reader of memory-mapped weights puts to its user; weights are replaced by renaming.
    unsafe { Mmap::map(&file) }.with_context(|| format!("cannot map {} into memory", path.display()))
}

impl Files {
    /// Whether a tensor of this name is in one of the files.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The tensors of one file.
    pub(super) fn of(dir: &Path, path: PathBuf) -> Result<Files> {
        let mut files = Files { paths: Vec::new(), entries: BTreeMap::new(), dir: dir.to_path_buf() };
        files.add(path)?;
        Ok(files)
    }

    /// Names of tensors and where they are.
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
            if let Some(other) = self.entries.get(&name) {
                bail!("{name} is in {} and again in {}: remove one", self.paths[other.file].display(), path.display());
            }
            self.entries.insert(name, entry);
        }
        self.paths.push(path);
        Ok(())
    }

    /// Finds every tensor of the model, in its shape and a type that can be read, and refuses others.
    pub(super) fn match_with(mut self, spec: &ModelSpec) -> Result<Stored> {
        let expected = spec.tensors();
        let mut tensors = Vec::with_capacity(expected.len());
        for tensor in &expected {
            let entry = self.entries.remove(&tensor.name).ok_or_else(|| self.missing(&tensor.name, spec))?;
            tensors.push(self.place(&tensor.name, &tensor.shape, &entry)?);
        }
        let tied_copy = match self.entries.remove("lm_head.weight") {
            Some(entry) if spec.head != Head::Scalar => {
                Some(self.place("lm_head.weight", &[spec.vocab_size, spec.hidden_size], &entry)?)
            }
            _ => None,
        };
        self.entries.retain(|name, _| !name.ends_with(".rotary_emb.inv_freq"));
        if let Some((name, entry)) = self.entries.iter().next() {
            bail!(
                "{} has the tensor {name}{}, which the model that config.json describes does not have: the result would be wrong without it",
                self.paths[entry.file].display(),
                if self.entries.len() > 1 { format!(" and {} more", self.entries.len() - 1) } else { String::new() }
            );
        }
        let names = expected.into_iter().map(|tensor| tensor.name).collect();
        Ok(Stored { paths: self.paths, tensors, names, tied_copy })
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

    fn missing(&self, name: &str, spec: &ModelSpec) -> anyhow::Error {
        let dir = self.dir.display();
        match name {
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
    /// The type that holds most numbers.
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
