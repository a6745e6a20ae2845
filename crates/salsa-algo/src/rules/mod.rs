//! Rewards by rule: what a program can decide about a response without a reward model.
//!
//! Each rule is a pure function of a text or of token ids. How their values are weighted and added is the caller's.

pub mod mathematics;
