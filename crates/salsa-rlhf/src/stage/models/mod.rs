//! From checkpoints to models in memory: opening, shared bases, adapters, soups made in memory, reward models.
//!
//! May import `memory`, `lifecycle`, `text` and what stands directly in `stage`; knows no algorithm.
pub mod adapters;
pub mod bases;
pub mod frozen;
pub mod lora;
pub mod model_source;
pub mod reading;
pub(crate) mod reward_model;
pub mod roles;
pub mod save;
pub mod score_token;
pub(in crate::stage) mod tokenizers;
