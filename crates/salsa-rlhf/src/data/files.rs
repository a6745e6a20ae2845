//! Reads records from a file, or from a folder of files, compressed or not.

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    Which, csv, folder, json,
    limits::{Room, TooLong, TooMuch, Unpacked, bytes_of_value},
    parquet,
};
use crate::{atomic::hex, input};

pub(super) const KNOWN: &str = ".jsonl, .json, .csv, .tsv or .txt (also .gz), or .parquet";

/// The location of a record, for messages: its file, and its line, or its number in the file from 1.
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

    /// The line or number.
    pub fn number(&self) -> usize {
        self.number
    }
}

pub(super) type Visit<'a> = &'a mut dyn FnMut(&Place, Map<String, Value>) -> Result<()>;

/// Calls `visit` with every record under `path`, in order, and returns the hash of the data read. Errors of `visit` get
/// the record's location as context.
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

/// Calls `visit` with every row of a file of JSON lines of any name. Errors of `visit` are prefixed by the location.
///
/// # Errors
/// If the file cannot be read, or a line is not a JSON object; names the line.
pub fn for_each_row(path: &Path, visit: Visit<'_>) -> Result<()> {
    let mut source = Source::open(path, Packing::None)?;
    let path = source.path.clone();
    let mut room = Room::now();
    json::read_lines(&path, 1, source.stream()?, &mut |place, object| {
        room.take(object.values().map(bytes_of_value).sum(), &path)?;
        visit(place, object)
    })
}

/// The format of a data file, by its name.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Format {
    Lines,
    Json,
    Csv,
    Tsv,
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
            "csv" => Some(Format::Csv),
            "tsv" => Some(Format::Tsv),
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
    let packing =
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) { Packing::Gzip } else { Packing::None };
    let mut source = Source::open(path, packing)?;
    let path = source.path.clone();
    if format == Format::Parquet {
        Room::now().take(source.bytes, &path)?;
        let mut raw = Vec::new();
        source.file.read_to_end(&mut raw).map_err(|e| unread(&path, Packing::None, e))?;
        parquet::read(&path, raw, visit)?;
        return source.digest();
    }
    let mut stream = source.stream()?;
    match format {
        Format::Text => read_text(&path, stream, visit)?,
        Format::Csv => csv::read(&path, b',', stream, visit)?,
        Format::Tsv => csv::read(&path, b'\t', stream, visit)?,
        _ => {
            let (first, line) = first_byte(&mut stream).map_err(|e| unread(&path, packing, e))?;
            if format == Format::Json && first == Some(b'[') {
                json::read_array(&path, stream, visit)?;
            } else {
                json::read_lines(&path, line, stream, visit)?;
            }
        }
    }
    source.digest()
}

fn unknown_format(path: &Path) -> anyhow::Error {
    let (shown, ending) = (path.display(), path.extension().unwrap_or_default().to_string_lossy().to_lowercase());
    match ending.as_str() {
        "arrow" => anyhow!(
            "{shown} is an Arrow file. Convert it: python -c \"from datasets import Dataset; Dataset.from_file('{shown}').to_parquet('data.parquet')\""
        ),
        "zst" | "xz" | "bz2" | "zip" | "tar" => {
            anyhow!("{shown} is compressed in a way that is not read; unpack it (gzip is read)")
        }
        _ => anyhow!("{shown} is no data set by its name: expected {KNOWN}"),
    }
}

/// The compression of a file.
#[derive(Clone, Copy, PartialEq)]
enum Packing {
    None,
    Gzip,
}

/// A file that is hashed while it is read.
struct Source {
    path: Arc<Path>,
    packing: Packing,
    bytes: u64,
    file: Digested,
}

struct Digested {
    file: File,
    digest: Sha256,
}

impl Read for Digested {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.digest.update(&into[..count]);
        Ok(count)
    }
}

impl Source {
    fn open(path: &Path, packing: Packing) -> Result<Source> {
        let file = input::open(path)?;
        let meta = file.metadata().with_context(|| format!("cannot read the data set {}", path.display()))?;
        Ok(Source { path: Arc::from(path), packing, bytes: meta.len(), file: Digested { file, digest: Sha256::new() } })
    }

    /// The unpacked bytes, without a byte order mark; UTF-16 and the like are refused.
    fn stream(&mut self) -> Result<Stream<'_>> {
        let file = BufReader::with_capacity(1 << 16, &mut self.file);
        let inner: Box<dyn Read> = match self.packing {
            Packing::None => Box::new(file),
            Packing::Gzip => Box::new(Unpacked::new(flate2::bufread::MultiGzDecoder::new(file), self.bytes)),
        };
        let mut stream = BufReader::with_capacity(1 << 16, inner);
        let mut head = Vec::new();
        stream.by_ref().take(4).read_to_end(&mut head).map_err(|e| unread(&self.path, self.packing, e))?;
        input::check_not_utf16(&self.path, &head)?;
        if head.starts_with(b"\xef\xbb\xbf") {
            head.drain(..3);
        }
        Ok(Stream { reader: io::Cursor::new(head).chain(stream), packing: self.packing })
    }

    /// The SHA-256 of the whole file.
    fn digest(mut self) -> Result<String> {
        io::copy(&mut self.file, &mut io::sink()).map_err(|e| unread(&self.path, Packing::None, e))?;
        Ok(hex(&self.file.digest.finalize()))
    }
}

/// The unpacked bytes of a file.
pub(super) struct Stream<'a> {
    reader: io::Chain<io::Cursor<Vec<u8>>, BufReader<Box<dyn Read + 'a>>>,
    packing: Packing,
}

impl Stream<'_> {
    /// The error for a failed read.
    pub(super) fn unread(&self, path: &Path, error: io::Error) -> anyhow::Error {
        unread(path, self.packing, error)
    }
}

impl Read for Stream<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.reader.read(into)
    }
}

impl BufRead for Stream<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.reader.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        self.reader.consume(amount);
    }
}

fn unread(path: &Path, packing: Packing, error: io::Error) -> anyhow::Error {
    let shown = path.display();
    let is_limit = error.get_ref().is_some_and(|inner| inner.is::<TooMuch>() || inner.is::<TooLong>());
    match packing {
        _ if is_limit => anyhow!("{shown}: {error}"),
        Packing::None => anyhow!("cannot read the data set {shown}: {error}"),
        Packing::Gzip => anyhow!("{shown} is no complete gzip file: download or compress it again ({error})"),
    }
}

/// The first byte that is not white space (it stays in the stream), and its line.
fn first_byte(stream: &mut Stream<'_>) -> io::Result<(Option<u8>, usize)> {
    let mut line = 1;
    loop {
        let bytes = stream.fill_buf()?;
        if bytes.is_empty() {
            return Ok((None, line));
        }
        let blank = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let (first, length) = (bytes.get(blank).copied(), blank);
        line += bytes[..blank].iter().filter(|byte| **byte == b'\n').count();
        stream.consume(length);
        if first.is_some() {
            return Ok((first, line));
        }
    }
}

fn read_text(path: &Arc<Path>, mut stream: Stream<'_>, visit: Visit<'_>) -> Result<()> {
    let (mut bytes, mut room) = (Vec::new(), Room::now());
    stream.by_ref().take(room.free()).read_to_end(&mut bytes).map_err(|e| stream.unread(path, e))?;
    // The bytes, and later the text and its tokens.
    room.take(2 * bytes.len() as u64, path)?;
    input::check_utf8(path, &bytes)?;
    ensure!(!bytes.contains(&0), "{} holds a zero byte: it is no text", path.display());
    let text = String::from_utf8(bytes).expect("it was checked");
    if text.is_empty() {
        return Ok(());
    }
    visit(&Place::new(path, 1, "text"), Map::from_iter([("text".to_string(), Value::from(text))]))
}

/// The kind of a JSON value, for messages.
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
