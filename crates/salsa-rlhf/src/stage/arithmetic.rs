//! The data of the verifiable task, written as files.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{StageContext, keys::check_count};
use crate::{
    arithmetic::{self, Sizes},
    stage::{
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Processes, Produces, Product, Stage},
        reads::Reads,
    },
};

/// Sizes of the task's data sets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ArithmeticConfig {
    /// Texts for the base model, at least 1.
    #[schemars(extend("x-heading" = "What is written"))]
    pub pretrain: usize,
    /// Demonstrations for fine-tuning, at least 1.
    pub sft: usize,
    /// Prompts for RL, at least 1.
    pub prompts_train: usize,
    /// Prompts for choosing hyper-parameters, at least 1.
    pub prompts_validation: usize,
    /// Prompts for the final test, at least 1.
    pub prompts_test: usize,
    /// Prompts with more steps than in training, at least 1.
    pub prompts_ood: usize,
    /// Seed of all problems.
    pub seed: u64,
    /// Output directory; one `.jsonl` file per data set.
    pub output_dir: PathBuf,
}

impl Default for ArithmeticConfig {
    fn default() -> ArithmeticConfig {
        ArithmeticConfig {
            pretrain: 20_000,
            sft: 2_000,
            prompts_train: 2_000,
            prompts_validation: 200,
            prompts_test: 400,
            prompts_ood: 400,
            seed: 42,
            output_dir: PathBuf::new(),
        }
    }
}

/// Upper limit for texts and demonstrations; there are about a million different questions.
const MOST_TEXTS: u64 = 100_000_000;
const MOST_QUESTIONS: u64 = 100_000;

impl Stage for ArithmeticConfig {
    const NAME: &'static str = "arithmetic";
    const ABOUT: &'static str = "Write the data of a small task with checkable answers: word problems.";
    const EXAMPLE: &'static str = "--output_dir data --seed 1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] =
        &[("a base model", "salsa pretrain --dataset OUT/pretrain.jsonl --output_dir DIR")];
    const PROCESSES: Processes = Processes::First;

    fn check(&self) -> anyhow::Result<()> {
        check_count("pretrain", self.pretrain as u64, MOST_TEXTS)?;
        for (key, size) in [
            ("sft", self.sft),
            ("prompts_train", self.prompts_train),
            ("prompts_validation", self.prompts_validation),
            ("prompts_test", self.prompts_test),
            ("prompts_ood", self.prompts_ood),
        ] {
            check_count(key, size as u64, MOST_QUESTIONS)?;
        }
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::default()
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn run(&self, _: &StageContext) -> anyhow::Result<Value> {
        self.check()?;
        let sizes = Sizes {
            pretrain: self.pretrain,
            sft: self.sft,
            prompts_train: self.prompts_train,
            prompts_validation: self.prompts_validation,
            prompts_test: self.prompts_test,
            prompts_ood: self.prompts_ood,
        };
        arithmetic::write(&self.output_dir, &sizes, self.seed)?;
        Ok(json!({"demonstrations": self.sft, "prompts": self.prompts_train}))
    }
}
