//! Source of a language model: one checkpoint, or the mean of several, computed in memory.
use std::{fmt, ops::Range, path::Path};

use anyhow::{Context, ensure};
use salsa_algo::soup::{Normalize, Weights as Shares, weighted_mean};
use salsa_engine::{Head, LoraSpec, Model, ModelError, ModelSpec, Weights};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    bases::Bases,
    frozen::{language_model_weights, open_language_model},
};
use crate::{checkpoint::Checkpoint, config::paths::ModelPath, stage::models::adapters};

/// A language model: a checkpoint, or the weighted mean of several, computed in memory.
///
/// ```yaml
/// model: runs/sft-a
/// model: {models: [runs/sft-a, runs/sft-b], weights: [0.5, 0.5]}
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum ModelSource {
    /// A checkpoint directory.
    Path(ModelPath),
    /// A soup of checkpoint directories.
    Soup(SoupSource),
}

/// The weighted mean of checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoupSource {
    /// The ingredients of a soup made in memory, at least one.
    pub models: Vec<ModelPath>,
    /// One number for each, with sum 1. Empty: equal weights. The paper's `alpha` is the second of two.
    #[serde(default)]
    pub weights: Vec<f64>,
}

impl ModelSource {
    /// The checkpoint directories.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            ModelSource::Path(path) => vec![path],
            ModelSource::Soup(soup) => soup.models.iter().map(AsRef::as_ref).collect(),
        }
    }

    /// Checks the weights of a soup.
    ///
    /// # Errors
    /// As [`SoupSource::checked_weights`].
    pub fn check(&self) -> anyhow::Result<()> {
        match self {
            ModelSource::Path(_) => Ok(()),
            ModelSource::Soup(soup) => soup.checked_weights().map(drop),
        }
    }

    /// Opens its checkpoints and checks that ingredients are compatible. Reads no weights.
    ///
    /// # Errors
    /// If a checkpoint is no language model, or ingredients differ in shape.
    pub fn open(&self) -> anyhow::Result<Vec<Checkpoint>> {
        match self {
            ModelSource::Path(path) => Ok(vec![open_language_model(path)?]),
            ModelSource::Soup(soup) => soup.open(),
        }
    }

    /// Loads the model for inference: read piece by piece, with its base shared within the run. A soup of adapters of
    /// one base is an adapter.
    ///
    /// # Errors
    /// As [`ModelSource::read`].
    pub fn load(&self, bases: &mut Bases) -> anyhow::Result<Model> {
        match self {
            ModelSource::Path(path) => bases.frozen(&open_language_model(path)?, Head::LanguageModel),
            ModelSource::Soup(soup) => soup.load(bases),
        }
    }

    /// Shape and flat weights; for adapters, those of the merged model.
    ///
    /// # Errors
    /// If a checkpoint cannot be used as a language model, or the ingredients do not fit together.
    pub fn read(&self) -> anyhow::Result<(ModelSpec, Vec<f32>)> {
        match self {
            ModelSource::Path(path) => language_model_weights(path),
            ModelSource::Soup(soup) => soup.read(),
        }
    }
}

/// The shape of the adapter that the models make: that of the only one, or of the mean of adapters on one base, whose
/// ranks add up; `None` for a whole model.
pub(crate) fn adapter_shape(models: &[Checkpoint]) -> Option<LoraSpec> {
    let mut parts = models.iter().filter_map(|model| model.adapter().map(|adapter| &adapter.lora));
    let first = parts.next().filter(|_| models.len() == 1 || adapters::share_a_base(models))?;
    Some(parts.fold(first.clone(), |mut sum, part| {
        sum.rank += part.rank;
        sum.targets.extend(part.targets.iter().copied());
        sum
    }))
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.paths().iter().map(|path| path.display().to_string()).collect();
        f.write_str(&names.join(" + "))
    }
}

impl SoupSource {
    /// The weights, with the default filled in.
    ///
    /// # Errors
    /// If their number is not that of the ingredients, one is not finite, or they do not sum to 1.
    pub fn checked_weights(&self) -> anyhow::Result<Vec<f64>> {
        ensure!(!self.models.is_empty(), "a soup needs at least one model");
        let count = self.models.len();
        if self.weights.is_empty() {
            return Ok(vec![1.0 / count as f64; count]);
        }
        ensure!(self.weights.len() == count, "{} weights for {count} models; give one for each", self.weights.len());
        let sum: f64 = self.weights.iter().sum();
        ensure!(
            (sum - 1.0).abs() < 1e-6,
            "the weights {:?} sum to {sum}, not to 1; divide each by the sum",
            self.weights
        );
        Ok(self.weights.clone())
    }

    /// Opens the ingredients and checks that they are compatible.
    ///
    /// # Errors
    /// If one is no language model, or they differ in shape.
    pub fn open(&self) -> anyhow::Result<Vec<Checkpoint>> {
        let models = self.models.iter().map(|path| open_language_model(path)).collect::<Result<Vec<_>, _>>()?;
        let shape = |model: &Checkpoint| model.spec.with_head(Head::LanguageModel);
        for (path, model) in self.models.iter().zip(&models) {
            ensure!(
                shape(model) == shape(&models[0]),
                "{} and {} have different architectures ({}); only models of one shape can be averaged",
                self.models[0].display(),
                path.display(),
                first_difference(&shape(&models[0]), &shape(model))
            );
        }
        Ok(models)
    }

    fn load(&self, bases: &mut Bases) -> anyhow::Result<Model> {
        let (weights, models) = (self.checked_weights()?, self.open()?);
        if adapters::share_a_base(&models) {
            return bases.adapter_soup(&models, &weights)?.frozen();
        }
        let mean = self.mean(&models)?;
        Ok(Model::new(mean.spec.clone(), &mean, bases.device().clone())?)
    }

    fn read(&self) -> anyhow::Result<(ModelSpec, Vec<f32>)> {
        let models = self.open()?;
        let mean = self.mean(&models)?;
        let mut weights = Vec::new();
        mean.read(0..mean.count(), &mut weights)?;
        Ok((mean.spec.clone(), weights))
    }

    /// The mean, computed as in `salsa soup`.
    fn mean<'a>(&self, models: &'a [Checkpoint]) -> anyhow::Result<Mean<'a>> {
        let mut weights = self.checked_weights()?;
        if self.weights.is_empty() {
            weights.fill(1.0);
        }
        Mean::new(models, Shares::new(&weights, Normalize::Divide)?)
    }
}

/// The weighted mean of language models, computed piece by piece as it is read.
struct Mean<'a> {
    spec: ModelSpec,
    ingredients: Vec<Box<dyn Weights + 'a>>,
    shares: Shares,
}

impl<'a> Mean<'a> {
    fn new(models: &'a [Checkpoint], shares: Shares) -> anyhow::Result<Mean<'a>> {
        let spec = models.first().context("a soup needs at least one model")?.spec.with_head(Head::LanguageModel);
        let ingredient = |model: &'a Checkpoint| -> anyhow::Result<Box<dyn Weights + 'a>> {
            Ok(match model.adapter() {
                Some(_) => Box::new(model.read_weights()?),
                None => Box::new(model.stored_weights(Head::LanguageModel)?),
            })
        };
        let ingredients = models.iter().map(ingredient).collect::<anyhow::Result<_>>()?;
        Ok(Mean { spec, ingredients, shares })
    }
}

impl Weights for Mean<'_> {
    fn count(&self) -> usize {
        self.spec.parameters()
    }

    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        let mut rooms = vec![Vec::new(); self.ingredients.len()];
        let parts = self.ingredients.iter().zip(&mut rooms).map(|(part, room)| part.read(range.clone(), room));
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        room.resize(range.len(), 0.0);
        weighted_mean(&parts, &self.shares, room);
        Ok(room)
    }
}

/// Describes the first difference in shape between two models.
pub(crate) fn first_difference(a: &ModelSpec, b: &ModelSpec) -> String {
    let fields = |spec: &ModelSpec| {
        [
            ("vocab_size", spec.vocab_size.to_string()),
            ("hidden_size", spec.hidden_size.to_string()),
            ("intermediate_size", spec.intermediate_size.to_string()),
            ("num_hidden_layers", spec.layers.to_string()),
            ("num_attention_heads", spec.heads.to_string()),
            ("num_key_value_heads", spec.kv_heads.to_string()),
            ("head_dim", spec.head_dim.to_string()),
            ("tie_word_embeddings", spec.tied_embeddings.to_string()),
        ]
    };
    let differing = fields(a).into_iter().zip(fields(b)).find(|(a, b)| a != b);
    differing.map_or("options of the architecture".into(), |((name, a), (_, b))| format!("{name} {a} against {b}"))
}
