//! Checks bytes against an ETag.

use std::{io::Read, path::Path};

use anyhow::{Context, Result, bail};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{atomic::hex, input};

/// Checks a file: a large file's ETag is the SHA-256 of its bytes, a small one's the SHA-1 of its git blob. For other
/// ETags only the length is checked.
pub(super) fn check(path: &Path, etag: &str, length: u64) -> Result<()> {
    let found = path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    if found != length {
        bail!("it has {found} bytes, {length} were announced");
    }
    let is_hex = |n: usize| etag.len() == n && etag.bytes().all(|b| b.is_ascii_hexdigit());
    let digest = if is_hex(64) {
        of(path, Sha256::new())?
    } else if is_hex(40) {
        of(path, Sha1::new_with_prefix(format!("blob {length}\0")))?
    } else {
        return Ok(());
    };
    if digest != etag.to_ascii_lowercase() {
        bail!("its digest is {digest}, {etag} was announced");
    }
    Ok(())
}

fn of(path: &Path, mut hash: impl Digest) -> Result<String> {
    let mut file = input::open(path)?;
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_git_and_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // printf 'hello\n' | git hash-object --stdin;   printf 'hello\n' | sha256sum
        let (git, sha256) = (
            "ce013625030ba8dba906f756967f9e9ca394464a",
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        );
        for etag in [git, sha256, "anything-else"] {
            check(&path, etag, 6).unwrap();
        }
        assert!(check(&path, sha256, 7).unwrap_err().to_string().contains("6 bytes, 7 were announced"));
        std::fs::write(&path, "jello\n").unwrap();
        for etag in [git, sha256] {
            assert!(check(&path, etag, 6).unwrap_err().to_string().contains(etag));
        }
    }
}
