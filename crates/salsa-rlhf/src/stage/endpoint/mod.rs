//! Calls to an OpenAI-compatible server: concurrent, with retries, and with a key that is printed nowhere. Used by
//! judges, be they an evaluation or a reward.
//!
//! May import modules directly in `stage`.
use serde_json::{Value, json};

use crate::chat::Message;

pub(in crate::stage) mod answer;
pub(in crate::stage) mod http;
mod reply;
pub(in crate::stage) mod secret;
mod wait;

pub(in crate::stage) use reply::{Answer, Failure, FailureKind, Reply, Settings, Usage};

/// The parameters that a server accepts. A parameter that the server refuses once is changed for all further calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::stage) struct ServerParameters {
    /// The token limit is called `max_completion_tokens`.
    pub completion_tokens: bool,
    /// The temperature is not sent.
    pub own_temperature: bool,
    /// `top_p` is not sent.
    pub own_top_p: bool,
    /// Log-probs are not requested.
    pub no_logprobs: bool,
}

impl ServerParameters {
    /// The initial assumption for every server.
    pub(in crate::stage) const FIRST: ServerParameters =
        ServerParameters { completion_tokens: false, own_temperature: false, own_top_p: false, no_logprobs: false };

    /// Descriptions of the omitted or renamed parameters, for the report.
    pub(in crate::stage) fn in_words(self) -> Vec<&'static str> {
        let all = [
            (self.completion_tokens, "the limit of tokens is sent as max_completion_tokens"),
            (self.own_temperature, "the server refuses the temperature: its own default is used"),
            (self.own_top_p, "the server refuses top_p: its own default is used"),
            (self.no_logprobs, "the server gives no log-probs: the token itself is the verdict"),
        ];
        all.into_iter().filter(|(is_so, _)| *is_so).map(|(_, words)| words).collect()
    }
}

/// The body of a request. Temperature and `top_p` are always sent unless refused: servers have other defaults.
pub(in crate::stage) fn body(
    model: &str,
    messages: &[Message],
    settings: &Settings,
    dialect: ServerParameters,
) -> Value {
    let mut body = json!({"model": model, "messages": messages});
    let limit = if dialect.completion_tokens { "max_completion_tokens" } else { "max_tokens" };
    body[limit] = json!(settings.max_tokens);
    if !dialect.own_temperature {
        body["temperature"] = json!(settings.temperature);
    }
    if !dialect.own_top_p {
        body["top_p"] = json!(1.0);
    }
    if settings.top_logprobs > 0 && !dialect.no_logprobs {
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(settings.top_logprobs);
    }
    body
}
