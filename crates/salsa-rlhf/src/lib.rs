//! SALSA.

pub mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod config;
pub mod data;
pub mod recipe;
pub mod stage;
pub mod tokenizer;
