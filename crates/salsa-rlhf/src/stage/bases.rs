//! One base, many roles: models of a run that stand on the same weights share them in memory.
use std::{
    path::PathBuf,
    sync::{Arc, Weak},
};

use anyhow::{Context, ensure};
use salsa_engine::{Base, Cpu, Head, LoraSpec, Model, Recompute, Trainable};

use super::{lora::LoraArguments, soup::adapters};
use crate::checkpoint::Checkpoint;

/// The frozen bases in use, by folder. A base goes when the last model on it does.
///
/// What is shared: the base of all adapters of one checkpoint, whatever their heads, with that checkpoint itself.
#[derive(Default)]
pub struct Bases {
    backend: Cpu,
    known: Vec<(PathBuf, Head, Weak<Base<Cpu>>)>,
}

impl Bases {
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
    fn base(&mut self, checkpoint: &Checkpoint, head: Head, scalar: Scalar) -> anyhow::Result<Arc<Base<Cpu>>> {
        let dir = checkpoint.base_dir();
        let path = dir.canonicalize().with_context(|| format!("cannot find {}", dir.display()))?;
        let fits = |known: Head| match scalar {
            Scalar::OfFiles => known == head,
            // The language-model head of a base is in nobody's way.
            Scalar::OfAdapter => known != Head::Scalar || head == Head::Scalar,
        };
        self.known.retain(|(_, _, base)| base.strong_count() > 0);
        let mut same = self.known.iter().filter(|(known, head, _)| *known == path && fits(*head));
        if let Some(base) = same.find_map(|(_, _, base)| base.upgrade()) {
            return Ok(base);
        }
        let read_as = match scalar {
            Scalar::OfAdapter if head != Head::Scalar => Head::LanguageModel,
            _ => head,
        };
        let stored = checkpoint.stored_weights(read_as)?;
        let base = Base::new(stored.spec.clone(), &stored, self.backend);
        let base = Arc::new(base.with_context(|| format!("model {}", dir.display()))?);
        self.known.push((path, read_as, Arc::downgrade(&base)));
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
    base: Arc<Base<Cpu>>,
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
