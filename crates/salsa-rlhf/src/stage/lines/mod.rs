//! Stages that read JSON lines and write JSON lines: `generate`, `score` and `logprobs`.
//!
//! May import `models`, `text`, `memory` and what stands directly in `stage`; trains nothing.
pub(super) mod generate;
pub(super) mod logprobs;
pub(super) mod score;
