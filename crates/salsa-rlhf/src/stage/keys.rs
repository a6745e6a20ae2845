//! Value types and range checks shared by the keys of many stages.
use std::ops::RangeInclusive;

use anyhow::ensure;
use salsa_algo::preference::dpo::{LossType, Objective};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod byte_size;

pub(crate) use byte_size::ByteSize;

/// Checks that the value of a key is in a range.
///
/// # Errors
/// If it is not; the error names the key.
pub(crate) fn check_range(key: &str, value: f64, range: RangeInclusive<f64>) -> anyhow::Result<()> {
    let (low, high) = (range.start(), range.end());
    let wanted = match (*low == f64::MIN_POSITIVE, *high >= f64::MAX) {
        _ if !value.is_finite() => "a finite number".to_owned(),
        (true, true) => "above 0".to_owned(),
        (false, true) => format!("at least {low}"),
        _ => format!("between {low} and {high}"),
    };
    ensure!(range.contains(&value), "{key} is {value}; it must be {wanted}");
    Ok(())
}

/// Checks that a count is at least 1 and at most `most`; the error names the key.
pub(crate) fn check_count(key: &str, value: u64, most: u64) -> anyhow::Result<()> {
    ensure!(value > 0, "{key} is 0; it must be at least 1");
    check_most(key, value, most)
}

/// Checks that a count is at most `most`; the error names the key.
pub(crate) fn check_most(key: &str, value: u64, most: u64) -> anyhow::Result<()> {
    ensure!(value <= most, "{key} is {value}; it must be at most {most}");
    Ok(())
}

/// Checks the parameters of a DPO loss.
///
/// # Errors
/// If a value is out of range; the error names the key.
pub(crate) fn check_objective(objective: &Objective) -> anyhow::Result<()> {
    let Objective { loss_type, beta, label_smoothing, discopop_tau } = objective;
    check_range("beta", *beta, f64::MIN_POSITIVE..=f64::MAX)?;
    check_range("discopop_tau", *discopop_tau, f64::MIN_POSITIVE..=f64::MAX)?;
    ensure!((0.0..0.5).contains(label_smoothing), "label_smoothing is {label_smoothing}; it must be in [0, 0.5)");
    ensure!(
        *loss_type != LossType::ExoPair || *label_smoothing > 0.0,
        "loss_type exo_pair needs a label_smoothing above 0; its paper has 0.001"
    );
    Ok(())
}

/// Upper limit for numbers of sequences held at a time.
pub(crate) const MOST_SEQUENCES: u64 = 1 << 20;

/// Upper limit for tokens of a sequence.
pub(crate) const MOST_TOKENS: u64 = 1 << 30;

/// Upper limit for optimizer steps or responses of a run.
pub(crate) const MOST_STEPS: u64 = 1_000_000_000_000;

impl ComputeType {
    /// The number type to use on this machine's CPU.
    pub fn resolve(self) -> salsa_engine::Dtype {
        match self {
            ComputeType::Auto => salsa_engine::Dtype::fastest(),
            ComputeType::Float32 => salsa_engine::Dtype::F32,
            ComputeType::BFloat16 => salsa_engine::Dtype::Bf16,
        }
    }
}

/// Number type of matrix products. Master weights, optimizer, norms and softmax are 32-bit either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-aliases" = ["float32", "bfloat16"]))]
pub enum ComputeType {
    /// bfloat16 where this machine multiplies it faster, else 32-bit.
    #[default]
    #[serde(rename = "auto")]
    Auto,
    /// 32-bit floating point.
    #[serde(rename = "f32", alias = "float32")]
    Float32,
    /// bfloat16 operands, sums in 32-bit floating point.
    #[serde(rename = "bf16", alias = "bfloat16")]
    BFloat16,
}
