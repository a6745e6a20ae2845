//! ORPO: training on the chosen responses, with the odds against the rejected ones; no reference.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    arguments::TrainingArguments,
    pairwise::{PairSets, Preference},
    policy::{self, Setup},
};
use crate::{
    config::paths::ModelPath,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_range},
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        models::lora::LoraArguments,
        reads::{ExampleUse, Reads},
        text::{encoder::TruncationMode, source::DataSource},
    },
};

/// Configuration of `salsa orpo`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct OrpoConfig {
    /// Checkpoint to start from, a base or an SFT model.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelPath,
    /// Preference pairs: a chosen and a rejected response to the same prompt. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out pairs for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// Weight of the odds ratio beside the likelihood, above 0: the paper's lambda. TRL: 0.1.
    #[schemars(extend("x-heading" = "Training"))]
    pub beta: f64,
    /// Highest learning rate, at least 0. TRL: 1e-6.
    pub learning_rate: f64,
    /// Passes over the pairs if `max_steps` is -1; fractions are allowed. TRL: 3.
    pub num_train_epochs: f64,
    /// Maximum length of prompt and response, in tokens; capped at the model's context. TRL: 1024.
    pub max_length: usize,
    /// What happens to longer ones. TRL: keep_start.
    pub truncation_mode: TruncationMode,
    /// The keys of adapters.
    #[serde(flatten)]
    pub lora: LoraArguments,
    /// The keys that all training stages share.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Default for OrpoConfig {
    fn default() -> OrpoConfig {
        OrpoConfig {
            model_name_or_path: ModelPath::new(),
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            beta: 0.1,
            learning_rate: 1e-6,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl Stage for OrpoConfig {
    const NAME: &'static str = "orpo";
    const ABOUT: &'static str = "ORPO: preferences and fine-tuning at once, without a reference.";
    const EXAMPLE: &'static str = "--model sft-a --dataset pairs.jsonl --output_dir orpo --beta 0.1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = policy::NEXT;

    fn check(&self) -> anyhow::Result<()> {
        check_range("beta", self.beta, f64::MIN_POSITIVE..=f64::MAX)?;
        self.lora.validate()?;
        self.training.validate(self.learning_rate, self.num_train_epochs)
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model_name_or_path), &self.training.chat)
            .template(&self.training.chat_template)
            .examples("dataset", &self.dataset, ExampleUse::Preference)
            .examples_if_any("eval_dataset", self.eval_dataset.as_ref(), ExampleUse::Preference)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.training.device, self.training.dtype))
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Trains without a reference.
///
/// # Errors
/// If the data or a model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &OrpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let setup = Setup {
        title: "orpo",
        model: &config.model_name_or_path,
        reference: None,
        output_dir: &config.output_dir,
        learning_rate: config.learning_rate,
        num_train_epochs: config.num_train_epochs,
        lora: &config.lora,
        training: &config.training,
        context,
    };
    let models = setup.open()?;
    let config = &OrpoConfig { max_length: models.max_length(config.max_length, context), ..config.clone() };
    let data = PairSets::load(
        &models,
        &config.dataset,
        config.eval_dataset.as_ref(),
        config.max_length,
        config.truncation_mode,
        context,
    )?;
    let loss = Preference::Orpo { beta: config.beta };
    let (left_out, lengths) = (data.left_out, data.lengths());
    let outcome =
        setup.train(models, fingerprint("orpo", config)?, &lengths, |reference| data.objectives(loss, reference))?;
    Ok(json!({"training": outcome.to_json(), "left_out": left_out}))
}
