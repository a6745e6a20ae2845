use super::*;
use crate::stats::Resampling;

fn at(seed: u64, values: &[f64]) -> SeedSample {
    SeedSample { seed, values: values.to_vec() }
}

#[test]
fn five_seeds_by_hand() {
    // means 1 2 3 4 5: mean 3, variance 2.5, standard error sqrt(.5); t(.95, 4) = 2.776445
    let arm: Vec<SeedSample> = (1..=5).map(|seed| at(seed, &[seed as f64 - 1.0, seed as f64 + 1.0])).collect();
    let estimate = mean_over_seeds(&arm, SeedInterval::default()).expect("five seeds");
    let interval = estimate.interval.expect("five seeds");
    let half = 2.776_445_105 * 0.5f64.sqrt();
    assert_eq!((estimate.mean, estimate.deviation), (3.0, Some(2.5f64.sqrt())));
    assert!((interval.low - (3.0 - half)).abs() < 1e-8 && (interval.high - (3.0 + half)).abs() < 1e-8, "{interval:?}");
    assert_eq!(estimate.seeds[4], SeedMean { seed: 5, mean: 5.0 });
}

#[test]
fn one_seed_has_a_mean_and_nothing_else() {
    for interval in [SeedInterval::default(), SeedInterval::Percentile(Resampling::default())] {
        let estimate = mean_over_seeds(&[at(9, &[1.0, 2.0])], interval).expect("a seed");
        assert_eq!((estimate.mean, estimate.interval, estimate.deviation), (1.5, None, None));
        assert_eq!(estimate.p_value(), None);
    }
}

#[test]
fn equal_differences_have_p_values() {
    let p = |means: [f64; 3]| {
        let arm: Vec<SeedSample> = (0..).zip(means).map(|(seed, mean)| at(seed, &[mean])).collect();
        mean_over_seeds(&arm, SeedInterval::default()).expect("three seeds").p_value().expect("three seeds")
    };
    assert_eq!((p([0.0; 3]), p([0.5; 3]), p([-1.0, 0.0, 1.0])), (1.0, 0.0, 1.0));
    // mean 2, deviation 1, t = 2 sqrt(3): with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2) = 1 - sqrt(12 / 14)
    assert!((p([1.0, 2.0, 3.0]) - (1.0 - (12.0f64 / 14.0).sqrt())).abs() < 1e-14);
}

#[test]
fn a_difference_is_paired_by_seed_whatever_the_order() {
    let first = [at(1, &[10.0, 20.0]), at(2, &[100.0])];
    let second = [at(2, &[97.0]), at(1, &[9.0, 19.0])];
    let estimate = difference_over_seeds(&first, &second, SeedInterval::default()).expect("paired");
    let means: Vec<f64> = estimate.seeds.iter().map(|seed| seed.mean).collect();
    assert_eq!((estimate.mean, means), (2.0, vec![1.0, 3.0]));
    let swapped = difference_over_seeds(&second, &first, SeedInterval::default()).expect("paired");
    assert_eq!(swapped.mean, -2.0);
}

#[test]
fn runs_of_a_world_become_one_value_per_prompt() {
    assert_eq!(average_runs(3, &[&[1.0, 5.0]]), Ok(at(3, &[1.0, 5.0])));
    assert_eq!(average_runs(3, &[]), Err(StudyError::NoRuns { seed: 3 }));
    let counts = StudyError::PromptCounts { seed: 3, first: 1, second: 2 };
    assert_eq!(average_runs(3, &[&[1.0], &[1.0, 2.0]]), Err(counts));
    assert!(average_runs(3, &[&[1.0], &[f64::NAN]]).is_err());
}

#[test]
fn what_cannot_be_paired_is_named() {
    let refused = |first: &[SeedSample], second: &[SeedSample]| {
        paired_differences(first, second).expect_err("refused").to_string()
    };
    let one = [at(1, &[0.0])];
    assert!(refused(&one, &[at(2, &[0.0])]).contains("seed 2 is on one side"));
    assert!(refused(&[at(1, &[0.0]), at(4, &[0.0])], &one).contains("seed 4 is on one side"));
    assert!(refused(&one, &[at(1, &[0.0, 1.0])]).contains("seed 1 has 1 values on one side and 2 on the other"));
    assert!(refused(&one, &[at(1, &[0.0]), at(1, &[0.0])]).contains("seed 1 stands twice"));
    assert!(refused(&[], &one).contains("no seed"));
    assert!(refused(&one, &[at(1, &[])]).contains("seed 1 has no values"));
    assert!(refused(&[at(1, &[f64::INFINITY])], &one).contains("value 1 of seed 1 is inf"));
    assert!(refused(&[at(1, &[1e200])], &one).contains("value 1 of seed 1"));
}

#[test]
fn an_interval_that_makes_no_sense_is_refused() {
    let with = |interval| mean_over_seeds(&[at(1, &[0.0])], interval).expect_err("refused");
    for level in [0.0, 1.0, -0.5, f64::NAN] {
        assert!(matches!(with(SeedInterval::StudentT { level }), StudyError::Level { .. }), "{level}");
        assert!(matches!(
            with(SeedInterval::Bca(Resampling { level, ..Resampling::default() })),
            StudyError::Level { .. }
        ));
    }
    let none = Resampling { resamples: 0, ..Resampling::default() };
    assert_eq!(with(SeedInterval::Percentile(none)), StudyError::NoResamples);
}
