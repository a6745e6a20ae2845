//! What the targets share: a folder in memory, and an end to the process where one allocation is absurd.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::OnceLock;

/// One allocation may have so many bytes: a page of a Parquet file has at most 2 GiB.
const LARGEST: usize = 2 << 30;

struct Ceiling;

#[global_allocator]
static ALLOCATOR: Ceiling = Ceiling;

// SAFETY: it hands every call on unchanged to the system's allocator, or ends the process.
unsafe impl GlobalAlloc for Ceiling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        refuse_absurd(layout.size());
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        refuse_absurd(layout.size());
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        refuse_absurd(size);
        // SAFETY: the caller's promise is the callee's.
        unsafe { System.realloc(memory, layout, size) }
    }
}

fn refuse_absurd(size: usize) {
    if size > LARGEST {
        eprintln!("an allocation of {size} bytes");
        std::process::abort();
    }
}

/// A folder for the files of this process.
#[allow(dead_code, reason = "not every target needs one")]
pub fn dir() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    DIR.get_or_init(|| tempfile::tempdir_in(parent).expect("a temporary folder can be made")).path()
}

/// What is before and behind the first `\n---\n`.
#[allow(dead_code, reason = "not every target needs it")]
pub fn cut(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const BETWEEN: &[u8] = b"\n---\n";
    let at = bytes.windows(BETWEEN.len()).position(|window| window == BETWEEN)?;
    Some((&bytes[..at], &bytes[at + BETWEEN.len()..]))
}
