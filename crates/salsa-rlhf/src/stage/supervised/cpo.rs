//! CPO and SimPO: training on preferences with the policy's own log-probs as rewards; no reference.
use std::path::PathBuf;

use anyhow::ensure;
use salsa_algo::preference::cpo::{self, LossType};
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

/// Configuration of `salsa cpo`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CpoConfig {
    /// Checkpoint to start from, usually an SFT model.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelPath,
    /// Preference pairs: a chosen and a rejected response to the same prompt. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out pairs for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// The loss on `g`, the log-prob of the chosen response minus that of the rejected one; `e` is `label_smoothing`.
    /// TRL: sigmoid.
    #[schemars(extend("x-heading" = "Training"))]
    pub loss_type: LossType,
    /// Scale of the log-probs, above 0; 2 to 10 for `simpo`, whose log-probs are per token. TRL: 0.1.
    pub beta: f64,
    /// Share of labels assumed to be wrong, from 0 to below 0.5; used by `sigmoid` and `simpo`. TRL: 0.
    pub label_smoothing: f64,
    /// Weight of the negative log-likelihood of the chosen response per token, at least 0; 0: off, as in SimPO. TRL: 1.
    pub cpo_alpha: f64,
    /// The margin by which the chosen response should win, at least 0; used by `simpo` only. TRL: 0.5.
    pub simpo_gamma: f64,
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

impl Default for CpoConfig {
    fn default() -> CpoConfig {
        CpoConfig {
            model_name_or_path: ModelPath::new(),
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            loss_type: LossType::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            cpo_alpha: 1.0,
            simpo_gamma: 0.5,
            learning_rate: 1e-6,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl CpoConfig {
    fn objective(&self) -> cpo::Objective {
        let CpoConfig { loss_type, beta, label_smoothing, simpo_gamma, .. } = *self;
        cpo::Objective { loss_type, beta, label_smoothing, simpo_gamma }
    }
}

impl Stage for CpoConfig {
    const NAME: &'static str = "cpo";
    const ABOUT: &'static str = "CPO and SimPO: preferences without a reference.";
    const EXAMPLE: &'static str =
        "--model sft-a --dataset pairs.jsonl --output_dir simpo --loss_type simpo --beta 2 --cpo_alpha 0";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = policy::NEXT;

    fn check(&self) -> anyhow::Result<()> {
        let CpoConfig { beta, label_smoothing, cpo_alpha, simpo_gamma, .. } = self;
        check_range("beta", *beta, f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("cpo_alpha", *cpo_alpha, 0.0..=f64::MAX)?;
        check_range("simpo_gamma", *simpo_gamma, 0.0..=f64::MAX)?;
        ensure!((0.0..0.5).contains(label_smoothing), "label_smoothing is {label_smoothing}; it must be in [0, 0.5)");
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
pub(crate) fn run(config: &CpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let setup = Setup {
        title: "cpo",
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
    let config = &CpoConfig { max_length: models.max_length(config.max_length, context), ..config.clone() };
    let data = PairSets::load(
        &models,
        &config.dataset,
        config.eval_dataset.as_ref(),
        config.max_length,
        config.truncation_mode,
        context,
    )?;
    let loss = Preference::Cpo { objective: config.objective(), alpha: config.cpo_alpha };
    let (left_out, lengths) = (data.left_out, data.lengths());
    let outcome =
        setup.train(models, fingerprint("cpo", config)?, &lengths, |reference| data.objectives(loss, reference))?;
    Ok(json!({"training": outcome.to_json(), "left_out": left_out}))
}
