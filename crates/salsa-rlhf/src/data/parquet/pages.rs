//! Checks of pages that the Parquet reader omits: it allocates for as many values as a page states.

use bytes::Bytes;
use parquet::{
    basic::{Encoding, Type},
    column::page::{Page, PageMetadata, PageReader},
    errors::{ParquetError, Result},
    file::{metadata::RowGroupMetaData, reader::RowGroupReader},
    record::reader::RowIter,
    schema::types::{ColumnDescPtr, Type as SchemaType},
};

use super::super::limits::{LONGEST_RECORD, PER_VALUE};

/// Maximum values of a dictionary; writers abandon it at about a megabyte.
const LARGEST_DICTIONARY: usize = 1 << 24;

/// Maximum values of a page. Pages have about a megabyte; a constant column has one for a row group of a million rows.
const MOST_VALUES: usize = 1 << 26;

/// Maximum values of one column in a row.
const MOST_IN_A_ROW: usize = (LONGEST_RECORD / PER_VALUE) as usize;

/// Maximum output of pages with shared prefixes: this many bytes for any page, or this many times its size.
const MOST_SHARED: (usize, usize) = (64 << 20, 16);

/// A row group whose pages are checked as they are read.
pub(super) struct CheckedGroup<'a>(pub Box<dyn RowGroupReader + 'a>);

impl RowGroupReader for CheckedGroup<'_> {
    fn metadata(&self) -> &RowGroupMetaData {
        self.0.metadata()
    }

    fn num_columns(&self) -> usize {
        self.0.num_columns()
    }

    fn get_column_page_reader(&self, i: usize) -> Result<Box<dyn PageReader>> {
        let column = self.metadata().schema_descr().column(i);
        Ok(Box::new(CheckedPages { pages: self.0.get_column_page_reader(i)?, column, in_row: 0 }))
    }

    fn get_column_bloom_filter(&self, i: usize) -> Option<&parquet::bloom_filter::Sbbf> {
        self.0.get_column_bloom_filter(i)
    }

    fn get_row_iter(&self, projection: Option<SchemaType>) -> Result<RowIter<'_>> {
        RowIter::from_row_group(projection, self)
    }
}

struct CheckedPages {
    pages: Box<dyn PageReader>,
    column: ColumnDescPtr,
    /// Number of values of the last row so far.
    in_row: usize,
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        let name = || self.column.path().string();
        match &page {
            Some(page) if !is_sound(page, &self.column) => Err(ParquetError::General(format!(
                "a page of column {} says that it has more values than its bytes can hold",
                name()
            ))),
            Some(page) if self.column.max_rep_level() > 0 => {
                self.in_row = longest_row(page, &self.column, self.in_row).ok_or_else(|| {
                    ParquetError::General(format!("a row has more than {MOST_IN_A_ROW} values in column {}", name()))
                })?;
                Ok(Some(page.clone()))
            }
            _ => Ok(page),
        }
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool> {
        self.pages.at_record_boundary()
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Result<Page>> {
        self.get_next_page().transpose()
    }
}

/// Whether the stated numbers of values that lead to allocations are consistent with the bytes.
fn is_sound(page: &Page, column: &ColumnDescPtr) -> bool {
    let values = page.num_values() as usize;
    if values > MOST_VALUES {
        return false;
    }
    match page {
        Page::DictionaryPage { buf, .. } => {
            let least = match column.physical_type() {
                Type::BOOLEAN => return false,
                Type::INT32 | Type::FLOAT | Type::BYTE_ARRAY => 4,
                Type::INT64 | Type::DOUBLE => 8,
                Type::INT96 => 12,
                Type::FIXED_LEN_BYTE_ARRAY => column.type_length().max(1) as usize,
            };
            values <= LARGEST_DICTIONARY && values <= buf.len() / least
        }
        Page::DataPage { buf, encoding, def_level_encoding, rep_level_encoding, .. } => {
            if !is_delta(*encoding) {
                return true;
            }
            let mut rest = &buf[..];
            for (most, encoding) in
                [(column.max_rep_level(), rep_level_encoding), (column.max_def_level(), def_level_encoding)]
            {
                if most > 0 {
                    let Some(behind) = behind_levels(rest, *encoding) else { return false };
                    rest = behind;
                }
            }
            delta_is_sound(rest, *encoding, values)
        }
        Page::DataPageV2 { buf, encoding, rep_levels_byte_len, def_levels_byte_len, .. } => {
            let levels = *rep_levels_byte_len as usize + *def_levels_byte_len as usize;
            !is_delta(*encoding) || slice(buf, levels).is_some_and(|rest| delta_is_sound(rest, *encoding, values))
        }
    }
}

fn is_delta(encoding: Encoding) -> bool {
    matches!(encoding, Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY)
}

fn slice(buf: &Bytes, start: usize) -> Option<&[u8]> {
    buf.get(start..)
}

/// The bytes after length-prefixed levels.
fn behind_levels(bytes: &[u8], encoding: Encoding) -> Option<&[u8]> {
    if encoding != Encoding::RLE {
        return None;
    }
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(u32::from_le_bytes(*length) as usize..)
}

/// Whether the lists of lengths before byte arrays fit the page; no bytes are an empty page.
fn delta_is_sound(bytes: &[u8], encoding: Encoding, values: usize) -> bool {
    let Some(beginnings) = lengths(bytes, values) else { return false };
    if encoding == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        return true;
    }
    // First the lengths of shared prefixes, then of as many suffixes.
    let most = MOST_SHARED.0.max(bytes.len().saturating_mul(MOST_SHARED.1)) as u64;
    bytes
        .get(beginnings.end..)
        .and_then(|rest| lengths(rest, values))
        .is_some_and(|endings| endings.count == beginnings.count && beginnings.sum.saturating_add(endings.sum) <= most)
}

/// A list of lengths.
#[derive(Debug, PartialEq)]
struct Lengths {
    count: usize,
    /// The end of the list in the bytes.
    end: usize,
    sum: u64,
}

/// Reads a delta-packed list; `None` if it states more than `most` numbers, or contains a negative one.
///
/// ```text
/// block size, blocks' parts, count, first number;   then blocks: least difference, a width for each part, parts
/// ```
fn lengths(bytes: &[u8], most: usize) -> Option<Lengths> {
    let mut at = 0;
    let (block, parts) = (varint(bytes, &mut at)?, varint(bytes, &mut at)?);
    let count = usize::try_from(varint(bytes, &mut at)?).ok().filter(|count| *count <= most)?;
    let mut number = zigzag(varint(bytes, &mut at)?);
    let mut sum = if count > 0 { u64::try_from(number).ok()? } else { 0 };
    let (block, parts) = (usize::try_from(block).ok()?, usize::try_from(parts).ok().filter(|parts| *parts > 0)?);
    let part = block / parts;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        let least = zigzag(varint(bytes, &mut at)?);
        let widths = bytes.get(at..at.checked_add(parts)?)?;
        at += parts;
        for width in widths {
            if left == 0 {
                break;
            }
            let start = at;
            at = at.checked_add(part.checked_mul(usize::from(*width))? / 8)?;
            let packed = bytes.get(start..at)?;
            for index in 0..part.min(left) {
                let more = bits(packed, index * usize::from(*width), usize::from(*width))?;
                number = number.checked_add(least)?.checked_add(i64::try_from(more).ok()?)?;
                sum = sum.saturating_add(u64::try_from(number).ok()?);
            }
            left = left.saturating_sub(part.max(1));
        }
    }
    Some(Lengths { count, end: at, sum })
}

/// The number of `width` bits at bit `at`, lowest first.
fn bits(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let mut number = 0u64;
    let mut done = 0;
    while done < width {
        let (byte, offset) = ((at + done) / 8, (at + done) % 8);
        let taken = (8 - offset).min(width - done);
        let piece = u64::from(*bytes.get(byte)? >> offset) & ((1 << taken) - 1);
        number |= piece.checked_shl(u32::try_from(done).ok()?)?;
        done += taken;
    }
    Some(number)
}

/// The number of values of a page's last row, including `before` in earlier pages; `None` if a row has too many, or the
/// page does not mark where rows begin.
fn longest_row(page: &Page, column: &ColumnDescPtr, before: usize) -> Option<usize> {
    let (levels, values) = match page {
        Page::DictionaryPage { .. } => return Some(before),
        Page::DataPage { buf, rep_level_encoding: Encoding::RLE, num_values, .. } => {
            let (length, rest) = buf.split_first_chunk::<4>()?;
            (rest.get(..u32::from_le_bytes(*length) as usize)?, *num_values)
        }
        Page::DataPage { .. } => return None,
        Page::DataPageV2 { buf, rep_levels_byte_len, num_values, .. } => {
            (buf.get(..*rep_levels_byte_len as usize)?, *num_values)
        }
    };
    let width = (i16::BITS - column.max_rep_level().leading_zeros()) as usize;
    let (mut left, mut at, mut in_row) = (values as usize, 0, before);
    while left > 0 {
        let head = usize::try_from(varint(levels, &mut at)?).ok()?;
        let count = head >> 1;
        if head & 1 == 0 {
            // A run: one value, repeated.
            let level = *levels.get(at)?;
            at += width.div_ceil(8);
            let count = count.min(left);
            in_row = match (level, count) {
                (_, 0) => in_row,
                (0, _) => 1,
                _ => in_row.saturating_add(count),
            };
            left -= count;
        } else {
            let bytes = levels.get(at..at.checked_add(count.checked_mul(width)?)?.min(levels.len()))?;
            at += bytes.len();
            let count = count.checked_mul(8)?.min(left);
            for index in 0..count {
                in_row = if bits(bytes, index * width, width)? == 0 { 1 } else { in_row + 1 };
                if in_row > MOST_IN_A_ROW {
                    return None;
                }
            }
            left -= count;
        }
        if in_row > MOST_IN_A_ROW {
            return None;
        }
    }
    Some(in_row)
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_lengths_are_measured() {
        // Blocks of 128 in 4 parts of 32; five numbers, the first 3 (zigzag 6); then one block: least difference 0, the
        // first part two bits wide (8 bytes), the others empty.
        let list = [&[0x80, 0x01, 4, 5, 6, 0, 2, 0, 0, 0][..], &[0; 8]].concat();
        assert_eq!(lengths(&list, 5), Some(Lengths { count: 5, end: 18, sum: 15 }));
        assert_eq!(lengths(&list, 4), None, "more than the page has values");
        let one = Some(Lengths { count: 1, end: 5, sum: 3 });
        assert_eq!(lengths(&[0x80, 0x01, 4, 1, 6], 9), one, "one number needs no block");
        assert_eq!(lengths(&[0x80, 0x01, 4, 1, 5], 9), None, "no length is -3");
        // As above with differences 1 + (0, 1, 2, 3): 3, 4, 6, 9, 13.
        let list = [&[0x80, 0x01, 4, 5, 6, 2, 2, 0, 0, 0, 0b11_10_01_00][..], &[0; 7]].concat();
        assert_eq!(lengths(&list, 5), Some(Lengths { count: 5, end: 18, sum: 35 }));
        assert_eq!(lengths(&[0x80, 0x01, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 6], 1000), None);
        assert_eq!(lengths(&[], 1), None);
    }
}
