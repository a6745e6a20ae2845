//! `salsa logprobs`: the log-probability of every token of given sequences under a model.
use std::path::PathBuf;

use salsa_engine::{Batch, Head, Query};
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
        models::{frozen::Found, reading::ReadingArguments},
        ranks,
        reads::{Reads, RowUse},
        text::rows::{self, Rows},
    },
};

/// Configuration of `salsa logprobs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogprobsConfig {
    /// Language-model checkpoint that computes the log-probabilities.
    #[schemars(extend("x-heading" = "Model and files"))]
    pub model: ModelPath,
    /// JSON lines with `tokens`, `prompt` and `response`, `messages`, or `text`.
    pub input: DataPath,
    /// File of the same lines with `tokens` and `logprobs`.
    pub output: PathBuf,
    /// How rows are read.
    #[serde(flatten)]
    pub reading: ReadingArguments,
}

impl Stage for LogprobsConfig {
    const NAME: &'static str = "logprobs";
    const ABOUT: &'static str = "Log-probabilities of the tokens of every input line.";
    const EXAMPLE: &'static str = "--model sft-a --input answers.jsonl --output logprobs.jsonl";
    const PRODUCT: Product = Product::File("logprobs.jsonl");
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        self.reading.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &self.reading.chat).tokenizer_if_any().rows(
            "input",
            &self.input,
            RowUse::Sequence,
        )
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some(self.reading.computes())
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes, for every input line, `logprobs[i] = log p(tokens[i+1] | tokens[..=i])`.
///
/// # Errors
/// If the model or a line (which is named) cannot be used.
pub(crate) fn run(config: &LogprobsConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let found = Found::open(&config.model, Head::LanguageModel)?.with_chat(&config.reading.chat);
    let (mut rows, spec) = (Rows::read(&config.input)?, found.spec());
    rows.report_reading(found.encoder.as_ref(), context);
    let (sequences, left_out) =
        config.reading.on_overlong.retain(&mut rows, context, |row| row.sequence(found.encoder.as_ref(), &spec))?;
    found.check_memory_of_passes("logprobs", &[&sequences], *config.reading.max_tokens_per_batch, context)?;
    let model = found.load(&context.device)?.model;

    let progress = context.progress("logprobs", sequences.iter().map(|tokens| tokens.len() as u64).sum::<u64>(), "tok");
    let (mut own, mut done) = (Vec::new(), 0);
    let batches: Vec<&[Vec<u32>]> = rows::batches(&sequences, *config.reading.max_tokens_per_batch);
    for sequences in ranks::part(&batches, context.ranks.rank(), context.ranks.size()) {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for tokens in *sequences {
            let rows = batch.push(tokens);
            query.push_logprobs(rows, tokens, 1);
        }
        own.extend(model.forward(&batch, &query).logprobs.into_iter().map(f64::from));
        done += batch.rows() as u64;
        progress.set(done);
    }
    let all: Vec<f32> = ranks::concat(&*context.ranks, own)?.into_iter().map(|logprob| logprob as f32).collect();
    let (mut rest, mut logprobs) = (all.as_slice(), Vec::with_capacity(sequences.len()));
    for tokens in &sequences {
        let (own, others) = rest.split_at(tokens.len() - 1);
        logprobs.push(own.to_vec());
        rest = others;
    }
    rows.check_finite("log-probability", logprobs.iter().map(Vec::as_slice))?;
    let total: f64 = logprobs.iter().flatten().map(|&logprob| f64::from(logprob)).sum();
    let count = logprobs.iter().map(Vec::len).sum::<usize>();

    if context.is_first() {
        let answers = sequences.iter().zip(&logprobs);
        rows::write(
            &config.output,
            rows.rows.iter().zip(answers).map(|(row, (tokens, logprobs))| {
                let mut object = row.object.clone();
                object.insert("tokens".to_owned(), json!(tokens));
                object.insert("logprobs".to_owned(), json!(logprobs));
                object
            }),
        )?;
    }
    progress.finish("");
    let mean = (count > 0).then(|| total / count as f64);
    Ok(json!({"rows": sequences.len(), "left_out": left_out, "tokens": count, "mean_logprob": mean}))
}
