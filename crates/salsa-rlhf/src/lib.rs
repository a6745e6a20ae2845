//! SALSA: RLHF with a model soup as the KL reference, from a base checkpoint to a report.

pub mod arithmetic;
mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod gguf;
mod guard;
pub mod hub;
mod input;
mod metrics;
mod progress;
pub mod recipe;
mod report;
mod serve;
pub mod stage;
pub mod study;
mod tensorboard;
pub mod tokenizer;
pub mod world;
