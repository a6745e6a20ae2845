//! How calls reach a judge: over HTTP, as files of a batch, or to a checkpoint on this machine.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::call::{Call, Settings};

mod answer;
pub(super) mod batch;
pub(super) mod http;
pub(super) mod local;
pub(super) mod secret;
mod wait;

/// How calls reach the judge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// To an OpenAI-compatible server at `base_url`, call by call.
    Http,
    /// As `requests.jsonl` for OpenAI's batch interface or vLLM's `run_batch`; reads `responses.jsonl` if it exists.
    Batch,
    /// To the checkpoint `judge_path` on this machine.
    Local,
    /// No calls: `judgments` must contain all that are needed.
    Recorded,
}

/// The parameters that a server accepts. A parameter that the server refuses once is changed for all further calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ServerParameters {
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
    pub(super) const FIRST: ServerParameters =
        ServerParameters { completion_tokens: false, own_temperature: false, own_top_p: false, no_logprobs: false };

    /// Descriptions of the omitted or renamed parameters, for the report.
    pub(super) fn in_words(self) -> Vec<&'static str> {
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
pub(super) fn body(model: &str, call: &Call, settings: &Settings, dialect: ServerParameters) -> Value {
    let mut body = json!({"model": model, "messages": call.messages});
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
