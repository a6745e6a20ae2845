//! Caches digests of files that this process has read: a PPO run may use one base model in five roles, and each stage
//! of a recipe uses it again.
use std::{
    collections::HashMap,
    fs::{self, Metadata},
    path::Path,
    sync::{Arc, Mutex, OnceLock},
};

use crate::atomic;

/// Identifies a version of a file: differs between files, and changes with every change of the file.
type Identity = [i128; 4];

/// A file's digest, computed by the first caller.
type Known = Arc<Mutex<Option<String>>>;

/// The SHA-256 of a file, as [`atomic::sha256_file`].
///
/// # Errors
/// If the file cannot be read; the error names it.
pub(super) fn sha256(path: &Path) -> anyhow::Result<String> {
    digest(path, SETTLED)
}

fn digest(path: &Path, settled: i128) -> anyhow::Result<String> {
    let Some(identity) = identity(path, settled) else { return atomic::sha256_file(path) };
    let known = known(identity);
    let mut known = known.lock().expect("a reader that panics ends the program");
    if let Some(digest) = &*known {
        return Ok(digest.clone());
    }
    let digest = atomic::sha256_file(path)?;
    // A file that changed while it was read now has another identity, so its digest is not cached.
    if self::identity(path, settled) == Some(identity) {
        *known = Some(digest.clone());
    }
    Ok(digest)
}

/// The cache entry of a file.
fn known(identity: Identity) -> Known {
    static KNOWN: OnceLock<Mutex<HashMap<Identity, Known>>> = OnceLock::new();
    let mut known = KNOWN.get_or_init(Mutex::default).lock().expect("no code panics under this lock");
    known.entry(identity).or_default().clone()
}

/// `None` if the system provides no identity, or if the file changed so recently that another change could get the same
/// time.
fn identity(path: &Path, settled: i128) -> Option<Identity> {
    let file = fs::metadata(path).ok()?;
    let changed = changed(&file)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos() as i128;
    (now - changed > settled).then(|| of(&file, changed))
}

/// Nanoseconds after which a file counts as settled: more than the clock resolution of any file system.
const SETTLED: i128 = 3_000_000_000;

/// Time of the last change of the file or its metadata, in nanoseconds since 1970. Programs cannot set this time.
#[cfg(unix)]
fn changed(file: &Metadata) -> Option<i128> {
    use std::os::unix::fs::MetadataExt;
    Some(i128::from(file.ctime()) * 1_000_000_000 + i128::from(file.ctime_nsec()))
}

#[cfg(unix)]
fn of(file: &Metadata, changed: i128) -> Identity {
    use std::os::unix::fs::MetadataExt;
    [file.dev().into(), file.ino().into(), file.size().into(), changed]
}

#[cfg(not(unix))]
fn changed(_: &Metadata) -> Option<i128> {
    None
}

#[cfg(not(unix))]
fn of(file: &Metadata, changed: i128) -> Identity {
    [0, 0, file.len().into(), changed]
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_settled_file_is_read_once_and_a_changed_one_again() {
        const SOON: i128 = 100_000_000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let settle = || std::thread::sleep(Duration::from_nanos(SOON as u64 + 20_000_000));
        fs::write(&path, "abc").unwrap();
        assert_eq!(identity(&path, SETTLED), None, "it has just been written");
        settle();
        let (before, first) = (identity(&path, SOON).expect("it has settled"), digest(&path, SOON).unwrap());
        assert_eq!(first, atomic::sha256_file(&path).unwrap());
        assert_eq!(*known(before).lock().unwrap(), Some(first.clone()));
        // The cached digest is returned: the file is not read again.
        *known(before).lock().unwrap() = Some("remembered".to_owned());
        assert_eq!(digest(&path, SOON).unwrap(), "remembered");
        // Same length and modification time: the system still detects the change.
        let times = fs::FileTimes::new().set_modified(fs::metadata(&path).unwrap().modified().unwrap());
        fs::write(&path, "abd").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        settle();
        assert_ne!(identity(&path, SOON), Some(before));
        assert_eq!(digest(&path, SOON).unwrap(), atomic::sha256_file(&path).unwrap());
        assert_ne!(digest(&path, SOON).unwrap(), first);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = format!("{:#}", sha256(Path::new("/nowhere/x")).unwrap_err());
        assert!(error.starts_with("cannot read /nowhere/x"), "{error}");
    }
}
