//! Pairs judged in both orders.

use crate::stats::{Tally, Verdict};

/// The two games of a row, both from the first model's side: in the first game its answer was shown first, in the
/// second game second. None if the judge gave no verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The game in which the first model's answer was shown first.
    pub first: Option<Verdict>,
    /// The game in which the first model's answer was shown second.
    pub second: Option<Verdict>,
}

impl Row {
    /// Returns the outcome of the row; none if a game has no verdict.
    ///
    /// Win or loss only if both games agree on it; all else is a tie. Source: FastChat `show_result.py`, `pairwise`.
    ///
    /// ```
    /// use salsa_algo::{judge::pair::Row, stats::Verdict::{Loss, Tie, Win}};
    /// assert_eq!(Row { first: Some(Win), second: Some(Win) }.verdict(), Some(Win));
    /// assert_eq!(Row { first: Some(Win), second: Some(Loss) }.verdict(), Some(Tie));
    /// assert_eq!(Row { first: Some(Win), second: None }.verdict(), None);
    /// ```
    pub fn verdict(&self) -> Option<Verdict> {
        Some(Verdict::in_both_orders(self.first?, self.second?))
    }
}

/// Returns wins, ties and losses of the first model, and the number of rows dropped because a verdict is missing.
///
/// ```
/// use salsa_algo::{judge::pair::{Row, tally}, stats::{Tally, Verdict::{Tie, Win}}};
/// let rows = [(Some(Win), Some(Win)), (Some(Win), Some(Tie)), (None, Some(Win))];
/// let (tally, dropped) = tally(rows.map(|(first, second)| Row { first, second }));
/// assert_eq!((tally, dropped), (Tally { wins: 1, ties: 1, losses: 0 }, 1));
/// ```
pub fn tally(rows: impl IntoIterator<Item = Row>) -> (Tally, usize) {
    let mut dropped = 0;
    let counted = rows.into_iter().filter_map(|row| {
        let verdict = row.verdict();
        dropped += usize::from(verdict.is_none());
        verdict
    });
    let tally = counted.collect();
    (tally, dropped)
}

/// How much a judge's verdicts depend on the order of the answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PositionBias {
    /// Rows with a verdict in both orders.
    pub rows: usize,
    /// Rows whose two verdicts differ.
    pub disagree: usize,
    /// Of these, rows in which the answer shown first won both games.
    pub first_shown: usize,
    /// Of these, rows in which the answer shown second won both games.
    pub second_shown: usize,
}

impl PositionBias {
    /// Returns the bias of a judge over rows; rows without both verdicts are skipped.
    ///
    /// ```
    /// use salsa_algo::{judge::pair::{PositionBias, Row}, stats::Verdict::{Loss, Tie, Win}};
    /// let rows = [(Win, Loss), (Win, Loss), (Loss, Win), (Win, Tie), (Win, Win)];
    /// let bias = PositionBias::of(rows.map(|(first, second)| Row { first: Some(first), second: Some(second) }));
    /// assert_eq!((bias.rows, bias.disagree, bias.first_shown, bias.second_shown), (5, 4, 2, 1));
    /// assert_eq!(bias.share(), Some(0.8));
    /// ```
    pub fn of(rows: impl IntoIterator<Item = Row>) -> PositionBias {
        let mut bias = PositionBias::default();
        for row in rows {
            let (Some(first), Some(second)) = (row.first, row.second) else { continue };
            bias.rows += 1;
            bias.disagree += usize::from(first != second);
            bias.first_shown += usize::from((first, second) == (Verdict::Win, Verdict::Loss));
            bias.second_shown += usize::from((first, second) == (Verdict::Loss, Verdict::Win));
        }
        bias
    }

    /// Returns the share of rows whose two verdicts differ; none without rows.
    pub fn share(&self) -> Option<f64> {
        (self.rows > 0).then(|| self.disagree as f64 / self.rows as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Verdict::{Loss, Tie, Win};

    /// The two games in a public file of 75 rows (FastChat, gpt-4 as the judge), from the first model's side.
    #[test]
    fn a_published_table_gives_its_win_rate() {
        let table = [
            (Some(Loss), Some(Loss), 20),
            (Some(Win), Some(Win), 18),
            (Some(Win), Some(Loss), 16),
            (Some(Tie), Some(Tie), 8),
            (Some(Win), Some(Tie), 5),
            (Some(Tie), Some(Loss), 3),
            (Some(Loss), Some(Win), 2),
            (Some(Loss), Some(Tie), 1),
            (Some(Win), None, 1),
            (None, None, 1),
        ];
        let rows = table.iter().flat_map(|&(first, second, count)| std::iter::repeat_n(Row { first, second }, count));
        let (tally, dropped) = tally(rows.clone());
        assert_eq!((tally, dropped), (Tally { wins: 18, ties: 35, losses: 20 }, 2));
        assert_eq!(tally.win_rate(), Some(0.486_301_369_863_013_7));
        let bias = PositionBias::of(rows);
        assert_eq!((bias.rows, bias.disagree, bias.first_shown, bias.second_shown), (73, 27, 16, 2));
    }

    #[test]
    fn nothing_has_no_bias() {
        assert_eq!(PositionBias::of([Row { first: None, second: Some(Win) }]).share(), None);
    }
}
