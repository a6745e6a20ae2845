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
            Dtype::F32 => decode_each(bytes, out, f32::from_le_bytes),
            Dtype::BF16 => decode_each(bytes, out, |b| bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => decode_each(bytes, out, |b| f16::from_le_bytes(b).to_f32()),
        }
        first_from(f32::INFINITY, out)
    }

    /// Float32 to little-endian bytes, rounded to nearest, ties to even. Returns the index of the first number that is
    /// not finite, or rounds to infinity in this type.
    pub(super) fn encode(self, numbers: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        first_from(self.limit(), numbers)?;
        out.clear();
        out.resize(numbers.len() * self.size(), 0);
        match self {
            Dtype::F32 => encode_each(numbers, out, f32::to_le_bytes),
            Dtype::BF16 => encode_each(numbers, out, |x| bf16::from_f32(x).to_le_bytes()),
            Dtype::F16 => encode_each(numbers, out, |x| f16::from_f32(x).to_le_bytes()),
        }
        Ok(())
    }

    /// The smallest number that rounds to infinity: half a step above the largest of the type.
    fn limit(self) -> f32 {
        match self {
            Dtype::F32 => f32::INFINITY,
            Dtype::BF16 => f32::from_bits(0x7f7f_8000),
            Dtype::F16 => 65_520.0,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.config_name())
    }
}

fn decode_each<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (bytes, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(bytes).for_each(|(place, bytes)| *place = number(*bytes));
}

fn encode_each<const N: usize>(numbers: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    let (places, _) = out.as_chunks_mut::<N>();
    places.iter_mut().zip(numbers).for_each(|(place, number)| *place = bytes(*number));
}

/// The index of the first number whose size is not below `limit`, not-a-number included. All are looked at first,
/// without a branch for each, because there hardly ever is one.
fn first_from(limit: f32, numbers: &[f32]) -> Result<(), usize> {
    let beyond = |x: &f32| x.is_nan() | (x.abs() >= limit);
    if !numbers.iter().fold(false, |found, x| found | beyond(x)) {
        return Ok(());
    }
    numbers.iter().position(beyond).map_or(Ok(()), Err)
}
