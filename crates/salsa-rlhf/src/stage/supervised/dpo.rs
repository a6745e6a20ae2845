//! Direct preference optimisation: training on preferences against a frozen reference, without reward model or
//! sampling.
use std::path::PathBuf;

use anyhow::Context;
use salsa_algo::preference::dpo::{self, LossType};
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
        keys::{ComputeType, check_objective},
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        models::{lora::LoraArguments, model_source::ModelSource},
        reads::{ExampleUse, Reads},
        text::{encoder::TruncationMode, source::DataSource},
    },
};

/// Configuration of `salsa dpo`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DpoConfig {
    /// Checkpoint to start from, usually an SFT model.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelPath,
    /// The frozen reference: a checkpoint, or a soup made in memory (`{models: [A, B], weights: [0.5, 0.5]}`). None:
    /// the starting checkpoint itself, as in TRL.
    pub ref_model_name_or_path: Option<ModelSource>,
    /// Preference pairs: a chosen and a rejected response to the same prompt. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out pairs for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// The loss on the log-ratios of policy to reference, `c` of the chosen response and `r` of the rejected one;
    /// `x = beta (c - r)`, `e` is `label_smoothing`. TRL: sigmoid.
    #[schemars(extend("x-heading" = "Training"))]
    pub loss_type: LossType,
    /// Strength of the pull towards the reference, above 0: beta of the DPO paper, tau of the IPO paper. TRL: 0.1.
    pub beta: f64,
    /// Share of labels assumed to be wrong, from 0 to below 0.5; used by `sigmoid` (cDPO), `robust`, and `exo_pair`,
    /// which needs one above 0. TRL: 0.
    pub label_smoothing: f64,
    /// Temperature of `discopop`, above 0; used by it only. TRL: 0.05.
    pub discopop_tau: f64,
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

impl Default for DpoConfig {
    fn default() -> DpoConfig {
        DpoConfig {
            model_name_or_path: ModelPath::new(),
            ref_model_name_or_path: None,
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            loss_type: LossType::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            discopop_tau: 0.05,
            learning_rate: 1e-6,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl DpoConfig {
    fn objective(&self) -> dpo::Objective {
        let DpoConfig { loss_type, beta, label_smoothing, discopop_tau, .. } = *self;
        dpo::Objective { loss_type, beta, label_smoothing, discopop_tau }
    }
}

impl Stage for DpoConfig {
    const NAME: &'static str = "dpo";
    const ABOUT: &'static str = "Direct preference optimisation, and its relatives.";
    const EXAMPLE: &'static str = "--model sft-a --dataset pairs.jsonl --output_dir dpo --beta 0.1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = policy::NEXT;

    fn check(&self) -> anyhow::Result<()> {
        check_objective(&self.objective())?;
        self.ref_model_name_or_path.as_ref().map_or(Ok(()), ModelSource::check).context("ref_model_name_or_path")?;
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

/// Trains against the configured reference.
///
/// # Errors
/// If the data or a model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &DpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let start = ModelSource::Path(config.model_name_or_path.clone());
    let reference = config.ref_model_name_or_path.as_ref().unwrap_or(&start);
    let setup = Setup {
        title: "dpo",
        model: &config.model_name_or_path,
        reference: Some(reference),
        output_dir: &config.output_dir,
        learning_rate: config.learning_rate,
        num_train_epochs: config.num_train_epochs,
        lora: &config.lora,
        training: &config.training,
        context,
    };
    let models = setup.open()?;
    let config = &DpoConfig { max_length: models.max_length(config.max_length, context), ..config.clone() };
    let data = PairSets::load(
        &models,
        &config.dataset,
        config.eval_dataset.as_ref(),
        config.max_length,
        config.truncation_mode,
        context,
    )?;
    let loss = Preference::Dpo(config.objective());
    let (left_out, lengths) = (data.left_out, data.lengths());
    let outcome =
        setup.train(models, fingerprint("dpo", config)?, &lengths, |reference| data.objectives(loss, reference))?;
    Ok(json!({"training": outcome.to_json(), "left_out": left_out}))
}
