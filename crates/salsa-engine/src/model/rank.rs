//! The most likely tokens at a position, and the log-prob of the actual token.

use super::Transformer;
use crate::backend::{Backend, Ranking};
use crate::batch::{Batch, Query};

/// Rows whose whole logits exist at once.
const ROWS: usize = 64;

impl<B: Backend> Transformer<B> {
    /// Returns for each queried row the log-prob of its target and the `count` most likely tokens with theirs, at
    /// temperature 1 (the query's is ignored). Values are not computed.
    ///
    /// The log-probs are those of [`Transformer::forward`], on the CPU bit for bit.
    ///
    /// ```
    /// use salsa_engine::*;
    /// let model = Model::new(tiny(), &tiny().init(1), Device::default())?;
    /// let (mut batch, mut query) = (Batch::new(), Query::default());
    /// let rows = batch.push(&[1, 2, 3]);
    /// query.push_logprobs(rows, &[1, 2, 3], 1);
    /// let ranked = model.rank(&batch, &query, 2);
    /// assert_eq!(ranked[0].logprob, model.forward(&batch, &query).logprobs[0]);
    /// assert!(ranked[0].top[0].1 >= ranked[0].top[1].1);
    /// # Ok::<(), ModelError>(())
    /// ```
    ///
    /// # Panics
    ///
    /// As [`Transformer::forward`].
    pub fn rank(&self, batch: &Batch, query: &Query, count: usize) -> Vec<Ranking> {
        self.check_query(batch, query);
        if query.rows.is_empty() {
            return Vec::new();
        }
        let mut hidden = self.final_hidden(batch);
        self.for_head(&mut hidden);
        let rows = self.rows_of(batch, &query.rows);
        let parts = rows.chunks(ROWS).zip(query.targets.chunks(ROWS));
        parts.flat_map(|(rows, targets)| self.rank_rows(&hidden, rows, targets, count)).collect()
    }

    /// As [`Transformer::rank`], for some rows of [`Transformer::for_head`].
    pub(super) fn rank_rows(&self, hidden: &B::Buffer, rows: &[u32], targets: &[u32], count: usize) -> Vec<Ranking> {
        let backend = &self.base.backend;
        let hidden = backend.gather(hidden, self.spec.hidden_size, rows);
        let head = self.head().expect("callers checked that there is one");
        backend.rank(&hidden, head, self.spec.options.logit_softcap, targets, count)
    }
}
