//! Rows that exceed the model's context: omitted and counted, or an error.
use std::fmt;

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rows::{Row, Rows};
use crate::stage::StageContext;

/// What happens to a row that is longer than the model's context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Overlong {
    /// It is omitted and counted.
    #[default]
    Drop,
    /// The run ends with an error that names the row.
    Error,
}

/// The error of a row with more tokens than the model has positions.
#[derive(Debug)]
pub(crate) struct TooLong(pub String);

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TooLong {}

/// Whether the error is [`TooLong`].
fn is_too_long(error: &anyhow::Error) -> bool {
    error.downcast_ref::<TooLong>().is_some()
}

/// Checks that at least one row fits, stopping at the first row for which `f` does not return [`TooLong`].
///
/// # Errors
/// The error of `f` for that row; if every row is too long.
pub(crate) fn check_one_fits<T>(rows: &Rows, f: impl Fn(&Row) -> anyhow::Result<T>) -> anyhow::Result<()> {
    let mut first = None;
    for row in &rows.rows {
        match f(row) {
            Err(error) if is_too_long(&error) => {
                first.get_or_insert_with(|| (row, error.to_string()));
            }
            other => return other.map(drop).with_context(|| rows.place(row)),
        }
    }
    first.map_or(Ok(()), |(row, why)| bail!(none_fits(rows, row, &why)))
}

fn none_fits(rows: &Rows, first: &Row, why: &str) -> String {
    format!("{}: {why}; none of the {} rows fits; shorten them", rows.place(first), rows.rows.len())
}

impl Overlong {
    /// Applies `f` to every row; `None` for an omitted row. Reports the number of omitted rows and the first of them.
    ///
    /// # Errors
    /// The first error of `f` that is not handled by omission; if no row is left.
    pub fn map<T>(
        self,
        rows: &Rows,
        context: &StageContext,
        f: impl Fn(&Row) -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Option<T>>> {
        let mut first: Option<(&Row, String)> = None;
        let mut mapped = Vec::with_capacity(rows.rows.len());
        for row in &rows.rows {
            match f(row) {
                Err(error) if self == Overlong::Drop && is_too_long(&error) => {
                    first.get_or_insert_with(|| (row, error.to_string()));
                    mapped.push(None);
                }
                Err(error) if is_too_long(&error) => {
                    bail!("{}: {error}; shorten it, or leave such rows out (on_overlong: drop)", rows.place(row))
                }
                other => mapped.push(Some(other.with_context(|| rows.place(row))?)),
            }
        }
        let Some((row, why)) = first else { return Ok(mapped) };
        let (left_out, count) = (mapped.iter().filter(|row| row.is_none()).count(), mapped.len());
        ensure!(left_out < count, "{}", none_fits(rows, row, &why));
        let (name, line) = (rows.name(), row.line);
        let used = format!("{name}: {left_out} of {count} rows left out as too long (line {line}: {why})");
        context.say_used(used, left_out);
        Ok(mapped)
    }

    /// As [`Overlong::map`], but removes omitted rows. Returns the values in row order, and the number of omitted rows.
    ///
    /// # Errors
    /// As [`Overlong::map`].
    pub fn retain<T>(
        self,
        rows: &mut Rows,
        context: &StageContext,
        f: impl Fn(&Row) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Vec<T>, usize)> {
        let mapped = self.map(rows, context, f)?;
        let mut kept = mapped.iter().map(Option::is_some);
        rows.rows.retain(|_| kept.next().unwrap_or(false));
        let all = mapped.len();
        let values: Vec<T> = mapped.into_iter().flatten().collect();
        let left_out = all - values.len();
        Ok((values, left_out))
    }
}

#[cfg(test)]
mod tests;
