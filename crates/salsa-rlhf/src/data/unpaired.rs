//! Labelled answers, as for KTO, converted to pairs.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Result, bail};

use super::{Content, Example, Place, Preference, asked};
use crate::chat::{Conversation, Message};

/// The prompt and the answer of a record, or of a conversation that ends with one; `None` without an answer.
pub(super) fn prompt_and_answer(example: Example) -> Option<(Content, Content)> {
    let (prompt, said): (Content, Content) = match example {
        Example::PromptCompletion { prompt, completion } => (prompt, completion),
        Example::Messages(Conversation { messages, arguments }) => {
            let before = asked(&messages).len();
            let said: Vec<Message> = messages[before..].to_vec();
            (Conversation { messages: messages[..before].to_vec(), arguments }.into(), said.into())
        }
        _ => return None,
    };
    (!said.is_empty()).then_some((prompt, said))
}

/// One answer.
struct Answer {
    said: Content,
    place: Place,
}

/// A pair with its split key, and the place of its wanted answer.
pub(super) struct Paired {
    pub pair: Preference,
    pub key: String,
    pub place: Place,
}

/// The answers to one prompt.
struct Answers {
    prompt: Content,
    key: String,
    wanted: Vec<Answer>,
    unwanted: Vec<Answer>,
}

/// Answers by prompt, in the order of the prompts' first appearance.
#[derive(Default)]
pub(super) struct Unpaired {
    prompts: Vec<Answers>,
    places: HashMap<String, usize>,
    records: usize,
}

impl Unpaired {
    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    /// Adds a prompt with its answer, or a conversation that ends with one.
    pub(super) fn add(&mut self, example: Example, label: bool, key: String, place: &Place) {
        self.records += 1;
        let Some((prompt, said)) = prompt_and_answer(example) else { return };
        let index = *self.places.entry(format!("{prompt:?}")).or_insert(self.prompts.len());
        if index == self.prompts.len() {
            self.prompts.push(Answers { prompt, key, wanted: Vec::new(), unwanted: Vec::new() });
        }
        let answers = &mut self.prompts[index];
        let list = if label { &mut answers.wanted } else { &mut answers.unwanted };
        list.push(Answer { said, place: place.clone() });
    }

    /// Pairs the first wanted answer to a prompt with the first unwanted one, the second with the second, and so on.
    /// Returns the pairs and a note for the user.
    ///
    /// # Errors
    /// If no prompt has both kinds.
    pub(super) fn paired(self, path: &Path) -> Result<(Vec<Paired>, String)> {
        let mut pairs = Vec::new();
        for Answers { prompt, key, wanted, unwanted } in self.prompts {
            for (wanted, unwanted) in wanted.into_iter().zip(unwanted) {
                let pair = Preference {
                    prompt: prompt.clone(),
                    chosen: wanted.said,
                    rejected: unwanted.said,
                    margin: None,
                    score_chosen: None,
                    score_rejected: None,
                };
                pairs.push(Paired { pair, key: key.clone(), place: wanted.place });
            }
        }
        let (all, count) = (self.records, pairs.len());
        if pairs.is_empty() {
            bail!(
                "{}: {all} answers have labels (unpaired preferences, as KTO takes them), but no prompt has both a wanted and an \
                 unwanted answer, and only kto learns of single ones. For sft keep the records whose label is true, and leave the \
                 column out",
                path.display()
            );
        }
        let left = all - 2 * count;
        let note = format!(
            "{all} answers with labels make {count} pairs of one prompt; {left} have no counterpart and are left out"
        );
        Ok((pairs, note))
    }
}
