//! Large arrays on large pages.
//!
//! A product walks over matrices of megabytes in strides; with pages of 4 KiB the processor spends a good part of its
//! time on looking up addresses, and the system on handing out pages.

/// Arrays of fewer bytes are left as they are.
const LARGE: usize = 1 << 20;

/// `len` zeros; on Linux the system is asked to back a large array with huge pages.
pub(crate) fn zeros(len: usize) -> Vec<f32> {
    let data = vec![0f32; len];
    if size_of_val(&data[..]) >= LARGE {
        ask_for_huge_pages(&data);
    }
    data
}

/// The same numbers on large pages.
pub(crate) fn settled(data: Vec<f32>) -> Vec<f32> {
    if size_of_val(&data[..]) < LARGE {
        return data;
    }
    let mut copy = zeros(data.len());
    copy.copy_from_slice(&data);
    copy
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages(data: &[f32]) {
    const PAGE: usize = 4096;
    let range = data.as_ptr_range();
    let (from, to) = (range.start.addr().next_multiple_of(PAGE), range.end.addr() / PAGE * PAGE);
    if from < to {
        let at = range.start.cast::<u8>().wrapping_add(from - range.start.addr());
        // SAFETY: the advice covers whole pages inside the array and changes no content. A refusal is no error: the array
        // then stays on small pages.
        unsafe { libc::madvise(at.cast_mut().cast(), to - from, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &[f32]) {}
