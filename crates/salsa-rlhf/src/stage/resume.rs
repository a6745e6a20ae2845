//! Resumable checkpoints: `OUT/checkpoints/step-N/`, written atomically, the newest valid one found again.
//!
//! One directory holds `buffers.safetensors` (named f32 buffers: weights and optimizer moments of one or more models) and
//! `state.json` (the step, the fingerprint of the run, and whatever else the stage must remember).
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors, View};
use salsa_engine::Trainable;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::is_longer_form;
use crate::{atomic, config::paths::below};

/// Everything a stage needs to go on after `step` as if it had never stopped.
pub struct Snapshot<'a> {
    /// Steps done.
    pub step: u64,
    /// What the stage must remember besides the models.
    pub state: Value,
    buffers: Vec<(String, Cow<'a, [f32]>)>,
    optimizer_steps: BTreeMap<String, u64>,
}

impl<'a> Snapshot<'a> {
    /// A snapshot without models.
    pub fn new(step: u64, state: Value) -> Snapshot<'a> {
        Snapshot { step, state, buffers: Vec::new(), optimizer_steps: BTreeMap::new() }
    }

    /// Adds a named buffer.
    pub fn with_buffer(mut self, name: &str, values: impl Into<Cow<'a, [f32]>>) -> Snapshot<'a> {
        self.buffers.push((name.to_owned(), values.into()));
        self
    }

    /// Adds a model: weights, both moments and the step count of its optimizer.
    pub fn with_model(mut self, name: &str, model: &'a Trainable) -> Snapshot<'a> {
        let optimizer = model.optimizer_state();
        self.optimizer_steps.insert(name.to_owned(), optimizer.step);
        self.with_buffer(&format!("{name}.weights"), model.weights())
            .with_buffer(&format!("{name}.m"), optimizer.m)
            .with_buffer(&format!("{name}.v"), optimizer.v)
    }
}

/// A snapshot read back.
pub struct Restored {
    /// Steps done.
    pub step: u64,
    /// What the stage remembered.
    pub state: Value,
    buffers: BTreeMap<String, Vec<f32>>,
    optimizer_steps: BTreeMap<String, u64>,
    dir: PathBuf,
}

impl Restored {
    /// Takes a named buffer out.
    ///
    /// # Errors
    /// If the checkpoint has no such buffer.
    pub fn take_buffer(&mut self, name: &str) -> anyhow::Result<Vec<f32>> {
        self.buffers.remove(name).with_context(|| format!("checkpoint {} has no buffer {name:?}", self.dir.display()))
    }

    /// Puts weights, moments and step count of the named model back into `model`.
    ///
    /// # Errors
    /// If the checkpoint has no such model, or one of another size.
    pub fn restore_model(&mut self, name: &str, model: &mut Trainable) -> anyhow::Result<()> {
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
pub struct Checkpoints {
    dir: PathBuf,
    fingerprint: Fingerprint,
}

/// All that the result of a run depends on.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// What is written down.
    pub value: Value,
    /// The places in it of values that change no result.
    pub no_effect: BTreeSet<String>,
}

impl From<Value> for Fingerprint {
    fn from(value: Value) -> Fingerprint {
        Fingerprint { value, no_effect: BTreeSet::new() }
    }
}

impl Checkpoints {
    /// Checkpoints under `output_dir` of a run described by `fingerprint`: all that its result depends on.
    pub fn new(output_dir: &Path, fingerprint: impl Into<Fingerprint>) -> Checkpoints {
        Checkpoints { dir: output_dir.join("checkpoints"), fingerprint: fingerprint.into() }
    }

    /// Writes a snapshot atomically and removes all but the newest two.
    ///
    /// # Errors
    /// If the disk refuses; the previous checkpoints are then still there.
    pub fn save(&self, snapshot: &Snapshot<'_>) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {}", self.dir.display()))?;
        let path = self.dir.join(format!("step-{}", snapshot.step));
        let state = StateFile {
            step: snapshot.step,
            fingerprint: self.fingerprint.value.clone(),
            optimizer_steps: snapshot.optimizer_steps.clone(),
            state: snapshot.state.clone(),
        };
        atomic::replace_dir(&path, |dir| {
            let tensors =
                snapshot.buffers.iter().map(|(name, values)| (name.as_str(), Buffer { values, shape: [values.len()] }));
            safetensors::serialize_to_file(tensors, None, &dir.join(BUFFERS))?;
            fs::write(dir.join(STATE), serde_json::to_vec_pretty(&state)?)?;
            Ok(())
        })
        .with_context(|| format!("cannot write checkpoint {}", path.display()))?;
        for (_, old) in self.listed()?.into_iter().skip(KEPT) {
            fs::remove_dir_all(&old).with_context(|| format!("cannot remove old checkpoint {}", old.display()))?;
        }
        Ok(())
    }

    /// The newest checkpoint that is whole, or none. Torn ones are passed over with a line on standard error.
    ///
    /// # Errors
    /// If the newest whole checkpoint belongs to a run with another fingerprint.
    pub fn newest(&self) -> anyhow::Result<Option<Restored>> {
        for (step, dir) in self.listed()? {
            match read(&dir, step) {
                Ok((fingerprint, restored)) => {
                    self.check_fingerprint(&fingerprint, &dir)?;
                    return Ok(Some(restored));
                }
                Err(error) => eprintln!("ignoring torn checkpoint {}: {error:#}", dir.display()),
            }
        }
        Ok(None)
    }

    /// Removes all checkpoints: the run is done.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn remove(&self) -> anyhow::Result<()> {
        if self.dir.exists() {
            fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))?;
        }
        Ok(())
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

/// How many checkpoints are kept: if the newest is torn by a failing disk, one more is there.
const KEPT: usize = 2;
const BUFFERS: &str = "buffers.safetensors";
const STATE: &str = "state.json";

#[derive(Serialize, Deserialize)]
struct StateFile {
    step: u64,
    fingerprint: Value,
    optimizer_steps: BTreeMap<String, u64>,
    state: Value,
}

/// A flat buffer as safetensors wants to see it.
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
        self.values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into()
    }
    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// Reads one checkpoint directory whole.
fn read(dir: &Path, step: u64) -> anyhow::Result<(Value, Restored)> {
    let state: StateFile = serde_json::from_slice(&fs::read(dir.join(STATE)).context(STATE)?).context(STATE)?;
    if state.step != step {
        bail!("{STATE} is of step {}", state.step);
    }
    let file = File::open(dir.join(BUFFERS)).context(BUFFERS)?;
    // SAFETY: the map is read here and dropped; a checkpoint directory is never written to after its rename.
    let map = unsafe { Mmap::map(&file) }.context(BUFFERS)?;
    let tensors = SafeTensors::deserialize(&map).context(BUFFERS)?; // checks that the file is as long as it says
    let mut buffers = BTreeMap::new();
    for (name, tensor) in tensors.iter() {
        let (values, rest) = tensor.data().as_chunks::<4>();
        if tensor.dtype() != Dtype::F32 || !rest.is_empty() {
            bail!("buffer {name:?} is not f32");
        }
        buffers.insert(name.to_owned(), values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect());
    }
    let (dir, optimizer_steps) = (dir.to_owned(), state.optimizer_steps);
    Ok((state.fingerprint, Restored { step, state: state.state, buffers, optimizer_steps, dir }))
}

impl Fingerprint {
    /// Lists the keys in which two values differ, with both values.
    fn differing(&self, key: &str, found: &Value, wanted: &Value, differences: &mut Vec<String>) {
        match (found, wanted) {
            (Value::Object(a), Value::Object(b)) => {
                let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
                for name in keys {
                    let path = below(key, name);
                    if self.no_effect.contains(&path) {
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
mod tests {
    use serde_json::json;

    use super::*;

    fn checkpoints(dir: &Path) -> Checkpoints {
        Checkpoints::new(dir, json!({"stage": "sft", "config": {"learning_rate": 0.001}}))
    }

    fn save(checkpoints: &Checkpoints, step: u64) {
        let values = [step as f32, -0.0, f32::MIN_POSITIVE / 4.0];
        checkpoints.save(&Snapshot::new(step, json!({"sum": 0.1 + 0.2})).with_buffer("x", &values)).unwrap();
    }

    #[test]
    fn the_newest_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path());
        assert!(checkpoints.newest().unwrap().is_none());
        for step in [2, 9, 10] {
            save(&checkpoints, step);
        }
        let mut restored = checkpoints.newest().unwrap().unwrap();
        assert_eq!(restored.step, 10);
        assert_eq!(restored.state["sum"].as_f64().unwrap().to_bits(), (0.1f64 + 0.2).to_bits());
        let bits: Vec<u32> = restored.take_buffer("x").unwrap().into_iter().map(f32::to_bits).collect();
        assert_eq!(bits, [10f32.to_bits(), 0x8000_0000, f32::MIN_POSITIVE.to_bits() / 4]);
        assert!(restored.take_buffer("x").is_err());
        let kept: Vec<u64> = checkpoints.listed().unwrap().into_iter().map(|(step, _)| step).collect();
        assert_eq!(kept, [10, 9], "only the last two stay");
        checkpoints.remove().unwrap();
        assert!(checkpoints.newest().unwrap().is_none());
    }

    #[test]
    fn torn_checkpoints_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path());
        save(&checkpoints, 1);
        save(&checkpoints, 2);
        let buffers = dir.path().join("checkpoints/step-2/buffers.safetensors");
        let bytes = fs::read(&buffers).unwrap();
        fs::write(&buffers, &bytes[..bytes.len() - 1]).unwrap();
        fs::create_dir(dir.path().join("checkpoints/step-7")).unwrap();
        fs::create_dir(dir.path().join("checkpoints/step-8.tmp")).unwrap();
        assert_eq!(checkpoints.newest().unwrap().unwrap().step, 1);
    }

    #[test]
    fn another_configuration_is_refused_with_the_key() {
        let dir = tempfile::tempdir().unwrap();
        save(&checkpoints(dir.path()), 1);
        let other = Checkpoints::new(dir.path(), json!({"stage": "sft", "config": {"learning_rate": 0.002}}));
        let message = other.newest().err().unwrap().to_string();
        assert!(message.contains("config.learning_rate was 0.001 and is now 0.002"), "{message}");
    }
}
