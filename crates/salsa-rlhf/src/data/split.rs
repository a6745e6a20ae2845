//! The split of a data set into training, validation and test records by their prompts.

use sha2::{Digest, Sha256};

use super::Dataset;

/// The three parts of a data set, each in the order of the whole. A part may be empty.
#[derive(Clone, Debug)]
pub struct Split {
    /// About 80 % of the prompts.
    pub train: Dataset,
    /// About 10 % of the prompts.
    pub validation: Dataset,
    /// About 10 % of the prompts.
    pub test: Dataset,
}

/// Splits by prompt: the result depends neither on file order nor on a seed, and equal prompts are in the same part.
///
/// ```text
/// n = bucket(prompt);   n < 80: train,   80 <= n < 90: validation,   otherwise: test
/// ```
///
/// The key of a record is its prompt without surrounding white space; of a conversation, its opening user message; of
/// an instruction with input, both joined by a line feed; of plain text, the text.
pub fn split_by_prompt(set: &Dataset) -> Split {
    let part = |low: u8, high: u8| {
        let kept = || set.buckets.iter().enumerate().filter(move |(_, n)| (low..high).contains(*n));
        Dataset {
            examples: kept().map(|(i, _)| set.examples[i].clone()).collect(),
            buckets: kept().map(|(_, n)| *n).collect(),
            places: kept().map(|(i, _)| set.places[i].clone()).collect(),
            records: kept().filter_map(|(i, _)| set.records.get(i).cloned()).collect(),
            labels: kept().filter_map(|(i, _)| set.labels.get(i).copied()).collect(),
            layout: set.layout,
            recognised: set.recognised,
            path: set.path.clone(),
            sha256: set.sha256.clone(),
            dropped_identical: 0,
            notes: set.notes.clone(),
        }
    };
    Split { train: part(0, 80), validation: part(80, 90), test: part(90, 100) }
}

impl Dataset {
    /// Keeps the examples whose index is wanted.
    pub fn keep(&mut self, wanted: impl Fn(usize) -> bool) {
        fn keep<T>(items: &mut Vec<T>, wanted: impl Fn(usize) -> bool) {
            let mut index = 0..;
            items.retain(|_| index.next().is_some_and(&wanted));
        }
        keep(&mut self.examples, &wanted);
        keep(&mut self.buckets, &wanted);
        keep(&mut self.places, &wanted);
        keep(&mut self.records, &wanted);
        keep(&mut self.labels, &wanted);
    }
}

/// The first eight bytes of the key's SHA-256 as a big-endian number, modulo 100.
///
/// ```
/// assert_eq!(salsa_rlhf::data::bucket("hello"), 42);
/// assert_eq!(salsa_rlhf::data::bucket("é"), 51);
/// ```
pub fn bucket(key: &str) -> u8 {
    (hash(key) % 100) as u8
}

/// The first eight bytes of the key's SHA-256 as a big-endian number.
pub(super) fn hash(key: &str) -> u64 {
    let hash = Sha256::digest(key.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first)
}
