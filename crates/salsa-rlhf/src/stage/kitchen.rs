//! The data of the toy world, written as files: the inputs of the other stages of the quickstart.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{StageContext, keys::check_count};
use crate::{
    stage::{
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Processes, Produces, Product, Stage},
        reads::Reads,
    },
    world::{self, Sizes},
};

/// Sizes of the toy world's data sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KitchenConfig {
    /// Texts for the base model, at least 1.
    #[schemars(extend("x-heading" = "What is written"))]
    pub pretrain: usize,
    /// Demonstrations for fine-tuning, at least 1.
    pub sft: usize,
    /// Preference pairs for the reward model, at least 1.
    pub preferences: usize,
    /// Prompts for RL, at least 1.
    pub prompts_train: usize,
    /// Prompts for choosing hyper-parameters, at least 1.
    pub prompts_validation: usize,
    /// Prompts for the final test, at least 1.
    pub prompts_test: usize,
    /// Prompts of families and wordings unseen in training, at least 1.
    pub prompts_ood: usize,
    /// Seed of all texts.
    pub seed: u64,
    /// Output directory; one `.jsonl` file per data set.
    pub output_dir: PathBuf,
}

impl Default for KitchenConfig {
    fn default() -> KitchenConfig {
        KitchenConfig {
            pretrain: 10_000,
            sft: 2_000,
            preferences: 4_000,
            prompts_train: 2_000,
            prompts_validation: 200,
            prompts_test: 400,
            prompts_ood: 400,
            seed: 42,
            output_dir: PathBuf::new(),
        }
    }
}

/// Upper limit for examples of a file.
const MOST_EXAMPLES: u64 = 100_000_000;

impl Stage for KitchenConfig {
    const NAME: &'static str = "kitchen";
    const ABOUT: &'static str = "Write the data of the toy world.";
    const EXAMPLE: &'static str = "--output_dir data --seed 1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] =
        &[("a base model", "salsa pretrain --dataset OUT/pretrain.jsonl --output_dir DIR")];
    const PROCESSES: Processes = Processes::First;

    fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("pretrain", self.pretrain),
            ("sft", self.sft),
            ("preferences", self.preferences),
            ("prompts_train", self.prompts_train),
            ("prompts_validation", self.prompts_validation),
            ("prompts_test", self.prompts_test),
            ("prompts_ood", self.prompts_ood),
        ] {
            check_count(key, size as u64, MOST_EXAMPLES)?;
        }
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::default()
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes `pretrain.jsonl`, `sft.jsonl`, `preferences.jsonl` and `prompts_*.jsonl`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn run(config: &KitchenConfig, _: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let sizes = Sizes {
        pretrain: config.pretrain,
        sft: config.sft,
        preferences: config.preferences,
        prompts_train: config.prompts_train,
        prompts_validation: config.prompts_validation,
        prompts_test: config.prompts_test,
        prompts_ood: config.prompts_ood,
    };
    world::write(&config.output_dir, &sizes, config.seed)?;
    Ok(json!({"demonstrations": config.sft, "preferences": config.preferences}))
}
