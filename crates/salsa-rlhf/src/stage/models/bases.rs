//! One base, many roles: models of a run that stand on the same weights share them in memory.
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use anyhow::{Context, ensure};
use salsa_engine::{Base, Device, Head, LoraSpec, Model, ModelSpec, Recompute, Trainable};

use super::lora::LoraArguments;
use crate::{checkpoint::Checkpoint, stage::models::adapters};

/// The frozen bases in use, by folder. A base goes when the last model on it does.
///
/// What is shared: the base of all adapters of one checkpoint, whatever their heads, with that checkpoint itself.
pub struct Bases {
    device: Device,
    known: Vec<(Ground, Weak<Base<Device>>)>,
}

/// What a base is: whose files, and the head that they are read under.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ground {
    dir: PathBuf,
    head: Head,
}

/// The base that a model stands on.
struct Footing {
    dir: PathBuf,
    head: Head,
    scalar: Scalar,
}

impl Footing {
    fn of(checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> Footing {
        let dir = checkpoint.base_dir();
        Footing { dir: dir.canonicalize().unwrap_or_else(|_| dir.to_owned()), head, scalar }
    }

    /// Whether the model can stand on it.
    fn fits(&self, ground: &Ground) -> bool {
        let head = match self.scalar {
            Scalar::OfFiles => ground.head == self.head,
            // The language-model head of a base is in nobody's way.
            Scalar::OfAdapter => ground.head != Head::Scalar || self.head == Head::Scalar,
        };
        head && ground.dir == self.dir
    }

    /// What is read for it where nothing fits yet.
    fn ground(&self) -> Ground {
        let head = match self.scalar {
            Scalar::OfAdapter if self.head != Head::Scalar => Head::LanguageModel,
            _ => self.head,
        };
        Ground { dir: self.dir.clone(), head }
    }
}

/// The bases that a run is going to hold, found without reading one: as [`Bases`] will share them.
#[derive(Clone, Default)]
pub(crate) struct PlannedBases {
    known: Vec<Ground>,
}

impl PlannedBases {
    /// A model for use. Returns the shape of its base, if that is one more.
    pub(crate) fn frozen(&mut self, checkpoint: &Checkpoint, head: Head) -> Option<ModelSpec> {
        let scalar = if checkpoint.adapter().is_some() { Scalar::OfAdapter } else { Scalar::OfFiles };
        self.add(checkpoint, head, scalar)
    }

    /// A model whose adapter is trained, or a soup of adapters. Returns the shape of its base, if that is one more.
    pub(crate) fn adapted(&mut self, checkpoint: &Checkpoint, head: Head) -> Option<ModelSpec> {
        self.add(checkpoint, head, Scalar::OfAdapter)
    }

    fn add(&mut self, checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> Option<ModelSpec> {
        let footing = Footing::of(checkpoint, head, scalar);
        if self.known.iter().any(|ground| footing.fits(ground)) {
            return None;
        }
        self.known.push(footing.ground());
        Some(checkpoint.spec.with_head(footing.ground().head))
    }
}

impl Bases {
    /// None yet; those to come live on this device.
    pub fn on(device: &Device) -> Bases {
        Bases { device: device.clone(), known: Vec::new() }
    }

    /// Where they live.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// A model for use, with this head.
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

    /// A model whose adapter is trained: that of a PEFT directory, or a new one of the shape that `lora` says. The scalar
    /// head is that of the checkpoint; where it has none, it is made from `seed`, as a new adapter is.
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
        let shape = checkpoint.adapter().map_or_else(|| lora.spec(), |adapter| Ok(adapter.lora.clone()))?;
        let mut weights = shape.init(&spec, seed);
        let own = |name: &str| shape.tensors(&spec).into_iter().find(|tensor| tensor.name == name).map(|t| t.range);
        if let Some(adapter) = checkpoint.adapter() {
            // Factors come first, a head last: what the directory lacks is a head.
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

    /// The base on which a checkpoint stands, for a model with this head.
    fn base(&mut self, checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> anyhow::Result<Arc<Base<Device>>> {
        let footing = Footing::of(checkpoint, head, scalar);
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

/// Whose scalar head a model has, if it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scalar {
    /// The base's, from its files.
    OfFiles,
    /// The adapter's own.
    OfAdapter,
}

/// The mean of adapters, on their base.
pub struct AdapterSoup {
    base: Arc<Base<Device>>,
    head: Head,
    lora: LoraSpec,
    weights: Vec<f32>,
}

impl AdapterSoup {
    /// As a model for use.
    ///
    /// # Errors
    /// If a number is not finite.
    pub fn frozen(self) -> anyhow::Result<Model> {
        Ok(Model::on(self.base, self.head, &self.lora, &self.weights)?)
    }

    /// As the start of training, under `head`, whose scalar part is new.
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
