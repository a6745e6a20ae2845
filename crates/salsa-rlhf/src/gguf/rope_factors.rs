//! The factors by which Llama 3 divides its rotary frequencies, which GGUF files have as a tensor.

use std::f64::consts::TAU;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::block::BlockType;
use super::dequantize::dequantize;
use super::reader::{Part, Tensor};

/// The tensor of the factors.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// Parameters of all published models with such factors; they differ in the largest factor.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const POSITIONS: usize = 8192;

/// The parameters of Llama 3's scaling.
#[derive(Clone, Copy)]
pub(super) struct Llama3 {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) positions: usize,
}

impl Llama3 {
    /// One factor per pair of a head: 1 for high frequencies, `factor` for low ones, smooth between.
    pub(super) fn factors(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        let positions = self.positions as f64;
        let one = |i: usize| {
            let wave = TAU * theta.powf(2.0 * i as f64 / head_dim as f64);
            let smooth = (positions / wave - self.low) / (self.high - self.low);
            match () {
                () if wave < positions / self.high => 1.0,
                () if wave > positions / self.low => self.factor as f32,
                () => (1.0 / ((1.0 - smooth) / self.factor + smooth)) as f32,
            }
        };
        (0..head_dim / 2).map(one).collect()
    }
}

/// Finds the parameters whose factors a file has.
pub(super) fn recognise(part: &Part, tensor: &Tensor, theta: f64, head_dim: usize) -> Result<Value> {
    let fits = tensor.kind == BlockType::F32 && tensor.shape == [head_dim / 2];
    ensure!(
        fits,
        "{ROPE_FACTORS} has shape {:?} and type {}: expected [{}] and F32",
        tensor.shape,
        tensor.kind,
        head_dim / 2
    );
    let (mut bytes, mut stored) = (vec![0; tensor.bytes as usize], vec![0f32; head_dim / 2]);
    part.read(tensor, 0, &mut bytes)?;
    dequantize(tensor.kind, &bytes, &mut stored);
    let factor = f64::from(stored.iter().copied().fold(1.0, f32::max));
    let expected = Llama3 { factor, low: LOW, high: HIGH, positions: POSITIONS }.factors(theta, head_dim);
    let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-3 * b.abs();
    ensure!(
        stored.iter().zip(&expected).all(is_close),
        "{ROPE_FACTORS} has other factors than Llama 3 (low_freq_factor 1, high_freq_factor 4, 8192 positions), which \
         are not supported"
    );
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW,
        "high_freq_factor": HIGH,
        "original_max_position_embeddings": POSITIONS,
    }))
}
