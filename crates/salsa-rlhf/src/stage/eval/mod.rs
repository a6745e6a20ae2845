//! Evaluation of finished models: `evaluate`, `landscape`, `winrate` and `judge`, and the loss on held-out examples.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and modules directly in `stage`; contains no training.
pub(crate) mod evaluate;
pub(super) mod exam;
pub(super) mod held_out;
pub(super) mod judge;
pub(crate) mod landscape;
pub(super) mod statistics;
pub(super) mod winrate;
