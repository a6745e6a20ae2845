//! `salsa score`: the score a reward model gives to every response.
use std::path::PathBuf;

use salsa_engine::{Batch, Head, Model, Query};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::paths::{DataPath, ModelPath, NoEffect},
    progress::Progress,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_count},
        kind::{Leaves, Product, Stage},
        models::{
            frozen::{Found, Frozen},
            score_token::say_where_scores_are_read,
        },
        reads::{ModelUse, Reads, RowUse},
        text::{
            chat_arguments::ChatArguments,
            overlong::Overlong,
            rows::{self, Rows},
        },
    },
};

/// What `salsa score` can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScoreConfig {
    /// Reward-model checkpoint that scores.
    #[schemars(extend("x-heading" = "Model and files"))]
    pub model: ModelPath,
    /// JSON lines with `tokens`, `prompt` and `response`, `messages`, or `text`.
    pub input: DataPath,
    /// File of the same lines with `score` and, where the model knows how, `score_normalized`.
    pub output: PathBuf,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// What happens to a row that is longer than the model's context.
    pub on_overlong: Overlong,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    #[schemars(extend("x-heading" = "Computation"))]
    pub dtype: ComputeType,
    /// Where it is computed; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Most tokens per forward pass, at least 1; changes no number, only memory.
    pub max_tokens_per_batch: NoEffect<usize>,
}

impl Default for ScoreConfig {
    fn default() -> ScoreConfig {
        ScoreConfig {
            model: ModelPath::new(),
            input: DataPath::new(),
            output: PathBuf::new(),
            on_overlong: Overlong::Drop,
            chat: ChatArguments::default(),
            dtype: ComputeType::Float32,
            device: DeviceChoice::Auto,
            max_tokens_per_batch: NoEffect(8192),
        }
    }
}

impl ScoreConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value makes no sense.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_count("max_tokens_per_batch", *self.max_tokens_per_batch as u64, u64::MAX)
    }
}

impl Stage for ScoreConfig {
    const NAME: &'static str = "score";
    const ABOUT: &'static str = "Reward-model score of every input line.";
    const EXAMPLE: &'static str = "--model reward --input answers.jsonl --output scores.jsonl";
    const PRODUCT: Product = Product::File("scores.jsonl");
    const LEAVES: Leaves = Leaves::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &self.chat).tokenizer_if_any().models("model", ModelUse::Reward).rows(
            "input",
            &self.input,
            RowUse::Sequence,
        )
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.device, self.dtype))
    }

    fn plans_memory(&self) -> bool {
        true
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes the score of every input line: the scalar at its last token, whichever token that is.
///
/// Lines of `tokens` are scored as they are; a response given as text or messages gets its end token first, unless its
/// `finish_reason` is `length`. If the checkpoint knows the mean and standard deviation of its scores, `score_normalized` is written too.
///
/// # Errors
/// If the model cannot be used, or a line (which is named) cannot.
pub fn run(config: &ScoreConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let found = Found::open(&config.model, Head::Scalar)?.with_chat(&config.chat);
    say_where_scores_are_read(&found.checkpoint, found.encoder.as_ref(), context);
    let (mut rows, spec) = (Rows::read(&config.input)?, found.spec());
    rows.say_how_read(found.encoder.as_ref(), context);
    let (sequences, left_out) =
        config.on_overlong.retain(&mut rows, context, |row| row.sequence(found.encoder.as_ref(), &spec))?;
    found.check_memory_of_passes("score", &[&sequences], *config.max_tokens_per_batch, context)?;
    let Frozen { checkpoint, model, .. } = found.load()?;
    let scores = scores("score", &model, &sequences, *config.max_tokens_per_batch);

    rows.check_finite("score", scores.iter().map(std::slice::from_ref))?;
    let normalization = checkpoint.score_normalization();
    rows::write(
        &config.output,
        rows.rows.iter().zip(&scores).map(|(row, &score)| {
            let mut object = row.object.clone();
            object.insert("score".to_owned(), json!(score));
            if let Some((mean, std)) = normalization {
                object.insert("score_normalized".to_owned(), json!((f64::from(score) - mean) / std));
            }
            object
        }),
    )?;
    let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
    Ok(json!({"rows": scores.len(), "left_out": left_out, "mean_score": mean}))
}

/// Scores of whole sequences, in order, with a progress bar of the given title.
pub fn scores(title: &str, model: &Model, sequences: &[Vec<u32>], max_tokens_per_batch: usize) -> Vec<f32> {
    let progress = Progress::new(title, sequences.iter().map(|tokens| tokens.len() as u64).sum(), "tok");
    let (mut scores, mut done) = (Vec::with_capacity(sequences.len()), 0);
    for sequences in rows::batches(sequences, max_tokens_per_batch) {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for tokens in sequences {
            let rows = batch.push(tokens);
            query.value_rows.push((rows.end - 1) as u32);
        }
        scores.extend(model.forward(&batch, &query).values);
        done += batch.rows() as u64;
        progress.set(done);
    }
    progress.finish("");
    scores
}
