//! Direct comparisons as text: the metric, its estimate, and the verdict by its interval. Shared by the terminal and
//! the page; each comparison of each split is shown, in the order of the evaluation.

use super::number::{percent, signed};
use super::{Comparison, Contrast, Summary};

impl Contrast {
    /// The metric as text.
    pub(super) fn words(self) -> &'static str {
        match self {
            Contrast::WinRate => "win rate",
            Contrast::GoldDifference => "difference of gold reward",
            Contrast::ProxyDifference => "difference of proxy score",
        }
    }

    /// The compared number, as a column heading.
    fn column(self) -> &'static str {
        match self {
            Contrast::WinRate => "win rate",
            Contrast::GoldDifference => "gold reward",
            Contrast::ProxyDifference => "proxy score",
        }
    }

    /// The format of its value.
    pub(super) fn format(self) -> fn(f64) -> String {
        match self {
            Contrast::WinRate => percent,
            Contrast::GoldDifference | Contrast::ProxyDifference => signed,
        }
    }
}

impl Comparison {
    /// The arm whose number is higher by the 95 % interval over prompts; none if undecided.
    pub(super) fn higher(&self) -> Option<&str> {
        let draw = self.metric.draw();
        match self.estimate {
            e if e.is_above(draw) => Some(&self.arm),
            e if e.is_below(draw) => Some(&self.versus),
            _ => None,
        }
    }
}

/// The comparisons as cells, one row each: split, arms, metric, value with its interval, verdict.
pub(super) fn lines(summary: &Summary) -> Vec<Vec<String>> {
    let line = |comparison: &Comparison| {
        let [low, high] = comparison.estimate.ci95.map(comparison.metric.format());
        let mean = comparison.metric.format()(comparison.estimate.mean);
        let value = if comparison.estimate.has_interval() {
            format!("{mean} [{}, {}]", low.trim_end_matches(" %"), high.trim_end_matches(" %"))
        } else {
            mean
        };
        vec![
            comparison.split.clone(),
            format!("{} vs {}", comparison.arm, comparison.versus),
            comparison.metric.column().to_owned(),
            value,
            comparison.higher().map_or("cannot tell".to_owned(), |arm| format!("{arm} is higher")),
        ]
    };
    summary.comparisons.iter().map(line).collect()
}
