//! Records out of files: JSON lines, JSON arrays, plain text, compressed or not, one file or a folder of them.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::atomic::hex;

const KNOWN: &str = ".jsonl, .json, .jsonl.gz, .json.gz or .txt";

/// Where a record stands, for messages.
pub(super) struct Place<'a> {
    path: &'a Path,
    number: usize,
    unit: &'static str,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} {}", self.path.display(), self.unit, self.number)
    }
}

type Visit<'a> = &'a mut dyn FnMut(&Place<'_>, Map<String, Value>) -> Result<()>;

/// Calls `visit` with every record under `path`, in order, and returns the hash of what was read. An error of `visit`
/// gets the place of its record.
pub(super) fn for_each_record(path: &Path, visit: Visit<'_>) -> Result<String> {
    if !path.is_dir() {
        return read_file(path, visit);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let file = entry.with_context(|| format!("cannot list {}", path.display()))?.path();
        if file.is_file() && Format::of(&file).is_some() {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        bail!("{} has no data files: expected {KNOWN} files in it", path.display());
    }
    let mut names = Sha256::new();
    for file in &files {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        names.update(format!("{}  {name}\n", read_file(file, visit)?));
    }
    Ok(hex(&names.finalize()))
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Lines,
    Json,
    Text,
}

impl Format {
    fn of(path: &Path) -> Option<Format> {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let plain = name.strip_suffix(".gz").unwrap_or(&name);
        match plain.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Format::Lines),
            "json" => Some(Format::Json),
            "txt" => Some(Format::Text),
            _ => None,
        }
    }
}

fn read_file(path: &Path, visit: Visit<'_>) -> Result<String> {
    if !path.exists() {
        bail!("there is no data set at {}: give a {KNOWN} file or a folder of them", path.display());
    }
    let format = Format::of(path).ok_or_else(|| unknown_format(path))?;
    let raw = fs::read(path).with_context(|| format!("cannot read the data set {}", path.display()))?;
    let sha256 = hex(&Sha256::digest(&raw));
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
    let name = path.to_string_lossy().to_lowercase();
    let shown = path.display();
    if name.ends_with(".parquet") {
        anyhow!(
            "{shown} is a Parquet file, which cannot be read. Convert it: python -c \"import pandas; pandas.read_parquet('{shown}').to_json('data.jsonl', orient='records', lines=True)\""
        )
    } else {
        anyhow!("{shown} is no data set by its name: expected {KNOWN}")
    }
}

fn decompress(path: &Path, raw: Vec<u8>) -> Result<Vec<u8>> {
    if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) {
        return Ok(raw);
    }
    let mut bytes = Vec::new();
    flate2::read::MultiGzDecoder::new(&raw[..])
        .read_to_end(&mut bytes)
        .with_context(|| format!("{} is no complete gzip file: download or compress it again", path.display()))?;
    Ok(bytes)
}

fn read_lines(path: &Path, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let place = Place { path, number: index + 1, unit: "line" };
        let value = serde_json::from_slice(line).map_err(|e| {
            let hint = if e.is_eof() { " (a JSON lines file has one whole object on each line)" } else { "" };
            anyhow!("{place}: no valid JSON at column {}: {}{hint}", e.column(), strip_position(&e))
        })?;
        visit_value(&place, value, visit)?;
    }
    Ok(())
}

fn read_array(path: &Path, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    let values: Vec<Value> =
        serde_json::from_slice(bytes).with_context(|| format!("{} is no valid JSON array", path.display()))?;
    for (index, value) in values.into_iter().enumerate() {
        visit_value(&Place { path, number: index + 1, unit: "record" }, value, visit)?;
    }
    Ok(())
}

fn read_text(path: &Path, bytes: &[u8], visit: Visit<'_>) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    if text.is_empty() {
        return Ok(());
    }
    let record = Map::from_iter([("text".to_string(), Value::from(text))]);
    visit(&Place { path, number: 1, unit: "text" }, record)
}

fn visit_value(place: &Place<'_>, value: Value, visit: Visit<'_>) -> Result<()> {
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
