//! SALSA.
pub mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod metrics;
pub mod progress;
pub mod report;
pub mod stage;
pub mod tensorboard;
pub mod tokenizer;
