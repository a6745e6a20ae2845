//! The library `tokenizers`, whose panics on unexpected files are converted to errors.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use tokenizers::models::TrainerWrapper;
use tokenizers::{AddedToken, Encoding};

use crate::guard;

/// A tokenizer of the library, which is called only here.
#[derive(Clone, Debug)]
pub(super) struct Guarded(tokenizers::Tokenizer);

impl Guarded {
    /// Reads a `tokenizer.json`, dropping its truncation and padding settings.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Guarded> {
        guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(Guarded(inner))
        })
        // On invalid JSON the library panics, or reports no location.
        .map_err(|error| serde_json::from_slice::<serde_json::Value>(bytes).map_or_else(Into::into, |_| error))
    }

    /// Trains `inner` on texts.
    pub(super) fn trained(
        mut inner: tokenizers::Tokenizer,
        trainer: &mut TrainerWrapper,
        texts: impl Iterator<Item = String> + Send,
    ) -> Result<Guarded> {
        guarded(|| inner.train(trainer, texts).map(drop))?;
        Ok(Guarded(inner))
    }

    /// Serialises to `tokenizer.json`.
    pub(super) fn json(&self) -> Result<String> {
        guarded(|| self.0.to_string(true))
    }

    pub(super) fn add_tokens(&mut self, tokens: impl Iterator<Item = AddedToken>) -> Result<()> {
        guarded(|| self.0.add_tokens(tokens).map(drop))
    }

    pub(super) fn encode(&self, text: &str, specials: Specials) -> Result<Encoding> {
        guarded(|| self.0.encode(text, specials == Specials::Add))
    }

    pub(super) fn decode(&self, ids: &[u32], specials: Specials) -> Result<String> {
        guarded(|| self.0.decode(ids, specials == Specials::Omit))
    }

    /// The largest id; `None` if there are no tokens.
    pub(super) fn largest_id(&self) -> Result<Option<u32>> {
        guarded(|| Ok(self.0.get_vocab(true).into_values().max()))
    }

    /// The tokens added to the model's vocabulary, by id.
    pub(super) fn added_tokens(&self) -> BTreeMap<u32, AddedToken> {
        self.0.get_added_tokens_decoder().into_iter().collect()
    }

    pub(super) fn token_to_id(&self, token: &str) -> Option<u32> {
        self.0.token_to_id(token)
    }

    pub(super) fn id_to_token(&self, id: u32) -> Option<String> {
        self.0.id_to_token(id)
    }

    #[cfg(test)]
    pub(super) fn library(&mut self) -> &mut tokenizers::Tokenizer {
        &mut self.0
    }
}

/// Treatment of special tokens: those added in encoding, and those met in decoding.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Specials {
    Add,
    Omit,
}

/// Runs `work`; a panic becomes an error and prints nothing.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match guard::guarded(work) {
        Ok(done) => done.map_err(|error| anyhow!("{error}")),
        Err(message) => Err(anyhow!("the file is damaged or of an unknown kind: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let error = guarded::<()>(|| panic!("no such {}", "thing")).unwrap_err().to_string();
        assert_eq!(error, "the file is damaged or of an unknown kind: no such thing");
        assert_eq!(guarded(|| Ok(3)).unwrap(), 3);
    }
}
