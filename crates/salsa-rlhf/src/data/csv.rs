//! Reads records from text tables: `.csv`, and tab-separated `.tsv`.

use std::{path::Path, sync::Arc};

use anyhow::{Result, anyhow, bail, ensure};
use csv::{ErrorKind, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::{
    files::{Place, Stream, Visit},
    limits::{PerRecord, TooLong},
};

/// Columns of numbers; all others are text, even if they look like numbers.
const NUMBERS: &[&str] = &["margin", "score_chosen", "score_rejected"];

/// Columns of lists, encoded as JSON.
const LISTS: &[&str] = &["messages", "conversations"];

/// Calls `visit` with every row: one text per column of the header row, null for an empty cell.
pub(super) fn read(path: &Arc<Path>, separator: u8, stream: Stream<'_>, visit: Visit<'_>) -> Result<()> {
    let mut reader = ReaderBuilder::new().delimiter(separator).from_reader(PerRecord::new(stream));
    let names = reader.headers().cloned();
    let names = names.map_err(|e| refusal(path, &reader, e))?;
    check_names(path, separator, &names)?;
    let mut row = StringRecord::new();
    loop {
        reader.get_mut().begin();
        let line = reader.position().line();
        let more = reader.read_record(&mut row);
        if !more.map_err(|e| refusal(path, &reader, e))? {
            return Ok(());
        }
        let line = row.position().map_or(line, csv::Position::line);
        let place = Place::new(path, usize::try_from(line)?, "line");
        let cells = names.iter().zip(&row).map(|(name, cell)| Ok((name.to_owned(), value(name, cell)?)));
        let record = cells.collect::<Result<Map<String, Value>>>();
        record.and_then(|record| visit(&place, record)).map_err(|e| anyhow!("{place}: {e:#}"))?;
    }
}

fn check_names(path: &Path, separator: u8, names: &StringRecord) -> Result<()> {
    let shown = path.display();
    let mut seen = std::collections::HashSet::new();
    for name in names {
        ensure!(!name.is_empty(), "{shown}, line 1: a column has no name");
        ensure!(seen.insert(name), "{shown}, line 1: two columns are called {name:?}");
    }
    if let (1, Some(only)) = (names.len(), names.get(0)) {
        for (mark, word) in [(';', "semicolons"), ('\t', "tabs (name it .tsv)"), (',', "commas (name it .csv)")] {
            if mark != char::from(separator) && only.contains(mark) {
                bail!("{shown}, line 1: the columns are divided by {word}");
            }
        }
    }
    Ok(())
}

fn value(name: &str, cell: &str) -> Result<Value> {
    match cell {
        "" => Ok(Value::Null),
        _ if NUMBERS.contains(&name) => {
            let number = cell.trim().parse::<f64>().ok().and_then(serde_json::Number::from_f64);
            Ok(number.ok_or_else(|| anyhow!("{name} is {cell:?}, which is no number"))?.into())
        }
        _ if LISTS.contains(&name) => {
            serde_json::from_str(cell).map_err(|e| anyhow!("{name} is no JSON, which a list in a table has to be: {e}"))
        }
        text => Ok(text.into()),
    }
}

fn refusal(path: &Path, reader: &csv::Reader<PerRecord<Stream<'_>>>, error: csv::Error) -> anyhow::Error {
    let shown = path.display();
    let line = error.position().map_or_else(|| reader.position().line(), csv::Position::line);
    match error.into_kind() {
        ErrorKind::Io(error) if error.get_ref().is_some_and(|inner| inner.is::<TooLong>()) => {
            anyhow!("{shown}, line {line}: {TooLong}. Is a quotation mark never closed?")
        }
        ErrorKind::Io(error) => reader.get_ref().inner().unread(path, error),
        ErrorKind::Utf8 { err, .. } => anyhow!(
            "{shown}, line {line}: column {} is no UTF-8; convert the file: iconv -f latin1 -t UTF-8",
            err.field() + 1
        ),
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            anyhow!("{shown}, line {line}: {len} columns, but the first line names {expected_len}")
        }
        other => anyhow!("{shown}, line {line}: no row of a table: {other:?}"),
    }
}
