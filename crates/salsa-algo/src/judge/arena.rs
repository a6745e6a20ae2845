//! Arena-Hard-Auto: two games of a prompt against a baseline, with five verdicts.

use crate::{
    random::below,
    stats::{Interval, quantiles},
};

/// A verdict: how the answer called A compares with the one called B.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Label {
    /// `A>>B`.
    MuchBetter,
    /// `A>B`.
    Better,
    /// `A=B`.
    Tie,
    /// `B>A`.
    Worse,
    /// `B>>A`.
    MuchWorse,
}

/// How often a decisive verdict (`>>`) counts in both versions.
pub const DECISIVE: usize = 3;

/// A game, as counted for the model that plays against the baseline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Game {
    /// The points of the model: 1, ½ or 0.
    pub points: f64,
    /// The number of battles that the game counts as.
    pub copies: usize,
}

/// Which of the two answers was the baseline's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Baseline {
    /// A, as in the first game.
    First,
    /// B, as in the second game.
    Second,
}

impl Label {
    /// Returns the game from the model's side.
    ///
    /// ```
    /// use salsa_algo::judge::arena::{Baseline, Game, Label};
    /// assert_eq!(Label::MuchBetter.game(Baseline::First), Game { points: 0.0, copies: 3 });
    /// assert_eq!(Label::MuchBetter.game(Baseline::Second), Game { points: 1.0, copies: 3 });
    /// assert_eq!(Label::Tie.game(Baseline::First), Game { points: 0.5, copies: 1 });
    /// ```
    pub fn game(self, baseline: Baseline) -> Game {
        let (points_of_a, copies) = match self {
            Label::MuchBetter => (1.0, DECISIVE),
            Label::Better => (1.0, 1),
            Label::Tie => (0.5, 1),
            Label::Worse => (0.0, 1),
            Label::MuchWorse => (0.0, DECISIVE),
        };
        let points = match baseline {
            Baseline::First => 1.0 - points_of_a,
            Baseline::Second => points_of_a,
        };
        Game { points, copies }
    }
}

/// The two games of a prompt: the first with the baseline as A, the second with the model as A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The verdict of the first game, if there is one.
    pub first: Option<Label>,
    /// The verdict of the second game, if there is one.
    pub second: Option<Label>,
}

/// Which rows are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// v0.1: a game without a verdict is left out, the other one stays.
    V01,
    /// v2: a row in which either game has no verdict is left out.
    V2,
}

impl Row {
    /// Returns the games that are counted.
    pub fn games(&self, version: Version) -> Vec<Game> {
        let games = [(self.first, Baseline::First), (self.second, Baseline::Second)];
        let given = || games.iter().filter_map(|(label, baseline)| Some(label.as_ref()?.game(*baseline)));
        match version {
            Version::V2 if given().count() < 2 => Vec::new(),
            _ => given().collect(),
        }
    }
}

/// Returns the win rate against the baseline; none without battles.
///
/// ```text
/// sum copies * points / sum copies
/// ```
///
/// v0.1 fits a Bradley–Terry model without penalty by logistic regression. Every model meets only the baseline, so the
/// graph of battles is a star, and the maximum of the likelihood gives each model exactly this rate (see a test of
/// [`crate::judge::logistic`]). v2 takes the mean itself.
///
/// ```
/// use salsa_algo::judge::arena::{Game, win_rate};
/// let games = [Game { points: 1.0, copies: 3 }, Game { points: 0.5, copies: 1 }];
/// assert_eq!(win_rate(&games), Some(0.875));
/// ```
pub fn win_rate(games: &[Game]) -> Option<f64> {
    let copies: usize = games.iter().map(|game| game.copies).sum();
    let points: f64 = games.iter().map(|game| game.points * game.copies as f64).sum();
    (copies > 0).then(|| points / copies as f64)
}

/// Returns v0.1's interval of each model: battles of all models are resampled, each copy of a decisive game separately.
///
/// ```text
/// resample r: battles[below(seed, r, i, n)], i = 0..n, of all models together
/// rating      = 400 * log10(p / (1 - p)) of each model's drawn battles
/// interval    = percentiles 2.5 and 97.5 of the ratings, back as win rates 1 / (1 + 10^(-rating / 400))
/// ```
///
/// None for a model without battles. The tool draws with numpy's generator (seed 42) in the order of its files, so its
/// ends differ from these by chance; and since it draws the games of a prompt separately, they are too narrow
/// ([`crate::judge::units`] draws prompts).
pub fn intervals_v01(models: &[Vec<Game>], rounds: usize, seed: u64) -> Vec<Option<Interval>> {
    let battles: Vec<(usize, f64)> =
        models.iter().enumerate().flat_map(|(model, games)| battles(model, games)).collect();
    let mut ratings = vec![Vec::with_capacity(rounds); models.len()];
    for round in 0..rounds as u64 {
        let mut sums = vec![(0.0, 0usize); models.len()];
        for i in 0..battles.len() as u64 {
            let (model, points) = battles[below(seed, round, i, battles.len())];
            sums[model].0 += points;
            sums[model].1 += 1;
        }
        for (ratings, (points, count)) in ratings.iter_mut().zip(sums) {
            let rate = points / count as f64;
            if count > 0 {
                ratings.push(400.0 * (rate / (1.0 - rate)).log10());
            }
        }
    }
    let rate = |rating: f64| 1.0 / (1.0 + 10f64.powf(-rating / 400.0));
    let ends = |ratings: &Vec<f64>| {
        let ends = quantiles(ratings, &[0.025, 0.975])?;
        Some(Interval { low: rate(ends[0]), high: rate(ends[1]) })
    };
    ratings.iter().map(ends).collect()
}

/// Returns v2's interval of a model, the 5 % and 95 % quantiles: battles are resampled, copies of a game separately.
///
/// The tool calls it a confidence interval without stating the level of 90 %; its draws have no seed.
pub fn interval_v2(games: &[Game], rounds: usize, seed: u64) -> Option<Interval> {
    let battles: Vec<f64> = battles(0, games).map(|(_, points)| points).collect();
    let n = battles.len();
    let mean = |round: u64| (0..n as u64).map(|i| battles[below(seed, round, i, n)]).sum::<f64>() / n as f64;
    let means: Vec<f64> = (0..rounds as u64).filter(|_| n > 0).map(mean).collect();
    let ends = quantiles(&means, &[0.05, 0.95])?;
    Some(Interval { low: ends[0], high: ends[1] })
}

fn battles(model: usize, games: &[Game]) -> impl Iterator<Item = (usize, f64)> + '_ {
    games.iter().flat_map(move |game| std::iter::repeat_n((model, game.points), game.copies))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_game_without_a_verdict_takes_its_row_along_in_v2_only() {
        let row = Row { first: Some(Label::Better), second: None };
        assert_eq!(row.games(Version::V01), [Game { points: 0.0, copies: 1 }]);
        assert_eq!(row.games(Version::V2), []);
        let whole = Row { first: Some(Label::MuchWorse), second: Some(Label::Tie) };
        let games = [Game { points: 1.0, copies: 3 }, Game { points: 0.5, copies: 1 }];
        assert_eq!(whole.games(Version::V2), games);
        assert_eq!(whole.games(Version::V01), games);
    }

    #[test]
    fn every_label_is_the_mirror_of_its_opposite() {
        let pairs = [(Label::MuchBetter, Label::MuchWorse), (Label::Better, Label::Worse), (Label::Tie, Label::Tie)];
        for (one, other) in pairs {
            for baseline in [Baseline::First, Baseline::Second] {
                let (one, other) = (one.game(baseline), other.game(baseline));
                assert_eq!((one.points, one.copies), (1.0 - other.points, other.copies));
            }
        }
    }

    #[test]
    fn intervals_contain_the_rate_and_extremes_stay_inside() {
        let games = |wins: usize, n: usize| -> Vec<Game> {
            (0..n).map(|i| Game { points: f64::from(u8::from(i < wins)), copies: 1 }).collect()
        };
        let models = [games(30, 100), games(0, 50), Vec::new()];
        let found = intervals_v01(&models, 100, 7);
        let first = found[0].expect("it has battles");
        assert!(first.low < 0.3 && 0.3 < first.high && first.high - first.low < 0.25, "{first:?}");
        assert_eq!(found[1], Some(Interval { low: 0.0, high: 0.0 }));
        assert_eq!(found[2], None);
        let second = interval_v2(&models[0], 100, 7).expect("it has battles");
        assert!(second.low < 0.3 && 0.3 < second.high, "{second:?}");
        assert_eq!(interval_v2(&[], 100, 7), None);
    }

    #[test]
    fn nothing_has_no_win_rate() {
        assert_eq!(win_rate(&[]), None);
    }
}
