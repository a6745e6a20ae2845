//! From data sets to tokens: which examples are read, how prompts and answers are encoded and cut.
//!
//! May import what stands directly in `stage`; knows no model weights and no algorithm.
pub mod chat_arguments;
pub mod encoder;
pub mod overlong;
pub mod pairs;
pub(in crate::stage) mod prompts;
pub mod rows;
pub mod sequence;
pub mod slice;
pub mod source;
