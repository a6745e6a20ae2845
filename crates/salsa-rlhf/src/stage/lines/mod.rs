//! Stages that read JSON lines and write JSON lines: `generate`, `score` and `logprobs`.
//!
//! May import `models`, `text`, `memory` and modules directly in `stage`; contains no training.
pub(super) mod generate;
pub(super) mod logprobs;
pub(super) mod score;
