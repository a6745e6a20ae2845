//! Statistics of evaluations (win rates, intervals, quantiles) and of studies over several seeds ([`study`]).

mod bootstrap;
mod distribution;
mod interval;
mod quantile;
pub mod study;
mod winrate;

pub use bootstrap::{Resampling, bootstrap_difference, bootstrap_mean};
pub use distribution::student_t_quantile;
pub use interval::{Estimate, Interval, Z95, mean_interval, wilson};
pub use quantile::quantiles;
pub use winrate::{Tally, Verdict};
