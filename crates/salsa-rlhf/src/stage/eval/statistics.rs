//! Means, win rates and differences with their 95 % intervals, from `salsa_algo::stats`.
use salsa_algo::stats::{Resampling, Tally, Verdict, Z95, bootstrap_difference, mean_interval, wilson};

use crate::report::Estimate;

/// Mean of one number per prompt, with the normal interval. For a single prompt the interval is NaN.
pub(crate) fn estimate(values: &[f64]) -> Estimate {
    mean_interval(values, Z95).map_or(without_interval(values), from_algo)
}

/// Share of prompts on which `own` is larger than `base`, ties count half, with the Wilson interval.
pub(crate) fn win_rate(own: &[f64], base: &[f64]) -> Estimate {
    let tally: Tally = own.iter().zip(base).map(|(&own, &base)| Verdict::from_scores(own, base)).collect();
    let interval = tally.interval(Z95);
    Estimate::new(tally.win_rate().unwrap_or(f64::NAN), interval.low, interval.high)
}

/// Mean difference over the same prompts, with the interval of the paired bootstrap; NaN for a single prompt, whose
/// resamples are all equal.
pub(crate) fn paired_difference(a: &[f64], b: &[f64], seed: u64) -> Estimate {
    if let ([a], [b]) = (a, b) {
        return without_interval(&[a - b]);
    }
    let how = Resampling { seed, ..Resampling::default() };
    bootstrap_difference(a, b, &how).map_or(without_interval(&[]), from_algo)
}

/// Wilson interval of a share of `n`.
pub(crate) fn share(share: f64, n: usize) -> [f64; 2] {
    let interval = wilson(share * n as f64, n, Z95);
    [interval.low, interval.high]
}

/// The value of a single prompt, NaN for none; the interval is NaN.
fn without_interval(values: &[f64]) -> Estimate {
    Estimate::new(values.first().copied().unwrap_or(f64::NAN), f64::NAN, f64::NAN)
}

fn from_algo(estimate: salsa_algo::stats::Estimate) -> Estimate {
    Estimate::new(estimate.mean, estimate.interval.low, estimate.interval.high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_half_a_win() {
        let rate = win_rate(&[1.0, 2.0, 3.0, 0.0], &[0.0, 2.0, 1.0, 5.0]);
        assert_eq!(rate.mean, 0.625);
        assert!(rate.ci95[0] < 0.625 && rate.ci95[1] > 0.625);
    }

    #[test]
    fn one_prompt_has_a_mean_and_no_interval() {
        for estimate in [estimate(&[1.5]), paired_difference(&[3.5], &[2.0], 1)] {
            assert!(estimate.mean == 1.5 && estimate.ci95.iter().all(|end| end.is_nan()), "{estimate:?}");
        }
        assert!(estimate(&[]).mean.is_nan() && paired_difference(&[], &[], 1).mean.is_nan());
    }

    #[test]
    fn a_difference_is_paired() {
        // The same difference on every prompt: no uncertainty, even if the prompts differ.
        let difference = paired_difference(&[1.5, 10.5, -3.5], &[1.0, 10.0, -4.0], 1);
        assert_eq!((difference.mean, difference.ci95), (0.5, [0.5, 0.5]));
    }
}
