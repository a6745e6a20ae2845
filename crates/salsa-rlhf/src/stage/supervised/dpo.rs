//! Direct preference optimisation: training on preferences against a frozen reference, without reward model or
//! sampling.
use std::path::PathBuf;

use anyhow::ensure;
use salsa_algo::preference::dpo;
use salsa_engine::{Batch, Head, Model, Output, Query};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    arguments::TrainingArguments,
    order::Batching,
    tally::Tally,
    trainer::{self, Job, Lengths, Loss, Objective, Pass},
};
use crate::{
    config::paths::ModelPath,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_range},
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        memory::{MemorySettings, Passed, Saving},
        models::{
            bases::Bases,
            frozen::{Found, Frozen},
            lora::LoraArguments,
            roles::Roles,
        },
        reads::{ExampleUse, Reads},
        supervised::model::{Start, save, within_context},
        text::{
            encoder::TruncationMode,
            pairs::{Pair, Pairs, Side},
            source::DataSource,
        },
    },
};

/// Configuration of `salsa dpo`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DpoConfig {
    /// Checkpoint to start from, usually an SFT model.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub model_name_or_path: ModelPath,
    /// The frozen reference, e.g. a soup. None: the starting checkpoint itself, as in TRL.
    pub ref_model_name_or_path: Option<ModelPath>,
    /// Preference pairs: a chosen and a rejected response to the same prompt. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out pairs for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// The loss on `h`, the log-ratio of policy to reference of the chosen response minus that of the rejected one.
    /// TRL: sigmoid.
    #[schemars(extend("x-heading" = "Training"))]
    pub loss_type: DpoLoss,
    /// Strength of the pull towards the reference, above 0: beta of the DPO paper, tau of the IPO paper. TRL: 0.1.
    pub beta: f64,
    /// Share of labels assumed to be wrong, from 0 to below 0.5; used by `sigmoid` only. TRL: 0.
    pub label_smoothing: f64,
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
            loss_type: DpoLoss::Sigmoid,
            beta: 0.1,
            label_smoothing: 0.0,
            learning_rate: 1e-6,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

/// The loss on the difference of implicit rewards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DpoLoss {
    /// DPO: `-log sigmoid(beta * h)`.
    Sigmoid,
    /// IPO: `(h - 1 / (2 beta))^2`, with `h` per token.
    Ipo,
}

impl DpoConfig {
    fn objective(&self) -> dpo::Objective {
        let DpoConfig { beta, label_smoothing, .. } = *self;
        match self.loss_type {
            DpoLoss::Sigmoid => dpo::Objective::Sigmoid { beta, label_smoothing },
            DpoLoss::Ipo => dpo::Objective::Ipo { beta },
        }
    }
}

impl Stage for DpoConfig {
    const NAME: &'static str = "dpo";
    const ABOUT: &'static str = "Direct preference optimisation.";
    const EXAMPLE: &'static str = "--model sft-a --dataset pairs.jsonl --output_dir dpo --beta 0.1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("talk to it", "salsa chat --model OUT"),
        ("answer prompts", "salsa generate --model OUT --input PROMPTS --output FILE"),
    ];

    fn check(&self) -> anyhow::Result<()> {
        let DpoConfig { beta, label_smoothing, .. } = self;
        check_range("beta", *beta, f64::MIN_POSITIVE..=f64::MAX)?;
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

/// Trains against the configured reference.
///
/// # Errors
/// If the data or a model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &DpoConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let path = config.ref_model_name_or_path.as_ref().unwrap_or(&config.model_name_or_path);
    let reference = Found::open(path, Head::LanguageModel)?;
    let start = Start::open(&config.model_name_or_path, Head::LanguageModel, &config.training)?;
    let (vocab, reference_vocab) = (start.spec.vocab_size, reference.spec().vocab_size);
    ensure!(
        vocab == reference_vocab,
        "policy {} has {vocab} tokens, the reference {reference_vocab}: they must share a tokenizer",
        config.model_name_or_path.display()
    );
    let positions = start.spec.max_positions.min(reference.spec().max_positions);
    let max_length = within_context(config.max_length, positions, context);
    let config = &DpoConfig { max_length, ..config.clone() };
    let load = |source| Pairs::load(source, &start.encoder, config.max_length, config.truncation_mode, context);
    let data = load(&config.dataset)?;
    let eval = config.eval_dataset.as_ref().map(load).transpose()?;
    let left_out = data.too_long;
    let (data, eval) = (data.pairs, eval.map(|eval| eval.pairs));

    let job = Job {
        title: "dpo",
        output_dir: &config.output_dir,
        arguments: &config.training,
        learning_rate: config.learning_rate,
        batching: Batching::Examples(config.training.per_device_train_batch_size),
        num_train_epochs: config.num_train_epochs,
        fingerprint: fingerprint("dpo", config)?,
        context,
        stop: &|_| context.interrupted(),
    };
    let models = |knobs: &MemorySettings| {
        let mut roles = Roles::new(knobs.dtype);
        roles.frozen(&reference.checkpoint, Head::LanguageModel);
        roles.trained(&start.checkpoint, Head::LanguageModel, knobs.adapter.as_ref());
        roles.need()
    };
    let lengths = |pairs: &Vec<Pair>| pairs.iter().map(Pair::length).collect::<Vec<_>>();
    let lengths = Lengths { training: lengths(&data), evaluation: eval.as_ref().map(lengths).unwrap_or_default() };
    let adapter = start.adapter(&config.lora)?;
    let asked = reference.spec();
    job.check_memory(
        &start.spec,
        adapter,
        Some(Passed::new(&asked, reference.lora())),
        &models,
        &Batching::Examples,
        &lengths,
        Saving::TRAINING,
        context,
    )?;
    let mut bases = Bases::on(&context.device);
    let reference = &Frozen::load(reference, &mut bases)?.model;
    let mut model = start.load(&config.training, &config.lora, &mut bases)?;
    let against = |pairs| DirectPreference { pairs, reference, objective: config.objective() };
    let (data, eval) = (against(data), eval.map(against));
    let outcome = trainer::train(&job, &mut model, &data, eval.as_ref().map(|eval| eval as &dyn Objective))?;
    save(&config.output_dir, &start.checkpoint, &model, &[], &config.training, &outcome)?;
    Ok(json!({"training": outcome.to_json(), "left_out": left_out}))
}

/// The DPO objective: the policy raises the preferred response more over the reference than the rejected one.
///
/// ```text
/// h = (logp_chosen - ref_logp_chosen) - (logp_rejected - ref_logp_rejected)
/// logp: over the response's tokens, its end token included: their sum for DPO, their mean for IPO
/// ```
pub(crate) struct DirectPreference<'a> {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// The frozen reference.
    pub reference: &'a Model,
    /// The loss on the difference of the implicit rewards.
    pub objective: dpo::Objective,
}

impl Objective for DirectPreference<'_> {
    fn examples(&self) -> usize {
        self.pairs.len()
    }

    fn length(&self, example: usize) -> usize {
        self.pairs[example].length()
    }

    fn weight(&self, _example: usize) -> f64 {
        1.0
    }

    fn assemble(&self, examples: &[usize]) -> Pass {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for pair in examples.iter().map(|&example| &self.pairs[example]) {
            for side in [&pair.chosen, &pair.rejected] {
                let rows = batch.push(&side.tokens);
                query.push_logprobs(rows, &side.tokens, side.prompt);
            }
        }
        Pass { examples: examples.to_vec(), batch, query }
    }

    fn loss(&self, pass: &Pass, output: &Output, weight: f64) -> Loss {
        let reference = self.reference.forward(&pass.batch, &pass.query);
        let policy = self.responses(pass, &output.logprobs);
        let frozen = self.responses(pass, &reference.logprobs);
        let batch = dpo::Batch {
            chosen: &policy.chosen,
            rejected: &policy.rejected,
            ref_chosen: &frozen.chosen,
            ref_rejected: &frozen.rejected,
        };
        let loss = dpo::loss(&batch, self.objective, weight as usize);

        let (mut tally, count) = (Tally::new(), pass.examples.len() as f64);
        tally.mean("loss", loss.loss * weight, count);
        tally.mean("rewards/chosen", loss.rewards_chosen.iter().sum(), count);
        tally.mean("rewards/rejected", loss.rewards_rejected.iter().sum(), count);
        tally.mean("rewards/accuracies", loss.accuracy * weight, count);
        tally.mean("rewards/margins", loss.reward_margin * weight, count);
        tally.mean("logps/chosen", policy.chosen.iter().sum(), count);
        tally.mean("logps/rejected", policy.rejected.iter().sum(), count);

        let per_response =
            loss.d_chosen.iter().zip(&loss.d_rejected).flat_map(|(&chosen, &rejected)| [chosen, rejected]);
        let spread = |(side, gradient): (&Side, f64)| {
            std::iter::repeat_n((gradient * self.per_token(side)) as f32, side.response_length())
        };
        let d_logprobs = self.sides(pass).zip(per_response).flat_map(spread).collect();
        Loss { d_logprobs, d_values: Vec::new(), tally }
    }
}

/// One number per response of each pair.
struct Responses {
    chosen: Vec<f64>,
    rejected: Vec<f64>,
}

impl DirectPreference<'_> {
    /// The chosen and rejected sides of a pass, alternately, in batch order.
    fn sides<'s>(&'s self, pass: &'s Pass) -> impl Iterator<Item = &'s Side> {
        pass.examples.iter().map(|&example| &self.pairs[example]).flat_map(|pair| [&pair.chosen, &pair.rejected])
    }

    /// Weight of a token's log-probability in that of its response: IPO takes the mean, as in TRL, DPO the sum.
    fn per_token(&self, side: &Side) -> f64 {
        match self.objective {
            dpo::Objective::Sigmoid { .. } => 1.0,
            dpo::Objective::Ipo { .. } => 1.0 / side.response_length() as f64,
        }
    }

    /// Reduces log-probabilities of tokens to log-probabilities of responses.
    fn responses(&self, pass: &Pass, logprobs: &[f32]) -> Responses {
        let mut rest = logprobs;
        let mut totals = self.sides(pass).map(|side| {
            let (own, others) = rest.split_at(side.response_length());
            rest = others;
            own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>() * self.per_token(side)
        });
        let mut responses = Responses { chosen: Vec::new(), rejected: Vec::new() };
        while let (Some(chosen), Some(rejected)) = (totals.next(), totals.next()) {
            responses.chosen.push(chosen);
            responses.rejected.push(rejected);
        }
        responses
    }
}
