//! SALSA.
pub mod config;
pub mod recipe;
pub mod stage;
