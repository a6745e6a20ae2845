//! Reward-model training: a language model with a scalar head, trained on which of two responses is preferred.
use std::path::PathBuf;

use anyhow::ensure;
use salsa_algo::{
    preference::bradley_terry::{self, Margins},
    stats::{Interval, Z95, wilson},
};
use salsa_engine::{Batch, Head, Model, Output, Query, comm::Comm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    arguments::TrainingArguments,
    order::Batching,
    tally::Tally,
    trainer::{self, Divisors, Job, Lengths, Loss, Objective, Pass},
};
use crate::{
    config::paths::ModelPath,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_range},
        kind::{Produces, Product, Stage},
        lifecycle::{fingerprint::fingerprint, resume::REMEDY},
        memory::{self, MemorySettings, Saving},
        models::{bases::Bases, lora::LoraArguments, score_token::say_where_peft_reads_scores},
        ranks,
        reads::{ExampleUse, ModelUse, Reads},
        supervised::model::{Start, save, within_context},
        text::{
            encoder::TruncationMode,
            pairs::{Pair, Pairs},
            source::DataSource,
        },
    },
};

/// Configuration of `salsa reward`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct RewardConfig {
    /// Checkpoint to start from, usually an SFT model; its language-model head is replaced by a new scalar head.
    #[schemars(extend("x-heading" = "Model and data"))]
    pub model_name_or_path: ModelPath,
    /// Preference pairs: a chosen and a rejected response to the same prompt. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out pairs for the reported accuracy. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the reward model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// Highest learning rate, at least 0. TRL: 1e-4.
    #[schemars(extend("x-heading" = "Training"))]
    pub learning_rate: f64,
    /// Passes over the pairs if `max_steps` is -1; fractions are allowed. TRL: 3.
    pub num_train_epochs: f64,
    /// Maximum length of prompt and response, in tokens; capped at the model's context. TRL: 1024.
    pub max_length: usize,
    /// What happens to longer ones. TRL: drop.
    pub truncation_mode: TruncationMode,
    /// Weight of `(score_chosen + score_rejected)^2`, at least 0, which keeps scores around 0; 0: off, 0.01 is usual.
    /// TRL: off.
    pub center_rewards_coefficient: f64,
    /// The keys of adapters.
    #[serde(flatten)]
    pub lora: LoraArguments,
    /// The keys that all training stages share.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Default for RewardConfig {
    fn default() -> RewardConfig {
        RewardConfig {
            model_name_or_path: ModelPath::new(),
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            learning_rate: 1e-4,
            num_train_epochs: 1.0,
            max_length: 1024,
            truncation_mode: TruncationMode::Drop,
            center_rewards_coefficient: 0.0,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl Stage for RewardConfig {
    const NAME: &'static str = "reward";
    const ABOUT: &'static str = "Train a reward model on preference pairs.";
    const EXAMPLE: &'static str = "--model sft-a --dataset pairs.jsonl --output_dir reward";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::RewardModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("score answers", "salsa score --model OUT --input ANSWERS --output FILE"),
        ("PPO by it", "salsa ppo --model SFT --reward_model OUT --dataset PROMPTS --output_dir DIR"),
    ];

    fn check(&self) -> anyhow::Result<()> {
        check_range("center_rewards_coefficient", self.center_rewards_coefficient, 0.0..=f64::MAX)?;
        self.lora.validate()?;
        self.training.validate(self.learning_rate, self.num_train_epochs)
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model_name_or_path), &self.training.chat)
            .template(&self.training.chat_template)
            .models("model_name_or_path", ModelUse::Any)
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

/// Trains a reward model and saves it as a `…ForSequenceClassification` checkpoint with the mean and standard deviation of
/// its scores.
///
/// # Errors
/// If the data or the model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &RewardConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let start = Start::open(&config.model_name_or_path, Head::Scalar, &config.training)?;
    if config.lora.use_peft {
        say_where_peft_reads_scores(&start.checkpoint, context);
    }
    let positions = start.spec.max_positions;
    let max_length = within_context(config.max_length, positions, context);
    let config = &RewardConfig { max_length, ..config.clone() };
    let load = |source| Pairs::load(source, &start.encoder, config.max_length, config.truncation_mode, context);
    let data = load(&config.dataset)?;
    let eval = config.eval_dataset.as_ref().map(load).transpose()?;
    let left_out = data.too_long;
    let ranking = |pairs: Pairs| PairRanking { pairs: pairs.pairs, centering: config.center_rewards_coefficient };
    let (data, eval) = (ranking(data), eval.map(ranking));

    let job = Job {
        title: "reward",
        output_dir: &config.output_dir,
        arguments: &config.training,
        learning_rate: config.learning_rate,
        batching: Batching::Examples(config.training.per_device_train_batch_size),
        num_train_epochs: config.num_train_epochs,
        fingerprint: fingerprint("reward", config)?,
        context,
        stop: &|_| context.interrupted(),
    };
    // Score statistics are computed on the evaluation pairs or, without any, on the training pairs.
    let held_out = eval.as_ref().unwrap_or(&data);
    let mut lengths = Lengths::of(&data, Some(held_out));
    lengths.evaluation.truncate(if eval.is_some() { usize::MAX } else { SCORED_PAIRS });
    let models = |knobs: &MemorySettings| memory::one_model(&start.spec, start.checkpoint.embedding_is_bf16(), knobs);
    job.check_memory(
        &start.spec,
        start.adapter(&config.lora)?,
        None,
        &models,
        &Batching::Examples,
        &lengths,
        Saving::TRAINING,
        context,
    )?;
    let mut model = start.load(&config.training, &config.lora, &mut Bases::on(&context.device))?;
    let outcome = trainer::train(&job, &mut model, &data, eval.as_ref().map(|eval| eval as &dyn Objective))?;

    let (mean, std) =
        score_mean_and_std(&model, held_out, config.training.per_device_eval_batch_size, &*context.ranks)?;
    ensure!((mean + std).is_finite(), "the scores of the trained model are not finite; {REMEDY}");
    if context.is_first() {
        let normalization = [("score_mean", json!(mean)), ("score_std", json!(std))];
        save(&config.output_dir, &start.checkpoint, &model, &normalization, &config.training, &outcome)?;
    }
    let accuracy = outcome.eval.get("accuracy");
    Ok(json!({
        "eval_accuracy": accuracy,
        "eval_longer_wins_accuracy": eval.as_ref().map(PairRanking::longer_wins_accuracy),
        "left_out": left_out,
        "eval_pairs": eval.as_ref().map(|eval| eval.pairs.len()),
        "eval_accuracy_ci95": accuracy.map(|accuracy| interval(accuracy, eval.as_ref().map_or(0, |eval| eval.pairs.len()))),
        "training": outcome.to_json(),
        "score_mean": mean,
        "score_std": std,
    }))
}

/// The 95 % Wilson interval of a share of so many pairs.
fn interval(share: f64, pairs: usize) -> [f64; 2] {
    let Interval { low, high } = wilson((share * pairs as f64).clamp(0.0, pairs as f64), pairs, Z95);
    [low, high]
}

/// Bradley–Terry: the preferred response should get the higher score.
///
/// The score is the scalar at the last token of prompt and response, located by length, not by token id.
pub(crate) struct PairRanking {
    /// The pairs.
    pub pairs: Vec<Pair>,
    /// Weight of the squared sum of both scores.
    pub centering: f64,
}

impl PairRanking {
    /// Accuracy of the rule "the longer response wins" on the pairs; ties count half.
    pub(crate) fn longer_wins_accuracy(&self) -> f64 {
        self.pairs.iter().map(|pair| pair.longer_wins).sum::<f64>() / self.pairs.len() as f64
    }
}

impl Objective for PairRanking {
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
                query.value_rows.push((rows.end - 1) as u32);
            }
        }
        Pass { examples: examples.to_vec(), batch, query, beside: None }
    }

    fn loss(&self, pass: &Pass, output: &Output, step: Divisors) -> Loss {
        let weight = step.weight;
        let (chosen, rejected): (Vec<f64>, Vec<f64>) =
            output.values.chunks_exact(2).map(|pair| (f64::from(pair[0]), f64::from(pair[1]))).unzip();
        let margins: Vec<f64> = pass.examples.iter().map(|&example| self.pairs[example].margin).collect();
        let loss = bradley_terry::loss(&chosen, &rejected, Margins::Each(&margins), self.centering, weight as usize);

        let (mut tally, count) = (Tally::new(), chosen.len() as f64);
        tally.mean("loss", loss.loss * weight, count);
        tally.mean("accuracy", loss.accuracy * weight, count);
        tally.mean("margin", loss.score_gap * weight, count);
        tally.mean("mean_reward", chosen.iter().chain(&rejected).sum(), 2.0 * count);
        chosen.iter().chain(&rejected).for_each(|&score| {
            tally.min("min_reward", score);
            tally.max("max_reward", score);
        });
        let gradient = loss.d_chosen.iter().zip(&loss.d_rejected).flat_map(|(&c, &r)| [c as f32, r as f32]);
        Loss { d_logprobs: Vec::new(), d_values: gradient.collect(), tally }
    }
}

/// Mean and standard deviation of the scores of both responses of (at most [`SCORED_PAIRS`]) pairs, whose passes are
/// dealt to the processes.
///
/// # Errors
/// If the processes cannot exchange bytes.
fn score_mean_and_std(
    model: &Model,
    data: &PairRanking,
    batch_size: usize,
    ranks: &dyn Comm,
) -> anyhow::Result<(f64, f64)> {
    let examples: Vec<usize> = (0..data.pairs.len().min(SCORED_PAIRS)).collect();
    let passes: Vec<&[usize]> = examples.chunks(batch_size).collect();
    let scores = |examples: &&[usize]| {
        let pass = data.assemble(examples);
        model.forward(&pass.batch, &pass.query).values
    };
    let own = ranks::part(&passes, ranks.rank(), ranks.size()).iter().flat_map(scores).map(f64::from).collect();
    let scores = ranks::concat(ranks, own)?;
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
    Ok((mean, variance.sqrt()))
}

/// Enough pairs to know the mean to a few hundredths of a standard deviation.
const SCORED_PAIRS: usize = 1000;
