//! Recently uploaded index arrays: consecutive layers of a pass use the same ones.

use super::attention::Tiles;
use super::buffer::Words;
use super::card::Card;
use super::error::locked;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Number of entries kept: a pass has a few, and two models may alternate.
const KEPT: usize = 16;

/// Uploaded arrays, keyed by the data they were made from.
#[derive(Default)]
pub(super) struct Recent {
    words: Mutex<VecDeque<(Vec<u32>, Arc<Words>)>>,
    tiles: Mutex<VecDeque<(Vec<usize>, Arc<Tiles>)>>,
}

impl Recent {
    /// Returns the indices on the GPU.
    pub(super) fn words(&self, card: &Arc<Card>, data: &[u32]) -> Arc<Words> {
        cached_or_make(&mut locked(&self.words), data, || card.upload_words(data))
    }

    /// Returns the attention tiles of sequences with these ends.
    pub(super) fn tiles(&self, card: &Arc<Card>, cu_seqlens: &[usize]) -> Arc<Tiles> {
        cached_or_make(&mut locked(&self.tiles), cu_seqlens, || Tiles::new(card, cu_seqlens))
    }
}

/// Returns the entry made from equal data, or makes one.
fn cached_or_make<T: Clone + PartialEq, V>(
    known: &mut VecDeque<(Vec<T>, Arc<V>)>,
    data: &[T],
    make: impl FnOnce() -> V,
) -> Arc<V> {
    if let Some((_, value)) = known.iter().find(|(from, _)| from == data) {
        return value.clone();
    }
    let value = Arc::new(make());
    known.push_front((data.to_vec(), value.clone()));
    known.truncate(KEPT);
    value
}

impl std::fmt::Debug for Recent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Recent")
    }
}
