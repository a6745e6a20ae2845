//! Measures rows before they are built: a dictionary or a run of equal values can expand a few bytes without limit.

use anyhow::{Result, ensure};
use parquet::{
    column::reader::{ColumnReader, ColumnReaderImpl},
    data_type::{ByteArray, DataType, FixedLenByteArray},
    file::reader::RowGroupReader,
};

use super::{
    super::limits::{LONGEST_RECORD, PER_VALUE, TooLong},
    pages::CheckedGroup,
};

/// Number of rows measured and built at a time.
pub(super) const BATCH: usize = 16;

/// Returns the total size of the values of a row group.
///
/// # Errors
/// If one row exceeds the limit of a record, the total exceeds `most`, or a page cannot be read.
pub(super) fn measure(group: &CheckedGroup<'_>, most: u64) -> Result<u64> {
    let mut columns = (0..group.num_columns()).map(|i| Column::open(group, i)).collect::<Result<Vec<_>>>()?;
    let mut total = 0u64;
    loop {
        let mut sizes = [0u64; BATCH];
        let mut rows = 0;
        for column in &mut columns {
            rows = rows.max(column.add(&mut sizes)?);
        }
        ensure!(sizes.iter().all(|size| *size <= LONGEST_RECORD), "a row: {TooLong}");
        total += sizes.iter().sum::<u64>();
        ensure!(
            total <= most,
            "its rows unpack to more than {} MiB, far more than the file has; if that is meant, write it as .jsonl",
            most >> 20
        );
        if rows == 0 {
            return Ok(total);
        }
    }
}

struct Column {
    reader: ColumnReader,
    most_defined: i16,
    is_repeated: bool,
}

impl Column {
    fn open(group: &CheckedGroup<'_>, i: usize) -> Result<Column> {
        let column = group.metadata().schema_descr().column(i);
        Ok(Column {
            reader: group.get_column_reader(i)?,
            most_defined: column.max_def_level(),
            is_repeated: column.max_rep_level() > 0,
        })
    }

    /// Adds the sizes of this column in the next rows, and returns the number of these rows.
    fn add(&mut self, sizes: &mut [u64; BATCH]) -> Result<usize> {
        let shape = (self.most_defined, self.is_repeated);
        match &mut self.reader {
            ColumnReader::BoolColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::Int32ColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::Int64ColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::Int96ColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::FloatColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::DoubleColumnReader(reader) => add(reader, shape, sizes, |_| 0),
            ColumnReader::ByteArrayColumnReader(reader) => add(reader, shape, sizes, ByteArray::len),
            ColumnReader::FixedLenByteArrayColumnReader(reader) => {
                add(reader, shape, sizes, |value: &FixedLenByteArray| value.len())
            }
        }
    }
}

fn add<T: DataType>(
    reader: &mut ColumnReaderImpl<T>,
    (most_defined, is_repeated): (i16, bool),
    sizes: &mut [u64; BATCH],
    length: impl Fn(&T::T) -> usize,
) -> Result<usize> {
    let (mut defined, mut repeated, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let (rows, _, levels) = reader.read_records(BATCH, Some(&mut defined), Some(&mut repeated), &mut values)?;
    let mut lengths = values.iter().map(length);
    let mut row = 0;
    for level in 0..levels {
        if level > 0 && (!is_repeated || repeated.get(level) == Some(&0)) {
            row += 1;
        }
        let is_there = most_defined == 0 || defined.get(level) == Some(&most_defined);
        let length = if is_there { lengths.next().unwrap_or(0) } else { 0 };
        if let Some(size) = sizes.get_mut(row) {
            *size += PER_VALUE + length as u64;
        }
    }
    Ok(rows)
}
