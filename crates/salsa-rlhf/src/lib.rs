//! SALSA: RLHF with a model soup as the KL reference, from a base checkpoint to a report.

pub mod metrics;
pub mod progress;
pub mod report;
pub mod tensorboard;
pub mod world;
