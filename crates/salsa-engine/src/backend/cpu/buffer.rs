//! Reusable arrays of f32: a training step needs the same sizes as the previous one.

use crate::memory::{Array, ArrayPool, Taken};
use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// An array of f32. Dropping it returns its memory to a pool, so that steps do not pay the operating system for fresh
/// pages.
#[derive(Debug, Default)]
pub struct Buffer {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    /// Allocated by the global allocator.
    Own(Vec<f32>),
    /// Taken from the pool; the array may be longer than the buffer.
    Pooled(Array),
}

impl Default for Memory {
    fn default() -> Memory {
        Memory::Own(Vec::new())
    }
}

static POOL: Mutex<ArrayPool<Array>> = Mutex::new(ArrayPool::new());

/// Shorter arrays come from the global allocator.
pub(crate) const POOLED: usize = 1 << 14;

impl Buffer {
    /// Returns `len` numbers with unspecified values, for operations that overwrite all of them.
    pub fn uninitialized(len: usize) -> Buffer {
        if len < POOLED {
            return Buffer::from(vec![0.0; len]);
        }
        let taken = POOL.lock().expect("no code panics while it holds the pool").take(len);
        Buffer::of(taken, len)
    }

    /// As [`Buffer::uninitialized`], for long-lived numbers: the array has exactly `len` of them.
    pub fn lasting(len: usize) -> Buffer {
        if len < POOLED {
            return Buffer::from(vec![0.0; len]);
        }
        let taken = POOL.lock().expect("no code panics while it holds the pool").take_exact(len);
        Buffer::of(taken, len)
    }

    fn of(taken: Taken<Array>, len: usize) -> Buffer {
        let array = match taken {
            Taken::Free(_, array) => array,
            Taken::New(capacity, gone) => {
                drop(gone);
                Array::zeros(capacity)
            }
        };
        Buffer { memory: Memory::Pooled(array), len }
    }

    /// Returns the bytes in use by all large buffers of the process, and their peak.
    pub fn in_use() -> [usize; 2] {
        let pool = POOL.lock().expect("no code panics while it holds the pool");
        pool.in_use().map(|numbers| numbers * size_of::<f32>())
    }

    /// Returns pooled memory to the operating system and resets the peak.
    pub fn trim_pool() {
        let free = POOL.lock().expect("no code panics while it holds the pool").trim();
        drop(free);
    }

    /// Returns `len` zeros.
    pub fn zeros(len: usize) -> Buffer {
        let mut buffer = Buffer::uninitialized(len);
        buffer.fill(0.0);
        buffer
    }
}

impl From<Vec<f32>> for Buffer {
    fn from(data: Vec<f32>) -> Buffer {
        Buffer { len: data.len(), memory: Memory::Own(data) }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::uninitialized(self.len());
        copy.copy_from_slice(self);
        copy
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Pooled(array) = std::mem::take(&mut self.memory)
            && let Ok(mut pool) = POOL.lock()
        {
            pool.put(array.len(), array);
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match &self.memory {
            Memory::Own(data) => data,
            Memory::Pooled(array) => &array.numbers()[..self.len],
        }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.memory {
            Memory::Own(data) => data,
            Memory::Pooled(array) => &mut array.numbers_mut()[..self.len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zero_after_reuse() {
        let mut first = Buffer::uninitialized(POOLED * 3);
        first.fill(7.0);
        drop(first);
        assert!(Buffer::zeros(POOLED * 3).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn a_buffer_has_the_numbers_asked_for_in_a_larger_array() {
        for len in [3, POOLED, POOLED + 1, (1 << 20) + 1] {
            let mut buffer = Buffer::uninitialized(len);
            assert_eq!(buffer.len(), len);
            buffer.fill(2.0);
            let copy = buffer.clone();
            drop(buffer);
            assert!(copy.len() == len && copy.iter().all(|&x| x == 2.0));
        }
    }
}
