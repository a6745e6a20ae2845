//! Lines on stderr about tensors that are ignored when a checkpoint is opened.

use std::{
    collections::BTreeSet,
    io::Write,
    sync::{Mutex, PoisonError},
};

/// Prints a line once per process: a run opens a checkpoint several times.
pub(super) fn say(line: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(line.to_owned()) {
        // A failure to write to stderr must not stop the work.
        let _ = writeln!(std::io::stderr(), "{line}");
    }
}
