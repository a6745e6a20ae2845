//! Copies between host memory and the GPU's, through pinned memory.
//!
//! Segments of pinned memory are filled in turn. An event marks the last copy out of a segment and is waited for before
//! the segment is filled again, so that filling one overlaps with copying the others.

use super::error::{DeviceError, driver};
use super::event::Event;
use cudarc::driver::sys;

const SEGMENT: usize = 16 << 20;
const SEGMENTS: usize = 4;
const ALIGNMENT: usize = 256;

/// Pinned memory, allocated at the first copy.
#[derive(Default)]
pub(super) struct Staging {
    segments: Vec<Segment>,
    current: usize,
    /// Bytes of the current segment in use.
    used: usize,
}

struct Segment {
    memory: *mut u8,
    /// The last copy from this segment, if one was started since the last wait.
    last: Option<Event>,
}

impl Staging {
    fn open(&mut self) -> Result<(), DeviceError> {
        while self.segments.len() < SEGMENTS {
            let mut memory = std::ptr::null_mut();
            // SAFETY: the pointer refers to a local.
            driver("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut memory, SEGMENT, 0) })?;
            self.segments.push(Segment { memory: memory.cast(), last: None });
        }
        Ok(())
    }

    /// Switches to the next segment and waits until it can be filled.
    fn turn(&mut self, stream: sys::CUstream) {
        let left = Event::new(false);
        left.record(stream);
        self.segments[self.current].last = Some(left);
        self.current = (self.current + 1) % SEGMENTS;
        self.used = 0;
        if let Some(last) = self.segments[self.current].last.take() {
            last.wait();
        }
    }

    /// Copies bytes to the GPU; `data` has been read when this returns.
    pub(super) fn upload(&mut self, stream: sys::CUstream, to: u64, data: &[u8]) -> Result<(), DeviceError> {
        if data.is_empty() {
            return Ok(());
        }
        self.open()?;
        let (mut to, mut data) = (to, data);
        while !data.is_empty() {
            // A small upload is not split.
            if self.used == SEGMENT || (data.len() <= SEGMENT / 16 && self.used + data.len() > SEGMENT) {
                self.turn(stream);
            }
            let piece = data.len().min(SEGMENT - self.used);
            // SAFETY: the segment has `piece` bytes from `used` on, which no running copy reads: those started before
            // the segment was entered have ended, those since then read other bytes.
            let from = unsafe {
                let from = self.segments[self.current].memory.add(self.used);
                from.copy_from_nonoverlapping(data.as_ptr(), piece);
                from
            };
            // SAFETY: the caller's array has that many bytes; the source is unchanged until the event after it.
            driver("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from.cast(), piece, stream) })?;
            self.used = (self.used + piece).next_multiple_of(ALIGNMENT).min(SEGMENT);
            to += piece as u64;
            data = &data[piece..];
        }
        Ok(())
    }

    /// Copies bytes from the GPU and waits for them.
    pub(super) fn download(&mut self, stream: sys::CUstream, from: u64, data: &mut [u8]) -> Result<(), DeviceError> {
        if data.is_empty() {
            return Ok(());
        }
        self.open()?;
        let mut from = from;
        // Two segments in turn: the CPU reads one while the GPU fills the other.
        let mut waiting: Option<(Event, usize, &mut [u8])> = None;
        for piece in data.chunks_mut(SEGMENT) {
            if self.used + piece.len() > SEGMENT {
                self.turn(stream);
            }
            let (segment, at) = (self.current, self.used);
            // SAFETY: the segment has that many bytes from `at` on, which nothing else uses; so has the caller's array.
            driver("cuMemcpyDtoHAsync", unsafe {
                let to = self.segments[segment].memory.add(at);
                sys::cuMemcpyDtoHAsync_v2(to.cast(), from, piece.len(), stream)
            })?;
            self.used = (at + piece.len()).next_multiple_of(ALIGNMENT).min(SEGMENT);
            let arrived = Event::new(false);
            arrived.record(stream);
            from += piece.len() as u64;
            // SAFETY: inside the segment, as above.
            let source = unsafe { self.segments[segment].memory.add(at) } as usize;
            if let Some(earlier) = waiting.replace((arrived, source, piece)) {
                take(earlier);
            }
        }
        waiting.into_iter().for_each(take);
        Ok(())
    }

    /// Frees the memory; all copies have ended.
    pub(super) fn close(&mut self) {
        for segment in self.segments.drain(..) {
            drop(segment.last);
            // SAFETY: the memory came from `cuMemHostAlloc` and is removed here.
            let _ = unsafe { sys::cuMemFreeHost(segment.memory.cast()) };
        }
    }
}

/// Copies a piece to its destination once the GPU has written it to pinned memory.
fn take((arrived, source, piece): (Event, usize, &mut [u8])) {
    arrived.wait();
    // SAFETY: the copy before the event wrote that many bytes there, and nothing has used the place since.
    unsafe { std::ptr::copy_nonoverlapping(source as *const u8, piece.as_mut_ptr(), piece.len()) };
}
