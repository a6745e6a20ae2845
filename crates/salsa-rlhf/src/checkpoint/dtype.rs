//! The number types of stored weights, and conversion to and from float32.

use std::fmt;

use half::{bf16, f16, slice::HalfFloatSliceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number type of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-aliases" = ["f32", "fp32", "bf16", "f16", "fp16"]))]
pub enum Dtype {
    /// 32-bit floating point.
    #[serde(rename = "float32", alias = "f32", alias = "fp32")]
    F32,
    /// 16 bits with the range of 32-bit numbers.
    #[serde(rename = "bfloat16", alias = "bf16")]
    BF16,
    /// 16-bit IEEE floating point; largest number 65504.
    #[serde(rename = "float16", alias = "f16", alias = "fp16")]
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
    pub(crate) fn decode(self, bytes: &[u8], out: &mut [f32]) -> Result<(), usize> {
        self.widen(bytes, out);
        first_not_finite(out)
    }

    /// Little-endian bytes to float32, exactly; NaN and infinity are allowed.
    pub(crate) fn widen(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "as many bytes as numbers need");
        match self {
            Dtype::F32 => fill(out, bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
            Dtype::BF16 => fill(out, bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32())),
            Dtype::F16 => {
                let mut halves = [f16::ZERO; RUN];
                for (bytes, out) in bytes.chunks(2 * RUN).zip(out.chunks_mut(RUN)) {
                    let halves = &mut halves[..out.len()];
                    halves
                        .iter_mut()
                        .zip(bytes.chunks_exact(2))
                        .for_each(|(h, b)| *h = f16::from_le_bytes([b[0], b[1]]));
                    halves.convert_to_f32_slice(out);
                }
            }
        }
    }

    /// Float32 to little-endian bytes, rounded to nearest, ties to even. Returns the index of the first number that is
    /// not finite, or overflows this type.
    pub(crate) fn encode(self, numbers: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        out.clear();
        out.resize(numbers.len() * self.size(), 0);
        first_not_finite(numbers)?;
        match self {
            Dtype::F32 => out.chunks_exact_mut(4).zip(numbers).for_each(|(b, x)| b.copy_from_slice(&x.to_le_bytes())),
            Dtype::BF16 => {
                out.chunks_exact_mut(2)
                    .zip(numbers)
                    .for_each(|(b, x)| b.copy_from_slice(&round_to_bf16(*x).to_le_bytes()));
            }
            Dtype::F16 => {
                let mut halves = [f16::ZERO; RUN];
                for (bytes, numbers) in out.chunks_mut(2 * RUN).zip(numbers.chunks(RUN)) {
                    let halves = &mut halves[..numbers.len()];
                    halves.convert_from_f32_slice(numbers);
                    bytes.chunks_exact_mut(2).zip(halves).for_each(|(b, h)| b.copy_from_slice(&h.to_le_bytes()));
                }
            }
        }
        let infinite = match self {
            Dtype::F32 => return Ok(()),
            Dtype::BF16 => 0x7f80,
            Dtype::F16 => 0x7c00,
        };
        let is_infinite = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]) & infinite == infinite;
        // Without an early exit the loop is vectorised.
        if !out.chunks_exact(2).fold(false, |any, b| any | is_infinite(b)) {
            return Ok(());
        }
        out.chunks_exact(2).position(is_infinite).map_or(Ok(()), Err)
    }
}

/// Numbers converted at a time between f16 and float32.
const RUN: usize = 512;

/// The bits of the bfloat16 nearest to a float32 that is not NaN, ties to even.
#[inline(always)]
pub(crate) fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.config_name())
    }
}

fn fill(out: &mut [f32], numbers: impl Iterator<Item = f32>) {
    out.iter_mut().zip(numbers).for_each(|(place, number)| *place = number);
}

fn first_not_finite(numbers: &[f32]) -> Result<(), usize> {
    // Without an early exit the loop is vectorised.
    if numbers.iter().fold(true, |all, x| all & x.is_finite()) {
        return Ok(());
    }
    numbers.iter().position(|x| !x.is_finite()).map_or(Ok(()), Err)
}
