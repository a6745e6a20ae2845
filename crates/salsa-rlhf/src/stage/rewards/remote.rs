//! A reward server with the interface of OpenRLHF's `remote_rm_url`.
//!
//! ```text
//! POST   {"query": [prompt and response, ...], "prompts": [...], "labels": [...]}
//! reply  {"rewards": [1.0, ...]}
//! ```
use std::{
    env, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use ureq::Agent;

use super::{Answered, Unavailable};
use crate::stage::StageContext;

/// Maximum size of a reply.
const LONGEST_REPLY: u64 = 64 << 20;

/// Waiting time before the first retry; each further one waits twice as long, up to the longest.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How often a waiting stage looks for an interruption.
const LOOK: Duration = Duration::from_millis(50);

/// A server and its limits.
pub(super) struct Remote {
    name: String,
    url: String,
    labels: Option<String>,
    authorization: Option<String>,
    batch_size: usize,
    retries: u32,
    agent: Agent,
}

/// Checks an address.
///
/// # Errors
/// If it is none of HTTP, or has a password in it.
pub(super) fn check_address(url: &str) -> anyhow::Result<()> {
    let rest = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let host = rest.map(|rest| rest.split(['/', '?']).next().unwrap_or_default());
    let Some(host) = host.filter(|host| !host.is_empty()) else {
        bail!("url is {url:?}; give the address of the server, such as http://localhost:8000/score")
    };
    ensure!(!host.contains('@'), "url must hold no user and no password; give the key by api_key_env");
    url.parse::<ureq::http::Uri>().map(drop).with_context(|| format!("url {url:?} is no address"))
}

impl Remote {
    /// # Errors
    /// If the variable of the key is not set, or holds no key.
    pub(super) fn new(name: &str, url: String, labels: Option<String>, api_key_env: &str) -> anyhow::Result<Remote> {
        let variable = Some(api_key_env).filter(|variable| !variable.is_empty());
        let authorization = variable.map(|variable| {
            let key = env::var(variable).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
            let key = key.with_context(|| format!("reward {name}: the environment has no key in {variable}"))?;
            let can_be_sent = key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
            ensure!(can_be_sent, "reward {name}: {variable} holds characters that a key does not have");
            Ok(format!("Bearer {key}"))
        });
        Ok(Remote {
            name: name.to_owned(),
            url,
            labels,
            authorization: authorization.transpose()?,
            batch_size: 1,
            retries: 0,
            agent: Agent::new_with_defaults(),
        })
    }

    pub(super) fn with_limits(self, batch_size: usize, timeout: f64, retries: u32) -> Remote {
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(Duration::from_secs_f64(timeout)))
            .user_agent(concat!("salsa-rlhf/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Remote { batch_size, retries, agent, ..self }
    }

    /// The rewards of the responses of an update.
    ///
    /// # Errors
    /// [`Unavailable`] if a request fails more often than it may.
    pub(super) fn rewards(&self, answered: &[Answered<'_>], context: &StageContext) -> anyhow::Result<Vec<f64>> {
        let mut rewards = Vec::with_capacity(answered.len());
        for part in answered.chunks(self.batch_size) {
            rewards.extend(self.request(part, context)?);
        }
        Ok(rewards)
    }

    fn request(&self, part: &[Answered<'_>], context: &StageContext) -> anyhow::Result<Vec<f64>> {
        let text = self.body(part)?.to_string();
        let (mut attempt, mut wait) = (0, FIRST_WAIT);
        loop {
            let (what, at) = match self.send(&text, part.len()) {
                Ok(rewards) => return Ok(rewards),
                Err(failure) => failure,
            };
            let prompt = part.get(at.unwrap_or(0)).map(|one| one.prompt);
            let unavailable = Unavailable::new(format!("reward {}: {} {what}", self.name, self.url), prompt);
            if attempt == self.retries || !sleep(wait, context) {
                bail!(unavailable);
            }
            attempt += 1;
            wait = (wait * 2).min(LONGEST_WAIT);
            context.say(&format!("{unavailable}; sent again ({attempt} of {} retries)", self.retries));
        }
    }

    fn body(&self, part: &[Answered<'_>]) -> anyhow::Result<Value> {
        let label = |one: &Answered<'_>| match &self.labels {
            None => Ok(Value::String(String::new())),
            Some(column) => one.columns.get(column).cloned().with_context(|| {
                format!("reward {}: a record of the data has no column {column:?} (labels)", self.name)
            }),
        };
        Ok(json!({
            "query": part.iter().map(|one| &one.rendered).collect::<Vec<_>>(),
            "prompts": part.iter().map(|one| &one.rendered_prompt).collect::<Vec<_>>(),
            "labels": part.iter().map(label).collect::<anyhow::Result<Vec<_>>>()?,
        }))
    }

    /// One request. An error says what happened and at which response, if known.
    fn send(&self, text: &str, count: usize) -> Result<Vec<f64>, (String, Option<usize>)> {
        let mut request = self.agent.post(&self.url).header("content-type", "application/json");
        if let Some(value) = &self.authorization {
            request = request.header("authorization", value);
        }
        let received = request.send(text.as_bytes()).and_then(|mut response| {
            let text = response.body_mut().with_config().limit(LONGEST_REPLY).read_to_string()?;
            Ok((response.status().as_u16(), text))
        });
        let (status, text) = received.map_err(|error| (format!("gave no reply: {error}"), None))?;
        let start: String = text.chars().take(120).collect();
        if status != 200 {
            return Err((format!("replied with status {status}: {start:?}"), None));
        }
        let value: Value = serde_json::from_str(&text).map_err(|_| (format!("replied with {start:?}"), None))?;
        let Some(Value::Array(rewards)) = value.get("rewards") else {
            return Err((format!("replied without a list \"rewards\": {start:?}"), None));
        };
        if rewards.len() != count {
            return Err((format!("replied with {} rewards for {count} responses", rewards.len()), None));
        }
        let number = |(at, value): (usize, &Value)| {
            value.as_f64().ok_or_else(|| (format!("replied with {value} as a reward"), Some(at)))
        };
        rewards.iter().enumerate().map(number).collect()
    }
}

/// Waits; returns false after an interruption.
fn sleep(wait: Duration, context: &StageContext) -> bool {
    let until = Instant::now() + wait;
    while Instant::now() < until && !context.interrupted() {
        thread::sleep(LOOK.min(until.saturating_duration_since(Instant::now())));
    }
    !context.interrupted()
}
