//! Finding an MPI library that fits the launcher.

use super::super::LaunchError;
use super::super::launch::Launcher;
use super::abi::Abi;
use libloading::os::unix::{Library as Loaded, RTLD_GLOBAL, RTLD_NOW};
use std::ffi::c_char;
use std::path::{Path, PathBuf};

/// The variable that names the library's file.
const VARIABLE: &str = "SALSA_MPI_LIBRARY";

/// A loaded MPI. It is never unloaded: MPI leaves threads and handlers behind.
#[derive(Debug)]
pub(super) struct Library {
    pub(super) symbols: &'static libloading::Library,
    pub(super) abi: Abi,
    /// Where it was loaded from: a path, or a name that the loader found.
    pub(super) file: String,
    /// Such as `Open MPI 5.0.11`.
    pub(super) version: String,
}

/// Loads the MPI whose launcher started this process. All interfaces may be installed, so the launcher decides; its own
/// folder is searched before the loader's path.
///
/// # Errors
///
/// If there is none: what was tried.
pub(super) fn load(launcher: Launcher) -> Result<Library, LaunchError> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path).display().to_string();
        return open(&path).map_err(|reason| LaunchError(format!("{VARIABLE}={path}: {reason}")));
    }
    let abis = candidates(launcher);
    let (folders, mut reasons) = (folders(|name| std::env::var_os(name).map(PathBuf::from)), Vec::new());
    for abi in abis {
        for folder in &folders {
            let path = folder.join(abi.file());
            if path.is_file() {
                match open(&path.display().to_string()) {
                    Ok(library) => return Ok(library),
                    Err(reason) => reasons.push(reason),
                }
            }
        }
        match open(abi.file()) {
            Ok(library) => return Ok(library),
            Err(reason) => reasons.push(reason),
        }
    }
    let names: Vec<&str> = abis.iter().map(|abi| abi.file()).collect();
    let folders: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    Err(LaunchError(format!(
        "{launcher} started this process, but no MPI library of it was found: {} (looked in {} and the loader's path: {}); \
         add its folder to LD_LIBRARY_PATH or name the file in {VARIABLE}; SALSA_COMM=none runs one process alone",
        names.join(", "),
        folders.join(", "),
        reasons.join("; ")
    )))
}

/// The interfaces that a launcher's library may have, the likeliest first.
fn candidates(launcher: Launcher) -> &'static [Abi] {
    let is_set = |name| std::env::var_os(name).is_some();
    match launcher {
        Launcher::OpenMpi => &[Abi::OpenMpi, Abi::Standard],
        Launcher::Slurm if is_set("PMIX_RANK") => &[Abi::OpenMpi, Abi::Standard, Abi::Mpich],
        Launcher::Slurm if is_set("PMI_RANK") => &[Abi::Mpich, Abi::Standard, Abi::OpenMpi],
        Launcher::Slurm => &[Abi::OpenMpi, Abi::Mpich, Abi::Standard],
        Launcher::Hydra | Launcher::Torchrun => &[Abi::Mpich, Abi::Standard],
    }
}

/// Existing folders where the launcher's library may be.
fn folders(variable: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = variable("OMPI_LIBDIR_LOC").into_iter().collect();
    let prefixes = ["OPAL_PREFIX", "MPI_HOME", "I_MPI_ROOT"].into_iter().filter_map(&variable);
    found.extend(prefixes.flat_map(|prefix| [prefix.join("lib"), prefix.join("lib64"), prefix.join("lib/release")]));
    let path = variable("PATH").unwrap_or_default();
    let named = std::env::split_paths(&path).flat_map(|folder| ["mpiexec", "mpirun"].map(|name| folder.join(name)));
    for launcher in parent().into_iter().chain(named).filter(|file| file.is_file()) {
        // `/usr/bin/mpirun` is a link into a version's own folder in some distributions.
        let real = launcher.canonicalize().unwrap_or_else(|_| launcher.clone());
        for prefix in [&real, &launcher].into_iter().filter_map(|file| file.parent()?.parent()) {
            found.extend(["lib", "lib64"].map(|lib| prefix.join(lib)));
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    found
}

/// The program that started this process: a helper of the launcher, in the launcher's folder.
fn parent() -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{}/exe", std::os::unix::process::parent_id())).ok()
}

/// Loads a library by path or name.
fn open(name: &str) -> Result<Library, String> {
    // SAFETY: the initialisers are those of an MPI library, meant to be loaded so. Its names are global because Open
    // MPI's plugins look for them there.
    let loaded = unsafe { Loaded::open(Some(name), RTLD_NOW | RTLD_GLOBAL) };
    let library: libloading::Library = loaded.map_err(|error| error.to_string())?.into();
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let version = version(library).map_err(|error| format!("{name} is no MPI library: {error}"))?;
    let is = |text: &str| version.starts_with(text);
    let abi = if Path::new(name).file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(b"libmpi_abi.")) {
        Abi::Standard
    } else if is("Open MPI") {
        Abi::OpenMpi
    } else if ["MPICH", "Intel(R) MPI", "MVAPICH", "CRAY MPICH"].iter().any(|name| is(name)) {
        Abi::Mpich
    } else {
        return Err(format!(
            "{name} is {version}, whose binary interface is not known here; MPICH's, Open MPI's and {} are",
            Abi::Standard.file()
        ));
    };
    Ok(Library { symbols: library, abi, file: name.to_owned(), version })
}

/// Name and version: `Open MPI 5.0.11`.
fn version(library: &libloading::Library) -> Result<String, libloading::Error> {
    let mut text = [0u8; 8192];
    // SAFETY: MPI allows this call before its start; the text is at most 8192 bytes long (Open MPI: 256).
    unsafe {
        let function: libloading::Symbol<'_, unsafe extern "C" fn(*mut c_char, *mut i32) -> i32> =
            library.get(b"MPI_Get_library_version\0")?;
        let mut length = 0;
        function(text.as_mut_ptr().cast(), &mut length);
    }
    let text = text.split(|&byte| byte == 0).next().unwrap_or_default();
    Ok(short(&String::from_utf8_lossy(text)))
}

/// The first words of a library's text about itself.
fn short(text: &str) -> String {
    let first = text.split(['\n', ',']).next().unwrap_or_default().replace(" Version:", " ").replace("MPI v", "MPI ");
    first.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_named_shortly() {
        assert_eq!(short("Open MPI v5.0.11, package: Open MPI, ident: 5.0.11"), "Open MPI 5.0.11");
        assert_eq!(short("MPICH Version:      5.0.2\nMPICH Release date: x"), "MPICH 5.0.2");
        assert_eq!(short("Intel(R) MPI Library 2021.19 for Linux* OS\n"), "Intel(R) MPI Library 2021.19 for Linux* OS");
    }

    #[test]
    fn the_folder_beside_the_launcher_is_searched() {
        let dir = std::env::temp_dir().join(format!("salsa-mpi-{}", std::process::id()));
        for folder in ["bin", "lib"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let path = |name: &str| (name == "PATH").then(|| dir.join("bin"));
        assert!(!folders(path).contains(&dir.join("lib")), "there is no launcher yet");
        std::fs::write(dir.join("bin/mpiexec"), "").unwrap();
        assert!(folders(path).contains(&dir.join("lib")));
        std::fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn what_is_no_mpi_is_refused() {
        let error = open("libc.so.6").unwrap_err();
        assert!(error.contains("libc.so.6 is no MPI library"), "{error}");
        assert!(open("/no/such/libmpi.so").is_err());
    }
}
