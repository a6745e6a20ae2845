//! The keys of AdamW and of the learning-rate schedule, shared by all training stages.
use anyhow::ensure;
use salsa_algo::schedule::Decay;
use salsa_engine::AdamW;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::keys::check_range;

/// Optimizer settings apart from the learning rate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OptimizerArguments {
    /// Shape of the learning rate after the warm-up. TRL: linear.
    pub lr_scheduler_type: Decay,
    /// AdamW's decoupled weight decay, per step and unit of learning rate; 0: none. TRL: 0.
    pub weight_decay: f64,
    /// AdamW's decay of the mean of gradients, beta1, from 0 to below 1. TRL: 0.9.
    pub adam_beta1: f64,
    /// AdamW's decay of the mean of squared gradients, beta2, from 0 to below 1. TRL: 0.999.
    pub adam_beta2: f64,
    /// AdamW's epsilon, added to the root of the mean of squared gradients; above 0. TRL: 1e-8.
    pub adam_epsilon: f64,
    /// Parts of a step whose gradients are computed alone and added along one binary tree: a power of two. With the same
    /// number, results have the same bits on any number of processes that divides it (on the CPU); 8 serves 1, 2, 4
    /// and 8. Each part has a forward and a backward pass of its own. None: as many as there are processes at the first
    /// start. TRL: not there.
    pub gradient_units: Option<usize>,
    /// Largest Euclidean norm of the whole gradient; longer ones are scaled down to it. 0: no clipping. TRL: 1, which its
    /// PPOTrainer ignores.
    pub max_grad_norm: f64,
}

/// Upper limit for gradient units.
const MOST_UNITS: usize = 1 << 12;

impl Default for OptimizerArguments {
    fn default() -> OptimizerArguments {
        OptimizerArguments {
            lr_scheduler_type: Decay::Linear,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            gradient_units: None,
            max_grad_norm: 1.0,
        }
    }
}

impl OptimizerArguments {
    /// Checks ranges; the error names the key.
    ///
    /// # Errors
    /// If a value is out of range.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_range("weight_decay", self.weight_decay, 0.0..=f64::MAX)?;
        for (key, beta) in [("adam_beta1", self.adam_beta1), ("adam_beta2", self.adam_beta2)] {
            ensure!((0.0..1.0).contains(&beta), "{key} is {beta}; it must be at least 0 and below 1");
        }
        let units = self.gradient_units.unwrap_or(1);
        ensure!(
            units.is_power_of_two() && units <= MOST_UNITS,
            "gradient_units is {units}; it must be a power of two, at most {MOST_UNITS}"
        );
        check_range("adam_epsilon", self.adam_epsilon, f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("max_grad_norm", self.max_grad_norm, 0.0..=f64::MAX)
    }

    /// The configured optimizer.
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.adam_beta1,
            beta2: self.adam_beta2,
            eps: self.adam_epsilon,
            weight_decay: self.weight_decay,
            max_grad_norm: if self.max_grad_norm == 0.0 { f64::INFINITY } else { self.max_grad_norm },
        }
    }
}
