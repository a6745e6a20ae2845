//! A GPU: one context, one stream, and the operations on them.

use super::error::{self, DeviceError, driver, fail, locked, must};
use super::event::Event;
use super::gemm::Products;
use super::kernels::Kernels;
use super::library::{self, CardInfo};
use super::memory::{Arena, MemoryUse};
use super::profile::Profile;
use super::staging::Staging;
use cudarc::driver::sys;
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

thread_local! {
    /// The GPU whose context is current on this thread.
    static BOUND: Cell<u64> = const { Cell::new(0) };
}

static OPENED: AtomicU64 = AtomicU64::new(0);

/// One GPU: context, stream, memory, kernels, cuBLASLt. All work is ordered on one stream, whichever thread submits it.
pub struct Card {
    /// Number of this opened GPU, unique in the process.
    serial: u64,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    info: CardInfo,
    arena: Mutex<Arena>,
    staging: Mutex<Staging>,
    kernels: Kernels,
    pub(super) products: Mutex<Products>,
    /// Whether to synchronize after every kernel, so that an error names the kernel that failed.
    waits: bool,
    profile: Option<Profile>,
}

// SAFETY: the handles are the driver's, which may be used from any thread once the context is current there
// ([`Card::bind`]); what the driver does not synchronize itself is behind mutexes.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

/// The launch configuration of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Launch {
    /// Blocks in each direction.
    pub blocks: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A kernel argument.
pub(super) trait Argument {
    /// The address of the value.
    fn address(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast::<c_void>().cast_mut()
    }
}

impl Argument for u64 {}
impl Argument for i64 {}
impl Argument for u32 {}
impl Argument for i32 {}
impl Argument for f32 {}

/// The most arguments of a kernel.
const ARGUMENTS: usize = 40;

impl Card {
    /// Opens a GPU: its primary context, shared by all code of the process, and a new stream.
    ///
    /// # Errors
    ///
    /// When a library or the GPU is missing, or the driver refuses.
    pub fn open(index: usize) -> Result<Arc<Card>, DeviceError> {
        library::load()?;
        let device = library::device(index)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer refers to a local; the driver is initialised.
        driver("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        let opened = Card::with_context(device, context);
        if opened.is_err() {
            // SAFETY: the context was retained above and nothing uses it.
            let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(device) };
            BOUND.set(0);
        }
        opened.map(Arc::new)
    }

    fn with_context(device: sys::CUdevice, context: sys::CUcontext) -> Result<Card, DeviceError> {
        BOUND.set(0);
        // SAFETY: the context is retained.
        driver("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        let info = library::describe(device)?;
        let mut stream = std::ptr::null_mut();
        let flag = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the pointer refers to a local.
        driver("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flag) })?;
        let products = Products::new(stream)?;
        let kernels = Kernels::new(info.capability)?;
        Ok(Card {
            serial: 1 + OPENED.fetch_add(1, Ordering::Relaxed),
            device,
            context,
            stream,
            arena: Mutex::new(Arena::new(info.total)),
            staging: Mutex::new(Staging::default()),
            kernels,
            products: Mutex::new(products),
            profile: Profile::asked_for(),
            waits: std::env::var("SALSA_CUDA_SYNC").is_ok_and(|value| value == "1"),
            info,
        })
    }

    /// Properties of the GPU.
    pub fn info(&self) -> &CardInfo {
        &self.info
    }

    pub(super) fn multiprocessors(&self) -> usize {
        self.info.multiprocessors
    }

    /// Makes the GPU's context current on this thread.
    pub(super) fn bind(&self) {
        if BOUND.get() != self.serial {
            // SAFETY: the context lives as long as the GPU.
            must(driver("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) }));
            BOUND.set(self.serial);
        }
    }

    /// Waits until all submitted work is done.
    pub fn synchronize(&self) {
        must(self.finish());
    }

    /// As [`Card::synchronize`], with the failure as a result.
    pub(super) fn finish(&self) -> Result<(), DeviceError> {
        self.bind();
        // SAFETY: the stream lives as long as the GPU.
        driver("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    /// Returns the seconds that the GPU takes for the work that `work` submits.
    pub fn time(&self, work: impl FnOnce()) -> f64 {
        self.bind();
        let events = [Event::new(true), Event::new(true)];
        events[0].record(self.stream);
        work();
        events[1].record(self.stream);
        events[1].wait();
        f64::from(events[1].since(&events[0])) * 1e-3
    }

    pub(super) fn arena(&self) -> MutexGuard<'_, Arena> {
        locked(&self.arena)
    }

    /// The memory use of the GPU.
    pub fn memory(&self) -> MemoryUse {
        self.arena().count()
    }

    /// Resets the peak to the current use.
    pub fn reset_peak(&self) {
        self.arena().reset_peak();
    }

    /// Returns free blocks to the driver.
    pub fn trim(&self) {
        self.synchronize();
        self.arena().trim();
    }

    /// Fills bytes with zeros.
    pub(super) fn clear(&self, to: u64, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bind();
        // SAFETY: the caller's array has that many bytes.
        must(driver("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(to, 0, bytes, self.stream) }));
    }

    /// Copies bytes on the GPU; source and destination do not overlap.
    pub(super) fn copy(&self, from: u64, to: u64, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.bind();
        // SAFETY: the caller's arrays have that many bytes.
        must(driver("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) }));
    }

    /// Copies `rows` rows of `bytes` bytes; consecutive rows are `from.1` and `to.1` bytes apart.
    pub(super) fn copy_rows(&self, from: (u64, usize), to: (u64, usize), bytes: usize, rows: usize) {
        if bytes == 0 || rows == 0 {
            return;
        }
        self.bind();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: from.0,
            srcArray: std::ptr::null_mut(),
            srcPitch: from.1,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: to.0,
            dstArray: std::ptr::null_mut(),
            dstPitch: to.1,
            WidthInBytes: bytes,
            Height: rows,
        };
        // SAFETY: the caller's arrays have these rows.
        must(driver("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream) }));
    }

    /// Fills `rows` rows of `bytes` bytes with zeros; consecutive rows are `to.1` bytes apart.
    pub(super) fn clear_rows(&self, to: (u64, usize), bytes: usize, rows: usize) {
        if bytes == 0 || rows == 0 {
            return;
        }
        self.bind();
        // SAFETY: the caller's array has these rows.
        let status = unsafe { sys::cuMemsetD2D8Async(to.0, to.1, 0, bytes, rows, self.stream) };
        must(driver("cuMemsetD2D8Async", status));
    }

    /// Copies bytes to the GPU. `data` may be changed when this returns, though the copy may still be running.
    pub(super) fn upload(&self, to: u64, data: &[u8]) {
        self.bind();
        must(locked(&self.staging).upload(self.stream, to, data));
    }

    /// Copies bytes from the GPU and waits for them.
    pub(super) fn fetch(&self, from: u64, data: &mut [u8]) {
        self.bind();
        must(locked(&self.staging).download(self.stream, from, data));
    }

    /// Starts a kernel. `arguments` in the order of its parameters: `&u64` for pointers, `&i32`, `&u32`, `&i64`,
    /// `&f32`.
    pub(super) fn launch(&self, kernel: &'static str, shape: Launch, arguments: &[&dyn Argument]) {
        self.measured(|| kernel.into(), || self.start(None, kernel, shape, arguments));
    }

    /// Starts a kernel compiled for one size of attention heads; `kernel` is the name without the size.
    pub(super) fn launch_for(&self, head_dim: usize, kernel: &'static str, shape: Launch, arguments: &[&dyn Argument]) {
        self.measured(|| format!("{kernel}_{head_dim}"), || self.start(Some(head_dim), kernel, shape, arguments));
    }

    /// Runs `work`; when profiling, waits for it and records its time under `name`.
    pub(super) fn measured(&self, name: impl FnOnce() -> String, work: impl FnOnce()) {
        let Some(profile) = &self.profile else { return work() };
        self.synchronize();
        let since = Instant::now();
        work();
        self.synchronize();
        profile.count(name(), since);
    }

    pub(super) fn profile(&self) -> Vec<(String, u64, f64)> {
        self.profile.as_ref().map_or_else(Vec::new, Profile::take)
    }

    fn start(&self, head_dim: Option<usize>, kernel: &'static str, shape: Launch, arguments: &[&dyn Argument]) {
        if shape.blocks.contains(&0) {
            return;
        }
        self.bind();
        let function = must(self.kernels.function(kernel, head_dim, shape.shared));
        assert!(arguments.len() <= ARGUMENTS, "kernel {kernel} has more than {ARGUMENTS} arguments");
        let mut addresses = [std::ptr::null_mut(); ARGUMENTS];
        arguments.iter().zip(&mut addresses).for_each(|(argument, address)| *address = argument.address());
        let [x, y, z] = shape.blocks;
        // SAFETY: the function is loaded in this context; the caller guarantees that the arguments match its
        // parameters; they are read before the call returns.
        let status = unsafe {
            sys::cuLaunchKernel(
                function.0,
                x,
                y,
                z,
                shape.threads,
                1,
                1,
                shape.shared,
                self.stream,
                addresses.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        let failed = |error: String| -> ! {
            let kernel = match head_dim {
                Some(size) => format!("{kernel} for heads of {size}"),
                None => kernel.into(),
            };
            fail(DeviceError::Kernel { kernel, error: format!("{error}; started as {shape:?}") })
        };
        if status != sys::CUresult::CUDA_SUCCESS {
            failed(error::describe(status));
        }
        if self.waits
            && let Err(error) = self.finish()
        {
            failed(error.to_string());
        }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: the context is alive; no other code uses the stream, and no array is left.
        unsafe {
            let _ = sys::cuCtxSetCurrent(self.context);
            let _ = sys::cuStreamSynchronize(self.stream);
        }
        self.arena().trim();
        locked(&self.staging).close();
        locked(&self.products).close();
        self.kernels.close();
        // SAFETY: as above; the context was retained when the GPU was opened.
        unsafe {
            let _ = sys::cuStreamDestroy_v2(self.stream);
            let _ = sys::cuCtxSetCurrent(std::ptr::null_mut());
            let _ = sys::cuDevicePrimaryCtxRelease_v2(self.device);
        }
        let _ = BOUND.try_with(|bound| bound.set(0));
    }
}

impl std::fmt::Debug for Card {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Card({})", self.info.name)
    }
}
