//! Rewards by rule: what a program can decide about a response without a reward model.
//!
//! Each rule is a pure function of a text or of token ids. How their values are weighted and added is the caller's.
//!
//! | module | rule |
//! |---|---|
//! | [`mathematics`] | is the answer equal to the reference? |
//! | [`mod@format`] | are reasoning and answer in their tags? |
//! | [`length`] | is the response too long, or far from a target; shorter correct ones, longer wrong ones |
//! | [`repetition`] | how many n-grams are repeated? |
//! | [`alphabet`] | is the text in the script that was asked for? |

pub mod alphabet;
pub mod format;
pub mod length;
pub mod mathematics;
pub mod repetition;
