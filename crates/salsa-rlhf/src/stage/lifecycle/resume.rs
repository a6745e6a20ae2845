//! Resumable checkpoints in `OUT/checkpoints/step-N/`: atomic writes, and the search for the newest valid one.
//!
//! A checkpoint directory contains `buffers.safetensors` (named f32 buffers: weights and optimizer moments of one or
//! more models) and `state.json` (the step, the fingerprint of the run, further state of the stage, and a digest of all
//! that). Checkpoints that do not match their digest are ignored; checkpoints with non-finite numbers are never
//! written.
//!
//! Nothing in it depends on the number of processes: the first one writes whole buffers, and gets those parts of the
//! moments that others keep piece by piece; each process reads all of it and keeps its own part.
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    slice::SliceIndex,
    sync::Arc,
};

use anyhow::{Context, anyhow, bail};
use blake3::{Hash, Hasher};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use salsa_engine::{Moment, Trainable, comm::Comm};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::record::is_longer_form;
use crate::{atomic, config::paths::below, input, stage::ranks};

/// The complete state of a stage after `step`, from which it can be resumed without a difference.
pub(crate) struct Snapshot<'a> {
    /// Steps done.
    pub step: u64,
    /// State of the stage besides the models.
    pub state: Value,
    buffers: BTreeMap<String, Source<'a>>,
    optimizer_steps: BTreeMap<String, u64>,
    gradient_units: usize,
}

/// Where the numbers of a buffer are.
enum Source<'a> {
    /// All of them here.
    Here(Cow<'a, [f32]>),
    /// Moments of a model, of which each process may have a part.
    Moment(&'a Trainable, Moment),
}

impl Source<'_> {
    /// The number of all numbers.
    fn len(&self) -> usize {
        match self {
            Source::Here(values) => values.len(),
            Source::Moment(model, _) => model.tensors().iter().map(|tensor| tensor.range.end).max().unwrap_or(0),
        }
    }

    /// Calls `each` on the first process with all numbers in order; all processes call this together.
    fn each(&self, ranks: &dyn Comm, mut each: impl FnMut(&[f32]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        match self {
            Source::Here(values) if ranks.is_first() => each(values),
            Source::Here(_) => Ok(()),
            Source::Moment(model, moment) => model.each_moment(*moment, each),
        }
    }
}

impl<'a> Snapshot<'a> {
    /// A snapshot without models.
    pub(crate) fn new(step: u64, state: Value) -> Snapshot<'a> {
        Snapshot { step, state, buffers: BTreeMap::new(), optimizer_steps: BTreeMap::new(), gradient_units: 1 }
    }

    /// Adds a named buffer.
    pub(crate) fn with_buffer(mut self, name: &str, values: impl Into<Cow<'a, [f32]>>) -> Snapshot<'a> {
        self.buffers.insert(name.to_owned(), Source::Here(values.into()));
        self
    }

    /// Adds a model: weights, both moments and the step count of its optimizer.
    pub(crate) fn with_model(mut self, name: &str, model: &'a Trainable) -> Snapshot<'a> {
        self.optimizer_steps.insert(name.to_owned(), model.steps());
        self.gradient_units = model.units();
        for (suffix, moment) in [("m", Moment::First), ("v", Moment::Second)] {
            self.buffers.insert(format!("{name}.{suffix}"), Source::Moment(model, moment));
        }
        self.with_buffer(&format!("{name}.weights"), model.weights())
    }
}

/// A snapshot whose digest was checked. Its numbers are read from the file as they are asked for.
pub(crate) struct Restored {
    /// Steps done.
    pub step: u64,
    /// State of the stage besides the models.
    pub state: Value,
    /// The gradient units of each step.
    pub gradient_units: usize,
    buffers: Mmap,
    optimizer_steps: BTreeMap<String, u64>,
    dir: PathBuf,
}

impl Restored {
    /// The numbers of a named buffer.
    ///
    /// # Errors
    /// If the checkpoint has no such buffer.
    pub(crate) fn buffer(&self, name: &str) -> anyhow::Result<Vec<f32>> {
        self.part(name, ..)
    }

    /// Some numbers of a named buffer.
    fn part(&self, name: &str, range: impl SliceIndex<[[u8; 4]], Output = [[u8; 4]]>) -> anyhow::Result<Vec<f32>> {
        let tensors = SafeTensors::deserialize(&self.buffers).context(BUFFERS)?;
        let missing = || format!("checkpoint {} has no buffer {name:?}", self.dir.display());
        let tensor = tensors.tensor(name).with_context(missing)?;
        let numbers = tensor.data().as_chunks::<4>().0.get(range);
        let numbers = numbers.with_context(|| format!("buffer {name:?} of {} is too short", self.dir.display()))?;
        Ok(numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    }

    /// Restores weights, moments and step count of `model` from the model of this name: of the moments, those that this
    /// process keeps.
    ///
    /// # Errors
    /// If the checkpoint has no such model, or one of another size.
    pub(crate) fn restore_model(&self, name: &str, model: &mut Trainable) -> anyhow::Result<()> {
        let step = *self
            .optimizer_steps
            .get(name)
            .with_context(|| format!("checkpoint {} has no model {name:?}", self.dir.display()))?;
        let weights = self.buffer(&format!("{name}.weights"))?;
        let [m, v] = ["m", "v"].map(|moment| self.part(&format!("{name}.{moment}"), model.kept_moments()));
        model.restore(weights, step, m?, v?).with_context(|| format!("restoring {name:?} from {}", self.dir.display()))
    }
}

/// The resumable checkpoints of one output directory.
pub(crate) struct Checkpoints {
    dir: PathBuf,
    fingerprint: Fingerprint,
    /// The processes of the run.
    pub ranks: Arc<dyn Comm>,
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
    pub(crate) fn new(output_dir: &Path, fingerprint: impl Into<Fingerprint>, ranks: Arc<dyn Comm>) -> Checkpoints {
        Checkpoints { dir: output_dir.join("checkpoints"), fingerprint: fingerprint.into(), ranks }
    }

    /// Writes a snapshot atomically. Removes all but the newest two checkpoints, and those of later steps: they are
    /// damaged, since otherwise the run would have started from them. All processes call this together, and return when
    /// it is written.
    ///
    /// # Errors
    /// If a number is not finite, or a file cannot be written; the previous checkpoints are then kept.
    pub(crate) fn save(&self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        if self.ranks.is_first() {
            self.write(snapshot)?;
        } else {
            snapshot.buffers.values().try_for_each(|source| source.each(&*self.ranks, |_| Ok(())))?;
        }
        Ok(self.ranks.barrier()?)
    }

    /// The part of the first process in [`Checkpoints::save`].
    fn write(&self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let path = self.dir.join(format!("step-{}", snapshot.step));
        let mut unsound = None;
        let written = atomic::replace_dir(&path, |dir| {
            let digest = write_buffers(snapshot, &dir.join(BUFFERS), &*self.ranks, &mut unsound)?;
            let contents = Contents {
                step: snapshot.step,
                fingerprint: self.fingerprint.value.clone(),
                optimizer_steps: snapshot.optimizer_steps.clone(),
                gradient_units: snapshot.gradient_units,
                state: snapshot.state.clone(),
            };
            let state = StateFile { blake3: contents.seal(&digest)?, buffers_blake3: digest.to_string(), contents };
            Ok(fs::write(dir.join(STATE), serde_json::to_vec_pretty(&state)?)?)
        });
        if let Some(name) = unsound {
            let step = snapshot.step;
            let what = "holds a number that is not finite after step";
            return Err(
                anyhow!("{name} {what} {step}, so no checkpoint of it is written; {REMEDY}").context(self.kept())
            );
        }
        written.with_context(|| format!("cannot write checkpoint {}", path.display()))?;
        let (later, sound): (Vec<_>, Vec<_>) = self.listed()?.into_iter().partition(|(step, _)| *step > snapshot.step);
        for (_, old) in later.into_iter().chain(sound.into_iter().skip(KEPT)) {
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove old checkpoint {}", old.display()))?;
        }
        Ok(())
    }

    /// The newest valid checkpoint; `None` if there is none. Damaged ones are ignored with a line on stderr. The first
    /// process chooses it, the others read the same one.
    ///
    /// # Errors
    /// If the newest whole checkpoint belongs to a run with another fingerprint.
    pub(crate) fn newest(&self) -> anyhow::Result<Option<Restored>> {
        let mut own = None;
        let chosen = ranks::from_first(&*self.ranks, || {
            own = self.newest_here()?;
            Ok(own.as_ref().map(|restored| restored.step))
        })?;
        match chosen {
            Some(step) if !self.ranks.is_first() => {
                let dir = self.dir.join(format!("step-{step}"));
                let (_, restored) = read(&dir, step).with_context(|| {
                    format!(
                        "checkpoint {}, which the first process has read: is it on a shared file system?",
                        dir.display()
                    )
                })?;
                Ok(Some(restored))
            }
            _ => Ok(own),
        }
    }

    fn newest_here(&self) -> anyhow::Result<Option<Restored>> {
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
    /// BLAKE3 of the buffers: see [`name_buffer`] and [`add_numbers`].
    buffers_blake3: String,
    /// BLAKE3 of everything above.
    blake3: String,
}

#[derive(Serialize, Deserialize)]
struct Contents {
    step: u64,
    fingerprint: Value,
    optimizer_steps: BTreeMap<String, u64>,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    gradient_units: usize,
    state: Value,
}

/// The gradient units of a checkpoint that does not name them.
fn one() -> usize {
    1
}

fn is_one(units: &usize) -> bool {
    *units == 1
}

impl Contents {
    /// The digest of the contents of `state.json` and of the digest of the buffers.
    fn seal(&self, buffers: &Hash) -> anyhow::Result<String> {
        let mut hasher = Hasher::new();
        hasher.update(&serde_json::to_vec(self)?).update(buffers.as_bytes());
        Ok(hasher.finalize().to_string())
    }
}

/// Writes the buffers of a snapshot, in the order of their names, and returns their digest.
///
/// # Errors
/// If the file cannot be written, or a number is not finite: `unsound` is then the name of the buffer.
fn write_buffers(
    snapshot: &Snapshot<'_>,
    path: &Path,
    ranks: &dyn Comm,
    unsound: &mut Option<String>,
) -> anyhow::Result<Hash> {
    let mut out = BufWriter::with_capacity(8 * 4 * CHUNK, File::create(path)?);
    let (mut header, mut at) = (Map::new(), 0);
    for (name, source) in &snapshot.buffers {
        let end = at + 4 * source.len();
        header.insert(name.clone(), json!({"dtype": "F32", "shape": [source.len()], "data_offsets": [at, end]}));
        at = end;
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    let mut hasher = Hasher::new();
    for (name, source) in &snapshot.buffers {
        name_buffer(&mut hasher, name, source.len());
        source.each(ranks, |values| {
            if !add_numbers(&mut hasher, values, &mut out)? {
                *unsound = Some(name.clone());
                bail!("{name} is not finite");
            }
            Ok(())
        })?;
    }
    out.flush()?;
    Ok(hasher.finalize())
}

/// Adds name and length of a buffer to a digest.
fn name_buffer(hasher: &mut Hasher, name: &str, len: usize) {
    hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    hasher.update(&(len as u64).to_le_bytes());
}

/// Adds the little-endian bytes of numbers to a digest and to `out`. Returns whether all numbers are finite.
fn add_numbers(hasher: &mut Hasher, values: &[f32], out: &mut dyn Write) -> std::io::Result<bool> {
    let (mut bytes, mut finite) = (vec![0; 4 * CHUNK], true);
    for values in values.chunks(CHUNK) {
        let bytes = &mut bytes[..4 * values.len()];
        to_bytes(values, bytes);
        hasher.update(bytes);
        out.write_all(bytes)?;
        finite &= values.iter().fold(true, |finite, value| finite & value.is_finite());
    }
    Ok(finite)
}

fn to_bytes(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

/// Numbers checked and hashed at a time: they stay in the cache between the two.
const CHUNK: usize = 16 << 10;

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
    // SAFETY: it is only read, and a file of a checkpoint is never written to after the rename of its directory.
    let map = unsafe { Mmap::map(&file) }.context(BUFFERS)?;
    if digest(&map)? != expected {
        bail!("{BUFFERS} does not match its digest");
    }
    let Contents { fingerprint, state, optimizer_steps, gradient_units, .. } = contents;
    Ok((fingerprint, Restored { step, state, gradient_units, buffers: map, optimizer_steps, dir: dir.to_owned() }))
}

/// The digest of the buffers in a file, as [`write_buffers`] returns it.
fn digest(file: &[u8]) -> anyhow::Result<Hash> {
    let tensors = SafeTensors::deserialize(file).context(BUFFERS)?; // checks that the file is as long as it says
    let buffers: BTreeMap<&str, _> = tensors.iter().collect();
    let mut hasher = Hasher::new();
    for (name, tensor) in buffers {
        let data = tensor.data();
        if tensor.dtype() != Dtype::F32 || !data.len().is_multiple_of(4) {
            bail!("buffer {name:?} is not f32");
        }
        name_buffer(&mut hasher, name, data.len() / 4);
        hasher.update(data);
    }
    Ok(hasher.finalize())
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
