//! The number types of stored weights, and conversion to and from float32.

use half::{bf16, f16};
use std::fmt;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16: float32 with 16 bits less of fraction.
    BF16,
    /// IEEE half precision; largest number 65504.
    F16,
}

impl Dtype {
    /// Bytes of one number.
    pub fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::BF16 | Dtype::F16 => 2,
        }
    }

    /// The name in `config.json`: `float32`, `bfloat16` or `float16`.
    pub fn config_name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::BF16 => "bfloat16",
            Dtype::F16 => "float16",
        }
    }

    /// The name in a safetensors header: `F32`, `BF16` or `F16`.
    pub fn safetensors_name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
        }
    }

    pub(super) fn of(stored: safetensors::Dtype) -> Option<Dtype> {
        match stored {
            safetensors::Dtype::F32 => Some(Dtype::F32),
            safetensors::Dtype::BF16 => Some(Dtype::BF16),
            safetensors::Dtype::F16 => Some(Dtype::F16),
            _ => None,
        }
    }

    /// Little-endian bytes to float32, exactly. Returns the index of the first number that is not finite.
    pub(super) fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<(), usize> {
        assert_eq!(bytes.len(), out.len() * self.size(), "as many bytes as numbers need");
        match self {
            Dtype::F32 => fill(out, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::BF16 => fill(out, bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::F16 => fill(out, bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32())),
        }
        first_not_finite(out)
    }

    /// Float32 to little-endian bytes, rounded to nearest, ties to even. Returns the index of the first number that is
    /// not finite, or not in this type.
    pub(super) fn encode(self, numbers: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        out.clear();
        out.reserve(numbers.len() * self.size());
        first_not_finite(numbers)?;
        let beyond = |finite: &dyn Fn(f32) -> bool| numbers.iter().position(|x| !finite(*x));
        let bad = match self {
            Dtype::F32 => {
                numbers.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
                None
            }
            Dtype::BF16 => {
                numbers.iter().for_each(|x| out.extend_from_slice(&bf16::from_f32(*x).to_le_bytes()));
                beyond(&|x| bf16::from_f32(x).is_finite())
            }
            Dtype::F16 => {
                numbers.iter().for_each(|x| out.extend_from_slice(&f16::from_f32(*x).to_le_bytes()));
                beyond(&|x| f16::from_f32(x).is_finite())
            }
        };
        bad.map_or(Ok(()), Err)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.config_name())
    }
}

fn fill(out: &mut [f32], numbers: impl Iterator<Item = f32>) {
    out.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
}

/// A sum over blocks is not finite exactly when some number in the block may not be; only then is it searched.
fn first_not_finite(numbers: &[f32]) -> Result<(), usize> {
    numbers.iter().position(|x| !x.is_finite()).map_or(Ok(()), Err)
}
