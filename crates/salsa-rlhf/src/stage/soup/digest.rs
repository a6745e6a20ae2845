//! BLAKE3 of weight files, computed from the bytes as they are read or written, so that no file is read again.
//!
//! BLAKE3 is a tree over blocks whose parts can be computed in any order. The result equals the output of `b3sum FILE`.
use std::{
    collections::BTreeMap,
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use anyhow::Context;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};
use rayon::prelude::*;

use crate::{checkpoint::positioned, input};

/// Bytes of a leaf: sixteen BLAKE3 chunks, the number that its widest kernel processes at once.
const BLOCK: u64 = 16 << 10;

/// Leaves of a group, hashed at once if passed as a whole: fewer steps up the tree.
const GROUP: u64 = 4;

/// Leaves read at a time in [`FileDigest::finish`].
const RUN: usize = 16;

/// The incremental digest of one file.
#[derive(Debug)]
pub(super) struct FileDigest {
    path: PathBuf,
    bytes: u64,
    blocks: Vec<OnceLock<ChainingValue>>,
    groups: Vec<OnceLock<ChainingValue>>,
    torn: Mutex<BTreeMap<u64, PartialBlock>>,
}

/// A block of which only parts were passed so far.
#[derive(Debug)]
struct PartialBlock {
    bytes: Vec<u8>,
    /// Start and end of the passed parts; they do not overlap.
    parts: Vec<(usize, usize)>,
}

impl FileDigest {
    /// Creates the digest of a file with this length.
    pub(super) fn new(path: &Path, bytes: u64) -> FileDigest {
        let empty = |count: u64| (0..count).map(|_| OnceLock::new()).collect();
        let blocks = bytes.div_ceil(BLOCK);
        // The root is computed differently, so no group may cover the whole file.
        let groups = if blocks > GROUP { bytes / (GROUP * BLOCK) } else { 0 };
        FileDigest {
            path: path.to_owned(),
            bytes,
            blocks: empty(blocks),
            groups: empty(groups),
            torn: Mutex::default(),
        }
    }

    /// Adds the bytes at `offset` in the file; from any thread, in any order, duplicates allowed.
    pub(super) fn pass(&self, offset: u64, bytes: &[u8]) {
        let mut block = offset.div_ceil(BLOCK);
        let (end, mut rest) = bytes.split_at(bytes.len().min((block * BLOCK - offset) as usize));
        if !end.is_empty() {
            self.pass_part(block - 1, (offset - (block - 1) * BLOCK) as usize, end);
        }
        while !rest.is_empty() {
            let group = self.groups.get((block / GROUP) as usize).filter(|_| block.is_multiple_of(GROUP));
            let (place, length) = match group {
                Some(group) if rest.len() as u64 >= GROUP * BLOCK => (group, GROUP * BLOCK),
                _ if block >= self.blocks.len() as u64 => return,
                _ if rest.len() as u64 >= self.length(block) => (&self.blocks[block as usize], self.length(block)),
                _ => return self.pass_part(block, 0, rest),
            };
            let (piece, others) = rest.split_at(length as usize);
            if !self.is_known(block) {
                place.get_or_init(|| subtree(block, piece));
            }
            (block, rest) = (block + length.div_ceil(BLOCK), others);
        }
    }

    /// Adds a part of a block; the last part completes it. Incomplete blocks are read by [`FileDigest::finish`].
    fn pass_part(&self, block: u64, at: usize, part: &[u8]) {
        let length = self.length(block) as usize;
        let end = at + part.len();
        if end > length || self.is_known(block) {
            return;
        }
        let whole = {
            let mut all = self.torn.lock().unwrap_or_else(PoisonError::into_inner);
            let torn = all.entry(block).or_insert_with(|| PartialBlock { bytes: vec![0; length], parts: Vec::new() });
            if torn.parts.iter().any(|(from, to)| at < *to && *from < end) {
                return;
            }
            torn.bytes[at..end].copy_from_slice(part);
            torn.parts.push((at, end));
            let held: usize = torn.parts.iter().map(|(from, to)| to - from).sum();
            if held < length {
                return;
            }
            all.remove(&block)
        };
        if let Some(torn) = whole {
            self.blocks[block as usize].get_or_init(|| subtree(block, &torn.bytes));
        }
    }

    fn is_known(&self, block: u64) -> bool {
        let group = self.groups.get((block / GROUP) as usize);
        group.is_some_and(|group| group.get().is_some()) || self.blocks[block as usize].get().is_some()
    }

    /// The digest in lower-case hexadecimal. Reads the blocks that were not passed: headers, blocks across two passes,
    /// omitted tensors.
    ///
    /// # Errors
    /// If the file cannot be read or has become shorter.
    pub(super) fn finish(&self) -> anyhow::Result<String> {
        if self.blocks.len() < 2 {
            let bytes = input::read(&self.path)?;
            return Ok(blake3::hash(&bytes).to_string());
        }
        let missing: Vec<usize> = (0..self.blocks.len()).filter(|i| !self.is_known(*i as u64)).collect();
        let runs: Vec<&[usize]> = missing.chunk_by(|a, b| a + 1 == *b).flat_map(|run| run.chunks(RUN)).collect();
        if !runs.is_empty() {
            let file = input::open(&self.path)?;
            runs.par_iter().try_for_each(|run| self.read(&file, run[0], run.len()))?;
        }
        let half = left_subtree_len(self.bytes) / BLOCK;
        let (left, right) = (self.subtree(0, half), self.subtree(half, self.blocks.len() as u64));
        Ok(merge_subtrees_root(&left, &right, Mode::Hash).to_string())
    }

    /// Reads and hashes blocks of the file.
    fn read(&self, file: &File, first: usize, count: usize) -> anyhow::Result<()> {
        let start = first as u64 * BLOCK;
        let end = ((first + count) as u64 * BLOCK).min(self.bytes);
        let mut bytes = vec![0; (end - start) as usize];
        positioned::read(file, &mut bytes, start)
            .with_context(|| format!("cannot read {} for its digest", self.path.display()))?;
        self.pass(start, &bytes);
        Ok(())
    }

    fn length(&self, block: u64) -> u64 {
        BLOCK.min(self.bytes.saturating_sub(block * BLOCK))
    }

    /// The chaining value of the blocks `from..to`, a non-empty range.
    fn subtree(&self, from: u64, to: u64) -> ChainingValue {
        let group = self.groups.get((from / GROUP) as usize).filter(|_| to - from == GROUP);
        if let Some(value) = group.and_then(OnceLock::get) {
            return *value;
        }
        if to - from == 1 {
            return *self.blocks[from as usize].get().expect("what had not passed by has been read");
        }
        let bytes = (to * BLOCK).min(self.bytes) - from * BLOCK;
        let half = from + left_subtree_len(bytes) / BLOCK;
        merge_subtrees_non_root(&self.subtree(from, half), &self.subtree(half, to), Mode::Hash)
    }
}

fn subtree(block: u64, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(block * BLOCK).update(bytes);
    hasher.finalize_non_root()
}

#[cfg(test)]
mod tests {
    use super::*;
    use salsa_algo::random::{below, bits};

    fn file(length: usize) -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..length as u64).map(|i| bits(1, 2, i) as u8).collect();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        (dir, path, bytes)
    }

    #[test]
    fn it_is_the_digest_of_the_file_whatever_passed_by() {
        let block = BLOCK as usize;
        for length in
            [0, 1, 1024, block - 1, block, block + 1, 2 * block, 4 * block, 5 * block + 3, 8 * block, 23 * block + 1025]
        {
            let (_dir, path, bytes) = file(length);
            let expected = blake3::hash(&bytes).to_string();
            assert_eq!(FileDigest::new(&path, length as u64).finish().unwrap(), expected, "{length}");
            // Pieces of random lengths, in reverse order, some omitted, some passed twice.
            let (digest, mut cuts) = (FileDigest::new(&path, length as u64), vec![0]);
            while *cuts.last().unwrap() < length {
                let next = cuts.last().unwrap() + 1 + below(3, 4, cuts.len() as u64, 9 * block);
                cuts.push(next.min(length));
            }
            for (i, piece) in cuts.windows(2).enumerate().rev().filter(|(i, _)| i % 5 != 2) {
                digest.pass(piece[0] as u64, &bytes[piece[0]..piece[1]]);
                if i % 3 == 0 {
                    digest.pass(piece[0] as u64, &bytes[piece[0]..piece[1]]);
                }
            }
            assert_eq!(digest.finish().unwrap(), expected, "{length}");
        }
    }

    #[test]
    fn bytes_that_pass_by_are_not_read_again() {
        let (_dir, path, bytes) = file(13 * BLOCK as usize + 700);
        let digest = FileDigest::new(&path, bytes.len() as u64);
        // Neither whole blocks nor in order: parts of a block are assembled.
        let cuts = [0, 300, 1000, 5 * BLOCK as usize + 9, 9 * BLOCK as usize, 13 * BLOCK as usize + 5, bytes.len()];
        for cut in cuts.windows(2).rev() {
            digest.pass(cut[0] as u64, &bytes[cut[0]..cut[1]]);
        }
        assert!(digest.torn.lock().unwrap().is_empty());
        std::fs::remove_file(&path).unwrap();
        assert_eq!(digest.finish().unwrap(), blake3::hash(&bytes).to_string());
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let (_dir, path, bytes) = file(3 * BLOCK as usize);
        let digest = FileDigest::new(&path, bytes.len() as u64 + BLOCK);
        digest.pass(0, &bytes);
        assert!(format!("{:#}", digest.finish().unwrap_err()).contains("for its digest"));
    }

    /// The published test vector for 0, 1, 2, …, 250, 0, 1, … of 31744 bytes: two leaves.
    #[test]
    fn the_official_test_vector() {
        let dir = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..31744).map(|i| (i % 251) as u8).collect();
        let path = dir.path().join("x");
        std::fs::write(&path, &bytes).unwrap();
        let digest = FileDigest::new(&path, 31744).finish().unwrap();
        assert!(digest.starts_with("62b6960e1a44bcc1eb1a611a8d6235b6"), "{digest}");
    }
}
