//! From data sets to tokens: which examples are read, how prompts and answers are encoded and truncated.
//!
//! May import modules directly in `stage`; knows no model weights and no algorithm.
pub(crate) mod chat_arguments;
pub(crate) mod encoder;
pub(crate) mod labelled;
pub(crate) mod overlong;
pub(crate) mod pairs;
pub(super) mod prompts;
pub(crate) mod rows;
pub(super) mod sequence;
mod slice;
pub(crate) mod source;
