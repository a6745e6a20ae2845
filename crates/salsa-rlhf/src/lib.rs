//! SALSA.
pub mod metrics;
pub mod progress;
pub mod report;
pub mod tensorboard;
