//! Requests to a judge, and its answers.
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chat::Message;
pub(super) use crate::stage::endpoint::{Answer, Failure, FailureKind, Reply, Settings, Usage};

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
