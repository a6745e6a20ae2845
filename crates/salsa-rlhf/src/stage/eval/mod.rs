//! Measuring finished models: `evaluate`, `landscape`, `winrate` and `judge`, and the loss on held-out examples.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and what stands directly in `stage`; trains nothing.
pub(crate) mod evaluate;
pub(super) mod exam;
pub(super) mod held_out;
pub(super) mod judge;
pub(crate) mod landscape;
pub(super) mod statistics;
pub(super) mod winrate;
