//! Files of the tools: JSON lines or one JSON list, gzipped or not.
use std::{borrow::Cow, io::Read, path::Path};

use anyhow::{Context, ensure};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::{input, stage::text::rows::Rows};

/// Maximum size of an unpacked file.
const MOST_BYTES: u64 = 1 << 30;

/// The rows of a file.
///
/// # Errors
/// If the file cannot be read, has no row, or a row is no JSON object; the error names the row.
pub(super) fn rows(path: &Path) -> anyhow::Result<Rows> {
    let bytes = unpacked(path, input::read(path)?)?;
    let text = std::str::from_utf8(&bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let objects = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text).with_context(|| format!("{} is no list of JSON objects", path.display()))?,
        false => lines(path, text)?,
    };
    ensure!(!objects.is_empty(), "{} holds no rows; at least one is needed", path.display());
    Ok(Rows::of(path, objects))
}

/// Only `\n` ends a line.
fn lines(path: &Path, text: &str) -> anyhow::Result<Vec<Map<String, Value>>> {
    let lines = text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty());
    let object = |(number, line)| {
        serde_json::from_str(line).with_context(|| format!("{}: line {} is no JSON object", path.display(), number + 1))
    };
    lines.map(object).collect()
}

fn unpacked(path: &Path, bytes: Vec<u8>) -> anyhow::Result<Cow<'static, [u8]>> {
    if path.extension().is_none_or(|ending| ending != "gz") {
        return Ok(bytes.into());
    }
    let mut text = Vec::new();
    let read = MultiGzDecoder::new(&bytes[..]).take(MOST_BYTES + 1).read_to_end(&mut text);
    read.with_context(|| format!("{} is no whole gzip file", path.display()))?;
    ensure!(text.len() as u64 <= MOST_BYTES, "{} unpacks to more than {} MiB", path.display(), MOST_BYTES >> 20);
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    #[test]
    fn lines_lists_and_gzip_are_read_alike() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let lines = "{\"a\": \"x\u{2028}y\"}\n\n{\"a\": 2}\n";
        std::fs::write(path("a.jsonl"), lines).unwrap();
        std::fs::write(path("a.json"), "[{\"a\": \"x\u{2028}y\"},\n {\"a\": 2}]").unwrap();
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(lines.as_bytes()).unwrap();
        std::fs::write(path("a.jsonl.gz"), packed.finish().unwrap()).unwrap();
        for name in ["a.jsonl", "a.json", "a.jsonl.gz"] {
            let rows = rows(&path(name)).unwrap();
            assert_eq!((rows.rows.len(), rows.rows[0].object["a"].as_str()), (2, Some("x\u{2028}y")), "{name}");
        }
        for (name, text, complaint) in [
            ("b.jsonl", "{\"a\": 1}\n{\"a\"", "line 2"),
            ("c.jsonl", "7\n", "line 1"),
            ("d.jsonl", "\n", "no rows"),
            ("e.json", "[1]", "no list"),
            ("f.gz", "not packed", "gzip"),
        ] {
            std::fs::write(path(name), text).unwrap();
            let error = format!("{:#}", rows(&path(name)).map(drop).unwrap_err());
            assert!(error.contains(complaint), "{error}");
        }
    }
}
