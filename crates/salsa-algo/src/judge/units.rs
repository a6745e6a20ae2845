//! Intervals over prompts: all judgements of one prompt (both orders, both turns) are resampled together.

use crate::{
    random::below,
    stats::{Estimate, Interval, Resampling, quantiles},
};

/// All judgements of one prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Unit {
    /// The sum of weight times value.
    pub total: f64,
    /// The sum of the weights.
    pub weight: f64,
}

impl Unit {
    /// Adds a value.
    pub fn add(&mut self, value: f64, weight: f64) {
        self.total += value * weight;
        self.weight += weight;
    }
}

impl FromIterator<f64> for Unit {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Unit {
        let mut unit = Unit::default();
        values.into_iter().for_each(|value| unit.add(value, 1.0));
        unit
    }
}

/// Returns the weighted mean over units with a bootstrap interval that resamples whole units; none if the weight is 0.
///
/// ```text
/// mean       = sum total / sum weight
/// resample r = the same of units[below(seed, r, i, n)], i = 0..n         (below: crate::random)
/// interval   = quantiles (1 - level) / 2 and (1 + level) / 2
/// ```
///
/// The two games of a prompt stay together: resampled separately, as in Arena-Hard, they narrow the interval too much.
///
/// ```
/// use salsa_algo::{judge::units::{Unit, mean}, stats::Resampling};
/// // Three prompts, each with the same two values: no draw changes the mean.
/// let units: Vec<Unit> = (0..3).map(|_| [1.0, 0.0].into_iter().collect()).collect();
/// let estimate = mean(&units, &Resampling::default()).unwrap();
/// assert_eq!((estimate.mean, estimate.interval.low, estimate.interval.high), (0.5, 0.5, 0.5));
/// ```
pub fn mean(units: &[Unit], how: &Resampling) -> Option<Estimate> {
    let of = |drawn: &mut dyn Iterator<Item = &Unit>| {
        let (total, weight) = drawn.fold((0.0, 0.0), |(t, w), unit| (t + unit.total, w + unit.weight));
        (weight > 0.0).then(|| total / weight)
    };
    let mean = of(&mut units.iter())?;
    let n = units.len();
    let draw = |r: u64| of(&mut (0..n as u64).map(|i| &units[below(how.seed, r, i, n)]));
    let means: Vec<f64> = (0..how.resamples as u64).filter_map(draw).collect();
    let ends = quantiles(&means, &[(1.0 - how.level) / 2.0, (1.0 + how.level) / 2.0])?;
    Some(Estimate { mean, interval: Interval { low: ends[0], high: ends[1] } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::bootstrap_mean;

    #[test]
    fn units_of_one_value_are_the_ordinary_bootstrap() {
        let values = [0.0, 1.0, 0.5, 1.0, 0.0, 0.25];
        let units: Vec<Unit> = values.iter().map(|value| [*value].into_iter().collect()).collect();
        let how = Resampling { resamples: 500, ..Resampling::default() };
        assert_eq!(mean(&units, &how), bootstrap_mean(&values, &how));
    }

    /// Two games that always agree are one observation, not two.
    #[test]
    fn agreeing_games_do_not_narrow_the_interval() {
        let how = Resampling { resamples: 2000, ..Resampling::default() };
        let wins: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 3 == 0))).collect();
        let once: Vec<Unit> = wins.iter().map(|win| [*win].into_iter().collect()).collect();
        let twice: Vec<Unit> = wins.iter().map(|win| [*win, *win].into_iter().collect()).collect();
        assert_eq!(mean(&once, &how).map(|e| e.interval), mean(&twice, &how).map(|e| e.interval));
    }

    #[test]
    fn weights_count() {
        let mut unit = Unit::default();
        unit.add(1.0, 3.0);
        unit.add(0.5, 1.0);
        assert_eq!(mean(&[unit], &Resampling::default()).map(|estimate| estimate.mean), Some(0.875));
        assert_eq!(mean(&[Unit::default()], &Resampling::default()), None);
        assert_eq!(mean(&[], &Resampling::default()), None);
    }
}
