//! Resumable checkpoints in `OUT/checkpoints/step-N/`: atomic writes, and the search for the newest valid one.
//!
//! A checkpoint directory contains `buffers.safetensors` (named f32 buffers: weights and optimizer moments of one or
//! more models) and `state.json` (the step, the fingerprint of the run, further state of the stage, and a digest of all
//! that). Checkpoints that do not match their digest are ignored; checkpoints with non-finite numbers are never
//! written.
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use blake3::{Hash, Hasher};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use salsa_engine::Trainable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::is_longer_form;
use crate::{atomic, config::paths::below, input};

/// The complete state of a stage after `step`, from which it can be resumed without a difference.
pub(crate) struct Snapshot<'a> {
    /// Steps done.
    pub step: u64,
    /// State of the stage besides the models.
    pub state: Value,
    buffers: Vec<(String, Cow<'a, [f32]>)>,
    optimizer_steps: BTreeMap<String, u64>,
}

impl<'a> Snapshot<'a> {
    /// A snapshot without models.
    pub(crate) fn new(step: u64, state: Value) -> Snapshot<'a> {
        Snapshot { step, state, buffers: Vec::new(), optimizer_steps: BTreeMap::new() }
    }

    /// Adds a named buffer.
    pub(crate) fn with_buffer(mut self, name: &str, values: impl Into<Cow<'a, [f32]>>) -> Snapshot<'a> {
        self.buffers.push((name.to_owned(), values.into()));
        self
    }

    /// Adds a model: weights, both moments and the step count of its optimizer.
    pub(crate) fn with_model(mut self, name: &str, model: &'a Trainable) -> Snapshot<'a> {
        let optimizer = model.optimizer_state();
        self.optimizer_steps.insert(name.to_owned(), optimizer.step);
        self.with_buffer(&format!("{name}.weights"), model.weights())
            .with_buffer(&format!("{name}.m"), optimizer.m)
            .with_buffer(&format!("{name}.v"), optimizer.v)
    }
}

/// A snapshot that was read.
pub(crate) struct Restored {
    /// Steps done.
    pub step: u64,
    /// State of the stage besides the models.
    pub state: Value,
    buffers: BTreeMap<String, Vec<f32>>,
    optimizer_steps: BTreeMap<String, u64>,
    dir: PathBuf,
}

impl Restored {
    /// Removes and returns a named buffer.
    ///
    /// # Errors
    /// If the checkpoint has no such buffer.
    pub(crate) fn take_buffer(&mut self, name: &str) -> anyhow::Result<Vec<f32>> {
        self.buffers.remove(name).with_context(|| format!("checkpoint {} has no buffer {name:?}", self.dir.display()))
    }

    /// Restores weights, moments and step count of `model` from the model of this name.
    ///
    /// # Errors
    /// If the checkpoint has no such model, or one of another size.
    pub(crate) fn restore_model(&mut self, name: &str, model: &mut Trainable) -> anyhow::Result<()> {
        let step = *self
            .optimizer_steps
            .get(name)
            .with_context(|| format!("checkpoint {} has no model {name:?}", self.dir.display()))?;
        let weights = self.take_buffer(&format!("{name}.weights"))?;
        let m = self.take_buffer(&format!("{name}.m"))?;
        let v = self.take_buffer(&format!("{name}.v"))?;
        model.restore(weights, step, m, v).with_context(|| format!("restoring {name:?} from {}", self.dir.display()))
    }
}

/// The resumable checkpoints of one output directory.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    fingerprint: Fingerprint,
}

/// Everything that the result of a run depends on.
#[derive(Clone, Debug)]
pub(crate) struct Fingerprint {
    /// The value saved in checkpoints.
    pub value: Value,
    /// The places of values that change no result.
    pub no_effect: BTreeSet<String>,
    /// The places of keys at their default: if a checkpoint of an older version lacks such a key, this value applies.
    pub at_default: BTreeSet<String>,
}

impl From<Value> for Fingerprint {
    fn from(value: Value) -> Fingerprint {
        Fingerprint { value, no_effect: BTreeSet::new(), at_default: BTreeSet::new() }
    }
}

impl Checkpoints {
    /// Checkpoints under `output_dir` of a run with this fingerprint.
    pub(crate) fn new(output_dir: &Path, fingerprint: impl Into<Fingerprint>) -> Checkpoints {
        Checkpoints { dir: output_dir.join("checkpoints"), fingerprint: fingerprint.into() }
    }

    /// Writes a snapshot atomically. Removes all but the newest two checkpoints, and those of later steps: they are
    /// damaged, since otherwise the run would have started from them.
    ///
    /// # Errors
    /// If a number is not finite, or a file cannot be written; the previous checkpoints are then kept.
    pub(crate) fn save(&self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        let digest = digest(snapshot).with_context(|| self.kept())?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let path = self.dir.join(format!("step-{}", snapshot.step));
        let contents = Contents {
            step: snapshot.step,
            fingerprint: self.fingerprint.value.clone(),
            optimizer_steps: snapshot.optimizer_steps.clone(),
            state: snapshot.state.clone(),
        };
        let state = StateFile { blake3: contents.seal(&digest)?, buffers_blake3: digest.to_string(), contents };
        atomic::replace_dir(&path, |dir| {
            let tensors =
                snapshot.buffers.iter().map(|(name, values)| (name.as_str(), Buffer { values, shape: [values.len()] }));
            safetensors::serialize_to_file(tensors, None, &dir.join(BUFFERS))?;
            fs::write(dir.join(STATE), serde_json::to_vec_pretty(&state)?)?;
            Ok(())
        })
        .with_context(|| format!("cannot write checkpoint {}", path.display()))?;
        let (later, sound): (Vec<_>, Vec<_>) = self.listed()?.into_iter().partition(|(step, _)| *step > snapshot.step);
        for (_, old) in later.into_iter().chain(sound.into_iter().skip(KEPT)) {
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove old checkpoint {}", old.display()))?;
        }
        Ok(())
    }

    /// The newest valid checkpoint; `None` if there is none. Damaged ones are ignored with a line on stderr.
    ///
    /// # Errors
    /// If the newest whole checkpoint belongs to a run with another fingerprint.
    pub(crate) fn newest(&self) -> anyhow::Result<Option<Restored>> {
        for (step, dir) in self.listed()? {
            match read(&dir, step) {
                Ok((fingerprint, restored)) => {
                    self.check_fingerprint(&fingerprint, &dir)?;
                    return Ok(Some(restored));
                }
                Err(error) => eprintln!("passing over the damaged checkpoint {}: {error:#}", dir.display()),
            }
        }
        Ok(None)
    }

    /// Describes the newest checkpoint, for the error message of a run that cannot continue.
    pub(crate) fn kept(&self) -> String {
        match self.listed().unwrap_or_default().first() {
            Some((step, dir)) => format!("the newest checkpoint, {}, is of step {step}", dir.display()),
            None => "no checkpoint has been saved".to_owned(),
        }
    }

    /// `step-N` directories, newest first.
    fn listed(&self) -> anyhow::Result<Vec<(u64, PathBuf)>> {
        if !self.dir.exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot list {}", self.dir.display()))? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
                found.push((step, path));
            }
        }
        found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
        Ok(found)
    }

    fn check_fingerprint(&self, found: &Value, dir: &Path) -> anyhow::Result<()> {
        let mut differences = Vec::new();
        self.fingerprint.differing("", found, &self.fingerprint.value, &mut differences);
        if differences.is_empty() {
            return Ok(());
        }
        let parent = self.dir.display();
        bail!(
            "{} belongs to a run with other settings: {}. Go back to those settings to resume it, give another output \
             directory, or remove {parent} to start over",
            dir.display(),
            differences.join(", ")
        )
    }
}

/// Advice on numbers that are not finite.
pub(crate) const REMEDY: &str =
    "a smaller learning_rate may help, with another output_dir, since a checkpoint goes on with its own settings only";

/// Number of checkpoints to keep: if the newest is damaged, there is one more.
const KEPT: usize = 2;
const BUFFERS: &str = "buffers.safetensors";
const STATE: &str = "state.json";

/// `state.json`.
#[derive(Serialize, Deserialize)]
struct StateFile {
    #[serde(flatten)]
    contents: Contents,
    /// BLAKE3 of the buffers: see [`add_buffer`].
    buffers_blake3: String,
    /// BLAKE3 of everything above.
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    step: u64,
    fingerprint: Value,
    optimizer_steps: BTreeMap<String, u64>,
    state: Value,
}

impl Contents {
    /// The digest of the contents of `state.json` and of the digest of the buffers.
    fn seal(&self, buffers: &Hash) -> anyhow::Result<String> {
        let mut hasher = Hasher::new();
        hasher.update(&serde_json::to_vec(self)?).update(buffers.as_bytes());
        Ok(hasher.finalize().to_string())
    }
}

/// The digest of a snapshot's buffers.
///
/// # Errors
/// If a number is not finite; the error names the first such buffer.
fn digest(snapshot: &Snapshot<'_>) -> anyhow::Result<Hash> {
    let mut hasher = Hasher::new();
    let mut buffers: Vec<&(String, Cow<'_, [f32]>)> = snapshot.buffers.iter().collect();
    buffers.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, values) in buffers {
        if !add_buffer(&mut hasher, name, values) {
            bail!(
                "{name} holds a number that is not finite after step {}, so no checkpoint of it is written; {REMEDY}",
                snapshot.step
            );
        }
    }
    Ok(hasher.finalize())
}

/// Adds name, length and little-endian numbers of a buffer to a digest. Returns whether all numbers are finite.
fn add_buffer(hasher: &mut Hasher, name: &str, values: &[f32]) -> bool {
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    hasher.update(&(values.len() as u64).to_le_bytes());
    let (mut bytes, mut finite) = (vec![0; 4 * CHUNK], true);
    for values in values.chunks(CHUNK) {
        let bytes = &mut bytes[..4 * values.len()];
        to_bytes(values, bytes);
        hasher.update(bytes);
        finite &= values.iter().fold(true, |finite, value| finite & value.is_finite());
    }
    finite
}

fn to_bytes(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Numbers checked and hashed at a time: they stay in the cache between the two.
const CHUNK: usize = 16 << 10;

/// A flat buffer as a safetensors view.
struct Buffer<'a> {
    values: &'a [f32],
    shape: [usize; 1],
}

impl View for Buffer<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; 4 * self.values.len()];
        to_bytes(self.values, &mut bytes);
        bytes.into()
    }
    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Reads a complete checkpoint directory.
fn read(dir: &Path, step: u64) -> anyhow::Result<(Value, Restored)> {
    let state: StateFile = serde_json::from_slice(&input::read(&dir.join(STATE))?).context(STATE)?;
    let StateFile { contents, buffers_blake3, blake3 } = state;
    if contents.step != step {
        bail!("{STATE} is of step {}", contents.step);
    }
    let expected = Hash::from_hex(&buffers_blake3).ok();
    let Some(expected) = expected.filter(|buffers| contents.seal(buffers).is_ok_and(|seal| seal == blake3)) else {
        bail!("{STATE} does not match its digest");
    };
    let file = input::open(&dir.join(BUFFERS))?;
    // SAFETY: the map is read here and dropped; a checkpoint directory is never written to after its rename.
    let map = unsafe { Mmap::map(&file) }.context(BUFFERS)?;
    let tensors = SafeTensors::deserialize(&map).context(BUFFERS)?; // checks that the file is as long as it says
    let mut buffers: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        let (values, rest) = tensor.data().as_chunks::<4>();
        if tensor.dtype() != Dtype::F32 || !rest.is_empty() {
            bail!("buffer {name:?} is not f32");
        }
        buffers.insert(name.to_owned(), values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect());
    }
    let mut hasher = Hasher::new();
    for (name, values) in &buffers {
        add_buffer(&mut hasher, name, values);
    }
    if hasher.finalize() != expected {
        bail!("{BUFFERS} does not match its digest");
    }
    let Contents { fingerprint, state, optimizer_steps, .. } = contents;
    Ok((fingerprint, Restored { step, state, buffers, optimizer_steps, dir: dir.to_owned() }))
}

impl Fingerprint {
    /// Collects the keys in which two values differ, with both values.
    fn differing(&self, key: &str, found: &Value, wanted: &Value, differences: &mut Vec<String>) {
        match (found, wanted) {
            (Value::Object(a), Value::Object(b)) => {
                let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in keys {
                    let path = below(key, name);
                    let is_as_without = !a.contains_key(name) && self.at_default.contains(&path);
                    if self.no_effect.contains(&path) || is_as_without {
                        continue;
                    }
                    let get = |map: &serde_json::Map<String, Value>| map.get(name).cloned().unwrap_or_default();
                    self.differing(&path, &get(a), &get(b), differences);
                }
            }
            _ if found != wanted && !is_longer_form(found, wanted) => {
                differences.push(format!("{key} was {found} and is now {wanted}"))
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
