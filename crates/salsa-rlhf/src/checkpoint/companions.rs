//! The files of a checkpoint that are not weights: tokenizer, chat template, generation settings.

use std::path::Path;

use anyhow::Result;

use crate::{atomic, input};

const NAMES: [&str; 10] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];

/// Files copied byte for byte from one checkpoint to the next.
#[derive(Clone, Debug, Default)]
pub struct Companions {
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Companions {
    /// No files.
    pub fn none() -> Companions {
        Companions::default()
    }

    /// Reads the tokenizer files, chat template and `generation_config.json` of `dir`, as far as they exist.
    ///
    /// # Errors
    /// When an existing file cannot be read; names it.
    pub fn from_dir(dir: &Path) -> Result<Companions> {
        let mut files = Vec::new();
        for name in NAMES {
            let path = dir.join(name);
            if let Some(bytes) = input::read_if_any(&path)? {
                files.push((name, bytes));
            }
        }
        Ok(Companions { files })
    }

    /// Adds `chat_template.jinja` with this template, which every reader prefers to one in `tokenizer_config.json`.
    pub fn with_chat_template(mut self, source: &str) -> Companions {
        self.files.retain(|(name, _)| !name.starts_with("chat_template."));
        self.files.push(("chat_template.jinja", source.as_bytes().to_vec()));
        self
    }

    /// Adds a file; it must not be there yet.
    pub(crate) fn with(mut self, name: &'static str, bytes: Vec<u8>) -> Companions {
        self.files.push((name, bytes));
        self
    }

    /// Whether there is a file of this name.
    pub fn has(&self, name: &str) -> bool {
        self.files.iter().any(|(known, _)| *known == name)
    }

    /// Their names and bytes.
    pub fn files(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        self.files.iter().map(|(name, bytes)| (*name, bytes.as_slice()))
    }

    /// Writes them into `dir`, except those named in `without`.
    pub(in crate::checkpoint) fn write(&self, dir: &Path, without: &[&str]) -> Result<()> {
        let mut kept = self.files.iter().filter(|(name, _)| !without.contains(name));
        kept.try_for_each(|(name, bytes)| atomic::write(&dir.join(name), bytes))
    }
}
