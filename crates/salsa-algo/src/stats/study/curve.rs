//! The curve of reward against KL of one arm and one seed.

use super::{StudyError, seeds::is_usable};

/// The result of one setting: one point of a curve.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// KL to the anchor that all arms share, in nats per response.
    pub kl: f64,
    /// Reward.
    pub reward: f64,
}

/// The scale on which a curve is linear between two measured points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KlAxis {
    /// The root of KL, on which reward is close to a straight line for a small KL and a parabola beyond.
    ///
    /// Gao et al. 2023 (2210.10760): gold reward of RL is `d (a - b ln d)`, of best-of-n `d (a - b d)`, `d = sqrt(KL)`. A
    /// sampled KL may fall below 0; its root is then `-sqrt(-KL)`, which keeps the order.
    #[default]
    SquareRoot,
    /// KL itself.
    Linear,
}

impl KlAxis {
    pub(super) fn place(self, kl: f64) -> f64 {
        match self {
            KlAxis::SquareRoot => kl.abs().sqrt().copysign(kl),
            KlAxis::Linear => kl,
        }
    }

    pub(super) fn kl(self, place: f64) -> f64 {
        match self {
            KlAxis::SquareRoot => place * place.abs(),
            KlAxis::Linear => place,
        }
    }
}

/// A closed range of KL; a single point if both ends are equal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlRange {
    /// Smallest KL.
    pub low: f64,
    /// Largest KL.
    pub high: f64,
}

impl KlRange {
    /// Returns the intersection of two ranges, if any.
    ///
    /// ```
    /// use salsa_algo::stats::study::KlRange;
    /// let range = |low, high| KlRange { low, high };
    /// assert_eq!(range(1.0, 4.0).overlap(range(2.0, 9.0)), Some(range(2.0, 4.0)));
    /// assert_eq!(range(1.0, 2.0).overlap(range(3.0, 9.0)), None);
    /// ```
    pub fn overlap(self, other: KlRange) -> Option<KlRange> {
        let range = KlRange { low: self.low.max(other.low), high: self.high.min(other.high) };
        (range.low <= range.high).then_some(range)
    }
}

/// Reward as a function of KL, between measured points.
///
/// Points are sorted by KL; points with the same KL are averaged. Between two points the curve is linear on its
/// [`KlAxis`]. Outside the measured range it has no value: nothing is extrapolated.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    axis: KlAxis,
    /// Ascending, each KL once, never empty.
    points: Vec<Point>,
}

impl Curve {
    /// Creates a curve from one point per setting, in any order.
    ///
    /// ```
    /// use salsa_algo::stats::study::{Curve, KlAxis, Point};
    /// let points = [Point { kl: 9.0, reward: 5.0 }, Point { kl: 1.0, reward: 1.0 }];
    /// let curve = Curve::new(&points, KlAxis::SquareRoot).unwrap();
    /// assert_eq!(curve.reward_at(4.0), Some(3.0)); // roots 1, 2, 3: half way
    /// assert_eq!(Curve::new(&points, KlAxis::Linear).unwrap().reward_at(5.0), Some(3.0));
    /// ```
    ///
    /// # Errors
    /// Without points, or if a point is not finite (or beyond 1e100).
    pub fn new(points: &[Point], axis: KlAxis) -> Result<Curve, StudyError> {
        if points.is_empty() {
            return Err(StudyError::NoPoints);
        }
        if let Some(&Point { kl, reward }) =
            points.iter().find(|point| !is_usable(point.kl) || !is_usable(point.reward))
        {
            return Err(StudyError::PointNotFinite { kl, reward });
        }
        let mut sorted = points.to_vec();
        // By reward too, so that the mean at one KL does not depend on the input order. Adding 0 turns -0 into 0.
        sorted.iter_mut().for_each(|point| point.kl += 0.0);
        sorted.sort_by(|a, b| a.kl.total_cmp(&b.kl).then(a.reward.total_cmp(&b.reward)));
        let points = sorted.chunk_by(|a, b| a.kl == b.kl).map(mean_reward).collect();
        Ok(Curve { axis, points })
    }

    /// Returns the scale on which the curve is linear between points.
    pub fn axis(&self) -> KlAxis {
        self.axis
    }

    /// Returns the points, by ascending KL.
    pub fn points(&self) -> &[Point] {
        &self.points
    }

    /// Returns the measured range of KL.
    pub fn range(&self) -> KlRange {
        let (first, last) = (self.points[0], self.points[self.points.len() - 1]);
        KlRange { low: first.kl, high: last.kl }
    }

    /// Returns the reward at a KL; none outside the measured range.
    ///
    /// ```text
    /// w = (place(kl) - place(left.kl)) / (place(right.kl) - place(left.kl))          place: root or identity
    /// reward = (1 - w) left.reward + w right.reward
    /// ```
    pub fn reward_at(&self, kl: f64) -> Option<f64> {
        let right = self.points.partition_point(|point| point.kl < kl);
        let above = self.points.get(right)?;
        if above.kl == kl {
            return Some(above.reward);
        }
        let below = self.points.get(right.checked_sub(1)?)?;
        let place = |kl| self.axis.place(kl);
        let weight = (place(kl) - place(below.kl)) / (place(above.kl) - place(below.kl));
        // The roots of two adjacent numbers may be equal.
        let weight = if weight.is_finite() { weight } else { 0.5 };
        Some((1.0 - weight) * below.reward + weight * above.reward)
    }
}

fn mean_reward(points: &[Point]) -> Point {
    let sum: f64 = points.iter().map(|point| point.reward).sum();
    Point { kl: points[0].kl, reward: sum / points.len() as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(of: &[(f64, f64)]) -> Vec<Point> {
        of.iter().map(|&(kl, reward)| Point { kl, reward }).collect()
    }

    fn curve(of: &[(f64, f64)], axis: KlAxis) -> Curve {
        Curve::new(&points(of), axis).expect("finite points")
    }

    #[test]
    fn it_meets_its_points_and_ends_at_the_outer_ones() {
        let measured = [(0.3, 1.0), (2.7, 4.0), (1.1, 3.0)];
        for axis in [KlAxis::Linear, KlAxis::SquareRoot] {
            let curve = curve(&measured, axis);
            for (kl, reward) in measured {
                assert_eq!(curve.reward_at(kl), Some(reward));
            }
            assert_eq!(curve.range(), KlRange { low: 0.3, high: 2.7 });
            for outside in [0.299_999, 2.700_001, -1.0, f64::INFINITY, f64::NAN] {
                assert_eq!(curve.reward_at(outside), None, "{outside}");
            }
        }
    }

    #[test]
    fn one_point_is_a_curve_of_no_length() {
        let curve = curve(&[(2.0, 7.0)], KlAxis::SquareRoot);
        assert_eq!((curve.reward_at(2.0), curve.reward_at(2.1)), (Some(7.0), None));
        assert_eq!(curve.range(), KlRange { low: 2.0, high: 2.0 });
    }

    #[test]
    fn points_of_one_kl_count_by_their_mean_in_any_order() {
        let forth = curve(&[(0.0, 0.1), (1.0, 0.2), (-0.0, 0.3), (0.0, 0.7)], KlAxis::Linear);
        let back = curve(&[(0.0, 0.7), (-0.0, 0.3), (1.0, 0.2), (0.0, 0.1)], KlAxis::Linear);
        assert_eq!(forth, back);
        assert_eq!(forth.points().len(), 2);
        assert!((forth.reward_at(0.0).expect("measured") - 1.1 / 3.0).abs() < 1e-15);
    }

    #[test]
    fn a_sampled_kl_below_zero_keeps_its_place() {
        let curve = curve(&[(-1.0, 0.0), (4.0, 3.0)], KlAxis::SquareRoot);
        assert_eq!((curve.reward_at(0.0), curve.reward_at(1.0)), (Some(1.0), Some(2.0))); // roots -1, 0, 1, 2
    }

    #[test]
    fn neighbouring_numbers_do_not_divide_by_zero() {
        let (low, high) = (1.0f64, 1.0f64.next_up().next_up());
        let reward = curve(&[(low, 1.0), (high, 3.0)], KlAxis::SquareRoot).reward_at(low.next_up());
        assert!((1.0..=3.0).contains(&reward.expect("inside")));
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let refused = |of: &[(f64, f64)]| Curve::new(&points(of), KlAxis::Linear).expect_err("refused").to_string();
        assert!(refused(&[]).contains("no points"));
        assert!(refused(&[(1.0, 2.0), (f64::NAN, 2.0)]).contains("KL NaN, reward 2"));
        assert!(refused(&[(1.0, f64::INFINITY)]).contains("reward inf"));
    }
}
