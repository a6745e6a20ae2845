//! The columns of the evaluation table, shared by the terminal and the page.

use super::number::{MISSING, number, percent};
use super::{SplitSummary, Summary};

/// One value of the table and its 95 % interval, ready to print.
pub(super) struct Cell {
    pub(super) value: String,
    pub(super) interval: Option<[String; 2]>,
}

/// A heading and the way to its value.
pub(super) struct Column {
    pub(super) heading: &'static str,
    pub(super) terminal: Terminal,
    pub(super) cell: fn(&SplitSummary) -> Option<Cell>,
}

/// What of a value a terminal has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    WithInterval,
    ValueOnly,
}

use Terminal::{ValueOnly, WithInterval};

const COLUMNS: [Column; 7] = [
    Column {
        heading: "gold reward",
        terminal: WithInterval,
        cell: |s| s.gold_reward.map(|e| cell(e.mean, Some(e.ci95), number)),
    },
    Column {
        heading: "proxy score",
        terminal: WithInterval,
        cell: |s| Some(cell(s.proxy_score.mean, Some(s.proxy_score.ci95), number)),
    },
    Column {
        heading: "win rate vs SFT A",
        terminal: WithInterval,
        cell: |s| s.win_rate_vs_sft_a.map(|e| cell(e.mean, Some(e.ci95), percent)),
    },
    Column {
        heading: "KL to SFT A",
        terminal: ValueOnly,
        cell: |s| s.kl_sft_a.map(|kl| cell(kl, s.kl_sft_a_ci95, number)),
    },
    Column {
        heading: "KL to soup",
        terminal: ValueOnly,
        cell: |s| s.kl_soup.map(|kl| cell(kl, s.kl_soup_ci95, number)),
    },
    Column { heading: "length", terminal: ValueOnly, cell: |s| Some(cell(s.length_mean, s.length_ci95, number)) },
    Column { heading: "empty", terminal: ValueOnly, cell: |s| Some(cell(s.empty_rate, s.empty_rate_ci95, percent)) },
];

/// The columns for which at least one arm has a value on some split.
pub(super) fn columns(summary: &Summary) -> Vec<&'static Column> {
    let measured =
        |column: &&Column| summary.arms.iter().any(|(_, s)| s.iter().any(|(_, s)| (column.cell)(s).is_some()));
    COLUMNS.iter().filter(measured).collect()
}

/// The keys of all splits, in the order in which the arms name them.
pub(super) fn splits(summary: &Summary) -> Vec<&str> {
    summary.arms.iter().flat_map(|(_, splits)| splits.iter().map(|(key, _)| key.as_str())).fold(
        Vec::new(),
        |mut seen, key| {
            if !seen.contains(&key) {
                seen.push(key);
            }
            seen
        },
    )
}

impl Cell {
    /// A value that was not measured.
    pub(super) fn missing() -> Cell {
        Cell { value: MISSING.to_owned(), interval: None }
    }
}

fn cell(value: f64, ci95: Option<[f64; 2]>, format: fn(f64) -> String) -> Cell {
    Cell { value: format(value), interval: ci95.map(|ends| ends.map(format)) }
}
