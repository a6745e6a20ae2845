//! Input and output of a model: packed sequences, queries, and results.

use std::ops::Range;

/// Concatenated sequences, without padding.
///
/// ```
/// let mut batch = salsa_engine::Batch::new();
/// assert_eq!(batch.push(&[5, 6, 7]), 0..3);
/// assert_eq!(batch.push(&[8, 9]), 3..5);
/// assert_eq!(batch.cu_seqlens(), [0, 3, 5]);
/// ```
#[derive(Clone, Debug)]
pub struct Batch {
    tokens: Vec<u32>,
    cu_seqlens: Vec<usize>,
    shared: Option<Shared>,
}

/// The rows of a batch without those that repeat the beginning of the sequence before.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    /// The distinct row that holds each row of the batch.
    pub row_of: Vec<u32>,
    /// The row of the batch where each distinct row is for the first time.
    pub first: Vec<u32>,
    /// Token of each distinct row.
    pub tokens: Vec<u32>,
    /// Position of each distinct row in its sequence.
    pub positions: Vec<u32>,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch { tokens: Vec::new(), cu_seqlens: vec![0], shared: None }
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// An empty batch in which what a sequence has in common with the beginning of the one before it is computed once,
    /// as far as the device can: several responses to one prompt, or prompts that begin alike. Rows are counted as in
    /// any other batch. On the CPU the results of a forward pass are the same to the bit; gradients are sums in another
    /// order.
    ///
    /// ```
    /// use salsa_engine::*;
    /// let model = Model::new(tiny(), &tiny().init(1), Device::default())?;
    /// let (mut batch, mut query) = (Batch::sharing_prefixes(), Query::default());
    /// for response in [[1, 2, 3], [1, 2, 4]] {
    ///     let rows = batch.push(&response);
    ///     query.push_logprobs(rows, &response, 2);
    /// }
    /// assert_eq!((batch.rows(), batch.distinct_rows()), (6, 4));
    /// let both = model.forward(&batch, &query).logprobs;          // log p(3 | 1, 2), log p(4 | 1, 2)
    /// assert!(both[0].exp() + both[1].exp() < 1.0);
    /// # Ok::<(), ModelError>(())
    /// ```
    pub fn sharing_prefixes() -> Batch {
        Batch { shared: Some(Shared::default()), ..Batch::default() }
    }

    /// Appends a sequence and returns its rows.
    ///
    /// # Panics
    ///
    /// If it has no tokens.
    pub fn push(&mut self, tokens: &[u32]) -> Range<usize> {
        assert!(!tokens.is_empty(), "a sequence has at least one token");
        let start = self.tokens.len();
        if let Some(shared) = &mut self.shared {
            let before = self.cu_seqlens.len().checked_sub(2).map_or(start, |last| self.cu_seqlens[last]);
            shared.push(tokens, start, &self.tokens[before..], before);
        }
        self.tokens.extend_from_slice(tokens);
        self.cu_seqlens.push(self.tokens.len());
        start..self.tokens.len()
    }

    /// All tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The start of each sequence and, last, the end of the last one.
    pub fn cu_seqlens(&self) -> &[usize] {
        &self.cu_seqlens
    }

    /// The number of sequences.
    pub fn sequences(&self) -> usize {
        self.cu_seqlens.len() - 1
    }

    /// The number of tokens.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// The number of rows that are computed, on a device that shares them.
    pub fn distinct_rows(&self) -> usize {
        self.shared.as_ref().map_or(self.rows(), |shared| shared.tokens.len())
    }

    /// The distinct rows, if any row repeats another.
    pub(crate) fn shared(&self) -> Option<&Shared> {
        self.shared.as_ref().filter(|shared| shared.tokens.len() < self.rows())
    }

    /// The lengths of the sequences.
    pub(crate) fn lengths(&self) -> impl Iterator<Item = u32> {
        self.cu_seqlens.windows(2).map(|ends| (ends[1] - ends[0]) as u32)
    }
}

impl Shared {
    /// Appends a sequence that begins at row `start`; `before` is the one before it, which begins at `before_start`.
    fn push(&mut self, tokens: &[u32], start: usize, before: &[u32], before_start: usize) {
        let common = tokens.iter().zip(before).take_while(|(a, b)| a == b).count();
        self.row_of.extend_from_within(before_start..before_start + common);
        for (position, &token) in tokens.iter().enumerate().skip(common) {
            self.row_of.push(self.first.len() as u32);
            self.first.push((start + position) as u32);
            self.tokens.push(token);
            self.positions.push(position as u32);
        }
    }
}

/// What to compute from the final hidden states.
#[derive(Clone, Debug)]
pub struct Query {
    /// Rows whose next-token distribution is queried.
    pub rows: Vec<u32>,
    /// The target token of each of `rows`.
    pub targets: Vec<u32>,
    /// Rows whose value (or score) is queried.
    pub value_rows: Vec<u32>,
    /// Logits are divided by this before the softmax.
    pub temperature: f32,
}

impl Default for Query {
    fn default() -> Query {
        Query { rows: Vec::new(), targets: Vec::new(), value_rows: Vec::new(), temperature: 1.0 }
    }
}

impl Query {
    /// Adds the log-probs of `tokens[from..]`, each given all tokens before it, of a sequence whose rows are `rows`.
    ///
    /// # Panics
    ///
    /// If `from` is zero: the first token has no predecessor.
    pub fn push_logprobs(&mut self, rows: Range<usize>, tokens: &[u32], from: usize) {
        assert!(from >= 1, "the first token of a sequence has no log-prob");
        for (i, &token) in tokens.iter().enumerate().skip(from) {
            self.rows.push((rows.start + i - 1) as u32);
            self.targets.push(token);
        }
    }
}

/// The results of a query, in its order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Output {
    /// `log p(target)` of each queried row, in nats.
    pub logprobs: Vec<f32>,
    /// Entropy of each row's distribution, in nats.
    pub entropies: Vec<f32>,
    /// The scalar head's output at each value row.
    pub values: Vec<f32>,
}

/// The gradient of a loss with respect to an [`Output`].
#[derive(Clone, Copy, Debug)]
pub struct OutputGradient<'a> {
    /// One number for each log-prob.
    pub d_logprobs: &'a [f32],
    /// One number for each value.
    pub d_values: &'a [f32],
}
