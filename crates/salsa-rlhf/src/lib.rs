//! SALSA.

pub mod world;
