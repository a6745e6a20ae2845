//! Pages checked for what the Parquet reader takes on trust: it makes room for as many values as a page says that it has.

use bytes::Bytes;
use parquet::basic::{Encoding, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::RowGroupReader;
use parquet::record::reader::RowIter;
use parquet::schema::types::{ColumnDescPtr, Type as SchemaType};

/// A dictionary is for few values; writers give it up at a megabyte or so.
const LARGEST_DICTIONARY: usize = 1 << 24;

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
        Ok(Box::new(CheckedPages { pages: self.0.get_column_page_reader(i)?, column }))
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
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        let page = self.pages.get_next_page()?;
        match &page {
            Some(page) if !is_sound(page, &self.column) => Err(ParquetError::General(format!(
                "a page of column {} says that it has more values than its bytes can hold",
                self.column.path().string()
            ))),
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

/// Whether the numbers of values that lead to allocations are those of the bytes.
fn is_sound(page: &Page, column: &ColumnDescPtr) -> bool {
    let values = page.num_values() as usize;
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

/// What follows levels with their length in front.
fn behind_levels(bytes: &[u8], encoding: Encoding) -> Option<&[u8]> {
    if encoding != Encoding::RLE {
        return None;
    }
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.get(u32::from_le_bytes(*length) as usize..)
}

/// Whether the lists of lengths in front of byte arrays are no longer than the page; empty bytes are an empty page.
fn delta_is_sound(bytes: &[u8], encoding: Encoding, values: usize) -> bool {
    let Some((count, end)) = lengths(bytes, values) else { return false };
    if encoding == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        return true;
    }
    // Shared beginnings come first, then as many endings.
    bytes.get(end..).and_then(|rest| lengths(rest, values)).is_some_and(|(endings, _)| endings == count)
}

/// How many numbers a delta-packed list has, and where it ends; `None` where it says that they are more than `most`.
///
/// ```text
/// block size, blocks' parts, count, first number;   then blocks: least difference, a width for each part, parts
/// ```
fn lengths(bytes: &[u8], most: usize) -> Option<(usize, usize)> {
    let mut at = 0;
    let (block, parts) = (varint(bytes, &mut at)?, varint(bytes, &mut at)?);
    let count = usize::try_from(varint(bytes, &mut at)?).ok().filter(|count| *count <= most)?;
    varint(bytes, &mut at)?;
    let (block, parts) = (usize::try_from(block).ok()?, usize::try_from(parts).ok().filter(|parts| *parts > 0)?);
    let part = block / parts;
    let mut left = count.saturating_sub(1);
    while left > 0 {
        varint(bytes, &mut at)?;
        let widths = bytes.get(at..at.checked_add(parts)?)?;
        at += parts;
        for width in widths {
            if left == 0 {
                break;
            }
            at = at.checked_add(part.checked_mul(usize::from(*width))? / 8)?;
            left = left.saturating_sub(part.max(1));
        }
    }
    Some((count, at))
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
        assert_eq!(lengths(&list, 5), Some((5, 18)));
        assert_eq!(lengths(&list, 4), None, "more than the page has values");
        assert_eq!(lengths(&[0x80, 0x01, 4, 1, 6], 9), Some((1, 5)), "one number needs no block");
        assert_eq!(lengths(&[0x80, 0x01, 4, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F, 6], 1000), None);
        assert_eq!(lengths(&[], 1), None);
    }
}
