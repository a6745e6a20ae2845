//! The stored weights of a checkpoint for the engine, read in pieces and never as a whole.

use std::ops::Range;

use anyhow::{Result, anyhow};
use rayon::prelude::*;
use salsa_engine::{Head, ModelError, ModelSpec, Numbers, Room, Weights};

use super::{Checkpoint, Dtype, RawTensors};

/// Numbers converted per task.
const BLOCK: usize = 1 << 18;

/// The weights of a checkpoint's full model (for a PEFT directory: of its base) with a given head, in the order of
/// [`ModelSpec::tensors`]. A scalar head that the files lack reads as zeros: the adapter has its own.
pub struct StoredWeights<'a> {
    /// The shape that defines the layout.
    pub spec: ModelSpec,
    raw: RawTensors<'a>,
    /// The range of each tensor, and its number in the files.
    places: Vec<(Range<usize>, Option<usize>)>,
}

impl Checkpoint {
    /// Opens the weights for reading in pieces.
    ///
    /// # Errors
    /// When a file cannot be opened, or the copy of tied embeddings differs from them.
    pub fn stored_weights(&self, head: Head) -> Result<StoredWeights<'_>> {
        let raw = self.raw()?;
        raw.check_tied_copy()?;
        let spec = self.spec.with_head(head);
        let number = |name: &str| self.stored.names.iter().position(|known| known == name);
        let places = spec.tensors().into_iter().map(|tensor| (tensor.range, number(&tensor.name))).collect();
        Ok(StoredWeights { spec, raw, places })
    }

    /// One tensor of a full model as float32.
    ///
    /// # Errors
    /// When no tensor has this name, or it cannot be read.
    pub fn read_tensor(&self, name: &str) -> Result<Vec<f32>> {
        let views = self.spec.tensors();
        let view = views.iter().find(|view| view.name == name);
        let view = view.ok_or_else(|| anyhow!("{} has no tensor {name}", self.dir().display()))?;
        let mut numbers = Vec::new();
        self.stored_weights(self.spec.head)?.read(view.range.clone(), &mut numbers)?;
        Ok(numbers)
    }
}

/// The intersection of a tensor with a range.
struct Part {
    /// The tensor's number in the files, if it is stored.
    number: Option<usize>,
    /// Where the part starts in the tensor.
    start: usize,
    /// Its place in the range.
    place: Range<usize>,
}

impl StoredWeights<'_> {
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = Part> {
        self.places.iter().filter_map(move |(place, number)| {
            let (start, end) = (place.start.max(range.start), place.end.min(range.end));
            (start < end).then(|| Part {
                number: *number,
                start: start - place.start,
                place: start - range.start..end - range.start,
            })
        })
    }

    fn fill(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        for Part { number, start, place } in self.parts(range) {
            let out = &mut out[place];
            let Some(number) = number else {
                out.fill(0.0);
                continue;
            };
            out.par_chunks_mut(BLOCK)
                .enumerate()
                .try_for_each(|(i, part)| self.raw.read_f32(number, start + i * BLOCK, part))?;
        }
        Ok(())
    }

    fn fill_bf16(&self, range: Range<usize>, out: &mut [[u8; 2]]) -> Result<()> {
        for Part { number, start, place } in self.parts(range) {
            let number = number.expect("the files have every tensor of the range");
            out[place]
                .par_chunks_mut(BLOCK)
                .enumerate()
                .try_for_each(|(i, part)| self.raw.read(number, start + i * BLOCK, part.as_flattened_mut()))?;
        }
        Ok(())
    }
}

impl Weights for StoredWeights<'_> {
    fn count(&self) -> usize {
        self.places.last().map_or(0, |(place, _)| place.end)
    }

    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        room.resize(range.len(), 0.0);
        self.fill(range, room).map_err(|error| ModelError::Source(format!("{error:#}")))?;
        Ok(room)
    }

    fn read_stored<'a>(&'a self, range: Range<usize>, room: &'a mut Room) -> Result<Numbers<'a>, ModelError> {
        let is_bf16 = |part: Part| part.number.is_some_and(|number| self.raw.dtype(number) == Dtype::BF16);
        if !self.parts(range.clone()).all(is_bf16) {
            return self.read(range, &mut room.f32).map(Numbers::F32);
        }
        room.bf16.resize(range.len(), [0; 2]);
        self.fill_bf16(range, &mut room.bf16).map_err(|error| ModelError::Source(format!("{error:#}")))?;
        Ok(Numbers::Bf16(&room.bf16))
    }
}
