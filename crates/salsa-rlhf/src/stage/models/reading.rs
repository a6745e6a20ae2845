//! Shared keys of the stages in which a frozen model reads given sequences (`score`, `logprobs`, `winrate`), and
//! scoring.
use salsa_engine::{Batch, Model, Query};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::paths::NoEffect,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_count},
        ranks,
        text::{chat_arguments::ChatArguments, overlong::Overlong, rows},
    },
};

/// How rows are encoded and batched.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ReadingArguments {
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// What happens to a row that exceeds the model's context. `winrate` also omits the other answer to the same
    /// prompt.
    pub on_overlong: Overlong,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    #[schemars(extend("x-heading" = "Computation"))]
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Maximum number of tokens per forward pass, at least 1; affects memory only.
    pub max_tokens_per_batch: NoEffect<usize>,
}

impl Default for ReadingArguments {
    fn default() -> ReadingArguments {
        ReadingArguments {
            chat: ChatArguments::default(),
            on_overlong: Overlong::Drop,
            dtype: ComputeType::Float32,
            device: DeviceChoice::Auto,
            max_tokens_per_batch: NoEffect(8192),
        }
    }
}

impl ReadingArguments {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value is invalid.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_count("max_tokens_per_batch", *self.max_tokens_per_batch as u64, u64::MAX)
    }

    /// Device and number type.
    pub fn computes(&self) -> (DeviceChoice, ComputeType) {
        (self.device, self.dtype)
    }
}

/// Scores of whole sequences, in order, with a progress bar of the given title. Passes are dealt to the processes.
///
/// # Errors
/// If the processes cannot exchange bytes.
pub(crate) fn scores(
    title: &str,
    model: &Model,
    sequences: &[Vec<u32>],
    max_tokens_per_batch: usize,
    context: &StageContext,
) -> anyhow::Result<Vec<f32>> {
    let progress = context.progress(title, sequences.iter().map(|tokens| tokens.len() as u64).sum(), "tok");
    let (mut own, mut done) = (Vec::with_capacity(sequences.len()), 0);
    let batches: Vec<&[Vec<u32>]> = rows::batches(sequences, max_tokens_per_batch);
    for sequences in ranks::part(&batches, context.ranks.rank(), context.ranks.size()) {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for tokens in *sequences {
            let rows = batch.push(tokens);
            query.value_rows.push((rows.end - 1) as u32);
        }
        own.extend(model.forward(&batch, &query).values.into_iter().map(f64::from));
        done += batch.rows() as u64;
        progress.set(done);
    }
    let scores = ranks::concat(&*context.ranks, own)?;
    progress.finish("");
    Ok(scores.into_iter().map(|score| score as f32).collect())
}
