//! SALSA.
