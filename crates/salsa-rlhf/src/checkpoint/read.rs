//! Reads stored weights into one flat float32 buffer.

use anyhow::{Result, anyhow};
use memmap2::Mmap;
use rayon::prelude::*;
use salsa_engine::ModelSpec;

use super::files::{Placed, Stored, map};

/// Numbers converted per task.
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
}
