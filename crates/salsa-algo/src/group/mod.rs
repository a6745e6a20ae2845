//! Group methods (GRPO, RLOO and relatives): several responses per prompt, whose rewards are each other's baseline.
//!
//! There is no critic: a response has one advantage, which all its tokens share unless a KL to go is subtracted. Losses are *shares* of a mean over the
//! minibatch, as in [`crate::ppo`]: those of micro-batches add up to that of the minibatch.

mod advantage;
mod loss;

pub use advantage::{Baseline, ScaleRewards, advantages, normalize_tokens, tokens_to_go};
pub use loss::{Batch, ClipStats, Denominators, ImportanceLevel, KlPenalty, Loss, LossType, Settings, loss};
