//! Rewards along the line between two models: one point for each alpha, with the difference of inner points from the
//! better end.
use super::{Answers, LandscapePoint};
use crate::stage::eval::statistics::{estimate, paired_difference};

/// Seed of the bootstrap of differences; constant, so that a landscape is a function of the answers alone.
const SEED: u64 = 1;

/// Rewards of the answers to one set, one number per prompt.
pub(super) struct Rewards {
    gold: Option<Vec<f64>>,
    proxy: Vec<f64>,
}

impl Rewards {
    pub(super) fn of(answers: &Answers) -> Rewards {
        Rewards { gold: answers.gold.clone(), proxy: answers.scores.clone() }
    }

    /// The gold rewards if available, otherwise the scores.
    fn judged(&self) -> &[f64] {
        self.gold.as_deref().unwrap_or(&self.proxy)
    }

    fn mean(&self) -> f64 {
        self.judged().iter().sum::<f64>() / self.judged().len() as f64
    }
}

/// The points of one set. `given[i]` are the rewards at `alphas[i]`.
pub(super) fn profile(split: &str, alphas: &[f64], given: &[Rewards]) -> Vec<LandscapePoint> {
    let at = |end: f64| alphas.iter().position(|alpha| *alpha == end).map(|place| &given[place]);
    let better = match (at(0.0), at(1.0)) {
        (Some(from), Some(to)) => Some(if to.mean() > from.mean() { to } else { from }),
        _ => None,
    };
    let point = |(&alpha, rewards): (&f64, &Rewards)| LandscapePoint {
        split: split.to_owned(),
        alpha,
        gold_reward: rewards.gold.as_deref().map(estimate),
        proxy_score: estimate(&rewards.proxy),
        over_better_end: better
            .filter(|_| 0.0 < alpha && alpha < 1.0)
            .map(|end| paired_difference(rewards.judged(), end.judged(), SEED)),
    };
    alphas.iter().zip(given).map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_between_is_compared_with_the_better_end_by_gold_if_known() {
        let rewards = |gold: [f64; 2], proxy: [f64; 2]| Rewards { gold: Some(gold.to_vec()), proxy: proxy.to_vec() };
        let given = [
            rewards([0.1, 0.3], [9.0, 9.0]),
            rewards([0.5, 0.7], [0.0, 0.0]),
            rewards([0.2, 0.4], [0.0, 0.0]),
            rewards([0.9, 0.9], [0.0, 0.0]),
        ];
        let points = profile("test", &[0.0, 0.5, 1.0, 1.5], &given);
        let differences: Vec<Option<f64>> =
            points.iter().map(|point| point.over_better_end.map(|e| (e.mean * 1e6).round() / 1e6)).collect();
        assert_eq!(differences, [None, Some(0.3), None, None]);
        assert_eq!(points[0].gold_reward.unwrap().mean, 0.2);
        assert!(points.iter().all(|point| point.split == "test"));

        let blind: Vec<Rewards> = given.into_iter().map(|rewards| Rewards { gold: None, ..rewards }).collect();
        assert_eq!(profile("x", &[0.0, 0.5, 1.0, 1.5], &blind)[1].over_better_end.unwrap().mean, -9.0);
        assert_eq!(profile("x", &[0.5], &blind[..1])[0].over_better_end, None);
    }
}
