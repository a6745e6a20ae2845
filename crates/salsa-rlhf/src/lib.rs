//! SALSA.
pub mod config;
pub mod stage;
