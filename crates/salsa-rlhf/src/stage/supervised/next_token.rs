//! Next-token prediction on chosen tokens: the objective of `pretrain` and `sft`.
use std::ops::Range;

use salsa_engine::{Batch, Output, Query};

use super::{
    tally::Tally,
    trainer::{Laid, Loss, Objective},
};
use crate::stage::text::encoder::TruncationMode;

/// A sequence and those of its tokens that are to be learned.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    /// Token numbers.
    pub tokens: Vec<u32>,
    /// Positions of learned tokens, ascending and apart; position 0 has nothing before it and is never among them.
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

    /// The sequence within `max_length` tokens; none if it is left out or nothing learnable is left.
    pub fn truncated(self, max_length: usize, mode: TruncationMode) -> Option<Sequence> {
        let (tokens, cut) = mode.apply(self.tokens, max_length)?;
        let within = |position: usize| position.saturating_sub(cut).clamp(1, tokens.len());
        let learned = self.learned.into_iter().map(|range| within(range.start)..within(range.end));
        let sequence = Sequence { learned: learned.filter(|range| !range.is_empty()).collect(), tokens };
        (sequence.learned_count() > 0).then_some(sequence)
    }

    /// The tokens that are learned.
    pub fn learned_tokens(&self) -> impl Iterator<Item = u32> {
        self.learned.iter().cloned().flatten().map(|position| self.tokens[position])
    }

    /// How many tokens are learned.
    pub fn learned_count(&self) -> usize {
        self.learned.iter().map(Range::len).sum()
    }
}

/// Mean negative log-likelihood of the learned tokens.
///
/// ```text
/// loss = -1/N * sum over learned tokens t of log p(t | tokens before it in the same sequence)
/// ```
///
/// `N` counts the learned tokens of the whole optimizer step, so every token weighs the same however the step is split
/// into passes. An example may hold several sequences (pieces of documents); they do not see each other.
pub struct NextToken {
    /// Each example's sequences.
    pub examples: Vec<Vec<Sequence>>,
}

impl NextToken {
    /// How many tokens one pass over the data learns.
    pub fn learned_count(&self) -> usize {
        self.examples.iter().flatten().map(Sequence::learned_count).sum()
    }
}

impl Objective for NextToken {
    fn examples(&self) -> usize {
        self.examples.len()
    }

    fn length(&self, example: usize) -> usize {
        self.examples[example].iter().map(|sequence| sequence.tokens.len()).sum()
    }

    fn weight(&self, example: usize) -> f64 {
        self.examples[example].iter().map(|sequence| sequence.learned_count() as f64).sum()
    }

    fn lay(&self, examples: &[usize]) -> Laid {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for sequence in examples.iter().flat_map(|&example| &self.examples[example]) {
            let rows = batch.push(&sequence.tokens);
            for position in sequence.learned.iter().cloned().flatten() {
                query.rows.push((rows.start + position - 1) as u32);
                query.targets.push(sequence.tokens[position]);
            }
        }
        Laid { examples: examples.to_vec(), batch, query }
    }

    fn loss(&self, _laid: &Laid, output: &Output, weight: f64) -> Loss {
        let tokens = output.logprobs.len();
        let mut tally = Tally::new();
        tally.mean("loss", -output.logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>(), tokens as f64);
        tally.mean("entropy", output.entropies.iter().map(|&entropy| f64::from(entropy)).sum(), tokens as f64);
        Loss { d_logprobs: vec![(-1.0 / weight) as f32; tokens], d_values: Vec::new(), tally }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_learned_tokens_are_asked_for() {
        let objective = NextToken {
            examples: vec![
                vec![Sequence::whole(vec![9]), Sequence::whole(vec![5, 6, 7])],
                vec![Sequence { tokens: vec![1, 2, 3, 4], learned: vec![1..2, 3..4] }],
            ],
        };
        let laid = objective.lay(&[1, 0]);
        assert_eq!(laid.batch.tokens(), [1, 2, 3, 4, 9, 5, 6, 7]);
        assert_eq!(laid.query.rows, [0, 2, 5, 6], "each token is predicted from the row before it");
        assert_eq!(laid.query.targets, [2, 4, 6, 7]);
        assert_eq!((objective.length(0), objective.weight(0), objective.weight(1)), (4, 2.0, 2.0));
    }

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

    #[test]
    fn the_loss_is_the_mean_over_the_step() {
        let objective = NextToken { examples: vec![vec![Sequence::whole(vec![0, 1, 2])]] };
        let output = Output { logprobs: vec![-1.0, -3.0], entropies: vec![0.5, 1.5], values: vec![] };
        let loss = objective.loss(&objective.lay(&[0]), &output, 8.0);
        assert_eq!(loss.d_logprobs, [-0.125, -0.125]);
        assert_eq!((loss.tally.get("loss"), loss.tally.get("entropy")), (Some(2.0), Some(1.0)));
    }
}
