//! From checkpoints to models in memory: opening, shared bases, adapters, soups made in memory, reward models.
//!
//! May import `memory`, `lifecycle`, `text` and what stands directly in `stage`; knows no algorithm.
pub(super) mod adapters;
pub(crate) mod bases;
pub(crate) mod frozen;
pub(crate) mod lora;
pub(super) mod model_source;
pub(super) mod reading;
pub(crate) mod reward_model;
pub(crate) mod roles;
pub(super) mod save;
pub(crate) mod score_token;
pub(super) mod tokenizers;
