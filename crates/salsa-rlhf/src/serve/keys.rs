//! API keys.
use std::path::Path;

use anyhow::ensure;
use hyper::{HeaderMap, header::AUTHORIZATION};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};

use crate::input;

/// Digests of the accepted keys; empty: no key is needed.
#[derive(Clone, Default)]
pub(crate) struct Keys(Vec<[u8; 32]>);

impl Keys {
    /// Reads keys from a file, one per line; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// If the file cannot be read, holds no key, or a key contains a space or a character that is invalid in a header.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Keys> {
        let text = input::read_to_string(path)?;
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let key = line.trim();
            if key.is_empty() || key.starts_with('#') {
                continue;
            }
            ensure!(
                key.bytes().all(|byte| byte.is_ascii_graphic()),
                "{}, line {number}: a key is made of printable ASCII characters without spaces",
                path.display()
            );
            keys.push(Sha256::digest(key).into());
        }
        ensure!(!keys.is_empty(), "{} holds no key; write one a line", path.display());
        Ok(Keys(keys))
    }

    /// Whether no key is needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these headers carry an accepted key. Takes equal time for all keys of the same length.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let given = headers.get(AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        // The scheme is not secret.
        let Some((scheme, key)) = given.split_at_checked("Bearer ".len()) else { return false };
        let digest: [u8; 32] = Sha256::digest(key.trim_ascii()).into();
        let equal = self.0.iter().fold(Choice::from(0), |any, known| any | known.ct_eq(&digest));
        scheme.eq_ignore_ascii_case(b"Bearer ") && bool::from(equal)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn keys(text: &str) -> anyhow::Result<Keys> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("keys"), text).unwrap();
        Keys::read(&dir.path().join("keys"))
    }

    fn allow(keys: &Keys, value: &str) -> bool {
        keys.allow(&HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]))
    }

    #[test]
    fn a_known_key_is_let_in_and_no_other() {
        let keys = keys("# mine\nfirst-key\n\n  second-key \n").unwrap();
        assert!(allow(&keys, "Bearer first-key") && allow(&keys, "bearer second-key"));
        for wrong in ["Bearer first-ke", "Bearer ", "Bearer", "first-key", "Basic first-key", "Bearer # mine"] {
            assert!(!allow(&keys, wrong), "{wrong}");
        }
        assert!(!keys.allow(&HeaderMap::new()));
        assert!(Keys::default().allow(&HeaderMap::new()));
    }

    #[test]
    fn a_file_without_a_usable_key_is_refused() {
        assert!(keys("\n# nothing\n").err().unwrap().to_string().contains("holds no key"));
        assert!(keys("a\nb c\n").err().unwrap().to_string().contains("line 2"));
    }
}
