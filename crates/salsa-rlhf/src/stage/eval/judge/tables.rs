//! Tables for counting: style scale, AlpacaEval's difficulties and gamed baseline.
use std::path::Path;

use anyhow::{Context, ensure};
use salsa_algo::judge::{
    alpaca::Gamed,
    style::{FEATURES, Scale},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::input;

/// A fixed scale of style features.
///
/// # Errors
/// If the file has another format.
pub(super) fn scale(path: &Path) -> anyhow::Result<Scale> {
    #[derive(Deserialize)]
    struct Fixed {
        mean: [f64; FEATURES],
        deviation: [f64; FEATURES],
    }
    let Fixed { mean, deviation } = serde_json::from_slice(&input::read(path)?).with_context(|| {
        format!("{}: {{\"mean\": [length, headers, lists, bold], \"deviation\": [...]}} is needed", path.display())
    })?;
    let is_fine = mean.iter().chain(&deviation).all(|x| x.is_finite()) && deviation.iter().all(|x| *x >= 0.0);
    ensure!(is_fine, "{}: the numbers must be finite, and deviations not below 0", path.display());
    Ok(Scale { mean, deviation })
}

/// A numeric column of a CSV file, in row order.
fn column(path: &Path, rows: &[Map<String, Value>], name: &str) -> anyhow::Result<Vec<f64>> {
    let number = |(i, row): (usize, &Map<String, Value>)| {
        let text = row.get(name).with_context(|| format!("{} has no column {name}", path.display()))?;
        let text = text.as_str().unwrap_or_default().trim();
        let number: f64 =
            text.parse().with_context(|| format!("{}: row {}: {name} is {text:?}", path.display(), i + 1))?;
        Ok(number)
    };
    rows.iter().enumerate().map(number).collect()
}

fn csv_rows(path: &Path) -> anyhow::Result<Vec<Map<String, Value>>> {
    let bytes = input::read(path)?;
    let mut reader = csv::Reader::from_reader(&bytes[..]);
    let names = reader.headers().with_context(|| format!("{} is no CSV file", path.display()))?.clone();
    let row = |record: Result<csv::StringRecord, csv::Error>| {
        let record = record.with_context(|| path.display().to_string())?;
        Ok(names.iter().zip(&record).map(|(name, value)| (name.to_owned(), json!(value))).collect())
    };
    reader.records().map(row).collect()
}

/// The difficulty of each instruction: the column `instruction_difficulty`, or the last one.
///
/// # Errors
/// If a value is no number; the error names the row.
pub(super) fn difficulties(path: &Path) -> anyhow::Result<Vec<f64>> {
    let rows = csv_rows(path)?;
    let named = |row: &Map<String, Value>| row.contains_key("instruction_difficulty");
    let last = rows
        .first()
        .and_then(|row| row.keys().next_back().cloned())
        .with_context(|| format!("{} is empty", path.display()))?;
    let name = if rows.first().is_some_and(named) { "instruction_difficulty" } else { &last };
    column(path, &rows, name)
}

/// The rows of the gamed baseline.
///
/// # Errors
/// If a column is missing or a value is no number; the error names the row.
pub(super) fn gamed(path: &Path) -> anyhow::Result<Vec<Gamed>> {
    let rows = csv_rows(path)?;
    let of = |name| column(path, &rows, name);
    let (preferences, lengths) = (of("preference")?, of("std_delta_len")?);
    let difficulties = of("instruction_difficulty")?;
    let all = preferences.into_iter().zip(lengths).zip(difficulties);
    let row = |((preference, std_delta_len), difficulty)| Gamed { preference, std_delta_len, difficulty };
    Ok(all.map(row).filter(|row| row.preference.is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_alpaca_eval_are_read_by_their_columns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.csv");
        std::fs::write(&path, ",instruction_difficulty\n0,-1.5\n1,2.25\n").unwrap();
        assert_eq!(difficulties(&path).unwrap(), [-1.5, 2.25]);
        std::fs::write(&path, "index,0\n0,3\n").unwrap();
        assert_eq!(difficulties(&path).unwrap(), [3.0], "the last column, whatever it is called");
        std::fs::write(
            &path,
            "model,preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline\n\
             x,0.25,0,-1.5,2.0,False\nx,nan,1,1,1,False\n",
        )
        .unwrap();
        let rows = gamed(&path).unwrap();
        assert_eq!(rows, [Gamed { preference: 0.25, std_delta_len: -1.5, difficulty: 2.0 }]);
        std::fs::write(&path, "preference\nx\n").unwrap();
        let error = format!("{:#}", gamed(&path).unwrap_err());
        assert!(error.contains("row 1: preference is \"x\""), "{error}");
    }

    #[test]
    fn a_fixed_scale_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("scale.json");
        std::fs::write(&path, "{\"mean\": [0, 0, 0, 0], \"deviation\": [1, 1, 1, 2]}").unwrap();
        assert_eq!(scale(&path).unwrap().deviation, [1.0, 1.0, 1.0, 2.0]);
        std::fs::write(&path, "{\"mean\": [0, 0, 0, 0], \"deviation\": [1, 1, 1, -2]}").unwrap();
        assert!(format!("{:#}", scale(&path).unwrap_err()).contains("not below 0"));
    }
}
