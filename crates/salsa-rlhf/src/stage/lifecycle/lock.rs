//! One process per output directory.
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

use crate::atomic;

/// Holds `DIR/.lock` until dropped. The operating system releases the lock of a killed process.
#[derive(Debug)]
pub(crate) struct Lock {
    path: PathBuf,
    file: File,
}

impl Lock {
    /// Locks an existing directory. An existing `.lock` is neither followed, if it is a link, nor truncated.
    ///
    /// # Errors
    /// If another process holds it, the directory cannot be written, or `.lock` is no file.
    pub(crate) fn take(dir: &Path) -> anyhow::Result<Lock> {
        let path = dir.join(".lock");
        loop {
            let file = atomic::open_to_continue(&path).with_context(|| format!("cannot write in {}", dir.display()))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => bail!(
                    "{} is being written by another salsa process; wait for it or choose another output directory",
                    dir.display()
                ),
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            // The previous holder may have removed the file between opening and locking it here.
            if atomic::is_at(&file, &path) {
                return Ok(Lock { path, file });
            }
        }
    }
}

impl Lock {
    /// Updates the path after the locked directory was renamed to `dir`.
    pub(crate) fn moved_to(&mut self, dir: &Path) {
        self.path = dir.join(".lock");
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Removed while still locked, so no lock of another process is removed. On failure, an empty, unlocked file
        // remains.
        let _ = fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let refused = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another salsa process"), "{refused}");
        drop(first);
        assert!(!dir.path().join(".lock").exists());
        Lock::take(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_refused_and_what_it_names_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("other");
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink("other", dir.path().join(".lock")).unwrap();
        let refused = format!("{:#}", Lock::take(dir.path()).unwrap_err());
        assert!(refused.contains(".lock is a symbolic link; remove it"), "{refused}");
        assert_eq!(fs::read(other).unwrap(), b"precious");
    }
}
