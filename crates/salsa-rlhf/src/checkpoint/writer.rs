//! Weight files, written in pieces.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value, json};

use super::{Dtype, positioned};
use crate::atomic;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The stored type.
    pub dtype: Dtype,
}

/// Whether finished files have been synced to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Synced: they survive a power cut.
    Synced,
    /// Only written to the operating system: they survive the end of the program.
    Cached,
}

/// The weight files of a new model directory.
///
/// ```text
/// create → write, in any order, from any thread → finish → companions → config.json
/// ```
///
/// Until [`Writer::finish`] the files have names `….tmp`; dropping the writer before removes them. An existing
/// `config.json` is removed first, and the caller writes the new one last: a directory without it is not a model.
pub struct Writer {
    dir: PathBuf,
    tensors: Vec<NewTensor>,
    shards: Vec<Shard>,
    places: Vec<Place>,
    durability: Durability,
    written: AtomicU64,
    finished: bool,
}

struct Shard {
    name: String,
    file: File,
    tensors: Range<usize>,
}

struct Place {
    shard: usize,
    at: u64,
}

impl NewTensor {
    fn numbers(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> u64 {
        (self.numbers() * self.dtype.size()) as u64
    }
}

impl Writer {
    /// Creates the files and writes their headers. Tensors are assigned to files in the given order, as many to each as
    /// `max_shard_bytes` allows; a larger single one gets its own file.
    ///
    /// # Errors
    /// When a file cannot be created.
    pub fn create(dir: &Path, tensors: Vec<NewTensor>, max_shard_bytes: u64, durability: Durability) -> Result<Writer> {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        remove_if_there(&dir.join("config.json"))?;
        let ranges = shards(&tensors, max_shard_bytes);
        let count = ranges.len();
        let mut writer = Writer {
            dir: dir.to_path_buf(),
            tensors,
            shards: Vec::new(),
            places: Vec::new(),
            durability,
            written: AtomicU64::new(0),
            finished: false,
        };
        for (i, range) in ranges.into_iter().enumerate() {
            let name = match count {
                1 => SINGLE.to_string(),
                n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
            };
            writer.begin(name, range)?;
        }
        Ok(writer)
    }

    fn begin(&mut self, name: String, tensors: Range<usize>) -> Result<()> {
        let (path, header) = (temporary(&self.dir, &name), header(&self.tensors[tensors.clone()]));
        let mut at = header.len() as u64;
        for tensor in &self.tensors[tensors.clone()] {
            self.places.push(Place { shard: self.shards.len(), at });
            at += tensor.bytes();
        }
        let mut file = atomic::create_new(&path)?;
        let written = file.write_all(&header);
        written.map_err(|error| atomic::explain(&error, &format!("cannot write {}", path.display())))?;
        self.shards.push(Shard { name, file, tensors });
        Ok(())
    }

    /// Writes the bytes of tensor `tensor` from number `start` on. Every number must be written once.
    ///
    /// # Errors
    /// When the disk is full or cannot be written.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    pub fn write(&self, tensor: usize, start: usize, bytes: &[u8]) -> Result<()> {
        let offset = (start * self.tensors[tensor].dtype.size()) as u64;
        assert!(offset + bytes.len() as u64 <= self.tensors[tensor].bytes(), "the tensor has not so many numbers");
        let Place { shard, at } = self.places[tensor];
        positioned::write(&self.shards[shard].file, bytes, at + offset).map_err(|error| {
            let path = self.dir.join(&self.shards[shard].name);
            atomic::explain(&error, &format!("cannot write {}", path.display()))
        })?;
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Extends the files to their final lengths without writing numbers: zeros that take no space where the file system
    /// supports holes.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn leave_empty(&self) -> Result<()> {
        for (shard, (path, bytes)) in self.shards.iter().zip(self.files()) {
            let made = shard.file.set_len(bytes);
            made.map_err(|error| atomic::explain(&error, &format!("cannot write {}", path.display())))?;
        }
        self.written.store(self.bytes(), Ordering::Relaxed);
        Ok(())
    }

    /// The unfinished files: final paths and lengths.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        let end = |shard: &Shard| {
            let last = shard.tensors.end.checked_sub(1).filter(|last| *last >= shard.tensors.start);
            last.map_or(0, |last| self.places[last].at + self.tensors[last].bytes())
        };
        self.shards.iter().map(|shard| (self.dir.join(&shard.name), end(shard))).collect()
    }

    /// The location of number `start` of a tensor: index in [`Writer::files`], and byte offset.
    pub fn position(&self, tensor: usize, start: usize) -> (usize, u64) {
        let Place { shard, at } = self.places[tensor];
        (shard, at + (start * self.tensors[tensor].dtype.size()) as u64)
    }

    /// Renames the files to their final names, writes the index if there are several, and removes other weights.
    ///
    /// # Errors
    /// When a file cannot be renamed, or something was not written.
    pub fn finish(mut self) -> Result<()> {
        let (expected, written) = (self.bytes(), self.written.load(Ordering::Relaxed));
        if written != expected {
            bail!("{}: {written} of {expected} bytes of weights were written", self.dir.display());
        }
        for shard in &self.shards {
            let path = self.dir.join(&shard.name);
            if self.durability == Durability::Synced {
                shard
                    .file
                    .sync_all()
                    .map_err(|error| atomic::explain(&error, &format!("cannot sync {}", path.display())))?;
            }
            fs::rename(temporary(&self.dir, &shard.name), &path)
                .map_err(|error| atomic::explain(&error, &format!("cannot finish {}", path.display())))?;
        }
        self.finished = true;
        self.remove_other_weights()?;
        if self.shards.len() > 1 {
            write_file(&self.dir.join(INDEX), format!("{:#}\n", self.index()).as_bytes(), self.durability)?;
        }
        Ok(())
    }

    /// Total bytes of weights.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(NewTensor::bytes).sum()
    }

    fn index(&self) -> Value {
        let mut map: Vec<(String, Value)> = Vec::with_capacity(self.tensors.len());
        for shard in &self.shards {
            map.extend(self.tensors[shard.tensors.clone()].iter().map(|t| (t.name.clone(), json!(shard.name))));
        }
        map.sort_by(|a, b| a.0.cmp(&b.0));
        let parameters: usize = self.tensors.iter().map(NewTensor::numbers).sum();
        let metadata = json!({ "total_parameters": parameters, "total_size": self.bytes() });
        json!({ "metadata": metadata, "weight_map": Map::from_iter(map) })
    }

    /// Weights of an earlier save would be mistaken for this one's.
    fn remove_other_weights(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", self.dir.display()))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let file = name.strip_suffix(".tmp").unwrap_or(&name);
            if (is_weights(file) && self.shards.iter().all(|shard| shard.name != name)) || name == INDEX {
                remove_if_there(&entry.path())?;
            }
        }
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            for shard in &self.shards {
                // After a failure; a file that cannot be removed is overwritten by the next attempt.
                let _ = fs::remove_file(temporary(&self.dir, &shard.name));
            }
        }
    }
}

/// Writes a small file atomically.
///
/// # Errors
/// Names the path and the cause.
pub fn write_file(path: &Path, bytes: &[u8], durability: Durability) -> Result<()> {
    match durability {
        Durability::Synced => atomic::write(path, bytes),
        Durability::Cached => {
            let written = atomic::create_new(path)?.write_all(bytes);
            written.map_err(|error| atomic::explain(&error, &format!("cannot write {}", path.display())))
        }
    }
}

fn temporary(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.tmp"))
}

/// Splits tensors into ranges for one file each.
fn shards(tensors: &[NewTensor], max_shard_bytes: u64) -> Vec<Range<usize>> {
    let (mut shards, mut start, mut held) = (Vec::new(), 0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        if i > start && held + tensor.bytes() > max_shard_bytes {
            shards.push(start..i);
            (start, held) = (i, 0);
        }
        held += tensor.bytes();
    }
    shards.push(start..tensors.len());
    shards
}

/// The header: eight bytes of length, then JSON padded with spaces so that the numbers begin at a multiple of eight.
fn header(tensors: &[NewTensor]) -> Vec<u8> {
    let mut json = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes();
        let dtype = tensor.dtype.safetensors_name();
        json.insert(tensor.name.clone(), json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut text = Value::Object(json).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

/// Matches `model.safetensors` and names such as `model-00001-of-00002.safetensors`.
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
