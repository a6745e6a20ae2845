//! `salsa score`: the score a reward model gives to every response.
use std::path::PathBuf;

use salsa_engine::Head;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    config::paths::{DataPath, ModelPath},
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Stage},
        models::{
            frozen::{Found, Frozen},
            reading::{ReadingArguments, scores},
            score_token::say_where_scores_are_read,
        },
        reads::{ModelUse, Reads, RowUse},
        text::rows::{self, Rows},
    },
};

/// Configuration of `salsa score`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ScoreConfig {
    /// Reward-model checkpoint that scores.
    #[schemars(extend("x-heading" = "Model and files"))]
    pub model: ModelPath,
    /// JSON lines with `tokens`, `prompt` and `response`, `messages`, or `text`.
    pub input: DataPath,
    /// File of the same lines with `score` and, if the model stores its score statistics, `score_normalized`.
    pub output: PathBuf,
    /// How rows are read.
    #[serde(flatten)]
    pub reading: ReadingArguments,
}

impl Stage for ScoreConfig {
    const NAME: &'static str = "score";
    const ABOUT: &'static str = "Reward-model score of every input line.";
    const EXAMPLE: &'static str = "--model reward --input answers.jsonl --output scores.jsonl";
    const PRODUCT: Product = Product::File("scores.jsonl");
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        self.reading.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &self.reading.chat)
            .tokenizer_if_any()
            .models("model", ModelUse::Reward)
            .rows("input", &self.input, RowUse::Sequence)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some(self.reading.computes())
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes the score of every input line: the scalar at its last token, even if that is no end token.
///
/// Lines of `tokens` are scored unchanged; to a response given as text or messages the end token is appended, unless
/// its `finish_reason` is `length`. If the checkpoint stores the mean and standard deviation of its scores,
/// `score_normalized` is written too.
///
/// # Errors
/// If the model or a line (which is named) cannot be used.
pub(crate) fn run(config: &ScoreConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let found = Found::open(&config.model, Head::Scalar)?.with_chat(&config.reading.chat);
    say_where_scores_are_read(&found.checkpoint, found.encoder.as_ref(), context);
    let (mut rows, spec) = (Rows::read(&config.input)?, found.spec());
    rows.report_reading(found.encoder.as_ref(), context);
    let (sequences, left_out) =
        config.reading.on_overlong.retain(&mut rows, context, |row| row.sequence(found.encoder.as_ref(), &spec))?;
    found.check_memory_of_passes("score", &[&sequences], *config.reading.max_tokens_per_batch, context)?;
    let Frozen { checkpoint, model, .. } = found.load(&context.device)?;
    let scores = scores("score", &model, &sequences, *config.reading.max_tokens_per_batch, context)?;

    rows.check_finite("score", scores.iter().map(std::slice::from_ref))?;
    let normalization = checkpoint.score_normalization();
    if context.is_first() {
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
    }
    let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
    Ok(json!({"rows": scores.len(), "left_out": left_out, "mean_score": mean}))
}
