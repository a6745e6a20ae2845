//! A checkpoint on this machine as the judge: its text, or the probability of its first token.
use anyhow::Context;
use salsa_engine::{Batch, Finish, Head, Prompt, Query, Sampling};

use super::super::{
    call::{Answer, Call, Failure, FailureKind, Reply, Settings, Usage},
    generating,
};
use crate::{
    chat::Message,
    config::paths::ModelPath,
    data::Content,
    stage::{
        StageContext,
        models::frozen::{Found, Frozen},
        text::{chat_arguments::ChatArguments, encoder::Encoder},
    },
};

/// Seed of a sampling judge.
const SEED: u64 = 0;

/// The opened judge, before its weights are read.
pub(in super::super) struct LocalJudge {
    found: Found,
    slots: usize,
}

impl LocalJudge {
    /// Opens the checkpoint.
    ///
    /// # Errors
    /// If it is no checkpoint, or has no tokenizer.
    pub(crate) fn open(path: &ModelPath, chat: &ChatArguments, slots: usize) -> anyhow::Result<LocalJudge> {
        let found = Found::open(path, Head::LanguageModel)?.with_chat(chat);
        found.encoder.as_ref().with_context(|| format!("{} holds no tokenizer.json", path.display()))?;
        Ok(LocalJudge { found, slots })
    }

    /// Fails if memory does not suffice.
    ///
    /// # Errors
    /// As [`Found::check_memory`].
    pub(crate) fn check_memory(
        &self,
        calls: &[&Call],
        settings: &Settings,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let fitting = calls.iter().filter_map(|call| self.tokens(call, settings).ok());
        let tokens: Vec<Vec<u32>> = fitting.collect();
        if tokens.is_empty() {
            return Ok(());
        }
        generating::check_memory(&self.found, "judge", &tokens, settings.max_tokens, self.slots, context)
    }

    /// Makes all calls in batches, and passes each answer to `take`.
    ///
    /// # Errors
    /// If a weight cannot be read or is not finite, and the errors of `take`.
    pub(crate) fn ask(
        self,
        calls: &[&Call],
        settings: &Settings,
        take: &mut dyn FnMut(usize, Answer) -> anyhow::Result<()>,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let read: Vec<Result<Vec<u32>, Failure>> = calls.iter().map(|call| self.tokens(call, settings)).collect();
        let slots = self.slots;
        let loaded = self.found.load(&context.device)?;
        for (start, part) in read.chunks(2 * slots).enumerate().map(|(part, chunk)| (part * 2 * slots, chunk)) {
            if context.interrupted() {
                break;
            }
            let asked: Vec<(usize, &Vec<u32>)> =
                part.iter().enumerate().filter_map(|(i, tokens)| Some((start + i, tokens.as_ref().ok()?))).collect();
            for (i, tokens) in part.iter().enumerate() {
                if let Err(failure) = tokens {
                    take(start + i, Err(failure.clone()))?;
                }
            }
            let answers = match settings.top_logprobs {
                0 => texts(&loaded, &asked, settings, slots)?,
                _ => probabilities(&loaded, calls, &asked)?,
            };
            for ((number, _), answer) in asked.iter().zip(answers) {
                take(*number, answer)?;
            }
        }
        Ok(())
    }

    fn tokens(&self, call: &Call, settings: &Settings) -> Result<Vec<u32>, Failure> {
        let encoder = self.encoder();
        let refused = |error: anyhow::Error| Failure::new(FailureKind::BadRequest, format!("{error:#}"));
        let tokens = encoder.prompt(&content(encoder, &call.messages)).map_err(refused)?;
        let (length, room) = (tokens.len(), self.found.spec().max_positions);
        if length + settings.max_tokens > room {
            return Err(Failure::new(
                FailureKind::TooLong,
                format!(
                    "prompt of {length} tokens and max_tokens {} exceed the judge's context of {room}; lower max_tokens, or \
                     take a judge with a longer context",
                    settings.max_tokens
                ),
            ));
        }
        Ok(tokens)
    }

    fn encoder(&self) -> &Encoder {
        self.found.encoder.as_ref().expect("it was looked for when the judge was opened")
    }
}

/// Messages for the chat template; without a template, their texts, separated by blank lines.
fn content(encoder: &Encoder, messages: &[Message]) -> Content {
    match encoder.has_template() {
        true => messages.to_vec().into(),
        false => {
            Content::Text(messages.iter().map(|message| message.content.as_str()).collect::<Vec<_>>().join("\n\n"))
        }
    }
}

/// The judge's texts.
fn texts(
    loaded: &Frozen,
    asked: &[(usize, &Vec<u32>)],
    settings: &Settings,
    slots: usize,
) -> anyhow::Result<Vec<Answer>> {
    let encoder = loaded.encoder.as_ref().context("the judge has no tokenizer")?;
    let prompt =
        |(number, tokens): &(usize, &Vec<u32>)| Prompt { tokens: tokens.to_vec(), id: *number as u64, sample: 0 };
    let prompts: Vec<Prompt> = asked.iter().map(prompt).collect();
    let sampling = Sampling {
        temperature: settings.temperature as f32,
        top_k: 0,
        top_p: 1.0,
        seed: SEED,
        max_new_tokens: settings.max_tokens,
        stop_tokens: encoder.ends().to_vec(),
        slots,
    };
    let responses = loaded.model.generate(&prompts, &sampling, &mut |_| {});
    let answer = |(prompt, response): (&Prompt, salsa_engine::Response)| {
        let text = encoder.decode(&response.tokens)?;
        let usage =
            Usage { prompt_tokens: prompt.tokens.len() as u64, completion_tokens: response.tokens.len() as u64 };
        if response.finish != Finish::Stop {
            let message = format!("cut off at {} tokens before its end; raise max_tokens", settings.max_tokens);
            return Ok(Err(Failure { kind: FailureKind::CutOff, message, usage }));
        }
        if text.trim().is_empty() {
            return Ok(Err(Failure { kind: FailureKind::Empty, message: "no text".to_owned(), usage }));
        }
        let finish_reason = Some("stop".to_owned());
        Ok(Ok(Reply { text, finish_reason, usage, answered_by: String::new(), first_token: None }))
    };
    prompts.iter().zip(responses).map(answer).collect()
}

/// The two tokens by which an AlpacaEval judge answers.
const NAMES: [&str; 2] = ["m", "M"];

/// The log-probs of the two names as the judge's first token.
fn probabilities(loaded: &Frozen, calls: &[&Call], asked: &[(usize, &Vec<u32>)]) -> anyhow::Result<Vec<Answer>> {
    let encoder = loaded.encoder.as_ref().context("the judge has no tokenizer")?;
    let mut answers = Vec::with_capacity(asked.len());
    for (number, tokens) in asked {
        let prompt = content(encoder, &calls[*number].messages);
        let mut first_token = Vec::new();
        let mut first = Vec::new();
        for name in NAMES {
            let (with_name, length) = encoder.prompt_and_response(&prompt, &Content::Text(name.to_owned()))?;
            let token =
                *with_name.get(length).with_context(|| format!("the judge's tokenizer has no token for {name:?}"))?;
            let sequence = [&tokens[..], &[token]].concat();
            let (mut batch, mut query) = (Batch::new(), Query::default());
            let rows = batch.push(&sequence);
            query.push_logprobs(rows, &sequence, tokens.len());
            let logprob = f64::from(loaded.model.forward(&batch, &query).logprobs[0]);
            anyhow::ensure!(logprob.is_finite(), "a log-prob of the judge is {logprob}; check its weights");
            first_token.push((name.to_owned(), logprob));
            first.push(token);
        }
        anyhow::ensure!(first[0] != first[1], "the judge's tokenizer begins \"m\" and \"M\" with the same token");
        let text = if first_token[0].1 >= first_token[1].1 { NAMES[0] } else { NAMES[1] };
        let usage = Usage { prompt_tokens: tokens.len() as u64, completion_tokens: 1 };
        answers.push(Ok(Reply {
            text: text.to_owned(),
            finish_reason: Some("length".to_owned()),
            usage,
            answered_by: String::new(),
            first_token: Some(first_token),
        }));
    }
    Ok(answers)
}
