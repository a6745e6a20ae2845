//! The arithmetic of RLHF, with no dependencies by default: plain slices in, plain values out, gradients in closed form.
//!
//! A loss here is a pure function of log-probabilities and values, and it returns its derivative with respect to them.
//! The code that computes those numbers (a transformer, a table, a test) applies the chain rule. So every formula of a
//! PPO run can be read on one page and checked by hand.
//!
//! # Layout
//!
//! | module | content |
//! |---|---|
//! | [`kl`] | per-token KL estimators k1, k2, k3; the fixed and the adaptive coefficient |
//! | [`reward`] | from one score per response and one KL per token to one reward per slot |
//! | [`gae`] | advantages and returns |
//! | [`whiten`] | mean and variance of a batch; whitening with the mean removed or kept |
//! | [`ppo`] | the clipped policy and value losses, their derivatives and their statistics |
//! | [`group`] | GRPO, RLOO and relatives: advantages within groups, clipped losses without a critic |
//! | [`preference`] | losses on preferences: Bradley–Terry for reward models; DPO and relatives, KTO, ORPO, CPO, SimPO |
//! | [`soup`] | averaging weights: mean, lerp, slerp, task arithmetic, TIES, DARE; angles between task vectors |
//! | [`stats`] | win rates, intervals, bootstrap, quantiles; studies over several seeds |
//! | [`judge`] | the scoring rules of MT-Bench, Arena-Hard and AlpacaEval; intervals over prompts |
//! | [`rules`] | rewards by rule: equality of answers of mathematics, format, length, repetition, alphabet
//! | [`schedule`] | learning-rate schedules |
//! | [`random`] | the counter-based generator behind DARE and the bootstrap |
//!
//! # Conventions
//!
//! - One response is one slice of real tokens: no padding, no masks. A batch is concatenated responses.
//! - A **score** is one number per response, a **reward** one per slot. A *slot* is a token, or the one place after EOS
//!   where [`reward::ScorePosition::AfterEos`] puts the score.
//! - The feature `serde` derives `Serialize`, `Deserialize` and `JsonSchema` for the enums that configurations name.
//! - Everything is `f64`, except [`soup`], which works on `f32` weights in `f32` arithmetic.
//! - Losses are means whose denominators are arguments: the shares of a minibatch's micro-batches then add up to its
//!   loss, token by token, however it was split.
//! - Inconsistent lengths are a bug of the caller and panic; invalid user input (soup weights, densities) gives an
//!   error. NaN is propagated.
#![forbid(unsafe_code)]

pub mod gae;
pub mod group;
pub mod judge;
pub mod kl;
pub mod ppo;
pub mod preference;
pub mod random;
pub mod reward;
pub mod rules;
pub mod schedule;
pub mod soup;
pub mod stats;
pub mod whiten;

#[cfg(test)]
mod finite_difference;
