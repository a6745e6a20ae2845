//! The evaluation table for a terminal.

use super::Summary;
use super::columns::{Cell, Terminal, columns, splits};

/// The evaluation as aligned text, one block per split, one line per arm, rewards and win rates with their 95 % intervals:
///
/// ```text
/// test   gold reward           KL to SFT A
/// sft_a  0.512 [0.500, 0.524]  0
/// salsa  0.731 [0.712, 0.750]  4.21
/// ```
pub fn table(summary: &Summary) -> String {
    let columns = columns(summary);
    let mut blocks = Vec::new();
    for split in splits(summary) {
        let mut rows = vec![vec![split.to_owned()]];
        rows[0].extend(columns.iter().map(|column| column.heading.clone()));
        for (arm, by_split) in summary.arms.iter() {
            let Some(numbers) = by_split.get(split) else { continue };
            let mut row = vec![arm.clone()];
            row.extend(columns.iter().map(|column| text(column.cell(numbers), column.terminal)));
            rows.push(row);
        }
        blocks.push(rows);
    }
    let width = |column: usize| blocks.iter().flatten().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=columns.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    blocks.iter().map(|rows| rows.iter().map(line).collect::<String>()).collect::<Vec<_>>().join("\n")
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
