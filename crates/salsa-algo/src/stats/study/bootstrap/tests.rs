use super::*;
use crate::{
    random::uniform,
    stats::study::{SeedEstimate, mean_over_seeds},
};

const HOW: Resampling = Resampling { resamples: 2000, level: 0.95, seed: 4 };

fn every_bootstrap(how: Resampling) -> [SeedInterval; 3] {
    [SeedInterval::Percentile(how), SeedInterval::Studentized(how), SeedInterval::Bca(how)]
}

fn seeds(count: u64, prompts: usize) -> Vec<SeedSample> {
    let values = |seed| (0..prompts as u64).map(|i| uniform(8, seed, i)).collect();
    (0..count).map(|seed| SeedSample { seed, values: values(seed) }).collect()
}

fn interval(samples: &[SeedSample], how: SeedInterval) -> Interval {
    let SeedEstimate { interval, .. } = mean_over_seeds(samples, how).expect("usable samples");
    interval.expect("several seeds")
}

#[test]
fn two_seeds_of_equal_prompts_by_hand() {
    // means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4: the middle 40 % are all 1/2, the middle 80 % span everything
    let samples = [0.0, 1.0].map(|value| SeedSample { seed: value as u64, values: vec![value; 3] });
    let at = |level| interval(&samples, SeedInterval::Percentile(Resampling { level, ..HOW }));
    assert_eq!(at(0.4), Interval { low: 0.5, high: 0.5 });
    assert_eq!(at(0.8), Interval { low: 0.0, high: 1.0 });
}

#[test]
fn prompts_are_drawn_within_the_drawn_seed() {
    // Two equal seeds of prompts 0 and 1: the mean of a resample is k / 4 with k of Binomial(4, 1/2), so 1/16 are 0.
    let samples = [1, 2].map(|seed| SeedSample { seed, values: vec![0.0, 1.0] });
    let at = |level| interval(&samples, SeedInterval::Percentile(Resampling { level, ..HOW }));
    assert_eq!(at(0.95), Interval { low: 0.0, high: 1.0 }); // 2.5 % < 1/16
    assert_eq!(at(0.8), Interval { low: 0.25, high: 0.75 }); // 1/16 < 10 % < 5/16
}

#[test]
fn with_many_seeds_all_intervals_agree() {
    let samples = seeds(80, 40);
    let t = interval(&samples, SeedInterval::default());
    let width = t.high - t.low;
    for how in every_bootstrap(Resampling { resamples: 4000, ..HOW }) {
        let other = interval(&samples, how);
        // Prompts vary between seeds and again in each resample: the bootstrap is up to sqrt(2) wider here.
        let (low, high) = ((t.low - other.low) / width, (other.high - t.high) / width);
        assert!((-0.1..0.3).contains(&low) && (-0.1..0.3).contains(&high), "{how:?} {t:?} {other:?}");
    }
}

#[test]
fn few_seeds_have_a_percentile_interval_that_is_too_narrow_and_a_wide_students() {
    let samples = seeds(5, 1);
    let width = |how| interval(&samples, how).high - interval(&samples, how).low;
    let percentile = width(SeedInterval::Percentile(HOW));
    // 1.96 sqrt(4 / 5) = 1.75 standard errors at most, against 2.78
    assert!(percentile < 0.75 * width(SeedInterval::default()), "{percentile}");
}

#[test]
fn the_same_seed_gives_the_same_bits_and_another_one_others() {
    let samples = seeds(5, 20);
    for (one, other) in every_bootstrap(HOW).into_iter().zip(every_bootstrap(Resampling { seed: 5, ..HOW })) {
        assert_eq!(interval(&samples, one), interval(&samples, one));
        assert_ne!(interval(&samples, one), interval(&samples, other));
    }
}

#[test]
fn equal_seeds_have_an_interval_of_no_width() {
    let samples = [1, 2, 3].map(|seed| SeedSample { seed, values: vec![0.25; 4] });
    for how in every_bootstrap(HOW).into_iter().chain([SeedInterval::default()]) {
        assert_eq!(interval(&samples, how), Interval { low: 0.25, high: 0.25 }, "{how:?}");
    }
}

#[test]
fn a_bootstrap_t_of_two_values_is_infinite_not_nan() {
    // Half of all resamples are one seed twice: the standard error is 0, and t is infinite on either side.
    let samples = [0.0, 1.0].map(|value| SeedSample { seed: value as u64, values: vec![value] });
    let interval = interval(&samples, SeedInterval::Studentized(HOW));
    assert_eq!((interval.low, interval.high), (f64::NEG_INFINITY, f64::INFINITY));
}

#[test]
fn skewness_moves_bca_towards_the_long_tail() {
    let values = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 3.0, 6.0];
    let samples: Vec<SeedSample> = (0..).zip(values).map(|(seed, v)| SeedSample { seed, values: vec![v] }).collect();
    let (bca, plain) = (interval(&samples, SeedInterval::Bca(HOW)), interval(&samples, SeedInterval::Percentile(HOW)));
    assert!(bca.low > plain.low && bca.high > plain.high, "{bca:?} {plain:?}");
}

#[test]
fn bca_survives_resamples_on_one_side() {
    let how = Resampling { resamples: 1, ..HOW };
    for seed in 0..20 {
        let ends = interval(&seeds(3, 2), SeedInterval::Bca(Resampling { seed, ..how }));
        assert!(ends.low.is_finite() && ends.low == ends.high, "{ends:?}");
    }
}
