//! Compiling and loading kernels.
//!
//! A file is compiled by NVRTC for the GPU's architecture on first use of one of its kernels. The machine code is
//! cached in the user's cache folder under a hash of everything it depends on.

use super::error::{DeviceError, driver, locked};
use super::library;
use cudarc::driver::sys;
use cudarc::nvrtc::sys as nvrtc;
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, RwLock};

/// Text prepended to every file.
const COMMON: &str = include_str!("kernels/common.cuh");

/// A file of kernels.
struct File {
    name: &'static str,
    text: &'static str,
    /// Compiled for each size of attention heads; the kernels' names end in the size.
    by_head: bool,
}

macro_rules! file {
    ($name:literal, $by_head:literal) => {
        File { name: $name, text: include_str!(concat!("kernels/", $name)), by_head: $by_head }
    };
}

const FILES: [File; 6] = [
    file!("convert.cu", false),
    file!("rows.cu", false),
    file!("head.cu", false),
    file!("adamw.cu", false),
    file!("attention.cu", true),
    file!("cache.cu", true),
];

/// Shared memory available to every kernel.
const PLAIN_SHARED: u32 = 48 << 10;

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function(pub(super) sys::CUfunction);

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

struct Module(sys::CUmodule);

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Module {}

/// Name of the kernel, and size of heads if it depends on that.
type Key = (&'static str, Option<usize>);

/// The kernels of one GPU.
pub(super) struct Kernels {
    arch: String,
    /// Functions, and the limits of their dynamic shared memory.
    functions: RwLock<HashMap<Key, (Function, u32)>>,
    modules: Mutex<HashMap<(&'static str, Option<usize>), Module>>,
}

impl Kernels {
    pub(super) fn new(capability: (u32, u32)) -> Result<Kernels, DeviceError> {
        library::load_compiler()?;
        Ok(Kernels { arch: architecture(capability), functions: RwLock::default(), modules: Mutex::default() })
    }

    /// Returns a kernel that may use `shared` bytes of dynamic shared memory. The GPU's context is current.
    pub(super) fn function(
        &self,
        kernel: &'static str,
        head_dim: Option<usize>,
        shared: u32,
    ) -> Result<Function, DeviceError> {
        let key = (kernel, head_dim);
        let known = self.functions.read().unwrap_or_else(|error| error.into_inner()).get(&key).copied();
        if let Some((function, allowed)) = known
            && shared <= allowed
        {
            return Ok(function);
        }
        let function = match known {
            Some((function, _)) => function,
            None => self.load(kernel, head_dim)?,
        };
        let allowed = shared.max(PLAIN_SHARED);
        if allowed > PLAIN_SHARED {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is loaded.
            let status = unsafe { sys::cuFuncSetAttribute(function.0, attribute, allowed as i32) };
            driver("cuFuncSetAttribute", status).map_err(|error| DeviceError::Kernel {
                kernel: kernel.into(),
                error: format!("{shared} bytes of shared memory: {error}"),
            })?;
        }
        self.functions.write().unwrap_or_else(|error| error.into_inner()).insert(key, (function, allowed));
        Ok(function)
    }

    /// Finds a kernel, first in loaded files, then in the others.
    fn load(&self, kernel: &'static str, head_dim: Option<usize>) -> Result<Function, DeviceError> {
        let name = match head_dim {
            Some(size) => format!("{kernel}_{size}"),
            None => kernel.to_owned(),
        };
        let symbol = CString::new(name.as_str()).expect("names of kernels have no zero bytes");
        let mut modules = locked(&self.modules);
        let loaded = |modules: &HashMap<_, _>, file: &File| modules.contains_key(&(file.name, head_dim));
        let mut files: Vec<&File> = FILES.iter().filter(|file| file.by_head == head_dim.is_some()).collect();
        files.sort_by_key(|file| !loaded(&modules, file));
        for file in files {
            if !loaded(&modules, file) {
                let cubin = cubin(file, head_dim, &self.arch)?;
                modules.insert((file.name, head_dim), module(file, head_dim, &self.arch, cubin)?);
            }
            let module = &modules[&(file.name, head_dim)];
            let mut function = std::ptr::null_mut();
            // SAFETY: the module is loaded; the pointers refer to a local and to a NUL-terminated string.
            match unsafe { sys::cuModuleGetFunction(&mut function, module.0, symbol.as_ptr()) } {
                sys::CUresult::CUDA_ERROR_NOT_FOUND => {}
                status => return driver("cuModuleGetFunction", status).map(|()| Function(function)),
            }
        }
        Err(DeviceError::Kernel { kernel: name, error: "no file has it".into() })
    }

    /// Unloads all modules; no kernel is running or will be started. The GPU's context is current.
    pub(super) fn close(&self) {
        self.functions.write().unwrap_or_else(|error| error.into_inner()).clear();
        for (_, module) in locked(&self.modules).drain() {
            // SAFETY: the module was loaded in this context and is removed here.
            let _ = unsafe { sys::cuModuleUnload(module.0) };
        }
    }
}

/// Loads machine code. If the driver refuses cached code, which may be damaged, it is compiled again.
fn module(file: &File, head_dim: Option<usize>, arch: &str, cubin: Cubin) -> Result<Module, DeviceError> {
    let load = |code: &[u8]| {
        let mut module = std::ptr::null_mut();
        // SAFETY: the pointer refers to a local; the code is intact ([`sound`]) and lives through the call.
        driver("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, code.as_ptr().cast()) })
            .map(|()| Module(module))
    };
    let named = |error: DeviceError| DeviceError::Kernel { kernel: file.name.into(), error: error.to_string() };
    match load(&cubin.code) {
        Err(_) if cubin.cached => {
            let code = compile(file, head_dim, arch)?;
            store(file, head_dim, arch, &code);
            load(&code).map_err(named)
        }
        result => result.map_err(named),
    }
}

struct Cubin {
    code: Vec<u8>,
    cached: bool,
}

/// Returns the machine code of a file, from the cache or compiled and cached.
fn cubin(file: &File, head_dim: Option<usize>, arch: &str) -> Result<Cubin, DeviceError> {
    let kept = cache_path(file, head_dim, arch).and_then(|path| std::fs::read(path).ok());
    if let Some(code) = kept.and_then(sound) {
        return Ok(Cubin { code, cached: true });
    }
    let code = compile(file, head_dim, arch)?;
    store(file, head_dim, arch, &code);
    Ok(Cubin { code, cached: false })
}

/// Returns the code of a cache file, whose first eight bytes are a hash of the rest; `None` if it is damaged.
fn sound(kept: Vec<u8>) -> Option<Vec<u8>> {
    let (sum, code) = kept.split_first_chunk::<8>()?;
    (u64::from_le_bytes(*sum) == hash([code]) && code.starts_with(b"\x7fELF")).then(|| code.to_vec())
}

/// Writes machine code to the cache. A cache that cannot be written is no failure.
fn store(file: &File, head_dim: Option<usize>, arch: &str, code: &[u8]) {
    if let Some(path) = cache_path(file, head_dim, arch) {
        let _ = keep(&path, code);
    }
}

fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().expect("a file of the cache lies in a folder");
    std::fs::create_dir_all(folder)?;
    // Written under a temporary name and then renamed, so that the file appears complete or not at all.
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let mut kept = hash([code]).to_le_bytes().to_vec();
    kept.extend_from_slice(code);
    let written = std::fs::write(&partial, kept).and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// The cache file of the machine code of a file; `None` without a cache folder.
fn cache_path(file: &File, head_dim: Option<usize>, arch: &str) -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")))?;
    let options = options(head_dim, arch).join(" ");
    let (major, minor) = version().ok()?;
    let compiler = format!("nvrtc {major}.{minor} {}", library::load_compiler().ok()?);
    let name = hash([file.name, COMMON, file.text, &options, &compiler].map(str::as_bytes));
    Some(folder.join("salsa").join("kernels").join(format!("{name:016x}.cubin")))
}

/// FNV-1a over the parts and their lengths.
fn hash<const N: usize>(parts: [&[u8]; N]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        let hash = part.iter().fold(hash, step);
        (part.len() as u64).to_le_bytes().iter().fold(hash, step)
    })
}

/// The compiler's name of an architecture. Hopper-specific instructions need the `a`.
fn architecture((major, minor): (u32, u32)) -> String {
    format!("sm_{major}{minor}{}", if (major, minor) == (9, 0) { "a" } else { "" })
}

fn options(head_dim: Option<usize>, arch: &str) -> Vec<String> {
    let mut options: Vec<String> = ["--std=c++17", "-default-device"].map(String::from).into();
    options.push(format!("--gpu-architecture={arch}"));
    options.extend(head_dim.map(|size| format!("-DHEAD_DIM={size}")));
    options
}

fn version() -> Result<(i32, i32), DeviceError> {
    library::load_compiler()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the pointers refer to locals.
    compiler("nvrtcVersion", unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

fn compiler(call: &str, status: nvrtc::nvrtcResult) -> Result<(), DeviceError> {
    if status == nvrtc::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    Err(DeviceError::Driver { call: call.into(), error: format!("{status:?}") })
}

/// Compiles every file of kernels for an architecture such as `sm_90a`, those made by size of heads for 64, 128 and
/// 256: `(file, bytes of machine code)`. Needs the compiler, but no GPU.
///
/// # Errors
///
/// When the compiler is missing, or fails (with its messages).
pub fn compile_all(arch: &str) -> Result<Vec<(String, usize)>, DeviceError> {
    let mut compiled = Vec::new();
    for file in &FILES {
        let sizes: &[Option<usize>] = if file.by_head { &[Some(64), Some(128), Some(256)] } else { &[None] };
        for &size in sizes {
            let name = size.map_or(file.name.to_owned(), |size| format!("{} for heads of {size}", file.name));
            compiled.push((name, compile(file, size, arch)?.len()));
        }
    }
    Ok(compiled)
}

/// An NVRTC program.
struct Program(nvrtc::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: only this value owns the program.
        let _ = unsafe { nvrtc::nvrtcDestroyProgram(&mut self.0) };
    }
}

fn compile(file: &File, head_dim: Option<usize>, arch: &str) -> Result<Vec<u8>, DeviceError> {
    library::load_compiler()?;
    // `#line` makes messages refer to lines of the files.
    let text = format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{}\"\n{}\n", file.name, file.text);
    let text = CString::new(text).expect("kernels have no zero bytes");
    let name = CString::new(file.name).expect("names have no zero bytes");
    let options: Vec<CString> = options(head_dim, arch)
        .into_iter()
        .map(|option| CString::new(option).expect("options have no zero bytes"))
        .collect();
    let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: all pointers refer to locals and NUL-terminated strings that live through the calls.
    unsafe {
        let (no_headers, no_names) = (std::ptr::null(), std::ptr::null());
        let created = nvrtc::nvrtcCreateProgram(&mut program.0, text.as_ptr(), name.as_ptr(), 0, no_headers, no_names);
        if let Err(error) = compiler("nvrtcCreateProgram", created) {
            std::mem::forget(program);
            return Err(error);
        }
        let status = nvrtc::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr());
        if status != nvrtc::nvrtcResult::NVRTC_SUCCESS {
            let log = log(&program).unwrap_or_default();
            let log = format!("{status:?}\n{}", log.trim_end());
            return Err(DeviceError::Compile { file: file.name.into(), arch: arch.into(), log });
        }
        let mut bytes = 0;
        compiler("nvrtcGetCUBINSize", nvrtc::nvrtcGetCUBINSize(program.0, &mut bytes))?;
        let mut code = vec![0_u8; bytes];
        compiler("nvrtcGetCUBIN", nvrtc::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()))?;
        Ok(code)
    }
}

/// The compiler's messages.
fn log(program: &Program) -> Option<String> {
    let mut bytes = 0;
    // SAFETY: the program is alive; the buffer has the size that the compiler reported, and a final zero.
    unsafe {
        compiler("nvrtcGetProgramLogSize", nvrtc::nvrtcGetProgramLogSize(program.0, &mut bytes)).ok()?;
        let mut log = vec![0_u8; bytes + 1];
        compiler("nvrtcGetProgramLog", nvrtc::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast())).ok()?;
        Some(CStr::from_bytes_until_nul(&log).ok()?.to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_compiles_where_the_compiler_is_found() {
        match library::load_compiler() {
            Err(error) => eprintln!("skipped: {error}"),
            Ok(path) => {
                for arch in ["sm_90a", "sm_80"] {
                    for (name, bytes) in compile_all(arch).unwrap_or_else(|error| panic!("{error}")) {
                        eprintln!("{path} {arch}: {name}, {bytes} bytes");
                        assert!(bytes > 0);
                    }
                }
            }
        }
    }

    #[test]
    fn a_mistake_is_reported_with_its_place() {
        if let Err(error) = library::load_compiler() {
            return eprintln!("skipped: {error}");
        }
        let file = File { name: "wrong.cu", text: "\nextern \"C\" __global__ void f() { g(); }", by_head: false };
        let error = compile(&file, None, "sm_90a").expect_err("there is no g").to_string();
        assert!(error.contains("wrong.cu(2)") && error.contains("sm_90a"), "{error}");
    }

    #[test]
    fn damaged_machine_code_is_not_used() {
        let folder = std::env::temp_dir().join(format!("salsa-kernels-{}", std::process::id()));
        let path = folder.join("deep").join("code.cubin");
        keep(&path, b"\x7fELF and more").expect("the folder for temporary files can be written");
        let kept = std::fs::read(&path).expect("it was written");
        assert_eq!(sound(kept.clone()).as_deref(), Some(&b"\x7fELF and more"[..]));
        assert_eq!(sound(kept[..kept.len() - 1].to_vec()), None);
        assert_eq!(sound(Vec::new()), None);
        assert_eq!(std::fs::read_dir(folder.join("deep")).expect("it exists").count(), 1, "nothing partial is left");
        let _ = std::fs::remove_dir_all(folder);
    }

    #[test]
    fn hopper_has_its_own_instructions() {
        assert_eq!(architecture((9, 0)), "sm_90a");
        assert_eq!(architecture((8, 9)), "sm_89");
        assert_ne!(hash([b"ab", b"c"]), hash([b"a", b"bc"]));
    }
}
