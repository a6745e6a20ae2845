//! Models of a run with the same base weights share them in memory.
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use anyhow::{Context, ensure};
use salsa_engine::{Base, Device, Head, LoraSpec, Model, ModelSpec, Recompute, Trainable};

use super::lora::LoraArguments;
use crate::{checkpoint::Checkpoint, stage::models::adapters};

/// The frozen bases in use, by folder. A base is freed with the last model that uses it.
///
/// All adapters of one checkpoint share its base, with any heads, and share it with that checkpoint itself.
pub struct Bases {
    device: Device,
    known: Vec<(BaseKey, Weak<Base<Device>>)>,
}

/// Identity of a base: its folder, and the head it is read with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct BaseKey {
    dir: PathBuf,
    head: Head,
}

/// What a model requires of its base.
struct BaseRequirement {
    dir: PathBuf,
    head: Head,
    scalar: Scalar,
}

impl BaseRequirement {
    fn of(checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> BaseRequirement {
        let dir = checkpoint.base_dir();
        BaseRequirement { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), head, scalar }
    }

    /// Whether the model can use this base.
    fn fits(&self, ground: &BaseKey) -> bool {
        let head = match self.scalar {
            Scalar::OfFiles => ground.head == self.head,
            // An unused language-model head does no harm.
            Scalar::OfAdapter => ground.head != Head::Scalar || self.head == Head::Scalar,
        };
        head && ground.dir == self.dir
    }

    /// The base to read if no known one fits.
    fn ground(&self) -> BaseKey {
        let head = match self.scalar {
            Scalar::OfAdapter if self.head != Head::Scalar => Head::LanguageModel,
            _ => self.head,
        };
        BaseKey { dir: self.dir.clone(), head }
    }
}

/// The bases that a run will hold, found without reading any: shared as by [`Bases`].
#[derive(Clone, Default)]
pub(crate) struct PlannedBases {
    known: Vec<BaseKey>,
}

impl PlannedBases {
    /// Adds a model for inference. Returns the shape of its base, if that is a new one.
    pub(crate) fn frozen(&mut self, checkpoint: &Checkpoint, head: Head) -> Option<ModelSpec> {
        let scalar = if checkpoint.adapter().is_some() { Scalar::OfAdapter } else { Scalar::OfFiles };
        self.add(checkpoint, head, scalar)
    }

    /// Adds a model whose adapter is trained, or a soup of adapters. Returns the shape of its base, if that is a new
    /// one.
    pub(crate) fn adapted(&mut self, checkpoint: &Checkpoint, head: Head) -> Option<ModelSpec> {
        self.add(checkpoint, head, Scalar::OfAdapter)
    }

    fn add(&mut self, checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> Option<ModelSpec> {
        let footing = BaseRequirement::of(checkpoint, head, scalar);
        if self.known.iter().any(|ground| footing.fits(ground)) {
            return None;
        }
        self.known.push(footing.ground());
        Some(checkpoint.spec.with_head(footing.ground().head))
    }
}

impl Bases {
    /// An empty set; bases will be stored on this device.
    pub fn on(device: &Device) -> Bases {
        Bases { device: device.clone(), known: Vec::new() }
    }

    /// The device of the bases.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Loads a model for inference, with this head.
    ///
    /// # Errors
    /// If weights cannot be read or are not finite.
    pub fn frozen(&mut self, checkpoint: &Checkpoint, head: Head) -> anyhow::Result<Model> {
        let Some(adapter) = checkpoint.adapter() else {
            return Ok(Model::bare(self.base(checkpoint, head, Scalar::OfFiles)?));
        };
        let base = self.base(checkpoint, head, Scalar::OfAdapter)?;
        let weights = adapter.read(&base.spec().with_head(head))?;
        Model::on(base, head, &adapter.lora, &weights).with_context(|| format!("adapter {}", adapter.dir().display()))
    }

    /// Loads a model whose adapter is trained: that of a PEFT directory, or a new one with the shape of `lora`. The
    /// scalar head is read from the checkpoint or, if it has none, initialised from `seed`, like a new adapter.
    ///
    /// # Errors
    /// As [`Bases::frozen`].
    pub fn adapted(
        &mut self,
        checkpoint: &Checkpoint,
        head: Head,
        lora: &LoraArguments,
        seed: u64,
        recompute: Recompute,
    ) -> anyhow::Result<Trainable> {
        let base = self.base(checkpoint, head, Scalar::OfAdapter)?;
        let spec = base.spec().with_head(head);
        let shape =
            checkpoint.adapter().map_or_else(|| lora.spec_for(&checkpoint.spec), |adapter| Ok(adapter.lora.clone()))?;
        let mut weights = shape.init(&spec, seed);
        let own = |name: &str| shape.tensors(&spec).into_iter().find(|tensor| tensor.name == name).map(|t| t.range);
        if let Some(adapter) = checkpoint.adapter() {
            // Factors come first, a head last: only a head can be missing in the directory.
            let read = adapter.read(&checkpoint.spec.with_head(adapter.head))?;
            let shared = read.len().min(weights.len());
            weights[..shared].copy_from_slice(&read[..shared]);
        } else if let (Some(range), true) = (own("score.weight"), checkpoint.spec.head != Head::LanguageModel) {
            weights[range].copy_from_slice(&checkpoint.read_tensor("score.weight")?);
        }
        Ok(Trainable::on(base, head, &shape, weights, recompute)?)
    }

    /// The weighted mean of adapters of one base: an adapter of the sum of their ranks.
    ///
    /// # Errors
    /// If the adapters do not fit together, or as [`Bases::frozen`].
    pub fn adapter_soup(&mut self, ingredients: &[Checkpoint], weights: &[f64]) -> anyhow::Result<AdapterSoup> {
        let first = ingredients.first().context("a soup needs at least one model")?;
        let (lora, weights) = adapters::mean(ingredients, weights)?;
        let head = first.spec.head;
        Ok(AdapterSoup { base: self.base(first, head, Scalar::OfAdapter)?, head, lora, weights })
    }

    /// Returns the base of a checkpoint for a model with this head: a shared one if possible.
    fn base(&mut self, checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> anyhow::Result<Arc<Base<Device>>> {
        let footing = BaseRequirement::of(checkpoint, head, scalar);
        self.known.retain(|(_, base)| base.strong_count() > 0);
        let mut fitting = self.known.iter().filter(|(ground, _)| footing.fits(ground));
        if let Some(base) = fitting.find_map(|(_, base)| base.upgrade()) {
            return Ok(base);
        }
        let ground = footing.ground();
        let stored = checkpoint.stored_weights(ground.head)?;
        let base = Base::new(stored.spec.clone(), &stored, self.device.clone());
        let base = Arc::new(base.with_context(|| format!("model {}", checkpoint.base_dir().display()))?);
        self.known.push((ground, Arc::downgrade(&base)));
        Ok(base)
    }
}

/// Origin of a model's scalar head, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    /// The base, from its files.
    OfFiles,
    /// The adapter.
    OfAdapter,
}

/// A mean of adapters, with their base.
pub struct AdapterSoup {
    base: Arc<Base<Device>>,
    head: Head,
    lora: LoraSpec,
    weights: Vec<f32>,
}

impl AdapterSoup {
    /// Converts it to a model for inference.
    ///
    /// # Errors
    /// If a weight is not finite.
    pub fn frozen(self) -> anyhow::Result<Model> {
        Ok(Model::on(self.base, self.head, &self.lora, &self.weights)?)
    }

    /// Converts it to a trainable model with `head`, whose scalar part is newly initialised.
    ///
    /// # Errors
    /// As [`AdapterSoup::frozen`].
    pub fn adapted(self, head: Head, seed: u64, recompute: Recompute) -> anyhow::Result<Trainable> {
        ensure!(self.head == Head::LanguageModel, "a policy starts from adapters of language models");
        let mut weights = self.lora.init(&self.base.spec().with_head(head), seed);
        weights[..self.weights.len()].copy_from_slice(&self.weights);
        Ok(Trainable::on(self.base, head, &self.lora, weights, recompute)?)
    }
}
