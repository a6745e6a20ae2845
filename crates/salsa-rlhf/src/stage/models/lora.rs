//! Training an adapter instead of all weights: the keys of TRL's `ModelConfig`.
use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use salsa_engine::{LoraSpec, ModelSpec, Target};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::stage::keys::check_count;

/// The keys shared by `sft`, `reward`, `dpo`, `kto`, `orpo`, `cpo`, `ppo`, `grpo` and `online_dpo`. They describe a new adapter; from
/// a PEFT directory training continues with its adapter, and keys for the shape are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LoraArguments {
    /// Train a low-rank adapter on the frozen model, and save a PEFT directory. False trains all weights (for a PEFT
    /// directory, those of the adapter merged into its base). TRL: false.
    #[schemars(extend("x-heading" = "LoRA"))]
    pub use_peft: bool,
    /// Rank of the adapter, at least 1. TRL: 16.
    pub lora_r: usize,
    /// The adapter is scaled by `lora_alpha / lora_r`. TRL: 32.
    pub lora_alpha: f64,
    /// Must be 0: with dropout, the sampled log-probs and those of training would differ. TRL: 0.05.
    pub lora_dropout: f64,
    /// The matrices that get an adapter, in every block: `all-linear`, or a list of `q_proj`, `k_proj`, `v_proj`,
    /// `o_proj`, `gate_proj`, `up_proj`, `down_proj`. TRL: none, which PEFT fills in by family.
    pub lora_target_modules: TargetModules,
    /// Scale the adapter by `lora_alpha / sqrt(lora_r)` instead. TRL: false.
    pub use_rslora: bool,
}

/// One name or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TargetModules {
    /// `all-linear`, or one matrix.
    One(String),
    /// Several matrices.
    Several(Vec<String>),
}

impl Default for LoraArguments {
    fn default() -> LoraArguments {
        LoraArguments {
            use_peft: false,
            lora_r: 16,
            lora_alpha: 32.0,
            lora_dropout: 0.0,
            lora_target_modules: TargetModules::One(ALL.to_owned()),
            use_rslora: false,
        }
    }
}

const ALL: &str = "all-linear";

/// Upper limit for the rank: no matrix is wider.
const MOST_RANK: u64 = 1 << 16;

impl LoraArguments {
    /// Checks ranges and names.
    ///
    /// # Errors
    /// If a value is invalid or not supported; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        ensure!(
            self.lora_dropout == 0.0,
            "lora_dropout is {}; only 0 is supported: with dropout the log-probs of training would not be those of sampling",
            self.lora_dropout
        );
        check_count("lora_r", self.lora_r as u64, MOST_RANK)?;
        ensure!(self.lora_alpha.is_finite(), "lora_alpha is {}; give a number", self.lora_alpha);
        self.spec()?;
        match self.shape().into_iter().zip(LoraArguments::default().shape()).find(|(given, plain)| given != plain) {
            Some(((key, _), _)) if !self.use_peft => {
                bail!("{key} needs use_peft: true; without it all weights are trained")
            }
            _ => Ok(()),
        }
    }

    /// The keys that have no effect when all weights are trained.
    fn shape(&self) -> [(&'static str, String); 4] {
        [
            ("lora_r", self.lora_r.to_string()),
            ("lora_alpha", self.lora_alpha.to_string()),
            ("lora_target_modules", format!("{:?}", self.lora_target_modules)),
            ("use_rslora", self.use_rslora.to_string()),
        ]
    }

    /// The shape of a new adapter of a model: `all-linear` means the matrices that it has.
    ///
    /// # Errors
    /// If a target is unknown, or the model does not have it.
    pub fn spec_for(&self, model: &ModelSpec) -> anyhow::Result<LoraSpec> {
        let lora = self.spec()?;
        lora.validate_for(model).context("lora_target_modules")?;
        Ok(LoraSpec { targets: lora.targets_in(model).into_iter().collect(), ..lora })
    }

    /// The shape of a new adapter of any model.
    ///
    /// # Errors
    /// If a target is unknown.
    pub fn spec(&self) -> anyhow::Result<LoraSpec> {
        let names = match &self.lora_target_modules {
            TargetModules::One(name) => std::slice::from_ref(name),
            TargetModules::Several(names) => names,
        };
        ensure!(!names.is_empty(), "lora_target_modules is empty; say {ALL}, or name matrices such as q_proj");
        let mut targets = BTreeSet::new();
        for name in names {
            if name == ALL {
                targets.extend(Target::ALL);
            } else {
                targets.insert(Target::of_name(name).with_context(|| {
                    let known = Target::ALL.map(Target::name).join(", ");
                    format!("lora_target_modules names {name:?}; possible are {ALL}, {known}")
                })?);
            }
        }
        Ok(LoraSpec { rank: self.lora_r, alpha: self.lora_alpha, rslora: self.use_rslora, targets })
    }
}

#[cfg(test)]
mod tests;
