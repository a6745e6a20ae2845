//! The library `tokenizers`, called where a panic of its own becomes an error: it panics at files that it does not expect.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use anyhow::{Result, anyhow};
use tokenizers::models::TrainerWrapper;
use tokenizers::{AddedToken, Encoding};

thread_local! {
    /// Whether this thread is inside a call whose panic becomes an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// A tokenizer of the library. Nothing else of this program calls the library's tokenizers.
#[derive(Clone, Debug)]
pub(super) struct Guarded(tokenizers::Tokenizer);

impl Guarded {
    /// Reads the bytes of a `tokenizer.json`, without the truncation and padding of its last training run.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Guarded> {
        guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(Guarded(inner))
        })
        // The library panics at what is no JSON, or reports it without the place.
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

    /// The text of its `tokenizer.json`.
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

    /// The largest id; none if there is no token.
    pub(super) fn largest_id(&self) -> Result<Option<u32>> {
        guarded(|| Ok(self.0.get_vocab(true).into_values().max()))
    }

    /// The tokens beside the model's own vocabulary, by id.
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

/// What becomes of special tokens: those that encoding puts around a text, those that decoding comes across.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Specials {
    Add,
    Omit,
}

/// Does the work; a panic becomes an error and prints nothing.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    silence_guarded_panics();
    let outer = IS_GUARDED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(outer);
    match done {
        Ok(done) => done.map_err(|error| anyhow!("{error}")),
        Err(payload) => Err(anyhow!("the file is damaged or of an unknown kind: {}", message_of(&*payload))),
    }
}

fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                hook(info);
            }
        }));
    });
}

fn message_of(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("it cannot be used")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_library_is_an_error() {
        let error = guarded::<()>(|| panic!("no such {}", "thing")).unwrap_err().to_string();
        assert_eq!(error, "the file is damaged or of an unknown kind: no such thing");
        assert!(!IS_GUARDED.get());
        assert_eq!(guarded(|| Ok(3)).unwrap(), 3);
    }
}
