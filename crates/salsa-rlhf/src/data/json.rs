//! JSON lines and JSON arrays, read one record at a time, and the causes of parse errors.

use std::{
    fmt,
    io::{BufRead, Read},
    path::Path,
    sync::Arc,
};

use anyhow::{Result, anyhow, bail};
use serde::{
    Deserializer,
    de::{SeqAccess, Visitor},
};
use serde_json::Value;

use super::{
    files::{Place, Stream, Visit, kind},
    limits::{LONGEST_RECORD, PerRecord, TooLong},
};

/// Reads lines; the first has the number `line`.
pub(super) fn read_lines(path: &Arc<Path>, line: usize, mut stream: Stream<'_>, visit: Visit<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    for number in line.. {
        bytes.clear();
        let read = stream.by_ref().take(LONGEST_RECORD + 1).read_until(b'\n', &mut bytes);
        if read.map_err(|e| stream.unread(path, e))? == 0 {
            break;
        }
        let place = Place::new(path, number, "line");
        if bytes.len() as u64 > LONGEST_RECORD {
            bail!("{place}: {TooLong}");
        }
        let text = bytes.strip_suffix(b"\n").unwrap_or(&bytes);
        if text.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice(text) {
            Ok(value) => visit_value(&place, value, visit)?,
            Err(error) => bail!("{place}: {}", cause(text, error.column().saturating_sub(1), &error)),
        }
    }
    Ok(())
}

/// Reads an array, one element at a time.
pub(super) fn read_array(path: &Arc<Path>, stream: Stream<'_>, visit: Visit<'_>) -> Result<()> {
    let mut stream = PerRecord::new(stream);
    let shared = std::cell::RefCell::new(&mut stream);
    let mut records = Records { path, visit, stream: &shared, number: 0, refused: None };
    let mut json = serde_json::Deserializer::from_reader(Shared(&shared));
    let read = json.deserialize_seq(&mut records).and_then(|()| json.end());
    let Records { number, refused, .. } = records;
    drop(json);
    let error = match (refused, read) {
        (Some(refused), _) => return Err(refused),
        (None, Ok(())) => return Ok(()),
        (None, Err(error)) => error,
    };
    let place = Place::new(path, number + 1, "record");
    if error.is_io() {
        let error = std::io::Error::from(error);
        return Err(if error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) {
            anyhow!("{place}: {TooLong}")
        } else {
            stream.inner().unread(path, error)
        });
    }
    let line = error.line();
    let (text, at) = stream.around();
    bail!("{place} (line {line}): {}", cause(&text, at.saturating_sub(1), &error))
}

/// A stream shared with its parser, so that the start of a record can be marked from outside.
struct Shared<'a, 'b, 'c>(&'a std::cell::RefCell<&'b mut PerRecord<Stream<'c>>>);

impl Read for Shared<'_, '_, '_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().read(into)
    }
}

/// The elements of an array, each visited before the next is read.
struct Records<'a, 'b, 'c, 'd> {
    path: &'a Arc<Path>,
    visit: Visit<'b>,
    stream: &'a std::cell::RefCell<&'c mut PerRecord<Stream<'d>>>,
    /// Number of visited elements.
    number: usize,
    /// The error of `visit` that ended the reading.
    refused: Option<anyhow::Error>,
}

impl<'de> Visitor<'de> for &mut Records<'_, '_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        loop {
            self.stream.borrow_mut().begin();
            let Some(value) = list.next_element()? else { return Ok(()) };
            if let Err(error) = visit_value(&Place::new(self.path, self.number + 1, "record"), value, self.visit) {
                self.refused = Some(error);
                return Err(serde::de::Error::custom("refused"));
            }
            self.number += 1;
        }
    }
}

fn visit_value(place: &Place, value: Value, visit: Visit<'_>) -> Result<()> {
    match value {
        Value::Object(record) => visit(place, record).map_err(|e| anyhow!("{place}: {e:#}")),
        Value::Array(_) if place.number() == 1 => {
            bail!(
                "{place}: expected an object with named columns, found a list; a file that is one list is named .json"
            )
        }
        other => bail!("{place}: expected an object with named columns, found {}", kind(&other)),
    }
}

/// Why `text` is not JSON; the parser stopped at byte `at`.
fn cause(text: &[u8], at: usize, error: &serde_json::Error) -> String {
    let column = error.column();
    if let Some(name) = number_of_python(text, at) {
        return format!(
            "{name} at column {column} is no JSON number (Python's json.dumps writes it all the same): write null"
        );
    }
    if let Some(half) = half_of_a_pair(text, at) {
        return format!(
            "{half} at column {column} is one half of a surrogate pair, so no character: a text was cut between the two; \
             leave it out"
        );
    }
    if let Err(invalid) = std::str::from_utf8(text)
        && invalid.error_len().is_some()
    {
        return format!(
            "the byte at column {} is no UTF-8; convert the file: iconv -f latin1 -t UTF-8",
            invalid.valid_up_to() + 1
        );
    }
    let start = text.trim_ascii_start();
    let hint = match () {
        () if text.get(at.saturating_sub(1)..=at).is_some_and(|near| near.contains(&b'\'')) => {
            " (Python's way of writing; json.dumps writes JSON)"
        }
        () if error.is_eof() && start.starts_with(b"[") => " (a file that is one list is named .json)",
        () if error.is_eof() => " (a JSON lines file has one whole object on each line)",
        () => "",
    };
    format!("no valid JSON at column {}: {}{hint}", error.column(), without_position(error))
}

/// `NaN` or `Infinity` near this byte.
fn number_of_python(text: &[u8], at: usize) -> Option<&'static str> {
    let starts = |name: &str, from: usize| text.get(from..).is_some_and(|rest| rest.starts_with(name.as_bytes()));
    let from = at.saturating_sub(2)..=at + 1;
    ["-Infinity", "Infinity", "NaN"].into_iter().find(|name| from.clone().any(|from| starts(name, from)))
}

/// The escape of half a surrogate pair within a dozen bytes before this one.
fn half_of_a_pair(text: &[u8], at: usize) -> Option<String> {
    const ESCAPE: usize = "\\ud83d".len();
    let first = at.saturating_sub(2 * ESCAPE + 1);
    (first..=at).rev().find_map(|from| {
        let escape = std::str::from_utf8(text.get(from..from + ESCAPE)?).ok()?;
        let code = u32::from_str_radix(escape.strip_prefix("\\u")?, 16).ok()?;
        (0xD800..0xE000).contains(&code).then(|| escape.to_owned())
    })
}

fn without_position(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.rsplit_once(" at line ").map_or(text.clone(), |(message, _)| message.to_string())
}
