//! The number types of GGUF: blocks of numbers that share scales.

use std::fmt;

/// A number type that is read. The numbers of a row are stored in blocks of [`BlockType::len`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names of the format")]
pub(super) enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
}

use BlockType::*;

/// Numbers of a block of a K-quant.
pub(super) const SUPER: usize = 256;

/// Type, its number in files, numbers per block, and bytes per block.
const TABLE: [(BlockType, u32, usize, usize); 14] = [
    (F32, 0, 1, 4),
    (F16, 1, 1, 2),
    (BF16, 30, 1, 2),
    (Q4_0, 2, 32, 18),
    (Q4_1, 3, 32, 20),
    (Q5_0, 6, 32, 22),
    (Q5_1, 7, 32, 24),
    (Q8_0, 8, 32, 34),
    (Q2_K, 10, SUPER, 84),
    (Q3_K, 11, SUPER, 110),
    (Q4_K, 12, SUPER, 144),
    (Q5_K, 13, SUPER, 176),
    (Q6_K, 14, SUPER, 210),
    (Q8_K, 15, SUPER, 292),
];

/// Types that are known by name only.
const UNREAD: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
    (41, "Q1_0"),
    (4, "Q4_2"),
    (5, "Q4_3"),
];

impl BlockType {
    /// The type of a number in a file; an error is the type's name, if it is known.
    pub(super) fn of_id(id: u32) -> Result<BlockType, String> {
        let read = TABLE.iter().find(|row| row.1 == id).map(|row| row.0);
        let name = || match UNREAD.iter().find(|row| row.0 == id) {
            Some((_, name)) => format!("{id} ({name})"),
            None => id.to_string(),
        };
        read.ok_or_else(name)
    }

    fn row(self) -> &'static (BlockType, u32, usize, usize) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has a row for every type")
    }

    /// The number that stands for it in files.
    pub(super) fn id(self) -> u32 {
        self.row().1
    }

    /// Numbers of a block.
    pub(super) fn len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub(super) fn bytes(self) -> usize {
        self.row().3
    }

    /// Bytes of `numbers` numbers, a multiple of the block's.
    pub(super) fn bytes_of(self, numbers: usize) -> usize {
        numbers / self.len() * self.bytes()
    }

    /// The names of all types.
    pub(super) fn names() -> String {
        TABLE.map(|row| row.0.to_string()).join(", ")
    }

    /// All types.
    #[cfg(test)]
    pub(super) fn all() -> impl Iterator<Item = BlockType> {
        TABLE.iter().map(|row| row.0)
    }
}

impl fmt::Display for BlockType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
