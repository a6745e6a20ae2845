//! Limits on data files: every size stated in a file is checked against its bytes or a limit here.

use std::{
    io::{self, Read},
    path::Path,
};

use anyhow::{Result, bail};
use serde_json::{Map, Value};

use super::{Content, Example};
use crate::{chat::Conversation, stage::memory::Available};

/// Maximum bytes of one record: a line of JSON, a row of Parquet.
pub(super) const LONGEST_RECORD: u64 = 16 << 20;

/// Maximum expansion. Text compresses to a tenth or, if repetitive, to a hundredth; far more indicates an attack.
pub(super) const MOST_EXPANSION: u64 = 300;

/// Memory of a value besides its text.
pub(super) const PER_VALUE: u64 = 40;

/// Maximum output of a file of this many bytes; at least `always`.
pub(super) fn most_from(bytes: u64, always: u64) -> u64 {
    always.max(bytes.saturating_mul(MOST_EXPANSION))
}

/// The memory budget of a data set's records.
pub(super) struct Room {
    free: u64,
    held: u64,
}

impl Room {
    /// The machine's free memory, or unlimited if unknown.
    pub(super) fn now() -> Room {
        Room::of(Available::of_machine().bytes().unwrap_or(u64::MAX))
    }

    /// A budget of `free` bytes.
    pub(super) fn of(free: u64) -> Room {
        Room { free, held: 0 }
    }

    /// The size of the budget.
    pub(super) fn free(&self) -> u64 {
        self.free
    }

    /// Uses `bytes` of the budget for the data set at `path`.
    pub(super) fn take(&mut self, bytes: u64, path: &Path) -> Result<()> {
        self.held = self.held.saturating_add(bytes);
        if self.held <= self.free {
            return Ok(());
        }
        let gib = |bytes: u64| bytes as f64 / (1u64 << 30) as f64;
        bail!(
            "{}: its records need more memory than there is ({:.1} GiB); divide it into files, and give fewer of them",
            path.display(),
            gib(self.free)
        )
    }
}

/// The approximate memory of an example.
pub(super) fn bytes_of(example: &Example) -> u64 {
    let text = |text: &String| text.len() as u64 + PER_VALUE;
    let messages = |talk: &Conversation| {
        let arguments = talk.arguments.columns().iter().map(|(_, value)| bytes_of_value(value)).sum::<u64>();
        talk.iter().map(|turn| text(&turn.role) + text(&turn.content)).sum::<u64>() + arguments
    };
    let content = |content: &Content| match content {
        Content::Text(one) => text(one),
        Content::Messages(list) => messages(list),
    };
    let parts = match example {
        Example::Text(one) => text(one),
        Example::Messages(list) => messages(list),
        Example::PromptCompletion { prompt, completion } => content(prompt) + content(completion),
        Example::Preference(pair) => content(&pair.prompt) + content(&pair.chosen) + content(&pair.rejected),
        Example::Prompt(prompt) => content(prompt),
    };
    parts + size_of::<Example>() as u64 + PER_VALUE
}

/// The approximate memory of a record.
pub(super) fn bytes_of_record(record: &Map<String, Value>) -> u64 {
    PER_VALUE + record.iter().map(|(key, value)| key.len() as u64 + 2 * PER_VALUE + bytes_of_value(value)).sum::<u64>()
}

/// The approximate memory of a JSON value.
pub(super) fn bytes_of_value(value: &Value) -> u64 {
    let inside = match value {
        Value::String(text) => text.len() as u64,
        Value::Array(list) => list.iter().map(bytes_of_value).sum(),
        Value::Object(map) => return bytes_of_record(map),
        _ => 0,
    };
    inside + PER_VALUE
}

/// A stream that limits each record to [`LONGEST_RECORD`]; the parser marks where records begin.
pub(super) struct PerRecord<R> {
    inner: R,
    left: u64,
    recent: Vec<u8>,
}

impl<R: Read> PerRecord<R> {
    pub(super) fn new(inner: R) -> PerRecord<R> {
        PerRecord { inner, left: LONGEST_RECORD, recent: Vec::new() }
    }

    /// The underlying stream.
    pub(super) fn inner(&self) -> &R {
        &self.inner
    }

    /// Marks the start of a record.
    pub(super) fn begin(&mut self) {
        self.left = LONGEST_RECORD;
    }

    /// Returns the last up to 64 bytes read, followed by up to eight more, and the number of the former.
    pub(super) fn around(&mut self) -> (Vec<u8>, usize) {
        let mut text = std::mem::take(&mut self.recent);
        let before = text.len();
        // Bytes that cannot be read are not shown.
        let _ = self.inner.by_ref().take(8).read_to_end(&mut text);
        (text, before)
    }
}

impl<R: Read> Read for PerRecord<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        const SHOWN: usize = 64;
        if self.left == 0 {
            return Err(io::Error::other(TooLong));
        }
        let most = usize::try_from(self.left).map_or(into.len(), |left| left.min(into.len()));
        let count = self.inner.read(&mut into[..most])?;
        self.left -= count as u64;
        self.recent.extend_from_slice(&into[count.saturating_sub(SHOWN)..count]);
        if self.recent.len() > 8 * SHOWN {
            self.recent.drain(..self.recent.len() - SHOWN);
        }
        Ok(count)
    }
}

/// A record exceeds the limit.
#[derive(Debug, thiserror::Error)]
#[error("it is longer than {} MiB, the most that a record may have: split or remove it", LONGEST_RECORD >> 20)]
pub(super) struct TooLong;

/// A stream with a limit on its total bytes.
pub(super) struct Unpacked<R> {
    inner: R,
    left: u64,
}

impl<R> Unpacked<R> {
    /// The unpacked bytes of a file of `packed` bytes.
    pub(super) fn new(inner: R, packed: u64) -> Unpacked<R> {
        Unpacked { inner, left: most_from(packed, 16 << 20) }
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(into)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| io::Error::other(TooMuch))?;
        Ok(count)
    }
}

/// A file unpacks to more than the limit.
#[derive(Debug, thiserror::Error)]
#[error("it unpacks to more than {MOST_EXPANSION} times its size, as no text does; if it is data, unpack it first")]
pub(super) struct TooMuch;
