//! Records out of files: JSON lines, JSON arrays, plain text, compressed or not, Parquet, one file or a folder of them.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserializer;
use serde::de::{SeqAccess, Visitor};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Which, folder, parquet};
use crate::atomic::hex;

pub(super) const KNOWN: &str = ".jsonl, .json, .jsonl.gz, .json.gz, .parquet or .txt";

/// Text shrinks to a tenth or, repeating itself, to a hundredth; this much more than that is an attack.
const MOST_EXPANSION: u64 = 300;

/// So much may come out of any compressed file.
const ALWAYS_ALLOWED: u64 = 16 << 20;

/// Where a record stands, for messages: its file, and its line, or its number there from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: Arc<Path>,
    number: usize,
    unit: &'static str,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.path.display(), self.unit, self.number)
    }
}

impl Place {
    pub(super) fn new(path: &Arc<Path>, number: usize, unit: &'static str) -> Place {
        Place { path: path.clone(), number, unit }
    }
}

pub(super) type Visit<'a> = &'a mut dyn FnMut(&Place, Map<String, Value>) -> Result<()>;

/// Calls `visit` with every record under `path`, in order, and returns the hash of what was read. An error of `visit`
/// gets the place of its record.
pub(super) fn for_each_record(path: &Path, which: Which<'_>, visit: Visit<'_>) -> Result<String> {
    if !path.is_dir() {
        if let Which::Named(name) = which {
            bail!("{} is one file, which has no splits; it was asked for {name:?}", path.display());
        }
        return read_file(path, visit);
    }
    let mut names = Sha256::new();
    for file in folder::select(path, which)? {
        names.update(format!("{}  {}\n", read_file(&file.path, visit)?, file.name));
    }
    Ok(hex(&names.finalize()))
}

/// What a data file is, by its name.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Format {
    Lines,
    Json,
    Text,
    Parquet,
}

impl Format {
    pub(super) fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Format::Lines),
            "json" => Some(Format::Json),
            "txt" => Some(Format::Text),
            "parquet" if plain == name => Some(Format::Parquet),
            _ => None,
        }
    }
}

fn read_file(path: &Path, visit: Visit<'_>) -> Result<String> {
    if !path.exists() {
        bail!("there is no data set at {}: give a {KNOWN} file or a folder of them", path.display());
    }
    let format = Format::of(path).ok_or_else(|| unknown_format(path))?;
    let path = &Arc::from(path);
    let raw = fs::read(path).with_context(|| format!("cannot read the data set {}", path.display()))?;
    let sha256 = hex(&Sha256::digest(&raw));
    if format == Format::Parquet {
        parquet::read(path, raw, visit)?;
        return Ok(sha256);
    }
    let bytes = decompress(path, raw)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let array = format == Format::Json && bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
    match format {
        Format::Text => read_text(path, bytes, visit)?,
        _ if array => read_array(path, bytes, visit)?,
        _ => read_lines(path, bytes, visit)?,
    }
    Ok(sha256)
}

fn unknown_format(path: &Path) -> anyhow::Error {
    anyhow!("{} is no data set by its name: expected {KNOWN}", path.display())
}

fn decompress(path: &Path, raw: Vec<u8>) -> Result<Vec<u8>> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
        return Ok(raw);
    }
    let mut bytes = Vec::new();
    let most = ALWAYS_ALLOWED.max(raw.len() as u64 * MOST_EXPANSION);
    flate2::read::MultiGzDecoder::new(&raw[..])
        .take(most + 1)
        .read_to_end(&mut bytes)
        .with_context(|| format!("{} is no complete gzip file: download or compress it again", path.display()))?;
    if bytes.len() as u64 > most {
        bail!(
            "{} unpacks to more than {MOST_EXPANSION} times its size: that is no data set. If it is, unpack it yourself",
            path.display()
        );
    }
    Ok(bytes)
}

fn read_lines(path: &Arc<Path>, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = Place::new(path, index + 1, "line");
        let value = serde_json::from_slice(line).map_err(|e| {
            let hint = if e.is_eof() { " (a JSON lines file has one whole object on each line)" } else { "" };
            anyhow!("{place}: no valid JSON at column {}: {}{hint}", e.column(), strip_position(&e))
        })?;
        visit_value(&place, value, visit)?;
    }
    Ok(())
}

fn read_array(path: &Arc<Path>, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    let mut records = Records { path, visit, refused: None };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = json.deserialize_seq(&mut records).and_then(|()| json.end());
    match records.refused {
        Some(refused) => Err(refused),
        None => read.with_context(|| format!("{} is no valid JSON array", path.display())),
    }
}

/// The elements of an array, each visited before the next is read.
struct Records<'a, 'b> {
    path: &'a Arc<Path>,
    visit: Visit<'b>,
    /// What `visit` said, where it ended the reading.
    refused: Option<anyhow::Error>,
}

impl<'de> Visitor<'de> for &mut Records<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let mut number = 0;
        while let Some(value) = list.next_element()? {
            number += 1;
            if let Err(error) = visit_value(&Place::new(self.path, number, "record"), value, self.visit) {
                self.refused = Some(error);
                return Err(serde::de::Error::custom("refused"));
            }
        }
        Ok(())
    }
}

fn read_text(path: &Arc<Path>, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    if text.is_empty() {
        return Ok(());
    }
    let record = Map::from_iter([("text".to_string(), Value::from(text))]);
    visit(&Place::new(path, 1, "text"), record)
}

fn visit_value(place: &Place, value: Value, visit: Visit<'_>) -> Result<()> {
    match value {
        Value::Object(record) => visit(place, record).map_err(|e| anyhow!("{place}: {e:#}")),
        other => bail!("{place}: expected an object with named columns, found {}", kind(&other)),
    }
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn strip_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_string())
}
