//! Concurrent calls to an OpenAI-compatible server.
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use jiff::Timestamp;
use ureq::{Agent, Body, http::Response};

use super::{
    Answer, Failure, FailureKind, Reply, ServerParameters, Settings,
    answer::{self, Meaning},
    body,
    secret::Secret,
    wait,
};
use crate::{chat::Message, stage::StageContext};

/// Maximum size of a response; a longer one cannot be a judgment.
const LONGEST_ANSWER: u64 = 16 << 20;

/// Upper limit for concurrent calls.
pub(in crate::stage) const MOST_CALLS: u64 = 1024;

/// Interval at which a waiting thread checks whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// A server and its settings.
pub(in crate::stage) struct Endpoint {
    agent: Agent,
    url: String,
    header: &'static str,
    authorization: Option<String>,
    secret: Secret,
    model: String,
    retries: u32,
}

/// How to reach a server.
pub(in crate::stage) struct Access<'a> {
    /// The address up to `/chat/completions`; it may end with a query.
    pub base_url: &'a str,
    /// The model's name on the server.
    pub model: &'a str,
    /// The key.
    pub secret: Secret,
    /// The timeout of a call.
    pub timeout: Duration,
    /// The number of retries of a call.
    pub retries: u32,
}

impl Endpoint {
    /// Prepares calls to the configured server. Sends nothing.
    ///
    /// # Errors
    /// If the address is invalid, or is OpenAI's and there is no key.
    pub(crate) fn new(access: Access<'_>) -> anyhow::Result<Endpoint> {
        let Access { base_url, model, secret, timeout, retries } = access;
        let (address, query) =
            base_url.split_once('?').map_or((base_url, None), |(address, query)| (address, Some(query)));
        ensure!(
            address.starts_with("https://") || address.starts_with("http://"),
            "base_url is {base_url:?}; it must begin with https:// or http://"
        );
        ensure!(!address.contains('@'), "base_url must hold no user and no password; give the key by api_key_env");
        let query = query.map_or_else(String::new, |query| format!("?{query}"));
        let url = format!("{}/chat/completions{query}", address.trim_end_matches('/'));
        let is_openai = address.starts_with("https://api.openai.com");
        ensure!(
            secret.is_known() || !is_openai,
            "{address} needs a key: set the variable that api_key_env names, or give api_key_file"
        );
        // Azure has deployments in the address, and another header.
        let is_azure = address.contains("/openai/deployments/");
        let (header, prefix) = if is_azure { ("api-key", "") } else { ("authorization", "Bearer ") };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(Duration::from_secs(5).min(timeout)))
            .timeout_global(Some(timeout))
            .user_agent(concat!("salsa-rlhf/", env!("CARGO_PKG_VERSION")))
            .build();
        let authorization = secret.header(prefix);
        Ok(Endpoint { agent: config.into(), url, header, authorization, secret, model: model.to_owned(), retries })
    }

    /// Makes all calls, at most `concurrency` at a time, and passes each answer to `take` on this thread. The first
    /// call is made alone, so that a wrong address or key costs one call.
    ///
    /// Returns the parameters that the server refuses. After an interruption, pending calls are still received.
    ///
    /// # Errors
    /// A failure that affects every call, and the errors of `take`.
    pub(crate) fn ask(
        &self,
        calls: &[&[Message]],
        settings: &Settings,
        concurrency: usize,
        take: &mut dyn FnMut(usize, Answer) -> anyhow::Result<()>,
        context: &StageContext,
    ) -> anyhow::Result<ServerParameters> {
        let shared = Shared {
            endpoint: self,
            calls,
            settings,
            dialect: Mutex::new(ServerParameters::FIRST),
            pause: Mutex::new(Instant::now()),
            next: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        };
        let mut unreachable = None;
        let mut first = |number: usize, answer: Answer| {
            let failure = answer.as_ref().err().filter(|failure| failure.kind == FailureKind::Connection);
            unreachable = failure.map(|failure| failure.message.clone());
            take(number, answer)
        };
        shared.work(1, &mut first, context)?;
        if let Some(message) = unreachable {
            bail!("{} cannot be reached: {message}", self.url);
        }
        if calls.len() > 1 {
            shared.work(concurrency, take, context)?;
        }
        Ok(*lock(&shared.dialect))
    }

    /// Sends one request and interprets the response.
    fn send(&self, messages: &[Message], settings: &Settings, dialect: ServerParameters) -> Meaning {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(self.header, value);
        }
        let text = body(&self.model, messages, settings, dialect).to_string();
        let received = request.send(text.as_bytes()).and_then(|mut response| {
            let text = response.body_mut().with_config().limit(LONGEST_ANSWER).read_to_string();
            text.map(|text| (response, text))
        });
        match received {
            Ok((response, text)) => self.meaning(&response, &text, settings, dialect),
            Err(ureq::Error::Timeout(which)) => {
                Meaning::Again(Failure::new(FailureKind::Timeout, format!("no answer in time ({which})")), None)
            }
            Err(error @ (ureq::Error::BodyExceedsLimit(_) | ureq::Error::Protocol(_))) => {
                Meaning::Again(Failure::new(FailureKind::NotAnAnswer, self.secret.out_of(&error.to_string())), None)
            }
            Err(error) => {
                Meaning::Again(Failure::new(FailureKind::Connection, self.secret.out_of(&error.to_string())), None)
            }
        }
    }

    fn meaning(
        &self,
        response: &Response<Body>,
        text: &str,
        settings: &Settings,
        dialect: ServerParameters,
    ) -> Meaning {
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let wait = wait::wanted(&header, Timestamp::now());
        let should_retry = header("x-should-retry").and_then(|text| text.trim().parse().ok());
        let read = |text: &str| answer::read(response.status().as_u16(), wait, should_retry, text, settings, dialect);
        match read(text) {
            Meaning::Reply(reply) => Meaning::Reply(self.without_key(reply)),
            // The message is masked before it is shortened, so that no part of a key is left at its end.
            _ => read(&self.secret.out_of(text)),
        }
    }

    fn without_key(&self, reply: Reply) -> Reply {
        let mask = |text: &str| self.secret.out_of_reply(text);
        let first_token =
            reply.first_token.map(|tokens| tokens.into_iter().map(|(token, p)| (mask(&token), p)).collect());
        Reply {
            text: mask(&reply.text),
            finish_reason: reply.finish_reason.as_deref().map(mask),
            answered_by: mask(&reply.answered_by),
            first_token,
            usage: reply.usage,
        }
    }
}

/// State shared by the threads of one [`Endpoint::ask`].
struct Shared<'a> {
    endpoint: &'a Endpoint,
    calls: &'a [&'a [Message]],
    settings: &'a Settings,
    dialect: Mutex<ServerParameters>,
    /// Nothing is sent before this time, as requested by the server.
    pause: Mutex<Instant>,
    next: AtomicUsize,
    stop: AtomicBool,
}

impl Shared<'_> {
    /// Makes calls on this many threads: one call with a single thread, otherwise all remaining ones.
    fn work(
        &self,
        threads: usize,
        take: &mut dyn FnMut(usize, Answer) -> anyhow::Result<()>,
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let end = if threads == 1 && self.next.load(Ordering::SeqCst) == 0 { 1 } else { self.calls.len() };
        // A thread makes its next call while its answer is being recorded: a killed process loses the pending calls and
        // the answer being recorded, not a queue of answers.
        let (sender, receiver) = mpsc::sync_channel(0);
        thread::scope(|scope| {
            for _ in 0..threads.min(end) {
                let sender = sender.clone();
                scope.spawn(move || {
                    while !self.is_stopped() {
                        let number = self.next.fetch_add(1, Ordering::SeqCst);
                        if number >= end {
                            // The next thread stops too.
                            self.next.fetch_min(end, Ordering::SeqCst);
                            break;
                        }
                        let Some(outcome) = self.call(number) else { break };
                        if sender.send((number, outcome)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(sender);
            let mut result = Ok(());
            // Receive every answer, even after a failure: it may have been paid for.
            loop {
                let received = receiver.recv_timeout(LOOK);
                if context.interrupted() {
                    self.stop.store(true, Ordering::SeqCst);
                }
                self.say_what_was_learned(context);
                let (number, outcome) = match received {
                    Ok(received) => received,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                let taken = match outcome {
                    Ok(answer) => take(number, answer),
                    Err(reason) => Err(anyhow::anyhow!("{}: {reason}", self.endpoint.url)),
                };
                if taken.is_err() {
                    self.stop.store(true, Ordering::SeqCst);
                }
                result = result.and(taken);
            }
            result
        })
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// One call with its retries; `None` if calls were stopped, an error if no call can succeed.
    fn call(&self, number: usize) -> Option<Result<Answer, String>> {
        let mut retries = 0;
        loop {
            if !self.wait_for_pause() {
                return None;
            }
            let dialect = *lock(&self.dialect);
            match self.endpoint.send(self.calls[number], self.settings, dialect) {
                Meaning::Reply(reply) => return Some(Ok(Ok(reply))),
                Meaning::Failed(failure) => return Some(Ok(Err(failure))),
                Meaning::Fatal(reason) => return Some(Err(reason)),
                Meaning::Without(changed) => self.learn(dialect, changed),
                Meaning::Again(failure, wanted) => {
                    let is_too_long = wanted.is_some_and(|wait| wait > wait::LONGEST);
                    if retries == self.endpoint.retries || is_too_long {
                        return Some(Ok(Err(failure)));
                    }
                    let wait = wanted.unwrap_or_else(|| wait::backoff(retries, number as u64));
                    retries += 1;
                    if failure.kind == FailureKind::RateLimited && wanted.is_some() {
                        // A pause requested from one thread applies to all.
                        let until = Instant::now() + wait;
                        let mut pause = lock(&self.pause);
                        *pause = (*pause).max(until);
                    } else if !self.sleep_until(Instant::now() + wait) {
                        return Some(Ok(Err(failure)));
                    }
                }
            }
        }
    }

    /// Stores a refused parameter, unless another thread changed the dialect meanwhile.
    fn learn(&self, asked: ServerParameters, changed: ServerParameters) {
        let mut dialect = lock(&self.dialect);
        if *dialect == asked {
            *dialect = changed;
        }
    }

    fn say_what_was_learned(&self, context: &StageContext) {
        for words in lock(&self.dialect).in_words() {
            context.print_once(&format!("{}: {words}", self.endpoint.url));
        }
    }

    fn wait_for_pause(&self) -> bool {
        loop {
            let until = *lock(&self.pause);
            if Instant::now() >= until {
                return !self.is_stopped();
            }
            if !self.sleep_until(until) {
                return false;
            }
        }
    }

    /// Sleeps until the given time; returns false if stopped.
    fn sleep_until(&self, until: Instant) -> bool {
        while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            if self.is_stopped() {
                return false;
            }
            thread::sleep(left.min(LOOK));
        }
        !self.is_stopped()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks the configured address.
///
/// # Errors
/// As [`Endpoint::new`], except for the key.
pub(in crate::stage) fn check_address(base_url: &str) -> anyhow::Result<()> {
    let host = base_url.split_once("://").map(|(_, rest)| rest.split(['/', '?']).next().unwrap_or_default());
    if host.is_none_or(str::is_empty) {
        bail!("base_url is {base_url:?}; give the address of the server, such as http://localhost:8000/v1");
    }
    base_url.parse::<ureq::http::Uri>().map(drop).with_context(|| format!("base_url {base_url:?} is no address"))
}
