//! Next-token prediction on selected tokens: the objective of `pretrain` and `sft`.
use salsa_engine::{Batch, Output, Query};

use super::{
    tally::Tally,
    trainer::{Divisors, Loss, Objective, Pass},
};
use crate::stage::text::sequence::Sequence;

/// Mean negative log-likelihood of the tokens trained on ("learned" tokens).
///
/// ```text
/// loss = -1/N * sum over learned tokens t of log p(t | tokens before it in the same sequence)
/// ```
///
/// `N` counts the learned tokens of the whole optimizer step, so every token has the same weight regardless of how the
/// step is split into passes. An example may hold several sequences (pieces of documents); they do not attend to each
/// other.
pub(crate) struct NextToken {
    /// The sequences of each example.
    pub examples: Vec<Vec<Sequence>>,
}

impl NextToken {
    /// The number of learned tokens in one pass over the data.
    pub(crate) fn learned_count(&self) -> usize {
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

    fn assemble(&self, examples: &[usize]) -> Pass {
        let (mut batch, mut query) = (Batch::new(), Query::default());
        for sequence in examples.iter().flat_map(|&example| &self.examples[example]) {
            let rows = batch.push(&sequence.tokens);
            for position in sequence.learned.iter().cloned().flatten() {
                query.rows.push((rows.start + position - 1) as u32);
                query.targets.push(sequence.tokens[position]);
            }
        }
        Pass { examples: examples.to_vec(), batch, query, beside: None }
    }

    fn loss(&self, _laid: &Pass, output: &Output, step: Divisors) -> Loss {
        let tokens = output.logprobs.len();
        let mut tally = Tally::new();
        tally.mean("loss", -output.logprobs.iter().map(|&logprob| f64::from(logprob)).sum::<f64>(), tokens as f64);
        tally.mean("entropy", output.entropies.iter().map(|&entropy| f64::from(entropy)).sum(), tokens as f64);
        Loss { d_logprobs: vec![(-1.0 / step.weight) as f32; tokens], d_values: Vec::new(), tally }
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
        let pass = objective.assemble(&[1, 0]);
        assert_eq!(pass.batch.tokens(), [1, 2, 3, 4, 9, 5, 6, 7]);
        assert_eq!(pass.query.rows, [0, 2, 5, 6], "each token is predicted from the row before it");
        assert_eq!(pass.query.targets, [2, 4, 6, 7]);
        assert_eq!((objective.length(0), objective.weight(0), objective.weight(1)), (4, 2.0, 2.0));
    }

    #[test]
    fn the_loss_is_the_mean_over_the_step() {
        let objective = NextToken { examples: vec![vec![Sequence::whole(vec![0, 1, 2])]] };
        let output = Output { logprobs: vec![-1.0, -3.0], entropies: vec![0.5, 1.5], values: vec![] };
        let loss = objective.loss(&objective.assemble(&[0]), &output, Divisors { weight: 8.0, tokens: 0.0 });
        assert_eq!(loss.d_logprobs, [-0.125, -0.125]);
        assert_eq!((loss.tally.get("loss"), loss.tally.get("entropy")), (Some(2.0), Some(1.0)));
    }
}
