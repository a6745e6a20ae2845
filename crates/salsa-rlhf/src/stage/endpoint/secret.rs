//! The key of a server. It is read from the environment or a file, is in no configuration, and is never printed.
use std::{env, path::Path};

use anyhow::ensure;

use crate::input;

/// A key. It can be put into a request header and removed from texts, and has no `Debug` or `Display`.
pub(in crate::stage) struct Secret(Option<String>);

impl Secret {
    /// The key in a file, or else in an environment variable; no key if neither is given.
    ///
    /// # Errors
    /// If the file cannot be read, or the key cannot be sent in a header.
    pub(crate) fn read(file: &str, variable: &str) -> anyhow::Result<Secret> {
        let text = match file {
            "" => env::var(variable).ok().filter(|_| !variable.is_empty()),
            file => Some(input::read_to_string(Path::new(file))?),
        };
        let key = text.map(|text| text.trim().to_owned()).filter(|key| !key.is_empty());
        let source = if file.is_empty() { variable } else { file };
        let can_be_sent = key.as_deref().is_none_or(|key| key.bytes().all(|byte| (0x21..=0x7e).contains(&byte)));
        ensure!(
            can_be_sent,
            "the key in {source} holds spaces, line ends or other characters that a key does not have"
        );
        Ok(Secret(key))
    }

    /// A header value: the key after this prefix.
    pub(crate) fn header(&self, prefix: &str) -> Option<String> {
        self.0.as_ref().map(|key| format!("{prefix}{key}"))
    }

    /// Whether a key is set.
    pub(crate) fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// A server's message with the key masked. A shorter key than any service gives out, such as the `-` or `EMPTY` that
    /// local servers are given, is no secret and occurs in ordinary text.
    pub(crate) fn out_of(&self, text: &str) -> String {
        self.masked(text, SHORTEST)
    }

    /// A judge's text with the key masked. Masking changes what is counted, so the key must be too long to be a word.
    pub(crate) fn out_of_reply(&self, text: &str) -> String {
        self.masked(text, LONGER_THAN_WORDS)
    }

    fn masked(&self, text: &str, shortest: usize) -> String {
        match &self.0 {
            Some(key) if key.len() >= shortest => text.replace(key.as_str(), "***"),
            _ => text.to_owned(),
        }
    }
}

/// Fewest characters of a key that is masked in messages of a server.
const SHORTEST: usize = 8;

/// Fewest characters of a key that is masked in replies.
const LONGER_THAN_WORDS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_from_a_file_and_goes_into_headers_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, "sk-secret\n").unwrap();
        let secret = Secret::read(path.to_str().unwrap(), "").unwrap();
        assert_eq!(secret.header("Bearer ").as_deref(), Some("Bearer sk-secret"));
        assert_eq!(secret.out_of("wrong key sk-secret."), "wrong key ***.");
        assert_eq!(secret.out_of_reply("no sk-secret"), "no sk-secret", "it could be a word");
        let long = Secret(Some("sk-0123456789abc".to_owned()));
        assert_eq!(long.out_of_reply("(sk-0123456789abc)"), "(***)");
        let placeholder = Secret(Some("-".to_owned()));
        assert_eq!(placeholder.out_of("a - b"), "a - b");
        std::fs::write(&path, "two words").unwrap();
        let error = format!("{:#}", Secret::read(path.to_str().unwrap(), "").map(drop).unwrap_err());
        assert!(error.contains("key") && !error.contains("two words"), "{error}");
        assert!(!Secret::read("", "SALSA_NO_SUCH_VARIABLE").unwrap().is_known());
    }
}
