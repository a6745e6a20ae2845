//! Large arrays on huge pages, and reusable arrays.
//!
//! A product reads matrices of megabytes in strides; with pages of 4 KiB the CPU spends much of its time on address
//! translation, and the system on providing pages.

mod free;

pub(crate) use free::{ArrayPool, Taken};

use memmap2::MmapMut;

/// Arrays of fewer bytes use ordinary pages.
const LARGE: usize = 1 << 20;

/// Returns `len` zeros; on Linux the system is requested to back a large array with huge pages.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let data = vec![0f32; len];
    if size_of_val(&data[..]) >= LARGE {
        advise_huge_pages(&data);
    }
    data
}

/// Moves the numbers to huge pages if there are many.
pub(crate) fn settled(data: Vec<f32>) -> Vec<f32> {
    if size_of_val(&data[..]) < LARGE {
        return data;
    }
    let mut copy = zeros(data.len());
    copy.copy_from_slice(&data);
    copy
}

/// An array whose memory returns to the system when it is dropped. A large one is mapped separately: the allocator
/// would retain some of the freed memory, which would make a process's memory unpredictable.
#[derive(Debug)]
pub(crate) enum Array {
    Heap(Vec<f32>),
    Pages(MmapMut),
}

impl Array {
    /// Returns `len` zeros.
    pub(crate) fn zeros(len: usize) -> Array {
        let bytes = len * size_of::<f32>();
        if bytes < LARGE {
            return Array::Heap(vec![0.0; len]);
        }
        match MmapMut::map_anon(bytes) {
            Ok(pages) => {
                // A refusal is no error: the array then uses ordinary pages.
                #[cfg(target_os = "linux")]
                let _ = pages.advise(memmap2::Advice::HugePage);
                Array::Pages(pages)
            }
            // Lets the allocator report the failure.
            Err(_) => Array::Heap(vec![0.0; len]),
        }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        match self {
            Array::Heap(data) => data.len(),
            Array::Pages(pages) => pages.len() / size_of::<f32>(),
        }
    }

    pub(crate) fn numbers(&self) -> &[f32] {
        match self {
            Array::Heap(data) => data,
            // SAFETY: pages are aligned to more than an f32, hold `len` of them, and every bit pattern is one.
            Array::Pages(pages) => unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), self.len()) },
        }
    }

    pub(crate) fn numbers_mut(&mut self) -> &mut [f32] {
        let len = self.len();
        match self {
            Array::Heap(data) => data,
            // SAFETY: as above, and the borrow of the array is unique.
            Array::Pages(pages) => unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) },
        }
    }
}

#[cfg(target_os = "linux")]
fn advise_huge_pages(data: &[f32]) {
    const PAGE: usize = 4096;
    let range = data.as_ptr_range();
    let (from, to) = (range.start.addr().next_multiple_of(PAGE), range.end.addr() / PAGE * PAGE);
    if from < to {
        let at = range.start.cast::<u8>().wrapping_add(from - range.start.addr());
        // SAFETY: the advice covers whole pages inside the array and changes no content. A refusal is no error: the
        // array then uses ordinary pages.
        unsafe { libc::madvise(at.cast_mut().cast(), to - from, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: &[f32]) {}
