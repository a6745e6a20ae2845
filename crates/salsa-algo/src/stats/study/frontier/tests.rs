use super::*;
use crate::stats::study::Point;

fn curve(seed: u64, points: &[(f64, f64)], axis: KlAxis) -> SeedCurve {
    let points: Vec<Point> = points.iter().map(|&(kl, reward)| Point { kl, reward }).collect();
    SeedCurve { seed, curve: Curve::new(&points, axis).expect("finite points") }
}

fn mean(estimate: &Option<SeedEstimate>) -> f64 {
    estimate.as_ref().expect("a seed that reaches it").mean
}

#[test]
fn the_mean_over_kl_is_exact_on_either_axis() {
    // Roots 0, 1, 2, 3. First rises to 2 at root 1 and stays; second is 0. Over roots 0 to 3: (1 + 2 + 2) / 3.
    let (up, flat) = ([(0.0, 0.0), (1.0, 2.0), (9.0, 2.0)], [(0.0, 0.0), (16.0, 0.0)]);
    let over = |axis| {
        let (first, second) = ([curve(1, &up, axis)], [curve(1, &flat, axis)]);
        let over = difference_over_kl(&first, &second, SeedInterval::default()).expect("paired");
        assert_eq!(over.ranges, [KlRange { low: 0.0, high: 9.0 }]);
        mean(&over.estimate)
    };
    assert!((over(KlAxis::SquareRoot) - 5.0 / 3.0).abs() < 1e-15);
    assert!((over(KlAxis::Linear) - 17.0 / 9.0).abs() < 1e-15); // over KL 0 to 9: (1 + 16) / 9
}

#[test]
fn the_mean_over_kl_is_that_of_many_differences_at_kl() {
    let axis = KlAxis::SquareRoot;
    let first = [curve(1, &[(0.2, 0.0), (0.9, 0.7), (2.0, 1.0), (5.0, 0.9)], axis)];
    let second = [curve(1, &[(0.5, 0.3), (1.1, 0.4), (7.0, 1.4)], axis)];
    let range = common_range([&first[0].curve, &second[0].curve]).expect("an overlap");
    assert_eq!(range, KlRange { low: 0.5, high: 5.0 });
    let kl = kl_values(range, axis, 20_001);
    let at = differences_at_kl(&first, &second, &kl, SeedInterval::default()).expect("paired");
    let inner: f64 = at[1..20_000].iter().map(|at| mean(&at.estimate)).sum();
    let trapezoid = (inner + (mean(&at[0].estimate) + mean(&at[20_000].estimate)) / 2.0) / 20_000.0;
    let over = difference_over_kl(&first, &second, SeedInterval::default()).expect("paired");
    assert!((mean(&over.estimate) - trapezoid).abs() < 1e-7);
}

#[test]
fn seeds_without_overlap_are_excluded_and_named() {
    let axis = KlAxis::Linear;
    let first = [
        curve(1, &[(0.0, 1.0), (2.0, 1.0)], axis),
        curve(2, &[(5.0, 9.0), (6.0, 9.0)], axis),
        curve(3, &[(0.0, 4.0), (1.0, 4.0)], axis),
    ];
    let second = [
        curve(3, &[(1.0, 2.0), (3.0, 2.0)], axis), // touches at KL 1
        curve(2, &[(1.0, 0.0), (2.0, 0.0)], axis),
        curve(1, &[(1.0, 0.0), (2.0, 0.0)], axis),
    ];
    let over = difference_over_kl(&first, &second, SeedInterval::default()).expect("paired");
    assert_eq!((mean(&over.estimate), over.excluded), (1.5, vec![2])); // 1 in seed 1, 2 in seed 3
    assert_eq!(over.ranges, [KlRange { low: 1.0, high: 2.0 }, KlRange { low: 1.0, high: 1.0 }]);
    let at = differences_at_kl(&first, &second, &[1.5, 9.0], SeedInterval::default()).expect("paired");
    assert_eq!((mean(&at[0].estimate), &at[0].excluded[..]), (1.0, &[2, 3][..]));
    assert_eq!((&at[1].estimate, at[1].excluded.len()), (&None, 3));
    let none = difference_over_kl(&first[1..2], &second[1..2], SeedInterval::default()).expect("paired");
    assert_eq!((none.estimate, none.excluded), (None, vec![2]));
}

#[test]
fn the_band_is_the_interval_of_the_rewards_at_this_kl() {
    let curves: Vec<SeedCurve> =
        (1..=5).map(|seed| curve(seed, &[(0.0, 0.0), (2.0, 2.0 * seed as f64)], KlAxis::Linear)).collect();
    let points = frontier(&curves, &[1.0], SeedInterval::default()).expect("five seeds");
    let samples: Vec<SeedSample> = (1..=5).map(|seed| SeedSample { seed, values: vec![seed as f64] }).collect();
    assert_eq!(points[0].estimate, Some(mean_over_seeds(&samples, SeedInterval::default()).expect("five seeds")));
    assert!(points[0].excluded.is_empty());
}

#[test]
fn kl_values_never_leave_the_range() {
    let range = KlRange { low: 0.1, high: 0.7 };
    let first = [curve(1, &[(0.1, 0.0), (0.7, 1.0)], KlAxis::SquareRoot)];
    for count in [1, 2, 7, 101] {
        let kl = kl_values(range, KlAxis::SquareRoot, count);
        let points = frontier(&first, &kl, SeedInterval::default()).expect("a seed");
        assert!(points.iter().all(|at| at.estimate.is_some()), "{count}");
        assert!(kl.len() == count && kl.is_sorted());
    }
    assert!(kl_values(range, KlAxis::Linear, 0).is_empty());
}

#[test]
fn what_cannot_be_compared_is_named() {
    let line = |seed, axis| curve(seed, &[(0.0, 0.0), (1.0, 1.0)], axis);
    let (linear, root) = ([line(1, KlAxis::Linear)], [line(1, KlAxis::SquareRoot)]);
    let over = |first: &[SeedCurve], second: &[SeedCurve]| difference_over_kl(first, second, SeedInterval::default());
    assert_eq!(over(&linear, &root), Err(StudyError::Axes));
    assert_eq!(over(&linear, &[line(2, KlAxis::Linear)]), Err(StudyError::Unpaired { seed: 2 }));
    let more = [line(1, KlAxis::Linear), line(2, KlAxis::Linear)];
    assert_eq!(over(&more, &linear), Err(StudyError::Unpaired { seed: 2 }));
    assert_eq!(over(&[], &[]), Err(StudyError::NoSeeds));
    let twice = [line(1, KlAxis::Linear), line(1, KlAxis::Linear)];
    assert_eq!(frontier(&twice, &[0.5], SeedInterval::default()), Err(StudyError::RepeatedSeed { seed: 1 }));
    let nan = frontier(&linear, &[f64::NAN], SeedInterval::default());
    assert!(matches!(nan, Err(StudyError::KlNotFinite { .. })));
    let level = SeedInterval::StudentT { level: 2.0 };
    assert_eq!(frontier(&linear, &[9.0], level), Err(StudyError::Level { level: 2.0 }));
}
