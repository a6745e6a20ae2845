//! Statistics of evaluations: win rates, intervals, quantiles.

mod bootstrap;
mod interval;
mod quantile;
mod winrate;

pub use bootstrap::{Resampling, bootstrap_difference, bootstrap_mean};
pub use interval::{Estimate, Interval, Z95, mean_interval, wilson};
pub use quantile::quantiles;
pub use winrate::{Tally, Verdict};
