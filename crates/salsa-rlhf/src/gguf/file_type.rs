//! The types of a whole file, and which type each of its tensors gets.

use std::fmt;

use super::block::BlockType;

/// The type of a file, by llama.cpp's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names of the format")]
pub enum FileType {
    /// 32-bit floating point.
    F32,
    /// 16-bit IEEE floating point.
    F16,
    /// bfloat16.
    BF16,
    /// 8.5 bits per weight.
    Q8_0,
    /// 4.5 bits per weight.
    Q4_0,
    /// About 4.8 bits per weight: four bits, and six where they matter most.
    Q4_K_M,
}

/// Type, name, number in files, and the type of most matrices.
const TABLE: [(FileType, &str, u32, BlockType); 6] = [
    (FileType::F32, "f32", 0, BlockType::F32),
    (FileType::F16, "f16", 1, BlockType::F16),
    (FileType::BF16, "bf16", 32, BlockType::BF16),
    (FileType::Q8_0, "q8_0", 7, BlockType::Q8_0),
    (FileType::Q4_0, "q4_0", 2, BlockType::Q4_0),
    (FileType::Q4_K_M, "q4_k_m", 15, BlockType::Q4_K),
];

impl FileType {
    /// The type of this name, in either case.
    pub fn named(name: &str) -> Option<FileType> {
        TABLE.iter().find(|row| row.1.eq_ignore_ascii_case(name)).map(|row| row.0)
    }

    /// The names of all.
    pub fn names() -> String {
        TABLE.map(|row| row.1).join(", ")
    }

    fn row(self) -> &'static (FileType, &'static str, u32, BlockType) {
        TABLE.iter().find(|row| row.0 == self).expect("the table has a row for every type")
    }

    /// Whether its numbers are stored one by one.
    pub fn is_plain(self) -> bool {
        self.row().3.len() == 1
    }

    /// `general.file_type`.
    pub(super) fn id(self) -> u32 {
        self.row().2
    }

    /// The type of a tensor, as llama.cpp chooses it without an importance matrix.
    pub(super) fn of_tensor(self, tensor: &Place) -> BlockType {
        let usual = self.row().3;
        if tensor.dimensions < 2 || tensor.name.ends_with("_norm.weight") {
            return BlockType::F32;
        }
        if self.is_plain() {
            return usual;
        }
        let fits = |kind: BlockType| tensor.columns.is_multiple_of(kind.len());
        let wanted = match (tensor.is_output(), self) {
            (true, _) if !fits(usual) => BlockType::Q8_0,
            (true, FileType::Q8_0) => BlockType::Q8_0,
            (true, _) => BlockType::Q6_K,
            (false, FileType::Q4_K_M) => tensor.mixed(),
            (false, _) => usual,
        };
        let narrower = match wanted {
            BlockType::Q4_K => BlockType::Q5_0,
            BlockType::Q5_K | BlockType::Q6_K => BlockType::Q8_0,
            other => other,
        };
        [wanted, narrower].into_iter().find(|kind| fits(*kind)).unwrap_or(BlockType::F16)
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().1)
    }
}

/// A tensor in its model.
pub(super) struct Place<'a> {
    /// The name in the file.
    pub(super) name: &'a str,
    pub(super) dimensions: usize,
    pub(super) columns: usize,
    /// Blocks of the model.
    pub(super) layers: usize,
    /// Embeddings are the output layer too.
    pub(super) tied: bool,
    /// Llama or Qwen2, whose models of 80 blocks have few values per query.
    pub(super) is_70b: bool,
}

impl Place<'_> {
    fn is_output(&self) -> bool {
        self.name == "output.weight" || self.tied && self.name == "token_embd.weight"
    }

    /// Q4_K_M: values and the last products of blocks get six bits in the first and last eighth, and in each third
    /// block between.
    fn mixed(&self) -> BlockType {
        let layer = self.name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let (layer, layers) = (layer.unwrap_or_default(), self.layers);
        let more = layer < layers / 8
            || layer >= 7 * layers / 8
            || layer.checked_sub(layers / 8).is_some_and(|behind| behind % 3 == 2);
        let is_value = self.name.ends_with("attn_v.weight");
        match () {
            () if more && (is_value || self.name.ends_with("ffn_down.weight")) => BlockType::Q6_K,
            () if is_value && self.is_70b => BlockType::Q5_K,
            () => BlockType::Q4_K,
        }
    }
}
