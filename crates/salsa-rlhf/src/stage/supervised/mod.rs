//! Stages that train on given examples with one shared loop: `pretrain`, `sft`, `reward`, `dpo`, `kto`,
//! `orpo` and `cpo`.
//!
//! May import `models`, `text`, `memory`, `lifecycle` and modules directly in `stage`.
pub(super) mod arguments;
pub(super) mod cpo;
pub(super) mod dpo;
pub(super) mod kto;
mod model;
pub(super) mod next_token;
mod order;
pub(super) mod orpo;
mod pairwise;
mod policy;
pub(crate) mod pretrain;
pub(super) mod reward;
pub(crate) mod sft;
mod tally;
pub(super) mod trainer;
