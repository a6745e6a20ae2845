//! Statistics of a study: several seeds, several arms, several settings of a key, one reward per prompt in each cell.
//!
//! The **seed is the unit**. Prompts of one seed share a world, a base model and a policy, so more prompts make one
//! seed more precise but are no evidence about others; a claim about a method is a claim about the next seed. All
//! functions here therefore reduce each seed to one number and analyse how these numbers vary between seeds.
//!
//! | question | function |
//! |---|---|
//! | several RL seeds in one world | [`average_runs`], as the first step |
//! | mean reward of an arm | [`mean_over_seeds`] |
//! | difference of two arms, paired by seed and prompt | [`difference_over_seeds`], [`paired_differences`] |
//! | which interval | [`SeedInterval`]; its default is the one in reports |
//! | reward against KL | [`Curve`], [`frontier()`] |
//! | difference of two arms at equal KL | [`difference_over_kl`], [`differences_at_kl`] |
//! | the best setting, chosen on validation, reported on test | [`Scores`], [`Selection`] |
//! | tests | [`SeedEstimate::p_value`], [`sign_test`], [`holm()`] |
//! | number of seeds needed | [`power()`], [`seeds_needed`] |
//! | verdict on a claim | [`Conclusion`] |
//!
//! Numbers are in the unit of the given values (reward, nats of KL); levels and powers are shares such as 0.95. Results
//! depend only on the arguments, bit for bit.

mod bootstrap;
mod conclusion;
mod curve;
mod error;
mod frontier;
mod holm;
mod power;
mod seeds;
mod select;
mod sign;

pub use bootstrap::SeedInterval;
pub use conclusion::{Conclusion, MINIMUM_SEEDS};
pub use curve::{Curve, KlAxis, KlRange, Point};
pub use error::StudyError;
pub use frontier::{AtKl, OverKl, SeedCurve, common_range, difference_over_kl, differences_at_kl, frontier, kl_values};
pub use holm::holm;
pub use power::{MOST_SEEDS, power, seeds_needed};
pub use seeds::{
    SeedEstimate, SeedMean, SeedSample, average_runs, difference_over_seeds, mean_over_seeds, paired_differences,
};
pub use select::{Scores, Selection, Split, Test, Validation};
pub use sign::{SignTest, sign_test};
