//! When a stage runs: skip what is done, refuse what has changed, lock a directory, record inputs, save and resume.
//!
//! Knows no particular stage and no model; may import `memory` and what stands directly in `stage`.
pub(super) mod fingerprint;
pub(crate) mod inputs;
pub(crate) mod lock;
pub(crate) mod record;
pub(super) mod resume;
pub(crate) mod runner;
pub(crate) mod standing;
