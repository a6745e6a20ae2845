//! Where the weights of a model come from: memory, or files read piece by piece.

use crate::error::ModelError;
use std::borrow::Cow;
use std::ops::Range;

/// Flat weights laid out as [`crate::ModelSpec::tensors`] says, read in pieces: a model is never in memory twice.
pub trait Weights {
    /// How many numbers there are.
    fn count(&self) -> usize;

    /// The numbers of a range.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, ModelError>;
}

impl Weights for [f32] {
    fn count(&self) -> usize {
        self.len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, ModelError> {
        Ok(Cow::Borrowed(&self[range]))
    }
}

impl Weights for Vec<f32> {
    fn count(&self) -> usize {
        self.len()
    }

    fn read(&self, range: Range<usize>) -> Result<Cow<'_, [f32]>, ModelError> {
        self[..].read(range)
    }
}
