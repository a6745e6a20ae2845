//! Reusable memory of the GPU: a training step needs the same sizes as the previous one.
//!
//! All work is ordered on one stream, so memory may be reused as soon as it is dropped: work that still reads it runs
//! before work that will write it.

use super::error::{self, DeviceError};
use cudarc::driver::sys;
use std::collections::BTreeMap;

const GRANULE: usize = 512;
const SMALL: usize = 1 << 20;
const LARGE_GRANULE: usize = 2 << 20;

/// The memory use of a GPU, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// In use by arrays.
    pub in_use: usize,
    /// Peak of `in_use` since the GPU was opened or the peak was reset.
    pub peak: usize,
    /// In use by arrays, or free and kept for reuse.
    pub reserved: usize,
    /// Total memory of the GPU.
    pub total: usize,
}

/// The size reserved for `bytes`.
pub(super) fn rounded(bytes: usize) -> usize {
    if bytes <= SMALL { bytes.max(1).next_multiple_of(GRANULE) } else { bytes.next_multiple_of(LARGE_GRANULE) }
}

/// Free blocks by size.
#[derive(Default)]
pub(super) struct FreeBlocks {
    by_size: BTreeMap<usize, Vec<u64>>,
}

impl FreeBlocks {
    /// Takes the smallest block of at least `bytes` and at most a quarter more: `(address, size)`.
    pub(super) fn take(&mut self, bytes: usize) -> Option<(u64, usize)> {
        let (&size, blocks) = self.by_size.range_mut(bytes..=bytes + bytes / 4).next()?;
        let address = blocks.pop().expect("sizes without blocks are removed");
        if blocks.is_empty() {
            self.by_size.remove(&size);
        }
        Some((address, size))
    }

    /// Adds a free block.
    pub(super) fn put(&mut self, address: u64, bytes: usize) {
        self.by_size.entry(bytes).or_default().push(address);
    }

    /// Removes and returns all blocks: `(address, size)`.
    pub(super) fn drain(&mut self) -> Vec<(u64, usize)> {
        let blocks = std::mem::take(&mut self.by_size);
        blocks.into_iter().flat_map(|(size, all)| all.into_iter().map(move |address| (address, size))).collect()
    }
}

/// Free blocks of a GPU, and the counts of memory in use.
#[derive(Default)]
pub(super) struct Arena {
    free: FreeBlocks,
    count: MemoryUse,
}

impl Arena {
    pub(super) fn new(total: usize) -> Arena {
        Arena { free: FreeBlocks::default(), count: MemoryUse { total, ..MemoryUse::default() } }
    }

    pub(super) fn count(&self) -> MemoryUse {
        self.count
    }

    pub(super) fn reset_peak(&mut self) {
        self.count.peak = self.count.in_use;
    }

    /// Takes a block of at least `bytes`: `(address, size)`. `finish` waits for the GPU's work, before blocks are returned
    /// to the driver.
    pub(super) fn take(
        &mut self,
        bytes: usize,
        finish: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(u64, usize), DeviceError> {
        let size = rounded(bytes);
        let block = match self.free.take(size) {
            Some(block) => block,
            None => {
                let address = match allocate(size) {
                    Err(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                        finish()?;
                        self.trim();
                        allocate(size)
                    }
                    result => result,
                };
                let address = match address {
                    Ok(address) => address,
                    Err(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY) => {
                        let MemoryUse { in_use, total, .. } = self.count;
                        return Err(DeviceError::OutOfMemory { asked: bytes, in_use, total });
                    }
                    Err(status) => return Err(error::driver("cuMemAlloc", status).expect_err("it failed")),
                };
                self.count.reserved += size;
                (address, size)
            }
        };
        self.count.in_use += block.1;
        self.count.peak = self.count.peak.max(self.count.in_use);
        Ok(block)
    }

    pub(super) fn put(&mut self, address: u64, size: usize) {
        self.count.in_use -= size;
        self.free.put(address, size);
    }

    /// Returns free blocks to the driver. The context is current, and no pending work uses them.
    pub(super) fn trim(&mut self) {
        for (address, size) in self.free.drain() {
            // SAFETY: the block came from `cuMemAlloc`, is free, and is removed here.
            let _ = unsafe { sys::cuMemFree_v2(address) };
            self.count.reserved -= size;
        }
    }
}

fn allocate(size: usize) -> Result<u64, sys::CUresult> {
    let mut address = 0;
    // SAFETY: the pointer refers to a local.
    match unsafe { sys::cuMemAlloc_v2(&mut address, size) } {
        sys::CUresult::CUDA_SUCCESS => Ok(address),
        status => Err(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_rounded_to_granules() {
        assert_eq!(rounded(0), 512);
        assert_eq!(rounded(513), 1024);
        assert_eq!(rounded(1 << 20), 1 << 20);
        assert_eq!(rounded((1 << 20) + 1), 2 << 20);
        assert_eq!(rounded((2 << 20) + 1), 4 << 20);
    }

    #[test]
    fn the_best_fit_of_at_most_a_quarter_more_is_taken() {
        let mut free = FreeBlocks::default();
        for (address, size) in [(1, 4096), (2, 1024), (3, 1280), (4, 1024)] {
            free.put(address, size);
        }
        assert_eq!(free.take(1536), None, "4096 is too much");
        assert_eq!(free.take(1024), Some((4, 1024)));
        assert_eq!(free.take(1024), Some((2, 1024)));
        assert_eq!(free.take(1024), Some((3, 1280)));
        assert_eq!(free.take(1024), None);
        assert_eq!(free.drain(), [(1, 4096)]);
        assert_eq!(free.take(4096), None);
    }
}
