//! Stages that learn from given examples with one shared loop: `pretrain`, `sft`, `reward` and `dpo`.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and what stands directly in `stage`.
pub mod arguments;
pub mod dpo;
pub mod model;
pub mod next_token;
pub mod order;
pub mod pretrain;
pub mod reward;
pub mod sft;
pub mod tally;
pub mod trainer;
