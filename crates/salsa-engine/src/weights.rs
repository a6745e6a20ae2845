//! Where the weights of a model come from: memory, or files read piece by piece.

use crate::error::ModelError;
use std::ops::Range;

/// Flat weights laid out as [`crate::ModelSpec::tensors`] says, read in pieces: a model is never in memory twice.
pub trait Weights {
    /// How many numbers there are.
    fn count(&self) -> usize;

    /// The numbers of a range: in memory already, or read into `room`, which keeps its memory for the next ones.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError>;
}

impl Weights for [f32] {
    fn count(&self) -> usize {
        self.len()
    }

    fn read<'a>(&'a self, range: Range<usize>, _: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        Ok(&self[range])
    }
}

impl Weights for Vec<f32> {
    fn count(&self) -> usize {
        self.len()
    }

    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError> {
        self[..].read(range, room)
    }
}
