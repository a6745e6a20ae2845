//! A checkpoint on this machine as the judge: its text, or the probability of its first token.
use anyhow::Context;
use salsa_engine::{Batch, Finish, Head, Prompt, Query, Response, Sampling};

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

    /// Makes all calls, and passes each answer to `take` as soon as it is there. Stops early on an interruption.
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
        let mut asked: Vec<(usize, Vec<u32>)> = Vec::with_capacity(calls.len());
        for (number, call) in calls.iter().enumerate() {
            match self.tokens(call, settings) {
                Ok(tokens) => asked.push((number, tokens)),
                Err(failure) => take(number, Err(failure))?,
            }
        }
        let slots = self.slots;
        let loaded = self.found.load(&context.device)?;
        match settings.top_logprobs {
            0 => texts(&loaded, calls, &asked, settings, slots, take, context),
            _ => probabilities(&loaded, calls, &asked, take, context),
        }
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
    calls: &[&Call],
    asked: &[(usize, Vec<u32>)],
    settings: &Settings,
    slots: usize,
    take: &mut dyn FnMut(usize, Answer) -> anyhow::Result<()>,
    context: &StageContext,
) -> anyhow::Result<()> {
    let encoder = loaded.encoder.as_ref().context("the judge has no tokenizer")?;
    let prompt = |(number, tokens): &(usize, Vec<u32>)| Prompt {
        tokens: tokens.clone(),
        id: random_key(calls[*number], settings),
        sample: 0,
    };
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
    let take = &mut |place: usize, response: Response| {
        let (number, tokens) = &asked[place];
        take(*number, answer(tokens.len(), &response, encoder, settings)?)
    };
    generating::each_response(&loaded.model, &prompts, &sampling, take, context)
}

/// Key of the random numbers of a call. It depends on the call alone, so that a resumed run samples what an undisturbed
/// one does.
fn random_key(call: &Call, settings: &Settings) -> u64 {
    u64::from_str_radix(&call.id(settings)[..16], 16).expect("an identity is in hexadecimal")
}

fn answer(prompt_tokens: usize, response: &Response, encoder: &Encoder, settings: &Settings) -> anyhow::Result<Answer> {
    let text = encoder.decode(&response.tokens)?;
    let usage = Usage { prompt_tokens: prompt_tokens as u64, completion_tokens: response.tokens.len() as u64 };
    if response.finish != Finish::Stop {
        let message = format!("cut off at {} tokens before its end; raise max_tokens", settings.max_tokens);
        return Ok(Err(Failure { kind: FailureKind::CutOff, message, usage }));
    }
    if text.trim().is_empty() {
        return Ok(Err(Failure { kind: FailureKind::Empty, message: "no text".to_owned(), usage }));
    }
    let finish_reason = Some("stop".to_owned());
    Ok(Ok(Reply { text, finish_reason, usage, answered_by: String::new(), first_token: None }))
}

/// The two tokens by which an AlpacaEval judge answers.
const NAMES: [&str; 2] = ["m", "M"];

/// The log-probs of the two names as the judge's first token.
fn probabilities(
    loaded: &Frozen,
    calls: &[&Call],
    asked: &[(usize, Vec<u32>)],
    take: &mut dyn FnMut(usize, Answer) -> anyhow::Result<()>,
    context: &StageContext,
) -> anyhow::Result<()> {
    let encoder = loaded.encoder.as_ref().context("the judge has no tokenizer")?;
    for (number, tokens) in asked {
        if context.interrupted() {
            break;
        }
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
        let reply = Reply {
            text: text.to_owned(),
            finish_reason: Some("length".to_owned()),
            usage,
            answered_by: String::new(),
            first_token: Some(first_token),
        };
        take(*number, Ok(reply))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::call::test_call;
    use super::*;
    use crate::stage::fixture::{base, quiet};

    /// The texts of a sampling judge that decodes one call at a time; an interruption comes with the first answer.
    fn said(base: &ModelPath, calls: &[&Call], top_logprobs: u32, interrupts: bool) -> Vec<(usize, String)> {
        let settings = Settings { temperature: 1.0, top_logprobs, max_tokens: 6 };
        let (context, mut answers) = (quiet(), Vec::new());
        let judge = LocalJudge::open(base, &ChatArguments::default(), 1).unwrap();
        let take = &mut |number: usize, answer: Answer| {
            answers.push((number, answer.map_or_else(|failure| failure.message, |reply| reply.text)));
            if interrupts {
                context.interrupt();
            }
            Ok(())
        };
        judge.ask(calls, &settings, take, &context).unwrap();
        answers
    }

    #[test]
    fn answers_are_taken_one_by_one_and_a_resumed_run_samples_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let base: ModelPath = base(dir.path()).into();
        let calls = ["the cat", "sat on", "the mat"].map(|prompt| test_call("1", prompt));
        let all: Vec<&Call> = calls.iter().collect();
        for top_logprobs in [0, 5] {
            let undisturbed = said(&base, &all, top_logprobs, false);
            assert_eq!(undisturbed.len(), 3);
            assert_eq!(
                said(&base, &all, top_logprobs, true),
                undisturbed[..1],
                "nothing is asked after the interruption"
            );
            let resumed = said(&base, &all[1..], top_logprobs, false);
            let texts = |answers: &[(usize, String)]| answers.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
            assert_eq!(texts(&resumed), texts(&undisturbed[1..]));
        }
    }
}
