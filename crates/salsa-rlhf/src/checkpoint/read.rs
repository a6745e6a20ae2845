//! Stored weights to one flat float32 buffer.

use anyhow::{Result, anyhow, bail};
use memmap2::Mmap;
use rayon::prelude::*;
use salsa_engine::ModelSpec;

use super::files::{Placed, Stored, map};

/// Numbers converted by one task.
const BLOCK: usize = 1 << 18;

impl Stored {
    /// Converts all tensors, in parallel, into the order of `spec.tensors()`.
    pub(super) fn read(&self, spec: &ModelSpec) -> Result<Vec<f32>> {
        let maps: Vec<Mmap> = self.paths.iter().map(|path| map(path)).collect::<Result<_>>()?;
        let views = spec.tensors();
        let mut weights = vec![0f32; views.last().map_or(0, |view| view.range.end)];
        let mut rest = &mut weights[..];
        let mut tasks = Vec::new();
        for (view, placed) in views.iter().zip(&self.tensors) {
            let bytes = self.bytes(&maps, placed)?;
            let (numbers, after) = rest.split_at_mut(view.range.len());
            rest = after;
            let blocks = numbers.chunks_mut(BLOCK).zip(bytes.chunks(BLOCK * placed.dtype.size())).enumerate();
            tasks.extend(blocks.map(|(i, (out, bytes))| (view, placed, i * BLOCK, out, bytes)));
        }
        tasks.into_par_iter().try_for_each(|(view, placed, start, out, bytes)| {
            placed.dtype.decode(bytes, out).map_err(|at| {
                let path = self.paths[placed.file].display();
                anyhow!(
                    "{path}: number {} of {} is {}: the model is broken, take an earlier checkpoint",
                    start + at,
                    view.name,
                    out[at]
                )
            })
        })?;
        self.check_tied_copy(&maps, spec, &weights)?;
        Ok(weights)
    }

    fn bytes<'a>(&self, maps: &'a [Mmap], placed: &Placed) -> Result<&'a [u8]> {
        maps[placed.file].get(placed.bytes.clone()).ok_or_else(|| {
            anyhow!(
                "{} has become shorter since it was opened: something else is writing it",
                self.paths[placed.file].display()
            )
        })
    }

    /// With tied embeddings transformers reads the embedding and drops `lm_head.weight`; where the two differ, the model
    /// was not trained as tied, and reading it so would change it without a word.
    fn check_tied_copy(&self, maps: &[Mmap], spec: &ModelSpec, weights: &[f32]) -> Result<()> {
        let Some(copy) = &self.tied_copy else { return Ok(()) };
        let embedding = spec.tensors().into_iter().find(|view| view.name == "model.embed_tokens.weight");
        let embedding = embedding.ok_or_else(|| anyhow!("the model has no model.embed_tokens.weight"))?;
        let bytes = self.bytes(maps, copy)?;
        let same = weights[embedding.range].par_chunks(BLOCK).zip(bytes.par_chunks(BLOCK * copy.dtype.size())).all(
            |(numbers, bytes)| {
                let mut decoded = vec![0f32; numbers.len()];
                copy.dtype.decode(bytes, &mut decoded).is_ok() && decoded == numbers
            },
        );
        if !same {
            bail!(
                "{}: lm_head.weight differs from model.embed_tokens.weight although config.json ties them. If the model has an output layer of its own, set \"tie_word_embeddings\": false",
                self.paths[copy.file].display()
            );
        }
        Ok(())
    }
}
