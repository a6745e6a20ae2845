//! Sources of the weights of a model: memory, or files read in pieces.

use crate::error::ModelError;
use std::ops::Range;

/// Numbers in their stored type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numbers<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bfloat16, two bytes each, little-endian, as in safetensors files.
    Bf16(&'a [[u8; 2]]),
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Numbers::F32(numbers)
    }
}

impl<'a> Numbers<'a> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Numbers::F32(numbers) => numbers.len(),
            Numbers::Bf16(numbers) => numbers.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of the numbers.
    ///
    /// # Panics
    ///
    /// If the range is out of bounds.
    pub fn part(&self, range: Range<usize>) -> Numbers<'a> {
        match self {
            Numbers::F32(numbers) => Numbers::F32(&numbers[range]),
            Numbers::Bf16(numbers) => Numbers::Bf16(&numbers[range]),
        }
    }

    /// Converts the numbers to f32, exactly.
    ///
    /// # Panics
    ///
    /// If `out` has another length.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "numbers and their place differ in length");
        match self {
            Numbers::F32(numbers) => out.copy_from_slice(numbers),
            Numbers::Bf16(numbers) => {
                out.iter_mut().zip(*numbers).for_each(|(out, &bytes)| *out = widened(bytes));
            }
        }
    }

    /// The index and value of the first number that is infinite or NaN.
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        // Without an early exit the loop is vectorised.
        match self {
            Numbers::F32(numbers) => {
                let sound = numbers.iter().fold(true, |all, x| all & x.is_finite());
                let at = if sound { None } else { numbers.iter().position(|x| !x.is_finite()) };
                at.map(|at| (at, numbers[at]))
            }
            Numbers::Bf16(numbers) => {
                let finite = |bytes: [u8; 2]| u16::from_le_bytes(bytes) & 0x7f80 != 0x7f80;
                let sound = numbers.iter().fold(true, |all, &bytes| all & finite(bytes));
                let at = if sound { None } else { numbers.iter().position(|&bytes| !finite(bytes)) };
                at.map(|at| (at, widened(numbers[at])))
            }
        }
    }
}

fn widened(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Reusable memory of [`Weights::read`] and [`Weights::read_stored`].
#[derive(Debug, Default)]
pub struct Room {
    /// For f32.
    pub f32: Vec<f32>,
    /// For bfloat16.
    pub bf16: Vec<[u8; 2]>,
}

/// Flat weights in the layout of [`crate::ModelSpec::tensors`], read in pieces: a model is never in memory twice.
pub trait Weights {
    /// The number of weights.
    fn count(&self) -> usize;

    /// Returns the numbers of a range: from memory, or read into `room`, whose memory is reused by later calls.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read<'a>(&'a self, range: Range<usize>, room: &'a mut Vec<f32>) -> Result<&'a [f32], ModelError>;

    /// As [`Weights::read`], in the stored type where that saves work.
    ///
    /// # Errors
    ///
    /// As [`Weights::read`].
    fn read_stored<'a>(&'a self, range: Range<usize>, room: &'a mut Room) -> Result<Numbers<'a>, ModelError> {
        self.read(range, &mut room.f32).map(Numbers::F32)
    }
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
