//! `salsa logprobs`: the log-probability a model gives to every token of given sequences.
use std::path::PathBuf;

use salsa_engine::{Batch, Head, Query};
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
        models::frozen::Found,
        reads::{Reads, RowUse},
        text::{
            chat_arguments::ChatArguments,
            overlong::Overlong,
            rows::{self, Rows},
        },
    },
};

/// What `salsa logprobs` can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LogprobsConfig {
    /// Language-model checkpoint whose log-probabilities are wanted.
    #[schemars(extend("x-heading" = "Model and files"))]
    pub model: ModelPath,
    /// JSON lines with `tokens`, `prompt` and `response`, `messages`, or `text`.
    pub input: DataPath,
    /// File of the same lines with `tokens` and `logprobs`.
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

impl Default for LogprobsConfig {
    fn default() -> LogprobsConfig {
        LogprobsConfig {
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

impl LogprobsConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value makes no sense.
    pub fn validate(&self) -> anyhow::Result<()> {
        check_count("max_tokens_per_batch", *self.max_tokens_per_batch as u64, u64::MAX)
    }
}

impl Stage for LogprobsConfig {
    const NAME: &'static str = "logprobs";
    const ABOUT: &'static str = "Log-probabilities of the tokens of every input line.";
    const EXAMPLE: &'static str = "--model sft-a --input answers.jsonl --output logprobs.jsonl";
    const PRODUCT: Product = Product::File("logprobs.jsonl");
    const LEAVES: Leaves = Leaves::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[];

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &self.chat).tokenizer_if_any().rows(
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

/// Writes, for every input line, `logprobs[i] = log p(tokens[i+1] | tokens[..=i])`.
///
/// # Errors
/// If the model cannot be used, or a line (which is named) cannot.
pub fn run(config: &LogprobsConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let found = Found::open(&config.model, Head::LanguageModel)?.with_chat(&config.chat);
    let (mut rows, spec) = (Rows::read(&config.input)?, found.spec());
    rows.say_how_read(found.encoder.as_ref(), context);
    let (sequences, left_out) =
        config.on_overlong.retain(&mut rows, context, |row| row.sequence(found.encoder.as_ref(), &spec))?;
    found.check_memory_of_passes("logprobs", &[&sequences], *config.max_tokens_per_batch, context)?;
    let model = found.load()?.model;

    let progress = Progress::new("logprobs", sequences.iter().map(|tokens| tokens.len() as u64).sum(), "tok");
    let (mut logprobs, mut done) = (Vec::with_capacity(sequences.len()), 0);
    for sequences in rows::batches(&sequences, *config.max_tokens_per_batch) {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for tokens in sequences {
            let rows = batch.push(tokens);
            query.push_logprobs(rows, tokens, 1);
        }
        let output = model.forward(&batch, &query);
        let mut rest = output.logprobs.as_slice();
        for tokens in sequences {
            let (own, others) = rest.split_at(tokens.len() - 1);
            logprobs.push(own.to_vec());
            rest = others;
        }
        done += batch.rows() as u64;
        progress.set(done);
    }
    rows.check_finite("log-probability", logprobs.iter().map(Vec::as_slice))?;
    let total: f64 = logprobs.iter().flatten().map(|&logprob| f64::from(logprob)).sum();
    let count = logprobs.iter().map(Vec::len).sum::<usize>();

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
    progress.finish("");
    let mean = (count > 0).then(|| total / count as f64);
    Ok(json!({"rows": sequences.len(), "left_out": left_out, "tokens": count, "mean_logprob": mean}))
}
