//! A file of its own, so that nothing else in the process allocates meanwhile.
#![cfg(target_os = "linux")]
use std::fs;

use salsa_engine::{backend::cpu::Buffer, release_memory};

/// Resident size of this process, in bytes.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn free_arrays_go_back_to_the_system() {
    const BYTES: u64 = 256 << 20;
    let before = resident();
    let mut array = Buffer::zeros((BYTES / 4) as usize);
    array.fill(1.0);
    assert!(resident() > before + BYTES * 9 / 10);
    drop(array);
    assert!(resident() > before + BYTES * 9 / 10, "it is kept for the next step");
    release_memory();
    assert!(resident() < before + BYTES / 10);
}
