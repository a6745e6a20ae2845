//! Distributions for tests and intervals: normal, Student's t, noncentral t.
//!
//! Only what this crate uses, in double precision, from textbook series and continued fractions; agreement with SciPy is
//! in `docs/statistics.md`.

mod beta;
mod gamma;
mod noncentral;
mod normal;
mod student;

pub(crate) use noncentral::noncentral_t_cdf;
pub(crate) use normal::{normal_cdf, normal_quantile};
pub use student::student_t_quantile;
pub(crate) use student::student_t_two_sided;

/// Returns the largest `x` between two ends for which a predicate that changes from true to false still holds.
///
/// Halves the range until its ends are adjacent floating-point numbers.
fn last_true(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    loop {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            return low;
        }
        if holds(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
}
