//! SALSA.

pub mod atomic;
pub mod chat;
pub mod checkpoint;
pub mod data;
pub mod tokenizer;
