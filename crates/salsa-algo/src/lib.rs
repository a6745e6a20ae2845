//! The arithmetic of RLHF.
