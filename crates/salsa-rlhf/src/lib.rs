//! SALSA: RLHF with a model soup as the KL reference, from a base checkpoint to a report.

pub mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
mod guard;
pub mod hub;
pub mod input;
pub mod metrics;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod serve;
pub mod stage;
pub mod study;
pub mod tensorboard;
pub mod tokenizer;
pub mod world;
