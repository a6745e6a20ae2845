//! Finding the libraries, listing the GPUs.

use super::error::{DeviceError, driver};
use cudarc::driver::sys;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq)]
pub struct CardInfo {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Total bytes of memory.
    pub total: usize,
    /// Bytes that are free now; 0 if the query failed.
    pub free: usize,
    /// Compute capability: `(9, 0)` is Hopper.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// The CUDA version of the driver: `(13, 0)`.
    pub driver: (u32, u32),
    /// Files of the loaded libraries.
    pub libraries: Vec<String>,
}

/// A library: its possible names, and a function by which its file is identified.
struct Wanted {
    names: &'static [&'static str],
    function: &'static CStr,
}

const DRIVER: Wanted = Wanted { names: &["libcuda.so.1", "libcuda.so"], function: c"cuInit" };
const PRODUCTS: Wanted =
    Wanted { names: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], function: c"cublasLtCreate" };
const COMPILER: Wanted =
    Wanted { names: &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"], function: c"nvrtcVersion" };

/// The GPUs of this machine.
///
/// # Errors
///
/// When a library is missing (where it was searched, how to install it), or the driver fails.
pub fn available() -> Result<Vec<CardInfo>, DeviceError> {
    load()?;
    (0..count()?).map(|index| describe(device(index)?)).collect()
}

/// Loads the driver, cuBLASLt and the compiler, once. Returns their files.
pub(super) fn load() -> Result<&'static [String], DeviceError> {
    static LOADED: OnceLock<Result<Vec<String>, DeviceError>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let files = vec![find(&DRIVER)?, find(&PRODUCTS)?, load_compiler()?.to_owned()];
        // SAFETY: the driver is loaded; repeated calls are allowed.
        driver("cuInit", unsafe { sys::cuInit(0) })?;
        Ok(files)
    });
    loaded.as_ref().map(Vec::as_slice).map_err(Clone::clone)
}

/// Loads the compiler alone, which needs no GPU. Returns its file.
pub(super) fn load_compiler() -> Result<&'static str, DeviceError> {
    static LOADED: OnceLock<Result<String, DeviceError>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        let file = find(&COMPILER)?;
        // The compiler's own library is in the same folder, where not every loader finds it.
        if let Some(folder) = Path::new(&file).parent() {
            let mut beside = matching(folder, |name| name.starts_with("libnvrtc-builtins.so"));
            beside.sort();
            if let Some(path) = beside.last() {
                let _ = open(path.as_os_str().as_encoded_bytes());
            }
        }
        Ok(file)
    });
    loaded.as_ref().map(String::as_str).map_err(Clone::clone)
}

/// Loads a library so that opening it by name finds it from now on.
fn find(wanted: &Wanted) -> Result<String, DeviceError> {
    let mut reason = None;
    // The driver comes with the system; a toolkit contains only a stub.
    let folders = if std::ptr::eq(wanted.names, DRIVER.names) { Vec::new() } else { folders() };
    for name in wanted.names {
        match open(name.as_bytes()) {
            Ok(handle) => return Ok(file_of(handle, wanted.function).unwrap_or_else(|| (*name).into())),
            Err(error) => reason = reason.or(Some(error)),
        }
        for folder in &folders {
            let path = folder.join(name);
            if !path.exists() {
                continue;
            }
            match open(path.as_os_str().as_encoded_bytes()) {
                Ok(_) => return Ok(path.display().to_string()),
                Err(error) => reason = Some(error),
            }
        }
    }
    let folders = folders.iter().map(|folder| folder.display().to_string());
    Err(DeviceError::Library {
        library: wanted.names[0].into(),
        looked: std::iter::once("the loader's search path".into()).chain(folders).collect(),
        reason: reason.unwrap_or_default(),
    })
}

/// Opens a library by name or path, with global symbols.
fn open(name: &[u8]) -> Result<*mut libc::c_void, String> {
    let name = CString::new(name).map_err(|error| error.to_string())?;
    // SAFETY: the name is NUL-terminated; the initialisers are those of NVIDIA's libraries, meant to be loaded so.
    unsafe {
        let handle = libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL);
        if !handle.is_null() {
            return Ok(handle);
        }
        let error = libc::dlerror();
        if error.is_null() {
            return Err("no reason given".into());
        }
        Err(CStr::from_ptr(error).to_string_lossy().into_owned())
    }
}

/// The file of a loaded library that has this function.
fn file_of(handle: *mut libc::c_void, function: &CStr) -> Option<String> {
    // SAFETY: the handle is an open library's; `info` is a local that `dladdr` fills when it returns other than 0.
    unsafe {
        let address = libc::dlsym(handle, function.as_ptr());
        let mut info: libc::Dl_info = std::mem::zeroed();
        if address.is_null() || libc::dladdr(address, &mut info) == 0 || info.dli_fname.is_null() {
            return None;
        }
        Some(CStr::from_ptr(info.dli_fname).to_string_lossy().into_owned())
    }
}

/// Existing folders where toolkits and Python's wheels keep their libraries.
fn folders() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).collect();
    let mut installed = matching(Path::new("/usr/local"), |name| name.starts_with("cuda"));
    installed.sort();
    toolkits.extend(installed.into_iter().rev());
    for toolkit in toolkits {
        found.extend(
            ["lib64", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib", "lib"].map(|lib| toolkit.join(lib)),
        );
    }
    for prefix in python_prefixes(variable) {
        for python in matching(&prefix.join("lib"), |name| name.starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                for package in matching(&python.join(packages).join("nvidia"), |_| true) {
                    found.push(package.join("lib"));
                }
            }
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    found
}

/// The folders of Python installations on the search path.
fn python_prefixes(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut prefixes: Vec<PathBuf> = variable("VIRTUAL_ENV").into_iter().collect();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).collect::<Vec<_>>();
    if let Some(python) = folders.iter().map(|folder| folder.join("python3")).find(|python| python.is_file()) {
        let real = python.canonicalize().unwrap_or_else(|_| python.clone());
        for python in [python, real] {
            if let Some(prefix) = python.parent().and_then(Path::parent) {
                prefixes.push(prefix.to_owned());
                // pyenv puts only a script that chooses a version on the search path.
                prefixes.extend(matching(&prefix.join("versions"), |_| true));
            }
        }
    }
    prefixes.extend(variable("HOME").map(|home| home.join(".local")));
    prefixes.extend(["/usr/local", "/usr"].map(PathBuf::from));
    prefixes
}

/// Entries of a folder whose names match; none if it cannot be read.
fn matching(folder: &Path, fits: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_str().is_some_and(&fits)).map(|entry| entry.path()).collect()
}

fn count() -> Result<usize, DeviceError> {
    let mut count = 0;
    // SAFETY: the pointer refers to a local; the driver is initialised.
    driver("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// The driver's handle of a GPU. The libraries are loaded.
pub(super) fn device(index: usize) -> Result<sys::CUdevice, DeviceError> {
    let count = count()?;
    if index >= count {
        return Err(DeviceError::NoCard { index, count });
    }
    let mut device = 0;
    // SAFETY: the pointer refers to a local.
    driver("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, index as i32) })?;
    Ok(device)
}

fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32, DeviceError> {
    let mut value = 0;
    // SAFETY: the pointer refers to a local.
    driver("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

/// Properties of a GPU. The libraries are loaded.
pub(super) fn describe(device: sys::CUdevice) -> Result<CardInfo, DeviceError> {
    use sys::CUdevice_attribute as A;
    let mut name = [0; 256];
    let (mut total, mut version) = (0, 0);
    // SAFETY: the pointers refer to locals of the given sizes.
    unsafe {
        driver("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32 - 1, device))?;
        driver("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut total, device))?;
        driver("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
    }
    let name = name.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect::<Vec<_>>();
    let major = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let multiprocessors = attribute(device, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    Ok(CardInfo {
        index: device as usize,
        name: String::from_utf8_lossy(&name).into_owned(),
        total,
        free: free_memory(device).unwrap_or(0),
        capability: (major as u32, minor as u32),
        multiprocessors: multiprocessors as usize,
        driver: (version as u32 / 1000, version as u32 % 1000 / 10),
        libraries: load()?.to_vec(),
    })
}

/// Free bytes of the GPU, queried in its primary context, which is current only meanwhile.
fn free_memory(device: sys::CUdevice) -> Option<usize> {
    let ok = |status| status == sys::CUresult::CUDA_SUCCESS;
    let (mut context, mut old) = (std::ptr::null_mut(), std::ptr::null_mut());
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers refer to locals; the context is retained while it is current.
    unsafe {
        if !ok(sys::cuDevicePrimaryCtxRetain(&mut context, device)) {
            return None;
        }
        let known = ok(sys::cuCtxPushCurrent_v2(context)) && {
            let known = ok(sys::cuMemGetInfo_v2(&mut free, &mut total));
            let _ = sys::cuCtxPopCurrent_v2(&mut old);
            known
        };
        let _ = sys::cuDevicePrimaryCtxRelease_v2(device);
        known.then_some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_card_the_answer_is_an_error_that_says_what_is_missing() {
        match available() {
            Ok(cards) => assert!(cards.iter().all(|card| !card.name.is_empty() && card.total > 0)),
            Err(DeviceError::Library { library, looked, reason }) => {
                let error = DeviceError::Library { library, looked, reason }.to_string();
                assert!(error.contains("was not found") && error.contains("nstall") || error.contains("driver"));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
        assert_eq!(available(), available());
    }
}
