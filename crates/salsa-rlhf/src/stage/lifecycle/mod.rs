//! Execution of a stage: skip finished work, refuse changed work, lock a directory, record inputs, save and resume.
//!
//! Knows no particular stage and no model; may import `memory` and modules directly in `stage`.
pub(crate) mod agreement;
pub(super) mod fingerprint;
pub(crate) mod inputs;
pub(crate) mod lock;
pub(crate) mod record;
pub(super) mod resume;
pub(crate) mod runner;
pub(crate) mod standing;
