//! The three binary interfaces of MPI: what a handle is, the values of constants, the functions in use.

use libloading::Library;
use std::ffi::{c_char, c_int, c_void};

/// The binary interface of a library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abi {
    /// That of the MPI standard since 5.0, of any implementation.
    Standard,
    /// MPICH's, which Intel MPI, Cray MPICH and MVAPICH share.
    Mpich,
    /// Open MPI's.
    OpenMpi,
}

impl Abi {
    /// The file name of its libraries.
    pub(super) fn file(self) -> &'static str {
        match self {
            Abi::Standard => "libmpi_abi.so.1",
            Abi::Mpich => "libmpi.so.12",
            Abi::OpenMpi => "libmpi.so.40",
        }
    }
}

/// A handle of MPI, such as a communicator: `c_int` in MPICH's interface, else a number as large as a pointer.
pub(super) trait Handle: Copy + std::fmt::Debug + Send + Sync + 'static {
    /// A value that the library will replace.
    const UNSET: Self;
}

impl Handle for c_int {
    const UNSET: Self = 0;
}

impl Handle for usize {
    const UNSET: Self = 0;
}

/// Values of predefined names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Constants<H> {
    /// `MPI_COMM_WORLD`.
    pub(super) world: H,
    /// `MPI_BYTE`.
    pub(super) byte: H,
    /// `MPI_ERRORS_RETURN`.
    pub(super) errors_return: H,
    /// `MPI_THREAD_FUNNELED`.
    pub(super) funneled: c_int,
}

/// From chapter 20 of the MPI standard, version 5.0.
pub(super) const STANDARD: Constants<usize> =
    Constants { world: 0x101, byte: 0x247, errors_return: 0x143, funneled: 1024 };

/// From MPICH's `mpi.h`.
pub(super) const MPICH: Constants<c_int> =
    Constants { world: 0x4400_0000, byte: 0x4c00_010d, errors_return: 0x5400_0001, funneled: 1 };

/// Open MPI's handles are addresses of variables of the library.
///
/// # Errors
///
/// The name that the library lacks.
pub(super) fn open_mpi(library: &Library) -> Result<Constants<usize>, libloading::Error> {
    let address = |name: &[u8]| {
        // SAFETY: the address of the variable is taken as a number; it is not read.
        let pointer = unsafe { library.get::<*const c_void>(name)?.try_as_raw_ptr() };
        Ok(pointer.map_or(0, |pointer| pointer as usize))
    };
    Ok(Constants {
        world: address(b"ompi_mpi_comm_world\0")?,
        byte: address(b"ompi_mpi_byte\0")?,
        errors_return: address(b"ompi_mpi_errors_return\0")?,
        funneled: 1,
    })
}

/// An `MPI_Status`, read by functions of the library only: 20 bytes in MPICH, 24 in Open MPI, 32 in the standard.
#[repr(C, align(16))]
pub(super) struct Status([u8; 64]);

impl Status {
    /// A status that the library will fill.
    pub(super) fn new() -> Status {
        Status([0; 64])
    }
}

/// Declares [`Functions`] and how they are found.
macro_rules! functions {
    ($($field:ident: $name:literal($($argument:ty),*);)*) => {
        /// The functions of MPI that are called. Each returns an error code, 0 for success.
        #[derive(Debug)]
        pub(super) struct Functions<H> {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl<H: Handle> Functions<H> {
            /// The functions of a library.
            ///
            /// # Safety
            ///
            /// The library is an MPI whose handles are `H`.
            ///
            /// # Errors
            ///
            /// The first function that it lacks.
            pub(super) unsafe fn of(library: &Library) -> Result<Functions<H>, libloading::Error> {
                // SAFETY: the signatures are those of the MPI standard for this kind of handle.
                unsafe { Ok(Functions { $($field: *library.get(concat!($name, "\0").as_bytes())?,)* }) }
            }
        }
    };
}

functions! {
    init_thread: "MPI_Init_thread"(*mut c_int, *mut c_void, c_int, *mut c_int);
    finalize: "MPI_Finalize"();
    abort: "MPI_Abort"(H, c_int);
    rank: "MPI_Comm_rank"(H, *mut c_int);
    size: "MPI_Comm_size"(H, *mut c_int);
    set_errhandler: "MPI_Comm_set_errhandler"(H, H);
    error_string: "MPI_Error_string"(c_int, *mut c_char, *mut c_int);
    isend: "MPI_Isend"(*const c_void, c_int, H, c_int, c_int, H, *mut H);
    irecv: "MPI_Irecv"(*mut c_void, c_int, H, c_int, c_int, H, *mut H);
    test: "MPI_Test"(*mut H, *mut c_int, *mut Status);
    get_count: "MPI_Get_count"(*const Status, H, *mut c_int);
}
