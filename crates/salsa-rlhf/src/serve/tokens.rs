//! A token in a response: its text, bytes and log-prob, and those of the most likely tokens at its position.
use serde_json::{Map, Value, json};

use crate::stage::text::encoder::Encoder;

/// A token with its log-prob.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    /// Its bytes, which may be part of a character.
    pub bytes: Vec<u8>,
    /// Its log-prob; none for the first token of a prompt.
    pub logprob: Option<f32>,
}

/// A token, and the most likely tokens at its position.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TokenLogprobs {
    /// The actual token.
    pub token: Token,
    /// The most likely tokens, in descending order.
    pub top: Vec<Token>,
}

/// Conversion of token ids to their form in responses.
pub(super) struct Vocabulary<'a>(pub &'a Encoder);

impl Vocabulary<'_> {
    /// A token with its ranking.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub(super) fn told(&self, token: u32, logprob: f32, top: &[(u32, f32)]) -> anyhow::Result<TokenLogprobs> {
        let token_of = |(token, logprob): (u32, f32)| -> anyhow::Result<Token> {
            Ok(Token { bytes: self.0.token_bytes(token)?, logprob: Some(logprob) })
        };
        let top = top.iter().map(|&likely| token_of(likely)).collect::<Result<_, _>>()?;
        Ok(TokenLogprobs { token: token_of((token, logprob))?, top })
    }

    /// The first token of a prompt, which has no log-prob.
    ///
    /// # Errors
    /// As [`Vocabulary::told`].
    pub(super) fn first(&self, token: u32) -> anyhow::Result<TokenLogprobs> {
        Ok(TokenLogprobs { token: Token { bytes: self.0.token_bytes(token)?, logprob: None }, top: Vec::new() })
    }
}

impl Token {
    /// Its text, with incomplete characters replaced.
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
pub(super) fn for_chat(tokens: &[TokenLogprobs]) -> Value {
    let entry = |told: &TokenLogprobs| {
        let mut entry = told.token.for_chat();
        let top: Vec<Value> = told.top.iter().map(|token| Value::Object(token.for_chat())).collect();
        entry.insert("top_logprobs".to_owned(), Value::Array(top));
        Value::Object(entry)
    };
    json!({"content": tokens.iter().map(entry).collect::<Vec<_>>(), "refusal": null})
}

/// `{"tokens", "token_logprobs", "top_logprobs", "text_offset"}`; `offset` is the number of characters before the
/// tokens.
pub(super) fn for_completion(tokens: &[TokenLogprobs], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for told in tokens {
        offsets.push(*offset);
        *offset += told.token.text().chars().count();
    }
    let top = |told: &TokenLogprobs| -> Value {
        if told.token.logprob.is_none() {
            return Value::Null;
        }
        let mut entries = Map::new();
        // Several tokens may have the same text; the most likely one is kept. The actual token is always included.
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
