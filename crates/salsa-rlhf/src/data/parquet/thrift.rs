//! Checks Parquet structures before they are read: the reader trusts the lengths that they state, and loops up to them.

use std::io::Read;

use anyhow::{Result, anyhow, bail, ensure};

use super::super::limits::most_from;

/// Maximum nesting: more than any structure of the format.
const DEEPEST: usize = 32;

/// Minimum of the limit on the unpacked bytes of a page.
const ALWAYS_ALLOWED: u64 = 16 << 20;

/// Checks that the footer's lists fit its bytes, and that its columns form a tree: the reader allocates for as many
/// children as a column states, and recurses into each.
pub(super) fn check_footer(file: &[u8]) -> Result<()> {
    let (rest, tail) = file.split_last_chunk::<8>().ok_or_else(|| anyhow!("it has only {} bytes", file.len()))?;
    let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as usize;
    let start = rest.len().checked_sub(length).ok_or_else(|| anyhow!("its footer is longer than itself"))?;
    let children = Walk { bytes: &rest[start..], at: 0 }.file()?;
    check_tree(&children)
}

/// Checks the columns' numbers of children. Columns are listed in depth-first order.
fn check_tree(children: &[i64]) -> Result<()> {
    // For each enclosing column of the next one, the number of its children still to come.
    let mut open: Vec<usize> = Vec::new();
    for (column, stated) in children.iter().enumerate() {
        let behind = children.len() - column - 1;
        let count = usize::try_from(*stated).ok().filter(|count| *count <= behind);
        let count = count
            .ok_or_else(|| anyhow!("column {column} says that it has {stated} columns in it, and {behind} follow"))?;
        while open.pop_if(|left| *left == 0).is_some() {}
        if let Some(left) = open.last_mut() {
            *left -= 1;
        }
        open.push(count);
        ensure!(open.len() <= DEEPEST, "its columns are nested more than {DEEPEST} deep");
    }
    Ok(())
}

/// Checks the headers of consecutive pages; for gzip, which the reader unpacks without a limit, also that pages unpack
/// to the stated sizes. Returns the largest unpacked size of a page.
pub(super) fn check_pages(chunk: &[u8], is_gzip: bool) -> Result<u64> {
    let mut walk = Walk { bytes: chunk, at: 0 };
    let mut largest = 0;
    while walk.at < chunk.len() {
        let Page { unpacked, packed, levels } = walk.page()?;
        let packed = u64::try_from(packed).map_err(|_| anyhow!("a page has a negative length"))?;
        let within = |bytes: &u64| *bytes <= most_from(packed, ALWAYS_ALLOWED);
        let Some(unpacked) = u64::try_from(unpacked).ok().filter(within) else {
            bail!("a page of {packed} bytes unpacks to {unpacked}: that is no data set");
        };
        let start = walk.at;
        walk.skip(packed)?;
        if let (true, Some(levels)) = (is_gzip, levels) {
            let levels = usize::try_from(levels).ok().filter(|levels| *levels <= walk.at - start);
            let levels = levels.ok_or_else(|| anyhow!("a page is shorter than its levels"))?;
            check_gzip(&chunk[start + levels..walk.at], unpacked)?;
        }
        largest = largest.max(unpacked);
    }
    Ok(largest)
}

/// Checks that a page unpacks to no more than its stated size.
fn check_gzip(page: &[u8], unpacked: u64) -> Result<()> {
    let mut rest = flate2::read::MultiGzDecoder::new(page).take(unpacked + 1);
    // Invalid gzip is refused by the reader.
    let count = std::io::copy(&mut rest, &mut std::io::sink()).unwrap_or(0);
    ensure!(count <= unpacked, "a page unpacks to more than the {unpacked} bytes that it says");
    Ok(())
}

/// Fields of a page's header.
struct Page {
    unpacked: i64,
    packed: i64,
    /// Bytes of levels before the packed part; `None` if nothing is packed.
    levels: Option<i64>,
}

/// Walks over Thrift's compact protocol.
struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Walk<'_> {
    /// Reads the metadata of a file; returns the number of children of each column.
    fn file(&mut self) -> Result<Vec<i64>> {
        let mut children = Vec::new();
        self.fields(&mut |walk, field, kind| match (field, kind) {
            (2, 9) => {
                let head = walk.byte()?;
                ensure!(head & 15 == 12, "its list of columns is one of other things");
                for _ in 0..walk.count(head)? {
                    children.push(walk.column()?);
                }
                Ok(())
            }
            (2, _) => bail!("its list of columns is no list"),
            _ => walk.field(kind, 0),
        })?;
        Ok(children)
    }

    /// Reads a column of the list; returns its number of children.
    fn column(&mut self) -> Result<i64> {
        let mut children = 0;
        self.fields(&mut |walk, field, kind| match (field, kind) {
            (5, 4..=6) => {
                children = zigzag(walk.varint()?);
                Ok(())
            }
            // The reader assumes these kinds.
            (1..=3 | 6..=9, 4..=6) | (4, 8) | (10, 12) => walk.field(kind, 1),
            (1..=10, _) => bail!("a column's field {field} is of the wrong kind {kind}"),
            _ => walk.field(kind, 1),
        })?;
        Ok(children)
    }

    /// Reads the header of a page.
    fn page(&mut self) -> Result<Page> {
        let mut page = Page { unpacked: 0, packed: 0, levels: Some(0) };
        self.fields(&mut |walk, field, kind| match (field, kind) {
            (2 | 3, 4..=6) => {
                let number = zigzag(walk.varint()?);
                *(if field == 2 { &mut page.unpacked } else { &mut page.packed }) = number;
                Ok(())
            }
            // A data page of version 2.
            (8, 12) => walk.fields(&mut |walk, field, kind| match (field, kind) {
                (5 | 6, 4..=6) => {
                    let number = zigzag(walk.varint()?);
                    page.levels = page.levels.and_then(|levels| levels.checked_add(number));
                    Ok(())
                }
                (7, 2) => {
                    page.levels = None;
                    Ok(())
                }
                _ => walk.field(kind, 1),
            }),
            _ => walk.field(kind, 0),
        })?;
        Ok(page)
    }

    /// Skips one structure.
    fn structure(&mut self, depth: usize) -> Result<()> {
        ensure!(depth <= DEEPEST, "its structures are nested more than {DEEPEST} deep");
        self.fields(&mut |walk, _, kind| walk.field(kind, depth))
    }

    /// Calls `each` with the number and kind of every field of a structure, to read its value.
    fn fields(&mut self, each: &mut dyn FnMut(&mut Self, i64, u8) -> Result<()>) -> Result<()> {
        let mut field = 0i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Ok(());
            }
            field = match head >> 4 {
                0 => zigzag(self.varint()?),
                delta => field.wrapping_add(i64::from(delta)),
            };
            each(self, field, head & 15)?;
        }
    }

    /// Skips the value of a field; for a boolean, the kind is the value.
    fn field(&mut self, kind: u8, depth: usize) -> Result<()> {
        if matches!(kind, 1 | 2) { Ok(()) } else { self.value(kind, depth) }
    }

    /// Skips one value of a list.
    fn value(&mut self, kind: u8, depth: usize) -> Result<()> {
        match kind {
            1..=3 => self.skip(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip(8),
            8 => {
                let length = self.varint()?;
                self.skip(length)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = self.count(head)?;
                self.values(count, &[head & 15], depth)
            }
            11 => {
                let count = self.varint()?;
                if count == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                self.values(count, &[kinds >> 4, kinds & 15], depth)
            }
            12 => self.structure(depth + 1),
            13 => self.skip(16),
            other => bail!("its structures hold a value of the unknown kind {other}"),
        }
    }

    /// Reads the length of a list that begins with `head`.
    fn count(&mut self, head: u8) -> Result<u64> {
        if head >> 4 == 15 { self.varint() } else { Ok(u64::from(head >> 4)) }
    }

    fn values(&mut self, count: u64, kinds: &[u8], depth: usize) -> Result<()> {
        ensure!(depth < DEEPEST, "its structures are nested more than {DEEPEST} deep");
        // Each element takes at least a byte.
        ensure!(count <= self.left(), "it has a list of {count} values in {} bytes", self.left());
        for _ in 0..count {
            kinds.iter().try_for_each(|kind| self.value(*kind, depth + 1))?;
        }
        Ok(())
    }

    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    fn skip(&mut self, count: u64) -> Result<()> {
        ensure!(count <= self.left(), "it ends within a structure");
        self.at += count as usize;
        Ok(())
    }

    fn byte(&mut self) -> Result<u8> {
        let byte = *self.bytes.get(self.at).ok_or_else(|| anyhow!("it ends within a structure"))?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        bail!("it has a number of more than 64 bits")
    }
}

fn zigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(bytes: &[u8]) -> Result<()> {
        check_footer(&[b"PAR1", bytes, &(bytes.len() as u32).to_le_bytes(), b"PAR1"].concat())
    }

    /// Found by fuzzing: a kilobyte that took seconds, for a list of two thousand million zero-size values.
    #[test]
    fn a_list_longer_than_its_bytes_is_refused() {
        // Field 1: a list of three numbers. Then one that states 2^31 - 1.
        footer(&[0x19, 0x35, 2, 4, 6, 0]).unwrap();
        let error = footer(&[0x19, 0xF1, 0xFF, 0xFF, 0xFF, 0xFF, 0x07, 0]).unwrap_err().to_string();
        assert!(error.contains("a list of 2147483647 values in 1 bytes"), "{error}");
        let nested = [vec![0x1C; 40], vec![0; 41]].concat();
        assert!(footer(&nested).unwrap_err().to_string().contains("nested more than 32 deep"));
        assert!(footer(&[0x15]).unwrap_err().to_string().contains("ends within a structure"));
        let longer = [&b"PAR1"[..], &[9, 0, 0, 0], b"PAR1"].concat();
        assert!(check_footer(&longer).unwrap_err().to_string().contains("longer than itself"));
    }

    /// Found by fuzzing: the reader allocated for two thousand million children.
    #[test]
    fn columns_that_are_no_tree_are_refused() {
        // Field 2: a list of columns. In each column, field 4 is a name, and field 5 the number of children.
        let columns = |children: &[u8]| {
            let each = children.iter().flat_map(|n| [0x48, 1, b'c', 0x15, 2 * n, 0]);
            let head = [0x29, 0xFC, children.len() as u8];
            footer(&head.into_iter().chain(each).chain([0]).collect::<Vec<u8>>())
        };
        columns(&[2, 0, 1, 0]).unwrap();
        columns(&[[1; 31].as_slice(), &[0]].concat()).unwrap();
        let refused = |children: &[u8]| columns(children).unwrap_err().to_string();
        assert!(refused(&[3, 0, 0]).contains("column 0 says that it has 3 columns in it, and 2 follow"));
        assert!(refused(&[1, 1]).contains("column 1 says that it has 1 columns in it, and 0 follow"));
        assert!(refused(&[[1; 32].as_slice(), &[0]].concat()).contains("columns are nested more than 32 deep"));
        // Siblings are not nested.
        columns(&[[40].as_slice(), &[0; 40]].concat()).unwrap();
        let error = footer(&[0x29, 0x1C, 0x55, 0xFE, 0xFF, 0xFF, 0xFF, 0x0F, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("says that it has 2147483647 columns in it"), "{error}");
        let error = footer(&[0x29, 0x1C, 0x55, 1, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("says that it has -1 columns"), "{error}");
        let error = footer(&[0x29, 0x1C, 0x58, 1, 0, 0, 0]).unwrap_err().to_string();
        assert!(error.contains("a column's field 5 is of the wrong kind 8"), "{error}");
        assert!(footer(&[0x28, 0, 0]).unwrap_err().to_string().contains("is no list"));
        assert!(footer(&[0x29, 0x15, 0, 0]).unwrap_err().to_string().contains("one of other things"));
    }

    #[test]
    fn a_page_that_unpacks_without_end_is_refused() {
        // Type 0, then 100 unpacked bytes in 2 packed ones.
        check_pages(&[0x15, 0, 0x15, 0xC8, 0x01, 0x15, 4, 0, 9, 9], false).unwrap();
        // 2^30 bytes in 2.
        let bomb = [0x15, 0, 0x15, 0x80, 0x80, 0x80, 0x80, 0x08, 0x15, 4, 0, 9, 9];
        let error = check_pages(&bomb, false).unwrap_err().to_string();
        assert!(error.contains("a page of 2 bytes unpacks to 1073741824"), "{error}");
        assert!(check_pages(&[0x15, 0, 0x15, 0, 0x15, 20, 0], false).unwrap_err().to_string().contains("ends within"));
    }
}
