//! A model that moves between checkpoints, point by point.

use anyhow::{Context, ensure};
use salsa_algo::soup::{Normalize, Weights, weighted_mean};
use salsa_engine::{Device, Model, ModelSpec};

use crate::{
    config::paths::ModelPath,
    stage::models::{
        model_source::{ModelSource, first_difference},
        tokenizers,
    },
};

/// The weights of some checkpoints, and a model with a weighted mean of them.
pub(in crate::stage) struct Blend {
    spec: ModelSpec,
    ends: Vec<Vec<f32>>,
    mixed: Vec<f32>,
    model: Option<Model>,
    device: Device,
}

impl Blend {
    /// Reads the checkpoints.
    ///
    /// # Errors
    /// If one cannot be used as a language model, or they are incompatible.
    pub(crate) fn open(paths: &[ModelPath], vocab_size: usize, device: &Device) -> anyhow::Result<Blend> {
        let mut read = Vec::new();
        for path in paths {
            let (spec, weights) = ModelSource::Path(path.clone()).read()?;
            let (first, shape) = read.first().map_or((path, &spec), |(first, spec, _)| (*first, spec));
            let names = format!("{} and {}", first.display(), path.display());
            ensure!(spec == *shape, "{names} have different architectures ({})", first_difference(shape, &spec));
            if let Some(difference) = tokenizers::difference(first, path)? {
                anyhow::bail!("{names} have different tokenizers: {difference}");
            }
            read.push((path, spec, weights));
        }
        let spec = read.first().context("no checkpoint is given")?.1.clone();
        ensure!(
            spec.vocab_size == vocab_size,
            "{} has a vocabulary of {}, the prompts were tokenised for one of {vocab_size}",
            paths[0].display(),
            spec.vocab_size
        );
        let mixed = vec![0f32; spec.parameters()];
        Ok(Blend {
            spec,
            ends: read.into_iter().map(|(_, _, weights)| weights).collect(),
            mixed,
            model: None,
            device: device.clone(),
        })
    }

    /// Sets the model to the mean with these weights of the checkpoints, which may be outside 0 to 1.
    ///
    /// # Errors
    /// If a weight of the mean is not finite.
    pub(crate) fn at(&mut self, weights: &[f64]) -> anyhow::Result<&Model> {
        let ends: Vec<&[f32]> = self.ends.iter().map(Vec::as_slice).collect();
        weighted_mean(&ends, &Weights::new(weights, Normalize::Keep)?, &mut self.mixed);
        match &mut self.model {
            Some(model) => model.set_weights(&self.mixed)?,
            None => self.model = Some(Model::new(self.spec.clone(), &self.mixed, self.device.clone())?),
        }
        Ok(self.model.as_ref().expect("made above"))
    }
}
