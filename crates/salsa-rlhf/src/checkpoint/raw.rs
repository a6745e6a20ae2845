//! The stored numbers of a checkpoint, read in pieces.

use std::{fs::File, path::Path};

use anyhow::{Result, anyhow, bail};

use super::{Checkpoint, Dtype, files::Placed, positioned};
use crate::input;

/// Numbers read at a time where they are converted.
const BLOCK: usize = 1 << 16;

/// A checkpoint opened for reading pieces of its tensors, from any thread and in any order; nothing is kept in memory.
///
/// Tensors are numbered as in `spec.tensors()`; for a PEFT directory they are those of its base. Reads use the file,
/// not a memory map: memory does not grow with the amount read, and a truncated file is an error instead of a crash.
#[derive(Debug)]
pub struct RawTensors<'a> {
    checkpoint: &'a Checkpoint,
    files: Vec<File>,
}

impl Checkpoint {
    /// Opens the weight files.
    ///
    /// # Errors
    /// When one cannot be opened; names it.
    pub fn raw(&self) -> Result<RawTensors<'_>> {
        let files = self.stored.paths.iter().map(|path| input::open(path)).collect::<Result<_>>()?;
        Ok(RawTensors { checkpoint: self, files })
    }

    /// The files of the weights, in the order of their names.
    pub fn weight_files(&self) -> impl Iterator<Item = &Path> {
        self.stored.paths.iter().map(|path| path.as_path())
    }
}

impl RawTensors<'_> {
    /// The stored type of tensor `tensor`.
    pub fn dtype(&self, tensor: usize) -> Dtype {
        self.placed(tensor).dtype
    }

    /// The file that contains a tensor.
    pub fn path(&self, tensor: usize) -> &Path {
        &self.checkpoint.stored.paths[self.placed(tensor).file]
    }

    /// The location of number `start` of a tensor: index in [`Checkpoint::weight_files`], and byte offset.
    pub fn position(&self, tensor: usize, start: usize) -> (usize, u64) {
        let placed = self.placed(tensor);
        (placed.file, (placed.bytes.start + start * placed.dtype.size()) as u64)
    }

    /// Reads the stored little-endian bytes of a tensor from number `start` on, filling `out`.
    ///
    /// # Errors
    /// When the file cannot be read or is truncated.
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    pub fn read(&self, tensor: usize, start: usize, out: &mut [u8]) -> Result<()> {
        self.read_placed(self.placed(tensor), start, out)
    }

    /// Reads a tensor from number `start` on as float32, filling `out`. Numbers may be infinite or NaN.
    ///
    /// # Errors
    /// As [`RawTensors::read`].
    ///
    /// # Panics
    /// If the range exceeds the tensor.
    pub fn read_f32(&self, tensor: usize, start: usize, out: &mut [f32]) -> Result<()> {
        self.read_placed_f32(self.placed(tensor), start, out)
    }

    /// Checks that an `lm_head.weight` stored next to tied embeddings equals them. transformers reads only the
    /// embedding; if the two differ, the model was not trained as tied, and reading it so would change it silently.
    ///
    /// # Errors
    /// When there is a copy and it differs.
    pub fn check_tied_copy(&self) -> Result<()> {
        let Some(copy) = &self.checkpoint.stored.tied_copy else { return Ok(()) };
        let tensors = self.checkpoint.spec.tensors();
        let embedding = tensors.iter().position(|view| view.name == "model.embed_tokens.weight");
        let embedding = embedding.ok_or_else(|| anyhow!("the model has no model.embed_tokens.weight"))?;
        let (mut ours, mut copied) = (vec![0f32; BLOCK], vec![0f32; BLOCK]);
        for start in (0..tensors[embedding].range.len()).step_by(BLOCK) {
            let len = BLOCK.min(tensors[embedding].range.len() - start);
            self.read_f32(embedding, start, &mut ours[..len])?;
            self.read_placed_f32(copy, start, &mut copied[..len])?;
            if ours[..len] != copied[..len] {
                bail!(
                    "{}: lm_head.weight differs from model.embed_tokens.weight although config.json ties them. If the model has an output layer of its own, set \"tie_word_embeddings\": false",
                    self.checkpoint.stored.paths[copy.file].display()
                );
            }
        }
        Ok(())
    }

    fn placed(&self, tensor: usize) -> &Placed {
        &self.checkpoint.stored.tensors[tensor]
    }

    fn read_placed(&self, placed: &Placed, start: usize, out: &mut [u8]) -> Result<()> {
        let at = placed.bytes.start + start * placed.dtype.size();
        assert!(at + out.len() <= placed.bytes.end, "the tensor has not so many numbers");
        positioned::read(&self.files[placed.file], out, at as u64).map_err(|error| {
            let path = self.checkpoint.stored.paths[placed.file].display();
            match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    anyhow!("{path} has become shorter since it was opened: something else is writing it")
                }
                _ => anyhow!("cannot read {path}: {error}"),
            }
        })
    }

    fn read_placed_f32(&self, placed: &Placed, start: usize, out: &mut [f32]) -> Result<()> {
        let mut bytes = vec![0; BLOCK.min(out.len()) * placed.dtype.size()];
        for (i, numbers) in out.chunks_mut(BLOCK).enumerate() {
            let bytes = &mut bytes[..numbers.len() * placed.dtype.size()];
            self.read_placed(placed, start + i * BLOCK, bytes)?;
            placed.dtype.widen(bytes, numbers);
        }
        Ok(())
    }
}
