//! `salsa generate`: responses of a model to every prompt of a file.
use std::path::PathBuf;

use anyhow::{Context, ensure};
use salsa_engine::{Finish, Head, Prompt, Response, Sampling};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    config::paths::{DataPath, ModelPath, NoEffect},
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count},
        kind::{Produces, Product, Stage},
        memory::{MemorySettings, Need, Order, Passed, Passes, Responses, Saving, part},
        models::frozen::{Found, Frozen},
        ranks,
        reads::{Reads, RowUse},
        rollout::ending,
        text::{
            chat_arguments::ChatArguments,
            encoder::Encoder,
            overlong::{Overlong, TooLong},
            rows::{self, Rows},
        },
    },
};

/// Configuration of `salsa generate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GenerateConfig {
    /// Language-model checkpoint that answers.
    #[schemars(extend("x-heading" = "Model and files"))]
    pub model: ModelPath,
    /// JSON lines with `tokens`, `prompt`, `messages` (without a final assistant message) or another layout that has a
    /// prompt.
    pub input: DataPath,
    /// File of the same lines with `tokens` (prompt and response), `response`, `logprobs` and `finish_reason`.
    pub output: PathBuf,
    /// What happens to a prompt that exceeds the model's context together with `max_new_tokens`.
    pub on_overlong: Overlong,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Most tokens of a response, its end token included; at least 1.
    #[schemars(extend("x-heading" = "Sampling"))]
    pub max_new_tokens: usize,
    /// Divides the logits, 0 or above; 0 always takes the most likely token.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Sample among the most likely tokens that together have this probability, above 0; 1: among all.
    #[serde(serialize_with = "crate::config::shortest")]
    pub top_p: f32,
    /// Sample among this many most likely tokens; 0: among all.
    pub top_k: usize,
    /// Responses per prompt, at least 1, written consecutively.
    pub num_return_sequences: u32,
    /// Seed of the sampling: a response depends only on it, the index of its prompt and the index of the sample.
    pub seed: u64,
    /// Sequences decoded at once, at least 1; affects memory and speed only.
    pub batch_size: NoEffect<usize>,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
}

impl Default for GenerateConfig {
    fn default() -> GenerateConfig {
        GenerateConfig {
            model: ModelPath::new(),
            input: DataPath::new(),
            output: PathBuf::new(),
            on_overlong: Overlong::Drop,
            chat: ChatArguments::default(),
            max_new_tokens: 128,
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            num_return_sequences: 1,
            seed: 0,
            batch_size: NoEffect(64),
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
        }
    }
}

impl Stage for GenerateConfig {
    const NAME: &'static str = "generate";
    const ABOUT: &'static str = "Responses of a model to every prompt of a file.";
    const EXAMPLE: &'static str = "--model sft-a --input prompts.jsonl --output answers.jsonl --temperature 0";
    const PRODUCT: Product = Product::File("responses.jsonl");
    const PRODUCES: Produces = Produces::Data;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("score them", "salsa score --model REWARD --input OUT --output FILE"),
        ("compare them", "salsa eval winrate --answers OUT --baseline OTHER --reward_model REWARD"),
    ];

    fn check(&self) -> anyhow::Result<()> {
        check_count("max_new_tokens", self.max_new_tokens as u64, MOST_TOKENS)?;
        check_count("batch_size", *self.batch_size as u64, MOST_SEQUENCES)?;
        check_count("num_return_sequences", self.num_return_sequences.into(), MOST_SEQUENCES)?;
        ensure!(
            self.temperature >= 0.0 && self.temperature.is_finite(),
            "temperature is {}; it must be 0 or above",
            self.temperature
        );
        ensure!(self.top_p > 0.0 && self.top_p <= 1.0, "top_p is {}; it must be above 0 and at most 1", self.top_p);
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model), &self.chat).tokenizer_if_any().rows("input", &self.input, RowUse::Prompt)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.device, self.dtype))
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Generates one or several responses for every input line.
///
/// # Errors
/// If the model or a line (which is named) cannot be used, e.g. if prompt and response would exceed the context.
pub(crate) fn run(config: &GenerateConfig, stage: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let found = Found::open(&config.model, Head::LanguageModel)?.with_chat(&config.chat);
    let (mut rows, spec) = (Rows::read(&config.input)?, found.spec());
    rows.report_reading(found.encoder.as_ref(), stage);
    let context = spec.max_positions;
    let (prompts, left_out) = config.on_overlong.retain(&mut rows, stage, |row| {
        let tokens = row.prompt_tokens(found.encoder.as_ref(), &spec)?;
        let (length, new) = (tokens.len(), config.max_new_tokens);
        ensure!(
            length + new <= context,
            TooLong(format!(
                "prompt of {length} tokens and max_new_tokens {new} exceed the model's context of {context}; lower \
                 max_new_tokens"
            ))
        );
        Ok(tokens)
    })?;

    let responses = prompts.len() * config.num_return_sequences as usize;
    let asked = Responses::new(&prompts, config.max_new_tokens, Order::Given);
    let generation = |model: Passed<'_>, knobs: &MemorySettings, need: &mut Need| {
        let passes = Passes::new(knobs);
        // Samples of one prompt share one prefill; besides whole groups, two partial ones may start together.
        let distinct = (knobs.slots / config.num_return_sequences as usize + 2).min(knobs.slots).min(prompts.len());
        asked.add_generation(model, knobs.slots, distinct, &passes);
        need.add(part::GENERATION, passes.bytes() + asked.kept(config.num_return_sequences.into()));
    };
    let knobs = MemorySettings { slots: (*config.batch_size).min(responses), ..MemorySettings::on(&stage.device) };
    found.check_memory("generate", &knobs, &[Saving::Slots("batch_size"), Saving::Dtype], &generation, stage)?;
    let Frozen { checkpoint, encoder, model } = found.load(&stage.device)?;

    let asked: Vec<Prompt> = (rows.rows.iter().zip(&prompts))
        .flat_map(|(row, tokens)| (0..config.num_return_sequences).map(move |sample| (row, tokens, sample)))
        .map(|(row, tokens, sample)| Prompt { tokens: tokens.clone(), id: row.index as u64, sample })
        .collect();
    let sampling = Sampling {
        temperature: config.temperature,
        top_k: config.top_k,
        top_p: config.top_p,
        seed: config.seed,
        max_new_tokens: config.max_new_tokens,
        stop_tokens: checkpoint.tokens.eos.clone(),
        slots: *config.batch_size,
    };
    let progress = stage.progress("generate", asked.len() as u64, "responses");
    // Each process has about as many responses as the first.
    let show = &mut |finished| progress.set(asked.len().min(finished * stage.ranks.size()) as u64);
    let responses = ranks::generate(&model, &asked, &sampling, &*stage.ranks, show)?;

    let tokens: usize = responses.iter().map(|response| response.tokens.len()).sum();
    let stopped = responses.iter().filter(|response| response.finish == Finish::Stop).count();
    let mut answers = Vec::with_capacity(asked.len());
    let samples = config.num_return_sequences as usize;
    let of_rows = rows.rows.iter().flat_map(|row| std::iter::repeat_n(row, samples));
    for (row, (prompt, response)) in of_rows.zip(asked.iter().zip(&responses)) {
        rows::check_finite("log-probability", &response.logprobs).with_context(|| rows.place(row))?;
        answers.push(answer(&row.object, prompt, response, encoder.as_ref())?);
    }
    if stage.is_first() {
        rows::write(&config.output, answers.into_iter())?;
    }
    progress.finish(&format!("{tokens} tokens"));
    Ok(json!({
        "responses": responses.len(),
        "left_out": left_out,
        "mean_length": tokens as f64 / responses.len() as f64,
        "finished_share": stopped as f64 / responses.len() as f64,
    }))
}

/// The input line with the response added.
fn answer(
    row: &Map<String, Value>,
    prompt: &Prompt,
    response: &Response,
    encoder: Option<&Encoder>,
) -> anyhow::Result<Map<String, Value>> {
    let mut object = row.clone();
    object.insert("tokens".to_owned(), json!([prompt.tokens.as_slice(), &response.tokens].concat()));
    if let Some(encoder) = encoder {
        object.insert("response".to_owned(), json!(encoder.decode(&response.tokens)?));
    }
    object.insert("logprobs".to_owned(), json!(response.logprobs));
    object.insert(rows::FINISH_REASON.to_owned(), json!(rows::finish_reason(ending(response.finish))));
    Ok(object)
}
