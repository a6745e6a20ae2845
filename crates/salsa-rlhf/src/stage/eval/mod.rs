//! Measuring finished models: `evaluate`, `landscape`, `winrate` and `judge`, and the loss on held-out examples.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and what stands directly in `stage`; trains nothing.
pub mod evaluate;
pub(in crate::stage) mod exam;
pub(in crate::stage) mod held_out;
pub mod judge;
pub mod landscape;
pub(in crate::stage) mod statistics;
pub mod winrate;
