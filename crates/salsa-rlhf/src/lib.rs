//! SALSA.

pub mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod metrics;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod stage;
pub mod tensorboard;
pub mod tokenizer;
