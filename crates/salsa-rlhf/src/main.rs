//! The `salsa` program.
fn main() {}
