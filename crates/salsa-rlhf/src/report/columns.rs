//! The columns of the evaluation table, shared by the terminal and the page.

use super::labels::spoken;
use super::number::{MISSING, number, percent};
use super::{Estimate, Ordered, SplitSummary, Summary};

/// A value of the table with its 95 % interval, formatted.
pub(super) struct Cell {
    pub(super) value: String,
    pub(super) interval: Option<[String; 2]>,
}

/// A table column: heading, and accessor of its value.
pub(super) struct Column {
    pub(super) heading: String,
    pub(super) terminal: Terminal,
    pick: Pick,
    format: fn(f64) -> String,
}

/// Accessor of a value.
enum Pick {
    /// A field of the arm's numbers.
    Own(fn(&SplitSummary) -> Option<Estimate>),
    /// The arm's win rate over this model.
    WinRate(String),
    /// The arm's KL to this model.
    Kl(String),
}

/// Form of a value in the terminal, where space is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terminal {
    WithInterval,
    ValueOnly,
}

use Terminal::{ValueOnly, WithInterval};

/// The columns for which at least one arm has a value on some split.
pub(super) fn columns(summary: &Summary) -> Vec<Column> {
    let numbers = || summary.arms.iter().flat_map(|(_, splits)| splits.iter().map(|(_, numbers)| numbers));
    let mut columns = vec![
        own("gold reward", WithInterval, number, |s| s.gold_reward),
        own("proxy score", WithInterval, number, |s| Some(s.proxy_score)),
    ];
    columns.extend(names(numbers().map(|s| &s.versus.win_rates)).into_iter().map(|name| Column {
        heading: format!("win rate vs {}", spoken(name)),
        terminal: WithInterval,
        pick: Pick::WinRate(name.to_owned()),
        format: percent,
    }));
    columns.extend(names(numbers().map(|s| &s.versus.kls)).into_iter().map(|name| Column {
        heading: format!("KL to {}", spoken(name)),
        terminal: ValueOnly,
        pick: Pick::Kl(name.to_owned()),
        format: number,
    }));
    columns.push(own("length", ValueOnly, number, |s| Some(with(s.length_mean, s.length_ci95))));
    columns.push(own("empty", ValueOnly, percent, |s| Some(with(s.empty_rate, s.empty_rate_ci95))));
    columns.retain(|column| numbers().any(|numbers| column.pick(numbers).is_some()));
    columns
}

fn own(
    heading: &str,
    terminal: Terminal,
    format: fn(f64) -> String,
    pick: fn(&SplitSummary) -> Option<Estimate>,
) -> Column {
    Column { heading: heading.to_owned(), terminal, pick: Pick::Own(pick), format }
}

/// The distinct keys of all maps, in order of first occurrence.
fn names<'a, T: 'a>(all: impl Iterator<Item = &'a Ordered<T>>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for (key, _) in all.flat_map(|ordered| ordered.iter()) {
        if !seen.contains(&key.as_str()) {
            seen.push(key.as_str());
        }
    }
    seen
}

fn with(mean: f64, ci95: Option<[f64; 2]>) -> Estimate {
    Estimate { mean, ci95: ci95.unwrap_or([f64::NAN; 2]) }
}

impl Column {
    fn pick(&self, numbers: &SplitSummary) -> Option<Estimate> {
        match &self.pick {
            Pick::Own(pick) => pick(numbers),
            Pick::WinRate(name) => numbers.versus.win_rates.get(name).copied(),
            Pick::Kl(name) => numbers.versus.kls.get(name).copied(),
        }
    }

    /// The formatted value of an arm; a dash if it has none.
    pub(super) fn cell(&self, numbers: &SplitSummary) -> Cell {
        let Some(value) = self.pick(numbers) else { return Cell { value: MISSING.to_owned(), interval: None } };
        let interval = value.has_interval().then(|| value.ci95.map(self.format));
        Cell { value: (self.format)(value.mean), interval }
    }
}

/// The keys of all splits, in order of first occurrence in the arms.
pub(super) fn splits(summary: &Summary) -> Vec<&str> {
    names(summary.arms.iter().map(|(_, splits)| splits))
}
