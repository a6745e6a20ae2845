//! SALSA.
pub mod config;
pub mod metrics;
pub mod progress;
pub mod report;
pub mod stage;
pub mod tensorboard;
