//! Collects all errors, not only the first.
use std::fmt;

/// A list of errors.
#[derive(Debug, Default)]
pub struct ErrorList(Vec<anyhow::Error>);

impl ErrorList {
    /// Returns the value, or none after recording the error.
    pub fn take<T>(&mut self, result: anyhow::Result<T>) -> Option<T> {
        result.map_err(|error| self.add(error)).ok()
    }

    /// Adds an error.
    pub fn add(&mut self, fault: anyhow::Error) {
        self.0.push(fault);
    }

    /// Adds the errors of another list, each mapped by `f`.
    pub fn extend(&mut self, others: ErrorList, f: impl Fn(anyhow::Error) -> anyhow::Error) {
        self.0.extend(others.0.into_iter().map(f));
    }

    /// Returns the value if there are no errors.
    ///
    /// # Errors
    /// The faults.
    pub fn none_or<T>(self, value: T) -> Result<T, ErrorList> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// Iterates over the errors.
    pub fn iter(&self) -> std::slice::Iter<'_, anyhow::Error> {
        self.0.iter()
    }

    /// The number of errors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no errors.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<anyhow::Error> for ErrorList {
    fn from(error: anyhow::Error) -> ErrorList {
        ErrorList(vec![error])
    }
}

impl fmt::Display for ErrorList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults: Vec<String> = self.0.iter().map(|fault| format!("{fault:#}")).collect();
        f.write_str(&faults.join("; "))
    }
}

impl std::error::Error for ErrorList {}
