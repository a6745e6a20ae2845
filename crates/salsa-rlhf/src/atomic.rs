//! Files and folders that are either whole or absent, whatever interrupts the program.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use sha2::{Digest, Sha256};

/// Replaces the file `path` by `bytes`: a reader sees the old content or the new one, never a part.
///
/// # Errors
/// Names the path and the cause; the old content is then still there and no temporary file is left.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| Ok(out.write_all(bytes)?))
}

/// Replaces the file `path` by what `fill` writes, without holding it in memory.
///
/// The bytes go to `PATH.tmp` in the same folder, which is synced to disk and then renamed. A `PATH.tmp` left by a
/// killed process is overwritten.
///
/// # Errors
/// As [`write()`], and whatever `fill` returns.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let tmp = beside(path, ".tmp")?;
    let written = fill_file(&tmp, fill).and_then(|()| rename(&tmp, path)).and_then(|()| sync_folder_of(path));
    written.inspect_err(|_| drop(fs::remove_file(&tmp))).with_context(|| format!("cannot write {}", path.display()))
}

/// Replaces the folder `path` by one that `fill` writes: it is handed `PATH.tmp`, empty, which becomes `path` when it
/// returns.
///
/// An existing `path` is moved aside to `PATH.old` and removed afterwards; if the program is killed between the two
/// renames, the next call puts it back first.
///
/// # Errors
/// Names the path and the cause; what was at `path` before is then still there.
pub fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (tmp, old) = (beside(path, ".tmp")?, beside(path, ".old")?);
    let replaced = (|| {
        if old.exists() && !path.exists() {
            rename(&old, path)?;
        }
        remove(&tmp)?;
        remove(&old)?;
        fs::create_dir_all(&tmp).map_err(|e| explain(&e, &format!("cannot create {}", tmp.display())))?;
        fill(&tmp)?;
        sync_tree(&tmp)?;
        if path.exists() {
            rename(path, &old)?;
        }
        if let Err(error) = rename(&tmp, path) {
            if old.exists() {
                rename(&old, path)?;
            }
            return Err(error);
        }
        sync_folder_of(path)?;
        remove(&old)
    })();
    replaced.inspect_err(|_| drop(remove(&tmp))).with_context(|| format!("cannot write folder {}", path.display()))
}

/// The SHA-256 of a file's bytes, in lower-case hexadecimal.
///
/// # Errors
/// When the file cannot be read; names it.
pub fn sha256_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk).with_context(|| format!("cannot read {}", path.display()))? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&chunk[..n]),
        }
    }
}

/// Bytes in lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn fill_file(tmp: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    if let Some(folder) = tmp.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).map_err(|e| explain(&e, &format!("cannot create {}", folder.display())))?;
    }
    let file = File::create(tmp).map_err(|e| explain(&e, &format!("cannot create {}", tmp.display())))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out).map_err(name_full_disk)?;
    let file = out.into_inner().map_err(|e| explain(e.error(), "the last bytes could not be written"))?;
    file.sync_all().map_err(|e| explain(&e, "the file could not be synced to disk"))
}

/// `PATH` with `suffix` appended to its last component.
fn beside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| anyhow!("{} names no file or folder to write", path.display()))?;
    let mut name: OsString = name.to_owned();
    name.push(suffix);
    Ok(path.with_file_name(name))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| explain(&e, &format!("cannot rename {} to {}", from.display(), to.display())))
}

fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(|e| explain(&e, &format!("cannot remove {}", path.display())))
}

fn sync_tree(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            sync(&path)?;
        }
    }
    sync(folder)
}

fn sync_folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => sync(folder),
        _ => sync(Path::new(".")),
    }
}

fn sync(path: &Path) -> Result<()> {
    // Folders cannot be opened for syncing everywhere; there a rename is as durable as the system makes it.
    match File::open(path) {
        Err(_) if path.is_dir() => Ok(()),
        Err(e) => Err(explain(&e, &format!("cannot sync {}", path.display()))),
        Ok(file) => match file.sync_all() {
            Err(e) if !path.is_dir() => Err(explain(&e, &format!("cannot sync {}", path.display()))),
            _ => Ok(()),
        },
    }
}

/// An input/output error with what was tried and, where there is one, the remedy.
pub(crate) fn explain(error: &io::Error, what: &str) -> anyhow::Error {
    match remedy(error.kind()) {
        Some(remedy) => anyhow!("{what}: {error}; {remedy}"),
        None => anyhow!("{what}: {error}"),
    }
}

fn name_full_disk(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<io::Error>().and_then(|e| remedy(e.kind())) {
        Some(remedy) => anyhow!("{error:#}; {remedy}"),
        None => error,
    }
}

fn remedy(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::StorageFull => {
            Some("the disk is full: free some space or write to another disk, then run again")
        }
        io::ErrorKind::QuotaExceeded => Some("the disk quota is used up: free some space, then run again"),
        io::ErrorKind::PermissionDenied => Some("choose a folder you may write to"),
        io::ErrorKind::ReadOnlyFilesystem => Some("the disk is read-only: choose another output folder"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_no_temporary_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/x.json");
        write(&path, b"one").unwrap();
        fs::write(dir.path().join("deep/er/x.json.tmp"), b"left by a killed process").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        write(&path, b"old").unwrap();
        let error = write_with(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull).into())
        })
        .unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("disk is full") && text.contains(&path.display().to_string()), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_is_named() {
        let full = Path::new("/dev/full");
        if !full.exists() {
            println!("skipped: this system has no /dev/full");
            return;
        }
        let mut out = BufWriter::new(File::create(full).unwrap());
        out.write_all(b"x").unwrap();
        let error = explain(out.into_inner().unwrap_err().error(), "writing");
        assert!(error.to_string().contains("disk is full"), "{error}");
    }

    #[test]
    fn a_rename_onto_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("x")).unwrap();
        fs::write(dir.path().join("x/y"), b"").unwrap();
        let text = format!("{:#}", write(&dir.path().join("x"), b"1").unwrap_err());
        assert!(text.contains("cannot write") && text.contains("cannot rename"), "{text}");
    }

    #[test]
    fn a_folder_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        replace_dir(&path, |tmp| write(&tmp.join("a"), b"1")).unwrap();
        fs::create_dir(dir.path().join("run.tmp")).unwrap();
        fs::write(dir.path().join("run.tmp/stale"), b"").unwrap();
        replace_dir(&path, |tmp| write(&tmp.join("b/c"), b"2")).unwrap();
        assert_eq!(fs::read(path.join("b/c")).unwrap(), b"2");
        assert!(!path.join("a").exists() && !path.join("stale").exists());
        replace_dir(&path, |_| Err(anyhow!("no"))).unwrap_err();
        assert!(path.join("b/c").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_moved_aside_by_a_killed_process_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run");
        replace_dir(&path, |tmp| write(&tmp.join("a"), b"1")).unwrap();
        fs::rename(&path, dir.path().join("run.old")).unwrap();
        replace_dir(&path, |_| Err(anyhow!("no"))).unwrap_err();
        assert!(path.join("a").exists());
    }

    #[test]
    fn hashes_are_those_of_sha256sum() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        fs::write(&path, b"abc").unwrap();
        assert_eq!(sha256_file(&path).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn a_path_without_a_name_is_refused() {
        assert!(write(Path::new("/"), b"").unwrap_err().to_string().contains("names no file"));
    }
}
