//! What a judge is asked, and what it answered.
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chat::Message;

/// One request to a judge.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// What is judged.
    pub subject: Subject,
    /// The conversation, which ends with what the judge is to answer.
    pub messages: Vec<Message>,
}

/// What a call is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Subject {
    /// The id of the question.
    pub question: String,
    /// The models whose answers are judged, the baseline last.
    pub models: Vec<String>,
    /// The judge's name.
    pub judge: String,
    /// The name of the template.
    pub template: String,
    /// 1, or 2 where the answers were exchanged.
    pub order: u8,
}

/// How a judge is asked. What changes its answer counts in the identity of a call; the limit of tokens does not, so that a
/// verdict that was cut off can be asked for again with a higher one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Settings {
    /// Sampling temperature.
    pub temperature: f64,
    /// Log-probs of so many likeliest tokens; 0 for none.
    pub top_logprobs: u32,
    /// Most tokens of an answer.
    #[serde(skip)]
    pub max_tokens: usize,
}

impl Call {
    /// The digest of what is asked, the system prompt apart.
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

/// The SHA-256 of parts, each after its length, in hexadecimal.
pub(super) fn digest<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What came back from a judge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Reply {
    /// What it said.
    pub text: String,
    /// Why it stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<String>,
    /// What was counted for it.
    #[serde(default)]
    pub usage: Usage,
    /// The model that answered, as the server calls it, with its fingerprint.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub answered_by: String,
    /// The likeliest first tokens with their log-probs, where they were asked for and given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token: Option<Vec<(String, f64)>>,
}

/// Tokens that a server counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
}

/// Why there is no reply.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Failure {
    /// The kind, by which failures are counted.
    pub kind: FailureKind,
    /// What the server said, or what happened.
    pub message: String,
    /// What was counted for it.
    #[serde(default)]
    pub usage: Usage,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum FailureKind {
    /// The server asked to wait, again and again or for too long.
    RateLimited,
    /// The server failed.
    ServerError,
    /// No answer in time.
    Timeout,
    /// The connection could not be made, or broke.
    Connection,
    /// What came is no answer of this interface: HTML, half a document.
    NotAnAnswer,
    /// The server refused the request.
    BadRequest,
    /// The answer holds no text.
    Empty,
    /// The limit of tokens came before the end of the judgment.
    CutOff,
    /// The judge refused.
    Refusal,
    /// A filter held the judgment back.
    ContentFilter,
    /// The prompt does not fit the judge's context.
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
    /// One that cost nothing.
    pub(super) fn new(kind: FailureKind, message: impl Into<String>) -> Failure {
        Failure { kind, message: message.into(), usage: Usage::default() }
    }
}

/// A reply, or why there is none.
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

    /// What is another request has another identity; a higher limit of tokens is the same request.
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
