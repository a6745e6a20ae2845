//! Lines on stderr about what opening a checkpoint passes over.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Prints a line the first time that it is said: a run opens a checkpoint several times.
pub(super) fn say(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned()) {
        // Nobody can be told if stderr is gone; the work itself goes on.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
