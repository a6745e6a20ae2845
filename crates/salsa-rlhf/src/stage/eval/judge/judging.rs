//! A run with known calls: makes the missing ones, records the answers, and counts.
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{
    JudgeConfig,
    call::{Answer, Call, Settings, Usage},
    journal::Journal,
    protocol::{Inputs, Match, Replies},
    recorded::{Recorded, ReplyIndex},
    results,
    transport::{Transport, batch, local::LocalJudge},
    verdict::without_thoughts,
};
use crate::{
    chat::Message,
    progress::Progress,
    stage::{
        Interrupted, StageContext, Until,
        endpoint::{
            ServerParameters,
            http::{Access, Endpoint},
            secret::Secret,
        },
    },
};

/// Maximum number of characters per token; English has between four and five.
const MOST_CHARACTERS: usize = 8;

/// Whether the server counted too few tokens to have read the whole prompt.
fn is_cut(call: &Call, usage: Usage) -> bool {
    let characters: usize = call.messages.iter().map(|message| message.content.chars().count()).sum();
    let counted = usage.prompt_tokens as usize;
    counted > 0 && counted * MOST_CHARACTERS < characters
}

/// A run with known calls.
pub(super) struct Judging<'a> {
    config: &'a JudgeConfig,
    inputs: &'a Inputs,
    matches: &'a [Match],
    settings: Settings,
    journal: Journal,
    recorded: Recorded,
    context: &'a StageContext,
    /// The number of replies received in this run.
    made: usize,
    /// Parameters that the server refused.
    dialect: ServerParameters,
    /// The number of prompts that the server probably truncated.
    cut: usize,
}

impl<'a> Judging<'a> {
    /// Opens the journal and the given judgments.
    ///
    /// # Errors
    /// If one cannot be read, or the run is a rehearsal.
    pub(super) fn open(
        config: &'a JudgeConfig,
        inputs: &'a Inputs,
        matches: &'a [Match],
        settings: Settings,
        context: &'a StageContext,
    ) -> anyhow::Result<Judging<'a>> {
        let paths = config.judgments.iter().map(AsRef::as_ref);
        let recorded = Recorded::read(paths, config.protocol, &config.baseline)?;
        if context.until == Until::Planned {
            if let Some(path) = &config.judge_path {
                let calls: Vec<&Call> = matches.iter().flat_map(|found| &found.games).collect();
                LocalJudge::open(path, &config.chat, config.batch_size.0)?.check_memory(&calls, &settings, context)?;
            }
            bail!("a rehearsal ends where the calls are known");
        }
        let journal = Journal::open(&config.output_dir, context)?;
        Ok(Judging {
            config,
            inputs,
            matches,
            settings,
            journal,
            recorded,
            context,
            made: 0,
            dialect: ServerParameters::FIRST,
            cut: 0,
        })
    }

    fn book(&self) -> ReplyIndex<'_> {
        ReplyIndex { journal: &self.journal, recorded: &self.recorded, settings: &self.settings }
    }

    /// All calls known so far: those of the plan, and second attempts.
    fn calls(&self) -> Vec<Call> {
        let planned = self.matches.iter().flat_map(|found| found.games.iter().cloned());
        planned.chain(self.inputs.second_attempts(self.matches, &self.book())).collect()
    }

    fn missing(&self) -> Vec<Call> {
        let book = self.book();
        let mut seen = HashSet::new();
        let is_missing = |call: &Call| book.reply(call).is_none() && seen.insert(call.id(&self.settings));
        self.calls().into_iter().filter(is_missing).collect()
    }

    /// Makes the missing calls, then those that follow from the replies.
    pub(super) fn ask(&mut self) -> anyhow::Result<()> {
        let mut tried = HashSet::new();
        loop {
            let settings = self.settings.clone();
            let missing: Vec<Call> =
                self.missing().into_iter().filter(|call| tried.insert(call.id(&settings))).collect();
            if missing.is_empty() {
                break;
            }
            self.ask_these(&missing.iter().collect::<Vec<_>>())?;
            if self.context.interrupted() {
                let (total, left) = (self.calls().len() as u64, self.missing().len() as u64);
                return Err(Interrupted { step: total - left, total }.into());
            }
        }
        self.refuse_failures()
    }

    fn ask_these(&mut self, calls: &[&Call]) -> anyhow::Result<()> {
        let (config, context, settings) = (self.config, self.context, self.settings.clone());
        match config.transport {
            Transport::Recorded => bail!(
                "{} calls have no judgment in the files that judgments names, the first for question {} and {}; give all \
                 files, or another transport",
                calls.len(),
                calls[0].subject.question,
                calls[0].subject.models.join(" against ")
            ),
            Transport::Batch => self.ask_by_files(calls),
            Transport::Local => {
                let path = config.judge_path.as_ref().context("no judge_path is given")?;
                let judge = LocalJudge::open(path, &config.chat, config.batch_size.0)?;
                judge.check_memory(calls, &settings, context)?;
                let progress = Progress::new("judge", calls.len() as u64, "calls");
                let mut taker = AnswerSink::new(self, calls, &progress);
                judge.ask(calls, &settings, &mut |number, answer| taker.take(number, answer), context)?;
                progress.finish("");
                Ok(())
            }
            Transport::Http => {
                let secret = Secret::read(&config.api_key_file, &config.api_key_env)?;
                let endpoint = Endpoint::new(Access {
                    base_url: &config.base_url,
                    model: &config.judge_model,
                    secret,
                    timeout: Duration::from_secs_f64(config.timeout.0),
                    retries: config.max_retries.0,
                })?;
                let progress = Progress::new("judge", calls.len() as u64, "calls");
                let mut taker = AnswerSink::new(self, calls, &progress);
                let take = &mut |number, answer| taker.take(number, answer);
                let messages: Vec<&[Message]> = calls.iter().map(|call| &call.messages[..]).collect();
                let dialect = endpoint.ask(&messages, &settings, config.concurrency.0, take, context)?;
                progress.finish(&taker.tokens_in_words());
                self.dialect = dialect;
                Ok(())
            }
        }
    }

    /// Reads the answers of a batch, and writes requests for the calls still missing.
    fn ask_by_files(&mut self, calls: &[&Call]) -> anyhow::Result<()> {
        let dir = self.config.output_dir.as_path();
        let mut answers = batch::read(dir, &self.settings)?;
        let (mut left, mut unasked) = (Vec::new(), 0);
        for call in calls {
            match answers.remove(&call.id(&self.settings)) {
                Some(Ok(reply)) => self.add(call, Ok(reply))?,
                Some(Err(failure)) => {
                    // A failure recorded before is requested again; a new one is recorded.
                    if self.journal.answers().failure(&call.id(&self.settings)) != Some(&failure) {
                        self.add(call, Err(failure))?;
                    }
                    left.push(*call);
                }
                None => {
                    left.push(*call);
                    unasked += 1;
                }
            }
        }
        if unasked > 0 || left.len() > self.config.max_failures.0 {
            return Err(batch::write(dir, &self.config.judge_model, &left, &self.settings)?.into());
        }
        Ok(())
    }

    fn add(&mut self, call: &Call, answer: Answer) -> anyhow::Result<()> {
        self.made += usize::from(answer.is_ok());
        self.journal.add(call, &self.settings, answer)
    }

    /// Fails if more calls failed than allowed.
    fn refuse_failures(&self) -> anyhow::Result<()> {
        let (missing, most) = (self.missing(), self.config.max_failures.0);
        if missing.len() <= most {
            return Ok(());
        }
        let kinds = self.failures_by_kind(&missing);
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let example = missing.iter().find_map(|call| self.journal.answers().failure(&call.id(&self.settings)));
        let example = example.map_or_else(String::new, |failure| format!(" (one of them: {})", failure.message));
        bail!(
            "{} of {} calls have no reply: {}{example}; the same command asks them again, and max_failures: {} does without \
             them",
            missing.len(),
            self.calls().len(),
            kinds.join(", "),
            missing.len()
        )
    }

    fn failures_by_kind(&self, missing: &[Call]) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for call in missing {
            let failure = self.journal.answers().failure(&call.id(&self.settings));
            *kinds.entry(failure.map_or("not_asked", |failure| failure.kind.name())).or_default() += 1;
        }
        kinds
    }

    /// Writes the tool's files and counts.
    pub(super) fn results(&self) -> anyhow::Result<Value> {
        let book = self.book();
        let rows = results::rows(self.inputs, self.matches, &book);
        results::write_rows(self.config, &rows)?;
        let (calls, missing) = (self.calls(), self.missing());
        let mut results = results::scores(self.config, &rows, Some(self.inputs))?;
        let replies = calls.iter().filter_map(|call| book.reply(call));
        let mut usage = Usage::default();
        let (mut answered_by, mut thoughts): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
        for reply in replies {
            usage.prompt_tokens += reply.usage.prompt_tokens;
            usage.completion_tokens += reply.usage.completion_tokens;
            thoughts += usize::from(without_thoughts(&reply.text).1);
            if !reply.answered_by.is_empty() {
                *answered_by.entry(reply.answered_by.clone()).or_default() += 1;
            }
        }
        results["judge"] = json!({
            "model": self.config.judge_model, "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens, "answered_by": answered_by, "server": self.dialect.in_words(),
        });
        results["calls"] = json!(calls.len());
        results["failures"] = json!(self.failures_by_kind(&missing));
        results["prompt_tokens"] = json!(usage.prompt_tokens);
        results["completion_tokens"] = json!(usage.completion_tokens);
        results["spent"] = json!(self.journal.answers().spent());
        results["judgments_with_thoughts"] = json!(thoughts);
        results::write(self.config, &results)?;
        let (made, cut) = (self.made, self.cut);
        self.context.say(&format!("{} judgments, {made} of them new", calls.len() - missing.len()));
        if cut > 0 {
            self.context.say(&format!(
                "{cut} prompts have more than {MOST_CHARACTERS} characters for each token that the server counted: it probably \
                 cuts them to its context; raise that (Ollama: OLLAMA_CONTEXT_LENGTH)"
            ));
        }
        Ok(results)
    }
}

/// Records arriving answers in the journal and updates the progress.
struct AnswerSink<'t, 'a> {
    judging: &'t mut Judging<'a>,
    calls: &'t [&'t Call],
    progress: &'t Progress,
    done: usize,
    usage: Usage,
}

impl<'t, 'a> AnswerSink<'t, 'a> {
    fn new(judging: &'t mut Judging<'a>, calls: &'t [&'t Call], progress: &'t Progress) -> AnswerSink<'t, 'a> {
        AnswerSink { judging, calls, progress, done: 0, usage: Usage::default() }
    }

    fn take(&mut self, number: usize, answer: Answer) -> anyhow::Result<()> {
        let call = self.calls[number];
        let usage = answer.as_ref().map_or_else(|failure| failure.usage, |reply| reply.usage);
        if answer.is_ok() && self.judging.config.transport == Transport::Http {
            self.judging.cut += usize::from(is_cut(call, usage));
        }
        self.judging.add(call, answer)?;
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
        self.done += 1;
        self.progress.set(self.done as u64);
        self.progress.message(&self.tokens_in_words());
        Ok(())
    }

    /// Tokens used so far, and the expected remainder at the same mean.
    fn tokens_in_words(&self) -> String {
        let so_far = self.usage.prompt_tokens + self.usage.completion_tokens;
        let left = so_far.checked_div(self.done as u64).unwrap_or(0) * (self.calls.len() - self.done) as u64;
        match left {
            0 => format!("{so_far} tokens"),
            left => format!("{so_far} tokens, about {left} left"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::call::test_call;
    use super::*;

    #[test]
    fn a_prompt_that_a_server_cut_is_noticed() {
        let call = test_call("1", &"word ".repeat(8000));
        let counted = |prompt_tokens| is_cut(&call, Usage { prompt_tokens, completion_tokens: 1 });
        assert!(counted(4096) && !counted(8003), "40,000 characters are 8,000 words");
        assert!(!counted(0), "a server that counts nothing says nothing");
    }
}
