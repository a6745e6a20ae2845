//! Reads records from Parquet files, as Hugging Face's data sets store them.

mod pages;
mod scan;
mod thrift;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow, bail, ensure};
use bytes::Bytes;
use parquet::basic::Compression;
use parquet::file::reader::{FileReader, RowGroupReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Value};

use self::pages::CheckedGroup;
use super::files::{Place, Visit};
use super::limits::most_from;
use crate::guard;

/// Maximum nesting: more than any data set needs, and safe for the stack.
const DEEPEST: usize = 32;

/// Minimum of the limit on the total bytes of a file's rows.
const ALWAYS_ALLOWED: u64 = 1 << 30;

/// Maximum bytes of the largest pages of all columns together, which are unpacked at the same time.
const MOST_OPEN: u64 = 2 << 30;

/// Calls `visit` with every row, its columns as JSON: lists and structs nested, times and decimals as text, bytes that
/// are not UTF-8 as null.
pub(super) fn read(path: &Arc<Path>, bytes: Vec<u8>, visit: Visit<'_>) -> Result<()> {
    let damaged = |what: String| anyhow!("{} is no readable Parquet file: {what}; download it again", path.display());
    check_ends(&bytes).and_then(|()| thrift::check_footer(&bytes)).map_err(|e| damaged(e.to_string()))?;
    let most = most_from(bytes.len() as u64, ALWAYS_ALLOWED);
    let bytes = Bytes::from(bytes);
    let reader = guarded(|| Ok(SerializedFileReader::new(bytes.clone())?)).map_err(|e| damaged(e.to_string()))?;
    guarded(|| check(&reader, &bytes)).map_err(|e| damaged(e.to_string()))?;
    check_compression(path, &reader)?;
    let (mut number, mut measured) = (0, 0);
    for group in 0..reader.num_row_groups() {
        let columns = guarded(|| Ok(reader.get_row_group(group)?)).map_err(|e| damaged(e.to_string()))?;
        let columns = CheckedGroup(columns);
        let place = || format!("{}, behind row {number}", path.display());
        measured += guarded(|| scan::measure(&columns, most - measured)).map_err(|e| anyhow!("{}: {e:#}", place()))?;
        let rows = guarded(|| Ok(columns.get_row_iter(None)?)).map_err(|e| damaged(e.to_string()))?;
        let mut rows = rows.with_batch_size(scan::BATCH);
        loop {
            number += 1;
            let place = Place::new(path, number, "row");
            let row = guarded(|| rows.next().transpose().map_err(Into::into));
            let Some(row) = row.map_err(|e| anyhow!("{place}: {e}; the file is damaged, download it again"))? else {
                number -= 1;
                break;
            };
            visit(&place, object(row)).map_err(|e| anyhow!("{place}: {e:#}"))?;
        }
    }
    Ok(())
}

fn check_ends(bytes: &[u8]) -> Result<()> {
    const MAGIC: &[u8] = b"PAR1";
    ensure!(bytes.len() >= 12, "it has only {} bytes", bytes.len());
    ensure!(bytes.starts_with(MAGIC), "it does not begin with PAR1");
    ensure!(bytes.ends_with(MAGIC), "it does not end with PAR1, so it was cut off");
    Ok(())
}

/// Checks properties that the Parquet reader does not verify.
fn check(reader: &SerializedFileReader<Bytes>, bytes: &[u8]) -> Result<()> {
    let meta = reader.metadata();
    let schema = meta.file_metadata().schema();
    ensure!(depth(schema) <= DEEPEST, "its columns are nested more than {DEEPEST} deep");
    ensure!(!schema.get_fields().is_empty(), "it has no columns");
    let mut stored = 0u64;
    for group in meta.row_groups() {
        let mut open = 0;
        for column in group.columns() {
            let values = column.num_values();
            ensure!(
                (0..=values).contains(&group.num_rows()),
                "column {} has {values} values for {} rows",
                column.column_path().string(),
                group.num_rows()
            );
            let (start, length) = column.byte_range();
            let end = start.checked_add(length).and_then(|end| usize::try_from(end).ok());
            let chunk = end.and_then(|end| bytes.get(start as usize..end));
            let chunk = chunk.ok_or_else(|| anyhow!("column {} is not in it", column.column_path().string()))?;
            stored = stored.saturating_add(length);
            ensure!(stored <= bytes.len() as u64, "its columns lie over each other");
            open += thrift::check_pages(chunk, matches!(column.compression(), Compression::GZIP(_)))?;
        }
        ensure!(open <= MOST_OPEN, "its pages unpack to {open} bytes at a time: that is no data set");
    }
    Ok(())
}

fn check_compression(path: &Path, reader: &SerializedFileReader<Bytes>) -> Result<()> {
    let known = |codec| {
        matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_))
    };
    let columns = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
    match columns.map(|column| column.compression()).find(|codec| !known(*codec)) {
        None => Ok(()),
        Some(codec) => bail!(
            "{} is compressed with {codec}; snappy, gzip and zstd can be read. Convert it: python -c \"import pandas; pandas.read_parquet('{0}').to_parquet('{0}')\"",
            path.display()
        ),
    }
}

fn depth(schema: &Type) -> usize {
    match schema.is_group() {
        true => 1 + schema.get_fields().iter().map(|field| depth(field)).max().unwrap_or(0),
        false => 0,
    }
}

fn object(row: Row) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => x.into(),
        Field::Byte(x) => x.into(),
        Field::Short(x) => x.into(),
        Field::Int(x) => x.into(),
        Field::Long(x) => x.into(),
        Field::UByte(x) => x.into(),
        Field::UShort(x) => x.into(),
        Field::UInt(x) => x.into(),
        Field::ULong(x) => x.into(),
        Field::Float16(x) => f64::from(x).into(),
        Field::Float(x) => f64::from(x).into(),
        Field::Double(x) => x.into(),
        Field::Str(x) => x.into(),
        Field::Bytes(x) => x.as_utf8().map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            map.entries().iter().map(|(key, item)| (key.to_string(), value(item.clone()))).collect()
        }
        other => other.to_string().into(),
    }
}

/// Runs code of the Parquet reader, converting its panics on damaged files to errors.
fn guarded<T>(run: impl FnOnce() -> Result<T>) -> Result<T> {
    guard::guarded(run).unwrap_or_else(|_| Err(anyhow!("its pages contradict its header")))
}
