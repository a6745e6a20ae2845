//! Requests to a judge, and its answers.
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chat::Message;

/// One request to a judge.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// The comparison or answer that the call judges.
    pub subject: Subject,
    /// The conversation up to the judge's turn.
    pub messages: Vec<Message>,
}

/// Identifies what a call judges.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Subject {
    /// The id of the question.
    pub question: String,
    /// The judged models, the baseline last.
    pub models: Vec<String>,
    /// The judge's name.
    pub judge: String,
    /// The name of the template.
    pub template: String,
    /// 1, or 2 if the answers are swapped.
    pub order: u8,
}

/// Request settings. Those that change the judge's answer are part of the identity of a call; the token limit is not,
/// so that a truncated verdict can be requested again with a higher limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Settings {
    /// Sampling temperature.
    pub temperature: f64,
    /// Number of most likely tokens with log-probs; 0 for none.
    pub top_logprobs: u32,
    /// Maximum number of tokens of an answer.
    #[serde(skip)]
    pub max_tokens: usize,
}

impl Call {
    /// The digest of the messages without the system prompt.
    pub(super) fn prompt_digest(&self) -> String {
        let said = self.messages.iter().filter(|message| message.role != "system");
        digest(said.flat_map(|message| [message.role.as_bytes(), message.content.as_bytes()]))
    }

    /// The identity of the call under these settings: 32 hexadecimal digits.
    pub(super) fn id(&self, settings: &Settings) -> String {
        let system = self.messages.iter().filter(|message| message.role == "system");
        let system = digest(system.map(|message| message.content.as_bytes()));
        let text = serde_json::to_string(&(&self.subject, settings)).expect("strings and finite numbers");
        digest([text.as_bytes(), self.prompt_digest().as_bytes(), system.as_bytes()])[..32].to_owned()
    }

    /// The text of the user's first message.
    pub(super) fn user_prompt(&self) -> &str {
        self.messages.iter().find(|message| message.role == "user").map_or("", |message| &message.content)
    }
}

/// The SHA-256 of length-prefixed parts, in hexadecimal.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The judge's answer to a call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Reply {
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
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
}

/// A call without a reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Failure {
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
pub(super) enum FailureKind {
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
    pub(super) fn name(self) -> &'static str {
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
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), usage: Usage::default() }
    }
}

/// The result of a call.
pub(super) type Answer = Result<Reply, Failure>;

#[cfg(test)]
pub(super) use tests::call as test_call;

#[cfg(test)]
mod tests {
    use super::*;

    pub(in crate::stage::eval::judge) fn call(question: &str, prompt: &str) -> Call {
        let subject = Subject {
            question: question.to_owned(),
            models: vec!["a".to_owned()],
            judge: "j".to_owned(),
            template: "t".to_owned(),
            order: 1,
        };
        Call { subject, messages: vec![Message::new("system", "s"), Message::new("user", prompt)] }
    }

    /// Different requests have different identities; a higher token limit does not make a different request.
    #[test]
    fn the_identity_of_a_call_is_all_that_changes_its_answer() {
        let settings = Settings { temperature: 0.0, top_logprobs: 0, max_tokens: 10 };
        let base = call("1", "p");
        let id = base.id(&settings);
        assert_eq!((id.len(), base.id(&settings)), (32, id.clone()));
        assert_eq!(base.id(&Settings { max_tokens: 99, ..settings.clone() }), id);
        let mut others = vec![base.id(&Settings { temperature: 0.5, ..settings.clone() })];
        others.push(base.id(&Settings { top_logprobs: 5, ..settings.clone() }));
        let edits: [fn(&mut Call); 7] = [
            |call| call.subject.question = "2".to_owned(),
            |call| call.subject.models.push("b".to_owned()),
            |call| call.subject.judge = "k".to_owned(),
            |call| call.subject.template = "u".to_owned(),
            |call| call.subject.order = 2,
            |call| call.messages[0].content = "other".to_owned(),
            |call| call.messages[1].content = "other".to_owned(),
        ];
        for edit in edits {
            let mut changed = base.clone();
            edit(&mut changed);
            others.push(changed.id(&settings));
        }
        others.push(id);
        let count = others.len();
        others.sort();
        others.dedup();
        assert_eq!(others.len(), count, "some are the same");
    }
}
