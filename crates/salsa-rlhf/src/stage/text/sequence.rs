//! A sequence of tokens with the tokens to train on: the training data of `pretrain` and `sft`.
use std::ops::Range;

use super::encoder::TruncationMode;

/// A sequence and its learned tokens: those to train on.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Positions of learned tokens, ascending and disjoint; never position 0, which has no predecessor.
    pub learned: Vec<Range<usize>>,
}

impl Sequence {
    /// A sequence of which every token after the first is learned.
    pub fn whole(tokens: Vec<u32>) -> Sequence {
        Sequence::from(tokens, 1)
    }

    /// A sequence whose tokens from position `start` on are learned (never position 0).
    pub fn from(tokens: Vec<u32>, start: usize) -> Sequence {
        let learned = start.max(1)..tokens.len();
        Sequence { learned: Some(learned).filter(|range| !range.is_empty()).into_iter().collect(), tokens }
    }

    /// Truncates the sequence to `max_length` tokens; `None` if it is omitted or has no learned token left.
    pub fn truncated(self, max_length: usize, mode: TruncationMode) -> Option<Sequence> {
        let (tokens, cut) = mode.apply(self.tokens, max_length)?;
        let within = |position: usize| position.saturating_sub(cut).clamp(1, tokens.len());
        let learned = self.learned.into_iter().map(|range| within(range.start)..within(range.end));
        let sequence = Sequence { learned: learned.filter(|range| !range.is_empty()).collect(), tokens };
        (sequence.learned_count() > 0).then_some(sequence)
    }

    /// The learned tokens.
    pub fn learned_tokens(&self) -> impl Iterator<Item = u32> {
        self.learned.iter().cloned().flatten().map(|position| self.tokens[position])
    }

    /// The number of learned tokens.
    pub fn learned_count(&self) -> usize {
        self.learned.iter().map(Range::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncation_keeps_what_is_learned_in_place() {
        let sequence = Sequence { tokens: vec![1, 2, 3, 4, 5, 6], learned: vec![1..2, 4..6] };
        let end = sequence.clone().truncated(3, TruncationMode::KeepEnd).unwrap();
        assert_eq!(end, Sequence::from(vec![4, 5, 6], 1));
        let start = sequence.clone().truncated(5, TruncationMode::KeepStart).unwrap();
        assert_eq!(start, Sequence { tokens: vec![1, 2, 3, 4, 5], learned: vec![1..2, 4..5] });
        assert_eq!(sequence.clone().truncated(5, TruncationMode::Drop), None);
        assert_eq!(sequence.clone().truncated(6, TruncationMode::Drop), Some(sequence.clone()));
        assert_eq!(sequence.truncated(1, TruncationMode::KeepStart), None, "nothing learnable is left");
    }
}
