//! The scoring rules of public judge benchmarks: from verdicts of a language model to a score.
//!
//! | module | rule of |
//! |---|---|
//! | [`single`] | FastChat's MT-Bench, single answers graded from 1 to 10 |
//! | [`pair`] | FastChat's MT-Bench, pairs in both orders; position bias |
//! | [`arena`] | Arena-Hard-Auto v0.1 and v2: games against a baseline, decisive ones counted three times |
//! | [`style`] | Arena-Hard's style control: length and markdown as further features of a Bradley–Terry model |
//! | [`alpaca`] | AlpacaEval 2: preferences of one order, win rate, length-controlled win rate |
//! | [`logistic`] | logistic regression: the exact optimum, and the optimiser of Arena-Hard v2 |
//! | [`units`] | our interval: prompts are resampled, each with all its judgements |
//!
//! "Win rate" means something else in each of them, so no score should be shown without its rule. Parsing a verdict
//! from a judge's text is not done here.

pub mod alpaca;
pub mod arena;
pub mod logistic;
pub mod pair;
pub mod single;
pub mod style;
pub mod units;
