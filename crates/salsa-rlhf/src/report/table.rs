//! The evaluation as text for a terminal: the table of the arms and the direct comparisons.

use super::columns::{Cell, Column, Terminal, columns, splits};
use super::{Summary, comparisons};

/// Space between two columns.
const GAP: usize = 2;

/// Formats the evaluation as aligned text: one block per split, one line per arm, rewards and win rates with their 95 %
/// intervals; then a line for each comparison of two arms on each split:
///
/// ```text
/// test  400 prompts
///
/// test   gold reward           KL to SFT A
/// sft_a  0.512 [0.500, 0.524]  0
/// salsa  0.731 [0.712, 0.750]  4.21
///
/// test  salsa vs ppo  win rate  52.8 % [49.7, 55.9]  cannot tell
/// ```
///
/// A block wider than `width` characters is split by columns into several blocks below each other.
pub(crate) fn table(summary: &Summary, width: usize) -> String {
    let columns = columns(summary);
    let mut blocks: Vec<Vec<Vec<String>>> = Vec::new();
    let counts: Vec<Vec<String>> =
        summary.prompts.iter().map(|(split, count)| vec![split.clone(), count.to_string()]).collect();
    if !counts.is_empty() {
        blocks.push(counts);
    }
    for split in splits(summary) {
        let rows = rows(summary, split, &columns);
        blocks.extend(in_width(&rows, width));
    }
    let comparisons = comparisons::lines(summary);
    if !comparisons.is_empty() {
        blocks.push(comparisons);
    }
    blocks.iter().map(|rows| aligned(rows)).collect::<Vec<_>>().join("\n")
}

/// The heading and one row per arm that has numbers on this split.
fn rows(summary: &Summary, split: &str, columns: &[Column]) -> Vec<Vec<String>> {
    let mut rows = vec![vec![split.to_owned()]];
    rows[0].extend(columns.iter().map(|column| column.heading.clone()));
    for (arm, by_split) in summary.arms.iter() {
        let Some(numbers) = by_split.get(split) else { continue };
        let mut row = vec![arm.clone()];
        row.extend(columns.iter().map(|column| text(column.cell(numbers), column.terminal)));
        rows.push(row);
    }
    rows
}

/// Splits rows into blocks of columns that fit, each starting with the first column.
fn in_width(rows: &[Vec<String>], width: usize) -> Vec<Vec<Vec<String>>> {
    let widths = widths(rows);
    let mut parts: Vec<Vec<usize>> = vec![Vec::new()];
    let mut used = widths[0];
    for (column, &wide) in widths.iter().enumerate().skip(1) {
        if used + GAP + wide > width && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            used = widths[0];
        }
        parts.last_mut().expect("there is one").push(column);
        used += GAP + wide;
    }
    let cut = |part: &Vec<usize>, row: &Vec<String>| {
        std::iter::once(&0).chain(part).map(|&column| row[column].clone()).collect::<Vec<String>>()
    };
    parts.iter().map(|part| rows.iter().map(|row| cut(part, row)).collect()).collect()
}

fn widths(rows: &[Vec<String>]) -> Vec<usize> {
    let columns = rows.first().map_or(0, Vec::len);
    (0..columns).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect()
}

pub(super) fn aligned(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn text(cell: Cell, terminal: Terminal) -> String {
    match cell.interval.filter(|_| terminal == Terminal::WithInterval) {
        Some(ends) => {
            let [low, high] = ends.map(|end| end.trim_end_matches(" %").to_owned());
            format!("{} [{low}, {high}]", cell.value)
        }
        None => cell.value,
    }
}
