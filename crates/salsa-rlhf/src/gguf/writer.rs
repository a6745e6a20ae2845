//! Writing of GGUF files: header and tensors in order, in pieces, atomically.

use std::io::Write;
use std::path::Path;

use anyhow::Result;

use super::block::BlockType;
use super::value::Kind;
use crate::atomic;

/// Tensors begin at multiples of it.
const ALIGNMENT: u64 = 32;
/// The version of the format.
const VERSION: u32 = 3;

/// Keys and values in the order they were added.
#[derive(Default)]
pub(super) struct Pairs {
    count: u64,
    bytes: Vec<u8>,
}

impl Pairs {
    fn begin(&mut self, key: &str, kind: Kind) {
        self.count += 1;
        push_text(key, &mut self.bytes);
        self.bytes.extend((kind as u32).to_le_bytes());
    }

    /// Adds a whole number of 32 bits.
    pub(super) fn whole(&mut self, key: &str, number: usize) {
        self.begin(key, Kind::U32);
        self.bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
    }

    /// Adds a number.
    pub(super) fn float(&mut self, key: &str, number: f32) {
        self.begin(key, Kind::F32);
        self.bytes.extend(number.to_le_bytes());
    }

    /// Adds a truth value.
    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.begin(key, Kind::Bool);
        self.bytes.push(value.into());
    }

    /// Adds a text.
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.begin(key, Kind::Text);
        push_text(text, &mut self.bytes);
    }

    fn begin_list(&mut self, key: &str, kind: Kind, count: usize) {
        self.begin(key, Kind::List);
        self.bytes.extend((kind as u32).to_le_bytes());
        self.bytes.extend((count as u64).to_le_bytes());
    }

    /// Adds a list of texts.
    pub(super) fn texts(&mut self, key: &str, list: &[String]) {
        self.begin_list(key, Kind::Text, list.len());
        list.iter().for_each(|text| push_text(text, &mut self.bytes));
    }

    /// Adds a list of whole numbers.
    pub(super) fn wholes(&mut self, key: &str, list: &[i32]) {
        self.begin_list(key, Kind::I32, list.len());
        list.iter().for_each(|number| self.bytes.extend(number.to_le_bytes()));
    }

    /// Adds a list of numbers.
    pub(super) fn floats(&mut self, key: &str, list: &[f32]) {
        self.begin_list(key, Kind::F32, list.len());
        list.iter().for_each(|number| self.bytes.extend(number.to_le_bytes()));
    }
}

fn push_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor to be written.
#[derive(Clone, Debug)]
pub(super) struct NewTensor {
    pub(super) name: String,
    /// Rows first, as in Hugging Face's files.
    pub(super) shape: Vec<usize>,
    pub(super) kind: BlockType,
}

impl NewTensor {
    /// Bytes of its blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.kind.bytes_of(self.shape.iter().product()) as u64
    }
}

/// Writes a file. `fill` writes the bytes of a tensor, all of them, to the stream.
///
/// # Errors
/// When `fill` fails or the file cannot be written; nothing is left then.
pub(super) fn write(
    path: &Path,
    pairs: &Pairs,
    tensors: &[NewTensor],
    fill: impl Fn(usize, &mut dyn Write) -> Result<()>,
) -> Result<()> {
    let header = header(pairs, tensors);
    atomic::write_with(path, |out| {
        out.write_all(&header)?;
        for (number, tensor) in tensors.iter().enumerate() {
            fill(number, out)?;
            out.write_all(&padding(tensor.bytes()))?;
        }
        Ok(())
    })
}

fn padding(bytes: u64) -> Vec<u8> {
    vec![0; (bytes.next_multiple_of(ALIGNMENT) - bytes) as usize]
}

fn header(pairs: &Pairs, tensors: &[NewTensor]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend(pairs.count.to_le_bytes());
    out.extend(&pairs.bytes);
    let mut at = 0u64;
    for tensor in tensors {
        push_text(&tensor.name, &mut out);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|side| out.extend((*side as u64).to_le_bytes()));
        out.extend(tensor.kind.id().to_le_bytes());
        out.extend(at.to_le_bytes());
        at += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    out.extend(padding(out.len() as u64));
    out
}
