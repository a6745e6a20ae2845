//! What a client is told of a token: its text, its bytes, its log-prob and those of the most likely ones in its place.
use serde_json::{Map, Value, json};

use crate::stage::text::encoder::Encoder;

/// A token with its log-prob.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    /// Its bytes; those of one token need not be whole characters.
    pub bytes: Vec<u8>,
    /// Its log-prob; none for the first token of a prompt.
    pub logprob: Option<f32>,
}

/// A token, and the most likely ones in its place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    /// The token that stands there.
    pub token: Token,
    /// The most likely ones, the most likely first.
    pub top: Vec<Token>,
}

/// The way from token numbers to what is told of them.
pub(super) struct Vocabulary<'a>(pub &'a Encoder);

impl Vocabulary<'_> {
    /// What is told of a token of a ranking.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub(super) fn told(&self, token: u32, logprob: f32, top: &[(u32, f32)]) -> anyhow::Result<Told> {
        let token_of = |(token, logprob): (u32, f32)| -> anyhow::Result<Token> {
            Ok(Token { bytes: self.0.token_bytes(token)?, logprob: Some(logprob) })
        };
        let top = top.iter().map(|&likely| token_of(likely)).collect::<Result<_, _>>()?;
        Ok(Told { token: token_of((token, logprob))?, top })
    }

    /// What is told of the first token of a prompt: nothing comes before it.
    ///
    /// # Errors
    /// As [`Vocabulary::told`].
    pub(super) fn first(&self, token: u32) -> anyhow::Result<Told> {
        Ok(Told { token: Token { bytes: self.0.token_bytes(token)?, logprob: None }, top: Vec::new() })
    }
}

impl Token {
    /// Its text, in which bytes that are no whole character are replaced.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    fn for_chat(&self) -> Map<String, Value> {
        let entry = json!({"token": self.text(), "logprob": self.logprob, "bytes": self.bytes});
        match entry {
            Value::Object(entry) => entry,
            _ => unreachable!("it was written as an object"),
        }
    }
}

/// `{"content": [{"token", "logprob", "bytes", "top_logprobs": […]}], "refusal": null}`
pub(super) fn for_chat(tokens: &[Told]) -> Value {
    let entry = |told: &Told| {
        let mut entry = told.token.for_chat();
        let top: Vec<Value> = told.top.iter().map(|token| Value::Object(token.for_chat())).collect();
        entry.insert("top_logprobs".to_owned(), Value::Array(top));
        Value::Object(entry)
    };
    json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// `{"tokens", "token_logprobs", "top_logprobs", "text_offset"}`; `offset` counts the characters before the first token.
pub(super) fn for_completion(tokens: &[Told], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for told in tokens {
        offsets.push(*offset);
        *offset += told.token.text().chars().count();
    }
    let top = |told: &Told| -> Value {
        if told.token.logprob.is_none() {
            return Value::Null;
        }
        let mut entries = Map::new();
        // Several tokens may read the same; the most likely one stands for them. The token itself is always there.
        for token in told.top.iter().chain([&told.token]) {
            entries.entry(token.text()).or_insert_with(|| json!(token.logprob));
        }
        Value::Object(entries)
    };
    json!({
        "tokens": tokens.iter().map(|told| told.token.text()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|told| told.token.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}
