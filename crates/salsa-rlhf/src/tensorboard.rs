//! TensorBoard event files with scalars only, encoded in three small layers.
//!
//! ```text
//! record   u64 length · u32 masked CRC-32C of length · payload · u32 masked CRC-32C of payload   (little endian)
//! payload  protobuf Event { 1: double wall_time, 2: int64 step, 3: string file_version, 5: Summary summary, 7: SessionLog }
//! summary  protobuf Summary { repeated 1: Value { 1: string tag, 2: float simple_value } }
//! ```
//!
//! Record framing: TensorFlow's `record_writer`; messages: `event.proto`, `summary.proto`.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// Appends scalar events to a new event file.
#[derive(Debug)]
pub(crate) struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Creates a file `events.out.tfevents.SECONDS.HOST.N` in `dir` for steps from `first_step` on. It makes
    /// TensorBoard drop points of older files in `dir` at `first_step` or later (`SessionLog::START`).
    ///
    /// # Errors
    /// If the file cannot be created or written.
    pub(crate) fn open(dir: &Path, first_step: u64) -> Result<EventWriter> {
        let now = wall_time();
        let (path, file) = create_new(dir, &format!("events.out.tfevents.{:010}.{}", now as u64, host()))?;
        let mut writer = EventWriter { path, file };
        writer.append(&version_event(now, first_step))?;
        writer.append(&start_event(now, first_step))?;
        Ok(writer)
    }

    /// Appends one event with all `scalars` of `step` and flushes it to the operating system. Values are stored as
    /// `f32`, as in TensorBoard; NaN and infinities are kept.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn scalars<'a>(&mut self, step: u64, scalars: impl Iterator<Item = (&'a str, f64)>) -> Result<()> {
        self.append(&scalar_event(wall_time(), step, scalars))
    }

    fn append(&mut self, event: &[u8]) -> Result<()> {
        self.file
            .write_all(&record(event))
            .with_context(|| format!("cannot write {}; is the disk full?", self.path.display()))
    }
}

/// The first unused name `STEM.N`: files of two runs started within one second sort in the order of their start.
fn create_new(dir: &Path, stem: &str) -> Result<(PathBuf, File)> {
    for n in 0..10_000 {
        let path = dir.join(format!("{stem}.{n:04}"));
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            other => {
                let file = other.with_context(|| format!("cannot create {}", path.display()))?;
                return Ok((path, file));
            }
        }
    }
    anyhow::bail!("{}: ten thousand event files of one second; delete some", dir.display())
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name: String = name
        .unwrap_or_default()
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
        .take(64)
        .collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut out = Vec::with_capacity(payload.len() + 16);
    out.extend_from_slice(&length);
    out.extend_from_slice(&masked_crc(&length).to_le_bytes());
    out.extend_from_slice(payload);
    out.extend_from_slice(&masked_crc(payload).to_le_bytes());
    out
}

fn version_event(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = event_head(wall_time, step);
    bytes_field(&mut event, 3, b"brain.Event:2");
    event
}

fn start_event(wall_time: f64, step: u64) -> Vec<u8> {
    const START: u64 = 1;
    let mut session = Vec::new();
    varint_field(&mut session, 1, START);
    let mut event = event_head(wall_time, step);
    bytes_field(&mut event, 7, &session);
    event
}

fn scalar_event<'a>(wall_time: f64, step: u64, scalars: impl Iterator<Item = (&'a str, f64)>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, scalar) in scalars {
        let mut value = Vec::new();
        bytes_field(&mut value, 1, tag.as_bytes());
        key(&mut value, 2, FIXED32);
        value.extend_from_slice(&(scalar as f32).to_le_bytes());
        bytes_field(&mut summary, 1, &value);
    }
    let mut event = event_head(wall_time, step);
    bytes_field(&mut event, 5, &summary);
    event
}

fn event_head(wall_time: f64, step: u64) -> Vec<u8> {
    let mut event = Vec::new();
    key(&mut event, 1, FIXED64);
    event.extend_from_slice(&wall_time.to_le_bytes());
    varint_field(&mut event, 2, step);
    event
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    key(out, field, VARINT);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    key(out, field, BYTES);
    varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// TFRecord masks checksums by rotation and addition, so that checksums of data containing checksums stay useful.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), reflected polynomial 0x82F63B78, bit by bit: event files are small.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    #[test]
    fn crc_agrees_with_published_vectors() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
        assert_eq!(crc32c(b""), 0);
    }

    #[test]
    fn varints_are_seven_bits_a_byte() {
        for (value, bytes) in [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (300, vec![0xac, 2])] {
            let mut out = Vec::new();
            varint(&mut out, value);
            assert_eq!(out, bytes);
        }
    }

    /// Encoded by hand from `event.proto` and `summary.proto`.
    #[test]
    fn events_are_the_bytes_of_the_protobuf_messages() {
        let head = [0x09, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f]; // 1: wall_time = 1.5
        let mut scalar = head.to_vec();
        scalar.extend([0x10, 0xac, 0x02]); // 2: step = 300
        scalar.extend([0x2a, 13, 0x0a, 11]); // 5: summary of 13 bytes, its value of 11
        scalar.extend([0x0a, 4, b'l', b'o', b's', b's', 0x15, 0, 0, 0x80, 0x3e]); // tag, 2: 0.25
        assert_eq!(scalar_event(1.5, 300, [("loss", 0.25)].into_iter()), scalar);
        let mut start = head.to_vec();
        start.extend([0x10, 7, 0x3a, 2, 0x08, 1]); // step 7, 7: session_log { 1: START }
        assert_eq!(start_event(1.5, 7), start);
        let mut version = head.to_vec();
        version.extend([0x10, 0, 0x1a, 13]);
        version.extend(b"brain.Event:2");
        assert_eq!(version_event(1.5, 0), version);
    }

    /// The framing of the eight-byte length is checked against a known checksum: the first record of files written by
    /// TensorFlow with a 24-byte version event starts with these twelve bytes.
    #[test]
    fn records_are_framed_like_tensorflows() {
        let framed = record(&[0; 24]);
        assert_eq!(framed[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(framed.len(), 8 + 4 + 24 + 4);
        assert_eq!(framed[36..], masked_crc(&[0; 24]).to_le_bytes());
    }

    #[test]
    fn files_of_one_second_sort_by_start() {
        let dir = tempfile::tempdir().unwrap();
        let (first, _) = create_new(dir.path(), "events.out.tfevents.1.host").unwrap();
        let (second, _) = create_new(dir.path(), "events.out.tfevents.1.host").unwrap();
        assert!(first < second);
        let mut writer = EventWriter::open(dir.path(), 3).unwrap();
        let before = std::fs::metadata(&writer.path).unwrap().len();
        writer.scalars(3, [("a", 1.0)].into_iter()).unwrap();
        assert!(std::fs::metadata(&writer.path).unwrap().len() > before);
    }
}
