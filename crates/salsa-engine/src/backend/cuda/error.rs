//! Errors of a GPU.

use cudarc::cublaslt::sys as blas;
use cudarc::driver::sys as driver;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A failure of the GPU, the driver or a library. Operations, which return no `Result`, panic with it as the payload.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum DeviceError {
    /// A library is missing.
    #[error(
        "{library} was not found ({reason}); looked for in: {}. {}",
        looked.join(", "),
        install(library)
    )]
    Library {
        /// Its file name.
        library: String,
        /// Where it was searched.
        looked: Vec<String>,
        /// The loader's message.
        reason: String,
    },
    /// There is no such GPU.
    #[error("no GPU with number {index}: the driver knows {count}")]
    NoCard {
        /// The requested number.
        index: usize,
        /// How many GPUs there are.
        count: usize,
    },
    /// A call of the driver failed.
    #[error("{call}: {error}")]
    Driver {
        /// The function.
        call: String,
        /// The driver's name of the failure.
        error: String,
    },
    /// Starting or running a kernel failed.
    #[error("kernel {kernel}: {error}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// The driver's error.
        error: String,
    },
    /// A kernel file did not compile.
    #[error("{file} does not compile for {arch}:\n{log}")]
    Compile {
        /// The file.
        file: String,
        /// The architecture.
        arch: String,
        /// The compiler's messages.
        log: String,
    },
    /// cuBLASLt refused or failed.
    #[error("{call}: {error} ({shape})")]
    Product {
        /// The function.
        call: String,
        /// Its status.
        error: String,
        /// The requested product.
        shape: String,
    },
    /// The GPU is out of memory.
    #[error(
        "the GPU's memory is full: {} asked for, {} of {} in use. A smaller batch or sequence length, bf16, or LoRA needs less",
        mib(*asked), mib(*in_use), mib(*total)
    )]
    OutOfMemory {
        /// Bytes requested.
        asked: usize,
        /// Bytes in use by this program's arrays.
        in_use: usize,
        /// Total bytes of the GPU.
        total: usize,
    },
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn install(library: &str) -> &'static str {
    if library.starts_with("libcuda.") {
        "It comes with NVIDIA's driver"
    } else {
        "Install the CUDA toolkit or `pip install nvidia-cublas nvidia-cuda-nvrtc`; CUDA_HOME names a toolkit elsewhere"
    }
}

/// The result of a call of the driver.
pub(super) fn driver(call: &str, status: driver::CUresult) -> Result<(), DeviceError> {
    if status == driver::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    Err(DeviceError::Driver { call: call.into(), error: describe(status) })
}

/// The driver's name of a failure, and its explanation.
pub(super) fn describe(status: driver::CUresult) -> String {
    let mut text = format!("{status:?}");
    let mut explanation = std::ptr::null();
    // SAFETY: the pointer refers to a local; the driver sets it to a constant string or to null.
    unsafe {
        if driver::cuGetErrorString(status, &mut explanation) == driver::CUresult::CUDA_SUCCESS
            && !explanation.is_null()
        {
            let explanation = std::ffi::CStr::from_ptr(explanation).to_string_lossy();
            write!(text, " ({explanation})").expect("strings take all text");
        }
    }
    text
}

/// The result of a call of cuBLASLt; `shape` is called on failure.
pub(super) fn product(
    call: &str,
    status: blas::cublasStatus_t,
    shape: impl FnOnce() -> String,
) -> Result<(), DeviceError> {
    if status == blas::cublasStatus_t::CUBLAS_STATUS_SUCCESS {
        return Ok(());
    }
    Err(DeviceError::Product { call: call.into(), error: format!("{status:?}"), shape: shape() })
}

/// Returns the value, or panics with the error as the payload.
pub(super) fn must<T>(result: Result<T, DeviceError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fail(error),
    }
}

/// Panics with the error as the payload.
pub(super) fn fail(error: DeviceError) -> ! {
    std::panic::panic_any(error)
}

/// Locks a mutex, poisoned or not: the data are consistent whenever an error of the GPU panics.
pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
