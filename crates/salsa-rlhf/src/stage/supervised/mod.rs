//! Stages that train on given examples with one shared loop: `pretrain`, `sft`, `reward` and `dpo`.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and modules directly in `stage`.
pub(super) mod arguments;
pub(super) mod dpo;
mod model;
pub(super) mod next_token;
mod order;
pub(crate) mod pretrain;
pub(super) mod reward;
pub(crate) mod sft;
mod tally;
pub(super) mod trainer;
