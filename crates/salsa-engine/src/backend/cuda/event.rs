//! Events in a GPU's stream: to wait for work, and to time it.

use super::error::{driver, must};
use cudarc::driver::sys;

/// A point in the stream's order of work.
pub(super) struct Event(pub(super) sys::CUevent);

impl Event {
    /// An event of the current context; without timing it is cheaper.
    pub(super) fn new(timing: bool) -> Event {
        let flag = if timing {
            sys::CUevent_flags_enum::CU_EVENT_DEFAULT
        } else {
            sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING
        };
        let mut event = std::ptr::null_mut();
        // SAFETY: the pointer refers to a local.
        must(driver("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flag as u32) }));
        Event(event)
    }

    pub(super) fn record(&self, stream: sys::CUstream) {
        // SAFETY: event and stream are alive and of the same context.
        must(driver("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream) }));
    }

    pub(super) fn wait(&self) {
        // SAFETY: the event is alive.
        must(driver("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.0) }));
    }

    /// Milliseconds since an earlier event. Both were created with timing and have completed.
    pub(super) fn since(&self, earlier: &Event) -> f32 {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut milliseconds = 0.0;
        // SAFETY: the function has this type under this name in every driver; the bindings know only the newer
        // name, which drivers before CUDA 12.8 lack. The events are alive.
        let status = unsafe {
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0");
            elapsed.map(|elapsed| elapsed(&mut milliseconds, earlier.0, self.0))
        };
        must(driver("cuEventElapsedTime", status.unwrap_or(sys::CUresult::CUDA_ERROR_NOT_FOUND)));
        milliseconds
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: only this value owns the event.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
