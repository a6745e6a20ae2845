//! When a stage runs: skip what is done, refuse what has changed, lock a directory, record inputs, save and resume.
//!
//! Knows no particular stage and no model; may import `memory` and what stands directly in `stage`.
pub mod fingerprint;
pub mod inputs;
pub mod lock;
pub mod record;
pub mod resume;
pub mod runner;
pub mod standing;
