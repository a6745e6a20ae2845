//! Loss on held-out examples, the objective of SFT, with an interval.
use std::ops::Range;

use anyhow::ensure;
use salsa_engine::Model;
use serde::{Deserialize, Serialize};

use super::statistics::estimate;
use crate::{
    report::Estimate,
    stage::{
        StageContext,
        supervised::{next_token::NextToken, trainer::Objective},
        text::{
            encoder::{Encoder, TruncationMode},
            sequence::Sequence,
            source::DataSource,
        },
    },
};

/// Tokens per forward pass; affects speed and memory only.
const PASS: usize = 8192;

/// Encoded examples.
pub(in crate::stage) struct HeldOut {
    lesson: NextToken,
}

impl HeldOut {
    /// Reads and tokenises examples, once for all models; longer ones are truncated to `max_length` tokens.
    ///
    /// # Errors
    /// If the set cannot be read, or no example has a learned token.
    pub(crate) fn open(
        dataset: &DataSource,
        encoder: &Encoder,
        max_length: usize,
        max_examples: Option<usize>,
        context: &StageContext,
    ) -> anyhow::Result<HeldOut> {
        let mut loaded = dataset.load()?;
        loaded.report_reading(dataset, encoder, context);
        loaded.examples.truncate(max_examples.unwrap_or(usize::MAX));
        let sequences =
            loaded.try_map(|example| Ok(encoder.example(example)?.truncated(max_length, TruncationMode::KeepStart)))?;
        let examples: Vec<Vec<Sequence>> = sequences.into_iter().flatten().map(|sequence| vec![sequence]).collect();
        ensure!(!examples.is_empty(), "{dataset}: no example has a token to learn within {max_length} tokens");
        Ok(HeldOut { lesson: NextToken { examples } })
    }

    /// The number of examples.
    pub(crate) fn len(&self) -> usize {
        self.lesson.examples()
    }

    /// Sequence lengths of the largest pass over the examples.
    pub(crate) fn largest_pass(&self) -> Vec<u64> {
        let lengths = |examples: Range<usize>| examples.map(|i| self.lesson.length(i) as u64).collect::<Vec<_>>();
        let passes = self.batches().into_iter().map(lengths);
        passes.max_by_key(|pass| pass.iter().sum::<u64>()).unwrap_or_default()
    }

    /// The loss of a model on each example.
    ///
    /// # Errors
    /// If a loss is not finite.
    pub(crate) fn losses(&self, model: &Model) -> anyhow::Result<Losses> {
        let counts: Vec<f64> = (0..self.len()).map(|i| self.lesson.weight(i)).collect();
        let mut sums = Vec::with_capacity(self.len());
        for examples in self.batches() {
            let pass = self.lesson.assemble(&examples.clone().collect::<Vec<_>>());
            let logprobs = model.forward(&pass.batch, &pass.query).logprobs;
            let mut rest = &logprobs[..];
            for &count in &counts[examples] {
                let (own, others) = rest.split_at(count as usize);
                sums.push(-own.iter().map(|&logprob| f64::from(logprob)).sum::<f64>());
                rest = others;
            }
        }
        let bad = sums.iter().position(|sum| !sum.is_finite());
        ensure!(bad.is_none(), "the loss on held-out example {} is not finite", bad.unwrap_or(0) + 1);
        Ok(Losses { sums, counts })
    }

    /// The examples of each pass: as many as fit into [`PASS`] tokens.
    fn batches(&self) -> Vec<Range<usize>> {
        let (mut batches, mut start) = (Vec::new(), 0);
        while start < self.len() {
            let (mut end, mut rows) = (start, 0);
            while end < self.len() && (end == start || rows + self.lesson.length(end) <= PASS) {
                rows += self.lesson.length(end);
                end += 1;
            }
            batches.push(start..end);
            start = end;
        }
        batches
    }
}

/// Losses of one model on each example.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::stage) struct Losses {
    /// Sums over the learned tokens of each example.
    sums: Vec<f64>,
    /// The number of learned tokens of each example.
    counts: Vec<f64>,
}

impl Losses {
    /// The mean loss per token, with its interval over examples.
    ///
    /// ```text
    /// L = sum_i loss_i / sum_i n_i          loss_i: summed over the n_i learned tokens of example i
    /// interval: that of the mean of L + (loss_i - L n_i) / mean(n)
    /// ```
    pub(crate) fn estimate(&self) -> Estimate {
        ratio(&self.sums, &self.counts)
    }

    /// The estimate of this model's excess loss over another on the same examples.
    pub(crate) fn difference(&self, other: &Losses) -> Estimate {
        let differences: Vec<f64> = self.sums.iter().zip(&other.sums).map(|(own, other)| own - other).collect();
        ratio(&differences, &self.counts)
    }
}

/// The estimate of `sum(sums) / sum(counts)`.
fn ratio(sums: &[f64], counts: &[f64]) -> Estimate {
    let total: f64 = counts.iter().sum();
    let (loss, count) = (sums.iter().sum::<f64>() / total, total / counts.len() as f64);
    let values: Vec<f64> = sums.iter().zip(counts).map(|(sum, n)| loss + (sum - loss * n) / count).collect();
    let Estimate { mean, ci95 } = estimate(&values);
    // The mean of the values equals the ratio up to rounding.
    Estimate { mean: loss, ci95: ci95.map(|end| end - mean + loss) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_taken_over_all_tokens() {
        // 3 tokens of loss 1, 1 of loss 5: (3 + 5) / 4; values 2 + (3 - 6) / 2, 2 + (5 - 2) / 2
        let Estimate { mean, ci95 } = ratio(&[3.0, 5.0], &[3.0, 1.0]);
        assert_eq!(mean, 2.0);
        let half = 1.5 * 1.959_963_984_540_054; // the standard error of (0.5, 3.5) is 1.5
        assert!((ci95[1] - 2.0 - half).abs() < 1e-9 && (ci95[0] - 2.0 + half).abs() < 1e-9, "{ci95:?}");
        // Examples of equal length: the interval of a plain mean.
        let (plain, of_ratio) = (estimate(&[1.0, 2.0, 6.0]), ratio(&[4.0, 8.0, 24.0], &[4.0; 3]));
        assert!((plain.ci95[0] - of_ratio.ci95[0]).abs() < 1e-12 && plain.mean == of_ratio.mean);
    }

    #[test]
    fn a_difference_is_taken_example_by_example() {
        let losses = |sums: &[f64]| Losses { sums: sums.to_vec(), counts: vec![2.0, 2.0, 4.0] };
        let (a, b) = (losses(&[1.0, 7.0, 3.0]), losses(&[0.8, 6.8, 2.6]));
        let Estimate { mean, ci95 } = a.difference(&b);
        assert!((mean - 0.1).abs() < 1e-12 && ci95[1] - ci95[0] < 1e-12, "{ci95:?}"); // 0.1 on every token
        assert!(a.estimate().ci95[1] - a.estimate().ci95[0] > 1.0);
    }
}
