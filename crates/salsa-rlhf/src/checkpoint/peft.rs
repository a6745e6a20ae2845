//! PEFT directories: `adapter_config.json` and `adapter_model.safetensors`, a low-rank adapter of a base model.

mod config;
mod merge;
mod save;
mod tensors;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use salsa_engine::{Head, LoraSpec, ModelSpec, Weights};
use serde_json::{Value, json};

use self::config::Parsed;
pub(crate) use self::merge::Delta;
pub use self::merge::merge;
pub use self::save::{AdapterToSave, save_adapter};
use self::tensors::Factors;
use super::{Checkpoint, read_json, scores};
use crate::hub;

const CONFIG: &str = "adapter_config.json";
pub(super) const WEIGHTS: &str = "adapter_model.safetensors";
/// File of the mean and deviation of a reward model's scores, which PEFT's file has no place for.
const SCORES: &str = "score_normalization.json";

/// A PEFT directory whose configuration, header and tensor names have been checked.
#[derive(Debug)]
pub struct PeftAdapter {
    /// Rank, scale and targets.
    pub lora: LoraSpec,
    /// The head of the adapted model: PEFT's `CAUSAL_LM` or, with a separate head, `SEQ_CLS`.
    pub head: Head,
    /// The folder of the base model.
    pub base_dir: PathBuf,
    dir: PathBuf,
    factors: Factors,
}

impl PeftAdapter {
    /// Whether a folder is a PEFT directory.
    pub fn is_one(dir: &Path) -> bool {
        dir.join(CONFIG).exists()
    }

    /// The folder of a PEFT directory's base model.
    ///
    /// # Errors
    /// When the configuration is unusable, or the folder does not exist or is an adapter itself.
    pub fn base_of(dir: &Path) -> Result<PathBuf> {
        base_dir(dir, &parsed(dir)?)
    }

    /// Opens a PEFT directory.
    ///
    /// # Errors
    /// When anything is missing, damaged, or not supported; names the file.
    pub(super) fn open(dir: &Path) -> Result<PeftAdapter> {
        let parsed = parsed(dir)?;
        let base_dir = base_dir(dir, &parsed)?;
        PeftAdapter::with_base(dir, parsed, base_dir)
    }

    fn with_base(dir: &Path, parsed: Parsed, base_dir: PathBuf) -> Result<PeftAdapter> {
        let factors = Factors::open(dir)?;
        let head = if factors.has_score() { Head::Scalar } else { Head::LanguageModel };
        if parsed.classifier && !factors.has_score() {
            bail!(
                "{} is an adapter for sequence classification without score.weight: its scores would be random; save it with modules_to_save: [\"score\"]",
                dir.display()
            );
        }
        let lora = LoraSpec { targets: factors.targets(dir)?, ..parsed.lora };
        Ok(PeftAdapter { lora, head, base_dir, dir: dir.to_path_buf(), factors })
    }

    /// The PEFT directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The factors, and the scalar head if the adapted model `spec` has one, in the layout of [`LoraSpec::tensors`].
    ///
    /// # Errors
    /// When a number is not finite, or the file has changed.
    pub fn read(&self, spec: &ModelSpec) -> Result<Vec<f32>> {
        self.factors.read(&self.lora, spec)
    }

    /// Checks every tensor's shape.
    pub(super) fn check(&self, spec: &ModelSpec) -> Result<()> {
        self.factors
            .check(&self.lora, spec)
            .with_context(|| format!("{} does not fit its base model {}", self.dir.display(), self.base_dir.display()))
    }

    pub(super) fn score_normalization(&self) -> Result<Option<(f64, f64)>> {
        let path = self.dir.join(SCORES);
        if !path.exists() {
            return Ok(None);
        }
        let json = read_json(&path)?;
        let pair = json["score_mean"].as_f64().zip(json["score_std"].as_f64()).filter(|(_, std)| *std > 0.0);
        pair.map(Some).with_context(|| format!("{} needs the numbers score_mean and score_std", path.display()))
    }
}

fn parsed(dir: &Path) -> Result<Parsed> {
    let path = dir.join(CONFIG);
    config::parse(&read_json(&path)?).with_context(|| format!("in {}", path.display()))
}

/// The base model's folder. Tried in order: the path as written; relative to the adapter's folder; as a model id in the
/// hub's cache; the same name next to the adapter's folder (a run that was moved); a model on the hub.
///
/// Refuses a base that is an adapter itself, so that following bases cannot loop.
fn base_dir(dir: &Path, parsed: &Parsed) -> Result<PathBuf> {
    let base = find_base(dir, parsed)?;
    ensure!(
        !PeftAdapter::is_one(&base),
        "{}: its base {} is an adapter itself: merge that into its own base first (salsa merge)",
        dir.display(),
        base.display()
    );
    Ok(base)
}

fn find_base(dir: &Path, parsed: &Parsed) -> Result<PathBuf> {
    let (written, revision) = (&parsed.base, parsed.revision.as_deref());
    let path = Path::new(written);
    let here = || [path.to_path_buf(), dir.join(path)].into_iter().find(|place| place.is_dir());
    let beside = || {
        Some(dir.canonicalize().ok()?.parent()?.join(path.file_name()?))
            .filter(|place| place.is_dir() && !PeftAdapter::is_one(place))
    };
    match here().or_else(|| hub::cached_model(written, revision)).or_else(beside) {
        Some(place) => Ok(place),
        None if hub::is_id(written) => {
            let id = revision.map_or_else(|| written.clone(), |revision| format!("{written}@{revision}"));
            hub::resolve(&id, hub::Kind::Model)
                .with_context(|| format!("the base model of the adapter {}", dir.display()))
        }
        None => bail!(
            "{}: its base model {written:?} is not there: put the model's folder there, or set base_model_name_or_path in {}",
            dir.display(),
            dir.join(CONFIG).display()
        ),
    }
}

impl Checkpoint {
    /// Opens a PEFT directory as the adapted model.
    pub(super) fn open_adapted(dir: &Path) -> Result<Checkpoint> {
        let adapter = PeftAdapter::open(dir)?;
        let base_dir = &adapter.base_dir;
        let base =
            Checkpoint::open(base_dir).with_context(|| format!("the base model of the adapter {}", dir.display()))?;
        base.adapted_by(adapter)
    }

    /// Applies an adapter to this model, whichever base its configuration names.
    ///
    /// # Errors
    /// When this is already an adapted model, or the adapter cannot be read or does not fit.
    pub fn with_adapter(self, dir: &Path) -> Result<Checkpoint> {
        if let Some(adapter) = &self.adapter {
            bail!("{} is an adapter itself: merge it into its own base first (salsa merge)", adapter.dir.display());
        }
        let adapter = PeftAdapter::with_base(dir, parsed(dir)?, self.dir.clone())?;
        self.adapted_by(adapter)
    }

    fn adapted_by(self, adapter: PeftAdapter) -> Result<Checkpoint> {
        let (dir, base_dir, mut base) = (adapter.dir.clone(), adapter.base_dir.clone(), self);
        if adapter.head == Head::LanguageModel && base.spec.head == Head::Scalar {
            bail!(
                "{} is an adapter for a language model, but its base {} is a reward model",
                dir.display(),
                base_dir.display()
            );
        }
        base.spec = base.spec.with_head(adapter.head);
        adapter.check(&base.spec)?;
        adapter.factors.check_copies(&base)?;
        let own = adapter.score_normalization()?;
        if let (Some((mean, std)), Value::Object(config)) = (own, &mut base.config) {
            config.insert("score_mean".to_owned(), json!(mean));
            config.insert("score_std".to_owned(), json!(std));
        }
        base.scores = own.or(scores::normalization(&base.config, adapter.head)?);
        if fs::exists(dir.join("tokenizer.json")).unwrap_or(false) {
            base.dir = dir.to_path_buf();
        }
        base.adapter = Some(adapter);
        Ok(base)
    }

    /// All weights of the adapted model.
    pub(super) fn read_merged(&self, adapter: &PeftAdapter) -> Result<Vec<f32>> {
        let (delta, stored) = (merge::Delta::read(adapter, self)?, self.stored_weights(self.spec.head)?);
        let mut weights = Vec::new();
        stored.read(0..stored.count(), &mut weights)?;
        for tensor in self.spec.tensors() {
            delta.add(&tensor, &mut weights[tensor.range.clone()]);
        }
        match weights.iter().position(|weight| !weight.is_finite()) {
            None => Ok(weights),
            Some(at) => bail!(
                "{}: weight {at} of the merged model is {}: the model is broken, take an earlier checkpoint",
                adapter.dir.display(),
                weights[at]
            ),
        }
    }
}
