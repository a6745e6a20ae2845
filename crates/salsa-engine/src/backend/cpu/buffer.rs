//! Arrays of f32 that are used again: a training step asks for the same sizes as the last one.

use crate::memory;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// An array of f32. Its memory goes back to a pool when it is dropped, so that steps do not pay the operating system
/// for fresh pages.
#[derive(Debug, Default)]
pub struct Buffer(Vec<f32>);

/// Free arrays by capacity.
static POOL: Mutex<BTreeMap<usize, Vec<Vec<f32>>>> = Mutex::new(BTreeMap::new());

/// Arrays below this many numbers are left to the ordinary allocator.
const POOLED: usize = 1 << 14;

impl Buffer {
    /// `len` numbers of any value: every operation that takes one overwrites all of it.
    pub fn stale(len: usize) -> Buffer {
        if len < POOLED {
            return Buffer(vec![0.0; len]);
        }
        let capacity = size_class(len);
        let mut pool = POOL.lock().expect("no code panics while it holds the pool");
        // An array of up to half as much again will do: batches differ in size from step to step.
        let mut fitting = pool.range_mut(capacity..=capacity + capacity / 2);
        let found = fitting.find_map(|(_, free)| free.pop());
        drop(pool);
        let mut data = found.unwrap_or_else(|| memory::zeros(capacity));
        data.resize(len, 0.0);
        Buffer(data)
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        let mut buffer = Buffer::stale(len);
        buffer.fill(0.0);
        buffer
    }

    /// Gives the pooled memory back to the operating system.
    pub fn trim_pool() {
        POOL.lock().expect("no code panics while it holds the pool").clear();
    }
}

/// Eight sizes to each power of two: at most an eighth is wasted, and nearly equal sizes share memory.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(1);
    len.div_ceil(step) * step
}

impl From<Vec<f32>> for Buffer {
    fn from(data: Vec<f32>) -> Buffer {
        Buffer(data)
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::stale(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let capacity = self.0.capacity();
        if capacity < POOLED || size_class(capacity) != capacity {
            return;
        }
        if let Ok(mut pool) = POOL.lock() {
            pool.entry(capacity).or_default().push(std::mem::take(&mut self.0));
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.0
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_at_most_an_eighth_and_are_stable() {
        for len in [POOLED, 20_000, 65_537, 1_000_003] {
            let class = size_class(len);
            assert!(class >= len && (class - len) * 8 <= len, "{len} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }

    #[test]
    fn zeros_are_zero_after_reuse() {
        let mut first = Buffer::stale(POOLED * 3);
        first.fill(7.0);
        drop(first);
        assert!(Buffer::zeros(POOLED * 3).iter().all(|&x| x == 0.0));
    }
}
