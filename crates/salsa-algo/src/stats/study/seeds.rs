//! Values by seed and prompt, paired, and reduced to one number per seed.

use super::{SeedInterval, StudyError};
use crate::{
    stats::{Interval, distribution::student_t_two_sided},
    whiten::moments,
};

/// The values of one arm for one seed: one per prompt, in the order of the prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedSample {
    /// The seed, by which arms are paired; that of the world if a world has several RL seeds.
    pub seed: u64,
    /// One value per prompt; a single one if only the mean is known.
    pub values: Vec<f64>,
}

/// The mean of one seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SeedMean {
    /// The seed.
    pub seed: u64,
    /// Mean of its values.
    pub mean: f64,
}

/// A mean over seeds with equal weights, whatever their numbers of prompts.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedEstimate {
    /// Mean of the seeds' means.
    pub mean: f64,
    /// The confidence interval of the mean over all possible seeds; none for a single seed.
    pub interval: Option<Interval>,
    /// Standard deviation of the seeds' means, with denominator n - 1; none for a single seed.
    pub deviation: Option<f64>,
    /// The mean of each seed, in the given order.
    pub seeds: Vec<SeedMean>,
}

impl SeedEstimate {
    /// Returns the p-value of the two-sided t test that the mean over all possible seeds is 0; none for a single seed.
    ///
    /// ```text
    /// t = mean / (deviation / sqrt(n))          P(|T| >= |t|), n - 1 degrees of freedom
    /// ```
    ///
    /// For paired differences it is the paired t test. If all seeds have the same mean, p is 1 for a mean of 0 and 0
    /// otherwise. Source: Student 1908.
    ///
    /// ```
    /// use salsa_algo::stats::study::{SeedInterval, SeedSample, mean_over_seeds};
    /// let at = |seed, mean| SeedSample { seed, values: vec![mean] };
    /// // mean 1, deviation sqrt(2), t = 1 with 1 degree of freedom: half of a Cauchy distribution lies outside ±1
    /// let estimate = mean_over_seeds(&[at(1, 0.0), at(2, 2.0)], SeedInterval::default()).unwrap();
    /// assert!((estimate.p_value().unwrap() - 0.5).abs() < 1e-14);
    /// ```
    pub fn p_value(&self) -> Option<f64> {
        let n = self.seeds.len() as f64;
        let error = self.deviation? / n.sqrt();
        if self.mean == 0.0 {
            return Some(1.0);
        }
        Some(student_t_two_sided(self.mean / error, n - 1.0))
    }
}

/// Averages several runs in one world, prompt by prompt.
///
/// ```text
/// values[i] = sum over runs of run[i] / number of runs
/// ```
///
/// RL seeds that share a world (its data, base model, SFT models and reward model) are not independent: counted
/// separately, they would make a study look more certain than it is. Their mean is one value per prompt of the world,
/// which is then the unit. A study that varies only the RL seed has each one as a unit; its results hold for one world.
///
/// ```
/// let world = salsa_algo::stats::study::average_runs(7, &[&[1.0, 2.0], &[3.0, 6.0]]).unwrap();
/// assert_eq!((world.seed, world.values), (7, vec![2.0, 4.0]));
/// ```
///
/// # Errors
/// Without runs or values, if runs differ in the number of prompts, or if a value is not finite (or beyond 1e100).
pub fn average_runs(seed: u64, runs: &[&[f64]]) -> Result<SeedSample, StudyError> {
    let first = runs.first().ok_or(StudyError::NoRuns { seed })?;
    let mut values = vec![0.0; first.len()];
    for run in runs {
        if run.len() != first.len() {
            return Err(StudyError::PromptCounts { seed, first: first.len(), second: run.len() });
        }
        check_values(seed, run)?;
        values.iter_mut().zip(*run).for_each(|(sum, value)| *sum += value);
    }
    values.iter_mut().for_each(|sum| *sum /= runs.len() as f64);
    Ok(SeedSample { seed, values })
}

/// Returns the differences of two arms, paired by seed and prompt, in the order of the first.
///
/// ```text
/// difference[seed][i] = first[seed].values[i] - second[seed].values[i]
/// ```
///
/// The difficulty of a world or prompt, which affects both arms, cancels.
///
/// ```
/// use salsa_algo::stats::study::{SeedSample, paired_differences};
/// let first = [SeedSample { seed: 1, values: vec![5.0, 7.0] }, SeedSample { seed: 2, values: vec![1.0] }];
/// let second = [SeedSample { seed: 2, values: vec![0.5] }, SeedSample { seed: 1, values: vec![4.0, 7.0] }];
/// let differences = paired_differences(&first, &second).unwrap();
/// assert_eq!((differences[0].seed, &differences[0].values[..]), (1, &[1.0, 0.0][..]));
/// assert_eq!((differences[1].seed, &differences[1].values[..]), (2, &[0.5][..]));
/// ```
///
/// # Errors
/// If a seed is missing on one side, occurs twice or has no values, if the numbers of prompts differ within a seed, if
/// there is no seed, or if a value is not finite (or beyond 1e100).
pub fn paired_differences(first: &[SeedSample], second: &[SeedSample]) -> Result<Vec<SeedSample>, StudyError> {
    check_samples(first)?;
    check_samples(second)?;
    if let Some(lonely) = second.iter().find(|sample| find(first, sample.seed).is_none()) {
        return Err(StudyError::Unpaired { seed: lonely.seed });
    }
    first.iter().map(|sample| difference(sample, second)).collect()
}

fn difference(first: &SeedSample, others: &[SeedSample]) -> Result<SeedSample, StudyError> {
    let seed = first.seed;
    let second = find(others, seed).ok_or(StudyError::Unpaired { seed })?;
    let (ours, theirs) = (&first.values, &second.values);
    if ours.len() != theirs.len() {
        return Err(StudyError::PromptCounts { seed, first: ours.len(), second: theirs.len() });
    }
    Ok(SeedSample { seed, values: ours.iter().zip(theirs).map(|(ours, theirs)| ours - theirs).collect() })
}

fn find(samples: &[SeedSample], seed: u64) -> Option<&SeedSample> {
    samples.iter().find(|sample| sample.seed == seed)
}

/// Returns the mean over seeds, with its interval.
///
/// ```text
/// mean[s] = mean of the values of seed s          mean = sum of mean[s] / number of seeds
/// ```
///
/// All seeds have the same weight. A single seed has a mean and no interval.
///
/// ```
/// use salsa_algo::stats::study::{SeedInterval, SeedSample, mean_over_seeds};
/// let arm = [SeedSample { seed: 1, values: vec![1.0, 3.0] }, SeedSample { seed: 2, values: vec![4.0] }];
/// // seed means 2 and 4: mean 3, deviation sqrt(2), standard error 1; half of a Cauchy distribution lies within ±1
/// let estimate = mean_over_seeds(&arm, SeedInterval::StudentT { level: 0.5 }).unwrap();
/// let interval = estimate.interval.unwrap();
/// assert_eq!(estimate.mean, 3.0);
/// assert!((interval.low - 2.0).abs() < 1e-14 && (interval.high - 4.0).abs() < 1e-14);
/// ```
///
/// # Errors
/// If there is no seed, a seed occurs twice or has no values, a value is not finite, or the interval is invalid.
pub fn mean_over_seeds(samples: &[SeedSample], interval: SeedInterval) -> Result<SeedEstimate, StudyError> {
    check_samples(samples)?;
    interval.check()?;
    let mean = |sample: &SeedSample| SeedMean { seed: sample.seed, mean: moments(&sample.values).mean };
    let seeds: Vec<SeedMean> = samples.iter().map(mean).collect();
    let means = moments(&seeds.iter().map(|seed| seed.mean).collect::<Vec<f64>>());
    let several = seeds.len() > 1;
    let interval = if several { Some(interval.of(samples, means)) } else { None };
    Ok(SeedEstimate { mean: means.mean, interval, deviation: several.then(|| means.variance.sqrt()), seeds })
}

/// Returns the mean difference of two arms over seeds, paired by seed and prompt, with its interval.
///
/// [`mean_over_seeds`] of [`paired_differences`]. The arms differ significantly at `1 - level` if 0 is outside.
///
/// ```
/// use salsa_algo::stats::study::{SeedInterval, SeedSample, difference_over_seeds};
/// let at = |seed, value| SeedSample { seed, values: vec![value] };
/// // worlds differ by 100, the arms by 1 in each of them
/// let (first, second) = ([at(1, 1.0), at(2, 101.0)], [at(1, 0.0), at(2, 100.0)]);
/// let estimate = difference_over_seeds(&first, &second, SeedInterval::default()).unwrap();
/// let interval = estimate.interval.unwrap();
/// assert_eq!((estimate.mean, interval.low, interval.high), (1.0, 1.0, 1.0));
/// ```
///
/// # Errors
/// Those of both functions.
pub fn difference_over_seeds(
    first: &[SeedSample],
    second: &[SeedSample],
    interval: SeedInterval,
) -> Result<SeedEstimate, StudyError> {
    mean_over_seeds(&paired_differences(first, second)?, interval)
}

/// Checks that there are seeds, each once, each with finite values.
pub(super) fn check_samples(samples: &[SeedSample]) -> Result<(), StudyError> {
    check_seeds(samples.iter().map(|sample| sample.seed))?;
    samples.iter().try_for_each(|sample| {
        if sample.values.is_empty() {
            return Err(StudyError::NoValues { seed: sample.seed });
        }
        check_values(sample.seed, &sample.values)
    })
}

/// Checks that there are seeds, and each once.
pub(super) fn check_seeds(seeds: impl Iterator<Item = u64>) -> Result<(), StudyError> {
    let mut sorted: Vec<u64> = seeds.collect();
    sorted.sort_unstable();
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        _ if sorted.is_empty() => Err(StudyError::NoSeeds),
        Some(pair) => Err(StudyError::RepeatedSeed { seed: pair[0] }),
        None => Ok(()),
    }
}

/// Whether a number is finite and so small that sums, squares and cubes do not overflow.
pub(super) fn is_usable(value: f64) -> bool {
    value.abs() <= 1e100
}

fn check_values(seed: u64, values: &[f64]) -> Result<(), StudyError> {
    match values.iter().position(|value| !is_usable(*value)) {
        Some(position) => Err(StudyError::NotFinite { seed, position, value: values[position] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
