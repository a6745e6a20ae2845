//! Win rates from pairwise comparisons, ties counted half.

use super::{Interval, wilson};

/// The outcome of one comparison, from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This side is better.
    Win,
    /// Both are equal.
    Tie,
    /// The other side is better.
    Loss,
}

impl Verdict {
    /// Returns the outcome of comparing two scores: the higher one wins, equal ones tie.
    ///
    /// A NaN on either side gives a tie.
    ///
    /// ```
    /// use salsa_algo::stats::Verdict;
    /// assert_eq!(Verdict::from_scores(1.0, 0.5), Verdict::Win);
    /// assert_eq!(Verdict::from_scores(0.5, 0.5), Verdict::Tie);
    /// ```
    pub fn from_scores(ours: f64, theirs: f64) -> Verdict {
        if ours > theirs {
            Verdict::Win
        } else if ours < theirs {
            Verdict::Loss
        } else {
            Verdict::Tie
        }
    }

    /// Returns the outcome of a row judged in both orders.
    ///
    /// Both verdicts are from the same side's view, whichever answer was shown first. The row is a tie if either
    /// verdict is a tie or the two disagree: a judge that always prefers the first answer then gives only ties. Source:
    /// FastChat `llm_judge` (MT-Bench pairwise).
    ///
    /// ```
    /// use salsa_algo::stats::Verdict::{Loss, Tie, Win, self};
    /// assert_eq!(Verdict::in_both_orders(Win, Win), Win);
    /// assert_eq!(Verdict::in_both_orders(Win, Loss), Tie);
    /// ```
    pub fn in_both_orders(one: Verdict, other: Verdict) -> Verdict {
        if one == other { one } else { Verdict::Tie }
    }

    /// Returns the outcome from the other side.
    pub fn reversed(self) -> Verdict {
        match self {
            Verdict::Win => Verdict::Loss,
            Verdict::Tie => Verdict::Tie,
            Verdict::Loss => Verdict::Win,
        }
    }
}

/// The numbers of comparisons won, tied and lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Comparisons won.
    pub wins: usize,
    /// Comparisons tied.
    pub ties: usize,
    /// Comparisons lost.
    pub losses: usize,
}

impl Tally {
    /// Returns the number of comparisons.
    pub fn rows(&self) -> usize {
        self.wins + self.ties + self.losses
    }

    /// Returns the adjusted win rate; none without comparisons.
    ///
    /// ```text
    /// (wins + ties / 2) / (wins + ties + losses)
    /// ```
    ///
    /// Source: FastChat's `win_rate_adjusted`. The win rates of the SALSA paper fit this rule (with half-steps, 57.19 % is
    /// 91.5 of 160 rows).
    ///
    /// ```
    /// use salsa_algo::stats::Tally;
    /// assert_eq!(Tally { wins: 5, ties: 2, losses: 1 }.win_rate(), Some(0.75));
    /// ```
    pub fn win_rate(&self) -> Option<f64> {
        (self.rows() > 0).then(|| self.points() / self.rows() as f64)
    }

    /// Returns the Wilson interval of the adjusted win rate at `z` standard errors ([`super::Z95`] for 95 %).
    ///
    /// Ties enter as half a success each. A tie varies less than a win or a loss, so with many ties the interval is
    /// conservative: its coverage is above the nominal level.
    pub fn interval(&self, z: f64) -> Interval {
        wilson(self.points(), self.rows(), z)
    }

    fn points(&self) -> f64 {
        self.wins as f64 + 0.5 * self.ties as f64
    }
}

impl FromIterator<Verdict> for Tally {
    fn from_iter<I: IntoIterator<Item = Verdict>>(verdicts: I) -> Tally {
        let mut tally = Tally::default();
        for verdict in verdicts {
            match verdict {
                Verdict::Win => tally.wins += 1,
                Verdict::Tie => tally.ties += 1,
                Verdict::Loss => tally.losses += 1,
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::Verdict::*;
    use super::*;
    use crate::stats::Z95;

    #[test]
    fn both_orders_table() {
        let all = [Win, Tie, Loss];
        let expected = [[Win, Tie, Tie], [Tie, Tie, Tie], [Tie, Tie, Loss]];
        for (i, one) in all.into_iter().enumerate() {
            for (j, other) in all.into_iter().enumerate() {
                assert_eq!(Verdict::in_both_orders(one, other), expected[i][j], "{one:?} {other:?}");
            }
        }
    }

    #[test]
    fn scores() {
        assert_eq!(Verdict::from_scores(0.0, 1.0), Loss);
        assert_eq!(Verdict::from_scores(0.0, -0.0), Tie);
        assert_eq!(Verdict::from_scores(f64::NAN, 1.0), Tie);
        assert_eq!(Verdict::from_scores(1.0, f64::NAN), Tie);
    }

    #[test]
    fn the_two_sides_add_up_to_one() {
        let verdicts = [Win, Win, Tie, Loss, Win, Tie];
        let ours: Tally = verdicts.into_iter().collect();
        let theirs: Tally = verdicts.into_iter().map(Verdict::reversed).collect();
        assert_eq!((ours, ours.rows()), (Tally { wins: 3, ties: 2, losses: 1 }, 6));
        assert_eq!(theirs, Tally { wins: 1, ties: 2, losses: 3 });
        assert_eq!(ours.win_rate().expect("rows") + theirs.win_rate().expect("rows"), 1.0);
        let (a, b) = (ours.interval(Z95), theirs.interval(Z95));
        assert!((a.low - (1.0 - b.high)).abs() < 1e-15 && (a.high - (1.0 - b.low)).abs() < 1e-15);
    }

    #[test]
    fn the_papers_numbers_are_half_steps() {
        assert_eq!(Tally { wins: 91, ties: 1, losses: 68 }.win_rate(), Some(0.571875));
        assert_eq!(Tally::default().win_rate(), None);
        assert_eq!(Tally::default().interval(Z95), Interval { low: 0.0, high: 1.0 });
    }

    #[test]
    fn ties_count_half_in_the_interval() {
        let with_ties = Tally { wins: 40, ties: 20, losses: 40 };
        let without = Tally { wins: 50, ties: 0, losses: 50 };
        assert_eq!(with_ties.interval(Z95), without.interval(Z95));
    }
}
