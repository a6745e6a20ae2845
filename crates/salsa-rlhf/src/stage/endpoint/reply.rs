//! What is asked of a server beside the messages, and its answers.
use serde::{Deserialize, Serialize};

/// Request settings. Those that change the judge's answer are part of the identity of a call; the token limit is not,
/// so that a truncated verdict can be requested again with a higher limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(in crate::stage) struct Settings {
    /// Sampling temperature.
    pub temperature: f64,
    /// Number of most likely tokens with log-probs; 0 for none.
    pub top_logprobs: u32,
    /// Maximum number of tokens of an answer.
    #[serde(skip)]
    pub max_tokens: usize,
}

/// The judge's answer to a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(in crate::stage) struct Reply {
    /// The text.
    pub text: String,
    /// The finish reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// Token usage.
    #[serde(default)]
    pub usage: Usage,
    /// The model that answered, as named by the server, with its fingerprint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answered_by: String,
    /// The most likely first tokens with their log-probs, if requested and provided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<Vec<(String, f64)>>,
}

/// Token usage reported by a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::stage) struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// A call without a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::stage) struct Failure {
    /// The kind, for counting.
    pub kind: FailureKind,
    /// The server's message, or a description.
    pub message: String,
    /// Token usage.
    #[serde(default)]
    pub usage: Usage,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::stage) enum FailureKind {
    /// The server limited the rate repeatedly or for too long.
    RateLimited,
    /// The server failed.
    ServerError,
    /// No answer within the timeout.
    Timeout,
    /// The connection failed.
    Connection,
    /// The response is no answer of this interface, e.g. HTML or a truncated document.
    NotAnAnswer,
    /// The server refused the request.
    BadRequest,
    /// The answer has no text.
    Empty,
    /// The judgment was truncated by the token limit.
    CutOff,
    /// The judge refused.
    Refusal,
    /// A content filter withheld the judgment.
    ContentFilter,
    /// The prompt exceeds the judge's context.
    TooLong,
}

impl FailureKind {
    /// The name in results and messages.
    pub(in crate::stage) fn name(self) -> &'static str {
        match self {
            FailureKind::RateLimited => "rate_limited",
            FailureKind::ServerError => "server_error",
            FailureKind::Timeout => "timeout",
            FailureKind::Connection => "connection",
            FailureKind::NotAnAnswer => "not_an_answer",
            FailureKind::BadRequest => "bad_request",
            FailureKind::Empty => "empty",
            FailureKind::CutOff => "cut_off",
            FailureKind::Refusal => "refusal",
            FailureKind::ContentFilter => "content_filter",
            FailureKind::TooLong => "too_long",
        }
    }
}

impl Failure {
    /// A failure without token usage.
    pub(in crate::stage) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), usage: Usage::default() }
    }
}

/// The result of a call.
pub(in crate::stage) type Answer = Result<Reply, Failure>;
