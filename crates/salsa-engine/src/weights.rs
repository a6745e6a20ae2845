//! Where the weights of a model come from: memory, or files read piece by piece.

use crate::error::ModelError;
use std::ops::Range;

/// Numbers in the type in which they come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Numbers<'a> {
    /// f32.
    F32(&'a [f32]),
    /// bfloat16, two bytes each, the lower one first, as safetensors files have them.
    Bf16(&'a [[u8; 2]]),
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Numbers::F32(numbers)
    }
}

impl<'a> Numbers<'a> {
    /// How many there are.
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

    /// Some of them.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn part(&self, range: Range<usize>) -> Numbers<'a> {
        match self {
            Numbers::F32(numbers) => Numbers::F32(&numbers[range]),
            Numbers::Bf16(numbers) => Numbers::Bf16(&numbers[range]),
        }
    }

    /// Writes them as f32, exactly.
    ///
    /// # Panics
    ///
    /// If `out` has not as many places.
    pub fn widen(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.len(), "numbers and their place differ in length");
        match self {
            Numbers::F32(numbers) => out.copy_from_slice(numbers),
            Numbers::Bf16(numbers) => {
                out.iter_mut().zip(*numbers).for_each(|(out, &bytes)| *out = widened(bytes));
            }
        }
    }

    /// The first that is infinite or NaN: its place and value.
    pub fn first_not_finite(&self) -> Option<(usize, f32)> {
        // Without an early exit the compiler looks at many numbers at once.
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

/// Memory that [`Weights::read`] and [`Weights::read_stored`] use again.
#[derive(Debug, Default)]
pub struct Room {
    /// For f32.
    pub f32: Vec<f32>,
    /// For bfloat16.
    pub bf16: Vec<[u8; 2]>,
}

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

    /// The same in the type in which they are stored, where that saves work.
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
