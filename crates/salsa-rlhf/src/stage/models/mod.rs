//! From checkpoints to models in memory: opening, shared bases, adapters, in-memory soups, reward models.
//!
//! May import `memory`, `lifecycle`, `text` and modules directly in `stage`; knows no algorithm.
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
