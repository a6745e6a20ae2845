//! Frontiers over seeds: mean reward at a KL, and the difference of two arms at equal KL.

use super::{
    Curve, KlAxis, KlRange, SeedEstimate, SeedInterval, SeedSample, StudyError, mean_over_seeds, seeds::check_seeds,
};

/// The curve of one seed.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedCurve {
    /// The seed, by which arms are paired.
    pub seed: u64,
    /// Reward against KL, one point per setting.
    pub curve: Curve,
}

/// The result over seeds at one KL.
#[derive(Clone, Debug, PartialEq)]
pub struct AtKl {
    /// The KL, in nats per response.
    pub kl: f64,
    /// Mean over the seeds that reach this KL; none if no seed does.
    pub estimate: Option<SeedEstimate>,
    /// Seeds that do not reach this KL, at least on one side, in the given order.
    pub excluded: Vec<u64>,
}

/// The result over seeds over the KL range that two arms share.
#[derive(Clone, Debug, PartialEq)]
pub struct OverKl {
    /// Mean over the seeds whose curves overlap; none if there are none.
    pub estimate: Option<SeedEstimate>,
    /// The common range of each of these seeds, in the order of `estimate.seeds`.
    pub ranges: Vec<KlRange>,
    /// Seeds whose curves do not overlap, in the given order.
    pub excluded: Vec<u64>,
}

/// Returns the mean curve of an arm over its seeds, with an interval at every KL: the frontier and its band.
///
/// ```text
/// at each kl:   mean_over_seeds of curve[s].reward_at(kl), over the seeds whose curve reaches kl
/// ```
///
/// The band is for one KL at a time. Where seeds drop out, the mean changes because the set of seeds does; not so
/// within [`common_range`].
///
/// ```
/// use salsa_algo::stats::study::{Curve, KlAxis, Point, SeedCurve, SeedInterval, frontier};
/// let line = |seed, slope| {
///     let points = [Point { kl: 0.0, reward: 0.0 }, Point { kl: 2.0, reward: 2.0 * slope }];
///     SeedCurve { seed, curve: Curve::new(&points, KlAxis::Linear).unwrap() }
/// };
/// let points = frontier(&[line(1, 1.0), line(2, 3.0)], &[1.0, 5.0], SeedInterval::default()).unwrap();
/// assert_eq!(points[0].estimate.as_ref().unwrap().mean, 2.0); // 1 and 3 at KL 1
/// assert_eq!((&points[1].estimate, &points[1].excluded[..]), (&None, &[1, 2][..]));
/// ```
///
/// # Errors
/// If there is no seed or one occurs twice, a KL is not finite, or the interval is invalid.
pub fn frontier(curves: &[SeedCurve], kl: &[f64], interval: SeedInterval) -> Result<Vec<AtKl>, StudyError> {
    check_seeds(curves.iter().map(|curve| curve.seed))?;
    at_each(kl, interval, curves, |curve, kl| curve.curve.reward_at(kl), |curve| curve.seed)
}

/// Returns the difference of two arms at given KLs, paired by seed, with intervals.
///
/// ```text
/// at each kl:   mean_over_seeds of first[s].reward_at(kl) - second[s].reward_at(kl), over the seeds of which both reach kl
/// ```
///
/// ```
/// use salsa_algo::stats::study::{Curve, KlAxis, Point, SeedCurve, SeedInterval, differences_at_kl};
/// let line = |seed, end, slope: f64| {
///     let points = [Point { kl: 0.0, reward: 0.0 }, Point { kl: end, reward: end * slope }];
///     SeedCurve { seed, curve: Curve::new(&points, KlAxis::Linear).unwrap() }
/// };
/// let (first, second) = ([line(1, 4.0, 2.0), line(2, 1.0, 3.0)], [line(1, 3.0, 1.0), line(2, 3.0, 1.0)]);
/// let [at] = &differences_at_kl(&first, &second, &[2.0], SeedInterval::default()).unwrap()[..] else { panic!() };
/// assert_eq!(at.estimate.as_ref().unwrap().mean, 2.0); // 4 - 2 in seed 1
/// assert_eq!(at.excluded, [2]); // whose first curve ends at 1
/// ```
///
/// # Errors
/// If there is no seed, one occurs twice or on one side only, the axes differ, a KL is not finite, or the interval is
/// invalid.
pub fn differences_at_kl(
    first: &[SeedCurve],
    second: &[SeedCurve],
    kl: &[f64],
    interval: SeedInterval,
) -> Result<Vec<AtKl>, StudyError> {
    let pairs = pairs(first, second)?;
    let difference = |pair: &Pair, kl| Some(pair.first.reward_at(kl)? - pair.second.reward_at(kl)?);
    at_each(kl, interval, &pairs, difference, |pair| pair.seed)
}

/// Returns the difference of two arms averaged over the KL range that they share, paired by seed, with its interval.
///
/// ```text
/// [low, high]   = the measured ranges of first[s] and second[s] overlapped, per seed
/// difference[s] = ∫ (first[s] - second[s]) dx / (x(high) - x(low)),  x from x(low) to x(high),  x = sqrt(kl) or kl
/// mean_over_seeds of difference[s], over the seeds that have an overlap
/// ```
///
/// Both curves are linear between points on the axis of `x`, so the integral is a finite sum. A seed whose curves share
/// a single KL counts with the difference there; one whose curves do not overlap is listed as excluded.
///
/// ```
/// use salsa_algo::stats::study::{Curve, KlAxis, KlRange, Point, SeedCurve, SeedInterval, difference_over_kl};
/// let arm = |points: &[(f64, f64)]| {
///     let points: Vec<Point> = points.iter().map(|&(kl, reward)| Point { kl, reward }).collect();
///     [SeedCurve { seed: 1, curve: Curve::new(&points, KlAxis::Linear).unwrap() }]
/// };
/// // over KL 1 to 3: differences 1, 2 and 3 at 1, 2 and 3
/// let (first, second) = (arm(&[(0.0, 0.0), (3.0, 3.0)]), arm(&[(1.0, 0.0), (9.0, 0.0)]));
/// let over = difference_over_kl(&first, &second, SeedInterval::default()).unwrap();
/// assert_eq!((over.estimate.unwrap().mean, over.ranges), (2.0, vec![KlRange { low: 1.0, high: 3.0 }]));
/// ```
///
/// # Errors
/// If there is no seed, one occurs twice or on one side only, the axes differ, or the interval is invalid.
pub fn difference_over_kl(
    first: &[SeedCurve],
    second: &[SeedCurve],
    interval: SeedInterval,
) -> Result<OverKl, StudyError> {
    interval.check()?;
    let (mut samples, mut ranges, mut excluded) = (Vec::new(), Vec::new(), Vec::new());
    for pair in pairs(first, second)? {
        match pair.first.range().overlap(pair.second.range()) {
            Some(range) => {
                samples.push(SeedSample { seed: pair.seed, values: vec![pair.mean_difference(range)] });
                ranges.push(range);
            }
            None => excluded.push(pair.seed),
        }
    }
    let estimate = if samples.is_empty() { None } else { Some(mean_over_seeds(&samples, interval)?) };
    Ok(OverKl { estimate, ranges, excluded })
}

/// Returns the range of KL covered by all curves, if there is one.
///
/// ```
/// use salsa_algo::stats::study::{Curve, KlAxis, KlRange, Point, common_range};
/// let curve = |low, high| {
///     Curve::new(&[Point { kl: low, reward: 0.0 }, Point { kl: high, reward: 1.0 }], KlAxis::Linear).unwrap()
/// };
/// let curves = [curve(0.0, 3.0), curve(1.0, 5.0), curve(0.5, 2.0)];
/// assert_eq!(common_range(&curves), Some(KlRange { low: 1.0, high: 2.0 }));
/// assert_eq!(common_range([]), None);
/// ```
pub fn common_range<'a>(curves: impl IntoIterator<Item = &'a Curve>) -> Option<KlRange> {
    let mut ranges = curves.into_iter().map(Curve::range);
    let first = ranges.next()?;
    ranges.try_fold(first, KlRange::overlap)
}

/// Returns `count` values of KL at equal distances on an axis, both ends of the range included; for one, the lower end.
///
/// ```
/// use salsa_algo::stats::study::{KlAxis, KlRange, kl_values};
/// assert_eq!(kl_values(KlRange { low: 1.0, high: 9.0 }, KlAxis::SquareRoot, 3), [1.0, 4.0, 9.0]);
/// assert_eq!(kl_values(KlRange { low: 1.0, high: 9.0 }, KlAxis::Linear, 3), [1.0, 5.0, 9.0]);
/// ```
pub fn kl_values(range: KlRange, axis: KlAxis, count: usize) -> Vec<f64> {
    let (low, high) = (axis.place(range.low), axis.place(range.high));
    let at = |i: usize| match i {
        0 => range.low,
        // Exactly the end: a rounding error beyond it would be outside the curves.
        _ if i + 1 == count => range.high,
        _ => axis.kl(low + (high - low) * (i as f64 / (count - 1) as f64)).clamp(range.low, range.high),
    };
    (0..count).map(at).collect()
}

/// The curves of two arms for one seed.
struct Pair<'a> {
    seed: u64,
    first: &'a Curve,
    second: &'a Curve,
}

impl Pair<'_> {
    /// The mean of first minus second over a range that both cover, on their axis.
    fn mean_difference(&self, range: KlRange) -> f64 {
        let inside = |kl: &f64| range.low < *kl && *kl < range.high;
        let knots = self.first.points().iter().chain(self.second.points()).map(|point| point.kl).filter(inside);
        let mut kl: Vec<f64> = knots.chain([range.low, range.high]).collect();
        kl.sort_by(f64::total_cmp);
        let place = |kl| self.first.axis().place(kl);
        let reward = |curve: &Curve, kl| curve.reward_at(kl).expect("both curves reach the range");
        let difference = |kl| reward(self.first, kl) - reward(self.second, kl);
        let length = place(range.high) - place(range.low);
        if length == 0.0 {
            return difference(range.low);
        }
        let piece =
            |ends: &[f64]| (place(ends[1]) - place(ends[0])) * (difference(ends[0]) + difference(ends[1])) / 2.0;
        kl.windows(2).map(piece).sum::<f64>() / length
    }
}

/// The curves of two arms by seed, in the order of the first.
fn pairs<'a>(first: &'a [SeedCurve], second: &'a [SeedCurve]) -> Result<Vec<Pair<'a>>, StudyError> {
    let seeds = |curves: &'a [SeedCurve]| curves.iter().map(|curve| curve.seed);
    check_seeds(seeds(first))?;
    check_seeds(seeds(second))?;
    if let Some(seed) = seeds(second).find(|seed| !seeds(first).any(|other| other == *seed)) {
        return Err(StudyError::Unpaired { seed });
    }
    let pair = |curve: &'a SeedCurve| {
        let seed = curve.seed;
        let other = second.iter().find(|other| other.seed == seed).ok_or(StudyError::Unpaired { seed })?;
        if curve.curve.axis() != other.curve.axis() {
            return Err(StudyError::Axes);
        }
        Ok(Pair { seed, first: &curve.curve, second: &other.curve })
    };
    first.iter().map(pair).collect()
}

/// The mean at each KL of a value that seeds may lack.
fn at_each<T>(
    kl: &[f64],
    interval: SeedInterval,
    seeds: &[T],
    value: impl Fn(&T, f64) -> Option<f64>,
    seed: impl Fn(&T) -> u64,
) -> Result<Vec<AtKl>, StudyError> {
    interval.check()?;
    let at = |&kl: &f64| {
        if !kl.is_finite() {
            return Err(StudyError::KlNotFinite { kl });
        }
        let (mut samples, mut excluded) = (Vec::new(), Vec::new());
        for one in seeds {
            match value(one, kl) {
                Some(value) => samples.push(SeedSample { seed: seed(one), values: vec![value] }),
                None => excluded.push(seed(one)),
            }
        }
        let estimate = if samples.is_empty() { None } else { Some(mean_over_seeds(&samples, interval)?) };
        Ok(AtKl { kl, estimate, excluded })
    };
    kl.iter().map(at).collect()
}

#[cfg(test)]
mod tests;
