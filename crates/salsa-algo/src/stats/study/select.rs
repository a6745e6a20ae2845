//! The best setting of a key, chosen on validation prompts and reported on test prompts.

use std::marker::PhantomData;

use super::{SeedMean, SeedSample, StudyError, seeds::check_samples};
use crate::whiten::moments;

/// The split of the prompts that scores are from.
pub trait Split: private::Sealed {}

/// Validation prompts, for choosing a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validation {}

/// Test prompts, for reporting. No function chooses by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {}

impl Split for Validation {}
impl Split for Test {}

mod private {
    pub trait Sealed {}
    impl Sealed for super::Validation {}
    impl Sealed for super::Test {}
}

/// Scores of one arm on one split: for each setting of a key, those of each seed. Higher is better.
///
/// Only `Scores<Validation>` can choose, and a [`Selection`] reads only `Scores<Test>`. So choosing a setting on test
/// prompts does not compile.
///
/// ```compile_fail
/// use salsa_algo::stats::study::{Scores, SeedSample, Test};
/// let test: Scores<Test> = Scores::new(vec![vec![SeedSample { seed: 1, values: vec![0.5] }]]).unwrap();
/// test.select_across_seeds(); // no such method
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Scores<S: Split> {
    /// By setting, then by seed; every setting has the same seeds in the same order.
    settings: Vec<Vec<SeedSample>>,
    split: PhantomData<S>,
}

/// A setting per seed, chosen on validation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    choices: Vec<(u64, usize)>,
    settings: usize,
}

impl<S: Split> Scores<S> {
    /// Takes the scores of each setting by seed; the seeds may be in any order.
    ///
    /// # Errors
    /// If there is no setting or no seed, a setting lacks a seed, a seed occurs twice or has no values, or a value is
    /// not finite (or beyond 1e100).
    pub fn new(mut settings: Vec<Vec<SeedSample>>) -> Result<Scores<S>, StudyError> {
        let Some((first, others)) = settings.split_first_mut() else { return Err(StudyError::NoSettings) };
        check_samples(first)?;
        for samples in others {
            check_samples(samples)?;
            let lonely = |one: &[SeedSample], other: &[SeedSample]| {
                one.iter().map(|sample| sample.seed).find(|&seed| place(other, seed).is_none())
            };
            if let Some(seed) = lonely(&first[..], &samples[..]).or_else(|| lonely(&samples[..], &first[..])) {
                return Err(StudyError::Unpaired { seed });
            }
            samples.sort_by_key(|sample| place(first, sample.seed));
        }
        Ok(Scores { settings, split: PhantomData })
    }
}

fn place(samples: &[SeedSample], seed: u64) -> Option<usize> {
    samples.iter().position(|sample| sample.seed == seed)
}

impl Scores<Validation> {
    /// Chooses one setting for all seeds: the one with the highest mean over seeds.
    ///
    /// ```text
    /// argmax over settings of mean over s of mean(values[setting][s])          the first of equals
    /// ```
    ///
    /// This is what a practitioner would do and report: a method has one value of the key, found on some seeds and used
    /// on the next. All seeds have the same weight.
    ///
    /// ```
    /// use salsa_algo::stats::study::{Scores, SeedSample, Test, Validation};
    /// let at = |seed, score| SeedSample { seed, values: vec![score] };
    /// let validation: Scores<Validation> =
    ///     Scores::new(vec![vec![at(1, 0.9), at(2, 0.1)], vec![at(1, 0.6), at(2, 0.8)]]).unwrap();
    /// let test: Scores<Test> = Scores::new(vec![vec![at(1, 9.0), at(2, 9.0)], vec![at(1, 5.0), at(2, 6.0)]]).unwrap();
    /// let chosen = validation.select_across_seeds(); // means .5 and .7
    /// assert_eq!(chosen.choices(), [(1, 1), (2, 1)]);
    /// assert_eq!(chosen.on_test(&test).unwrap(), [at(1, 5.0), at(2, 6.0)]);
    /// // seed by seed, the first setting is better for seed 1
    /// assert_eq!(validation.select_per_seed().choices(), [(1, 0), (2, 1)]);
    /// ```
    pub fn select_across_seeds(&self) -> Selection {
        let mean = |samples: &Vec<SeedSample>| moments(&samples.iter().map(seed_mean).collect::<Vec<f64>>()).mean;
        let best = first_largest(self.settings.iter().map(mean));
        self.selection(|_| best)
    }

    /// Chooses a setting for each seed by that seed's own validation mean; the first of equals.
    ///
    /// Shows what tuning in each world would give. Its test mean is that of a procedure (train all settings, keep one),
    /// not of a setting.
    pub fn select_per_seed(&self) -> Selection {
        self.selection(|seed| first_largest(self.settings.iter().map(|samples| seed_mean(&samples[seed]))))
    }

    fn selection(&self, best: impl Fn(usize) -> usize) -> Selection {
        let choices = self.settings[0].iter().enumerate().map(|(at, sample)| (sample.seed, best(at))).collect();
        Selection { choices, settings: self.settings.len() }
    }

    /// Returns the validation mean of a setting for each seed; none if there is no such setting.
    ///
    /// For the chosen setting it is the highest of several, and so biased upwards: report [`Selection::on_test`].
    pub fn means(&self, setting: usize) -> Option<Vec<SeedMean>> {
        let samples = self.settings.get(setting)?;
        Some(samples.iter().map(|sample| SeedMean { seed: sample.seed, mean: seed_mean(sample) }).collect())
    }
}

impl Selection {
    /// Returns (seed, position of its setting), in the order of the first setting's seeds.
    pub fn choices(&self) -> &[(u64, usize)] {
        &self.choices
    }

    /// Returns the setting if it is the same for all seeds.
    pub fn setting(&self) -> Option<usize> {
        let first = self.choices[0].1;
        self.choices.iter().all(|(_, setting)| *setting == first).then_some(first)
    }

    /// Returns the test scores of the chosen setting of each seed, ready for
    /// [`difference_over_seeds`](super::difference_over_seeds).
    ///
    /// # Errors
    /// If the settings or seeds of the test scores differ from those chosen from.
    pub fn on_test(&self, test: &Scores<Test>) -> Result<Vec<SeedSample>, StudyError> {
        if test.settings.len() != self.settings {
            return Err(StudyError::SettingCounts { validation: self.settings, test: test.settings.len() });
        }
        let unknown = |sample: &&SeedSample| !self.choices.iter().any(|(seed, _)| *seed == sample.seed);
        if let Some(sample) = test.settings[0].iter().find(unknown) {
            return Err(StudyError::Unpaired { seed: sample.seed });
        }
        let chosen = |&(seed, setting): &(u64, usize)| {
            let at = place(&test.settings[setting], seed).ok_or(StudyError::Unpaired { seed })?;
            Ok(test.settings[setting][at].clone())
        };
        self.choices.iter().map(chosen).collect()
    }
}

fn seed_mean(sample: &SeedSample) -> f64 {
    moments(&sample.values).mean
}

fn first_largest(values: impl Iterator<Item = f64>) -> usize {
    let better = |best: (usize, f64), one: (usize, f64)| if one.1 > best.1 { one } else { best };
    values.enumerate().reduce(better).expect("at least one setting").0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seed: u64, values: &[f64]) -> SeedSample {
        SeedSample { seed, values: values.to_vec() }
    }

    fn validation(settings: Vec<Vec<SeedSample>>) -> Scores<Validation> {
        Scores::new(settings).expect("complete scores")
    }

    #[test]
    fn a_seed_counts_once_however_many_prompts_it_has() {
        // Means of seeds: (0, 1) and (.6, .6). Averaged over all prompts the first would have .8.
        let scores = validation(vec![vec![at(1, &[0.0]), at(2, &[1.0; 4])], vec![at(1, &[0.6]), at(2, &[0.6; 4])]]);
        assert_eq!(scores.select_across_seeds().setting(), Some(1));
        assert_eq!(scores.select_per_seed().choices(), [(1, 1), (2, 0)]);
        assert_eq!(scores.select_per_seed().setting(), None);
        let means = scores.means(0).expect("a setting");
        assert_eq!(means, [SeedMean { seed: 1, mean: 0.0 }, SeedMean { seed: 2, mean: 1.0 }]);
        assert_eq!(scores.means(2), None);
    }

    #[test]
    fn the_first_of_equals_is_chosen() {
        let scores = validation(vec![vec![at(1, &[0.5])], vec![at(1, &[0.7])], vec![at(1, &[0.7])]]);
        assert_eq!(scores.select_across_seeds().setting(), Some(1));
        assert_eq!(scores.select_per_seed().setting(), Some(1));
    }

    #[test]
    fn seeds_are_found_by_their_number() {
        let scores = validation(vec![vec![at(1, &[1.0]), at(2, &[0.0])], vec![at(2, &[2.0]), at(1, &[0.2])]]);
        let chosen = scores.select_per_seed();
        assert_eq!(chosen.choices(), [(1, 0), (2, 1)]);
        let test = Scores::new(vec![vec![at(2, &[20.0]), at(1, &[10.0])], vec![at(1, &[11.0]), at(2, &[21.0])]]);
        assert_eq!(chosen.on_test(&test.expect("complete")).expect("paired"), [at(1, &[10.0]), at(2, &[21.0])]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refused = |settings| Scores::<Validation>::new(settings).expect_err("refused").to_string();
        assert!(refused(vec![]).contains("no setting"));
        assert!(refused(vec![vec![]]).contains("no seed"));
        assert!(refused(vec![vec![at(1, &[])]]).contains("seed 1 has no values"));
        assert!(refused(vec![vec![at(1, &[0.0])], vec![at(2, &[0.0])]]).contains("seed 1 is on one side"));
        let more = vec![vec![at(1, &[0.0])], vec![at(1, &[0.0]), at(3, &[0.0])]];
        assert!(refused(more).contains("seed 3 is on one side"));
        assert!(refused(vec![vec![at(1, &[0.0]), at(1, &[0.0])]]).contains("stands twice"));
        assert!(refused(vec![vec![at(1, &[0.0, f64::NAN])]]).contains("value 2 of seed 1 is NaN"));
        let chosen = validation(vec![vec![at(1, &[0.0])]]).select_per_seed();
        let on_test = |settings| chosen.on_test(&Scores::new(settings).expect("complete")).expect_err("refused");
        let two = on_test(vec![vec![at(1, &[0.0])], vec![at(1, &[0.0])]]);
        assert_eq!(two, StudyError::SettingCounts { validation: 1, test: 2 });
        assert_eq!(on_test(vec![vec![at(2, &[0.0])]]), StudyError::Unpaired { seed: 2 });
        let chosen = validation(vec![vec![at(1, &[0.0]), at(2, &[0.0])]]).select_per_seed();
        let fewer = chosen.on_test(&Scores::new(vec![vec![at(1, &[0.0])]]).expect("complete"));
        assert_eq!(fewer.expect_err("refused"), StudyError::Unpaired { seed: 2 });
    }
}
