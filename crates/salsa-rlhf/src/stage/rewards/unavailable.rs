//! A reward that could not be had.
use std::{error::Error, fmt};

use crate::data::Content;

/// A reward could not be had, after all retries. Nothing was learned from the responses, so a run can be resumed with
/// the same ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::stage) struct Unavailable {
    what: String,
    prompt: Option<String>,
}

/// Characters of a prompt in a message.
const SHOWN: usize = 120;

impl Unavailable {
    /// What happened, with the prompt of the response it happened to, if it was one.
    pub(super) fn new(what: impl Into<String>, prompt: Option<&Content>) -> Unavailable {
        let shown = |prompt: &Content| {
            let words = prompt.last_words();
            let start: String = words.chars().take(SHOWN).collect();
            let more = if start.len() < words.len() { "…" } else { "" };
            format!("{start:?}{more}")
        };
        Unavailable { what: what.into(), prompt: prompt.map(shown) }
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.prompt {
            Some(prompt) => write!(f, "{} (prompt {prompt})", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl Error for Unavailable {}
