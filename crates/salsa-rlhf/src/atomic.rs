//! Atomic writes of files and folders: after an interruption they are either complete or absent.
//!
//! A file is written under a unique temporary name, `NAME.PROCESS-COUNT.tmp`, opened without following or truncating
//! anything existing, and renamed once it is complete. It is locked while it is written: unlocked ones were left by
//! killed processes and are removed at the next write of the same file.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Read, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context, Result, anyhow, bail};
use sha2::{Digest, Sha256};

use crate::input;

/// Replaces the file `path` by `bytes`: a reader sees either the old or the new content.
///
/// # Errors
/// As [`write_with()`].
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| Ok(out.write_all(bytes)?))
}

/// Replaces the file `path` by the output of `fill`, without holding it in memory.
///
/// The bytes are written to a temporary file in the same folder, which is synced to disk and then renamed. A symbolic
/// link at `path` is replaced, not followed. A pipe or a character device (`/dev/stdout`, `/dev/null`, a FIFO) is
/// written directly; such output cannot be undone.
///
/// # Errors
/// Names the path and the cause; the old content is then unchanged and no temporary file remains.
pub(crate) fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let written = match stream(path) {
        Ok(Some(stream)) => fill_stream(stream, fill),
        Ok(None) => write_file(path, fill),
        Err(error) => Err(error),
    };
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn write_file(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    make_folder_of(path)?;
    remove_leftovers(path)?;
    let (tmp, file) = temporary(path)?;
    // The file stays open, and therefore locked, until it is renamed.
    let written = fill_file(&file, fill).and_then(|()| rename(&tmp, path)).and_then(|()| sync_folder_of(path));
    written.inspect_err(|_| drop(fs::remove_file(&tmp)))
}

/// Creates a new file `path`, removing an existing one first; a symbolic link is not followed.
///
/// # Errors
/// Names the path and the cause.
pub(crate) fn create_new(path: &Path) -> Result<File> {
    remove(path)?;
    let made = OpenOptions::new().read(true).write(true).create_new(true).open(path);
    made.map_err(|e| explain(&e, &format!("cannot create {}", path.display())))
}

/// Opens the file `path` for appending, creating it if absent. A symbolic link is an error.
///
/// # Errors
/// Names the path and the cause.
pub(crate) fn open_to_continue(path: &Path) -> Result<File> {
    let refused = |e: io::Error| match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => anyhow!("{} is a symbolic link; remove it", path.display()),
        _ => explain(&e, &format!("cannot write {}", path.display())),
    };
    let mut options = OpenOptions::new();
    let file = unfollowed(options.read(true).write(true).create(true)).open(path).map_err(refused)?;
    let meta = file.metadata().with_context(|| format!("cannot write {}", path.display()))?;
    anyhow::ensure!(meta.is_file(), "{} is not a file; remove it", path.display());
    Ok(file)
}

/// Whether `path` still refers to this open file.
pub(crate) fn is_at(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        match (file.metadata(), fs::symlink_metadata(path)) {
            (Ok(ours), Ok(theirs)) => (ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

/// A target that is written directly, since a rename would replace it by a file.
enum Stream {
    Stdout,
    Stderr,
    Open(File),
}

/// The stream at `path`; none if `path` is, or will be, a regular file.
fn stream(path: &Path) -> Result<Option<Stream>> {
    // These may be redirected to a file with other writers: use the offset of the descriptor itself.
    for (stream, names) in [
        (Stream::Stdout, ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"]),
        (Stream::Stderr, ["/dev/stderr", "/dev/fd/2", "/proc/self/fd/2"]),
    ] {
        if names.iter().any(|name| path == Path::new(name)) {
            return Ok(Some(stream));
        }
    }
    let Ok(meta) = fs::metadata(path) else { return Ok(None) };
    let is_descriptor = ["/dev/fd", "/proc"].iter().any(|folder| path.starts_with(folder));
    if meta.is_dir() {
        bail!("it is a folder; give the name of a file");
    }
    if meta.is_file() && !is_descriptor {
        return Ok(None);
    }
    if !meta.is_file() && !is_pipe_or_character_device(&meta) {
        bail!("it is neither a file, a pipe nor a character device; give the name of a file");
    }
    let opened = OpenOptions::new().append(meta.is_file()).write(true).open(path);
    Ok(Some(Stream::Open(opened.map_err(|e| explain(&e, "cannot open it"))?)))
}

#[cfg(unix)]
fn is_pipe_or_character_device(meta: &fs::Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    meta.file_type().is_fifo() || meta.file_type().is_char_device()
}

#[cfg(not(unix))]
fn is_pipe_or_character_device(_: &fs::Metadata) -> bool {
    true
}

fn fill_stream(stream: Stream, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let out: Box<dyn Write> = match stream {
        Stream::Stdout => Box::new(io::stdout().lock()),
        Stream::Stderr => Box::new(io::stderr().lock()),
        Stream::Open(file) => Box::new(file),
    };
    let mut out = BufWriter::with_capacity(1 << 16, out);
    fill(&mut out).map_err(name_full_disk)?;
    out.flush().map_err(|e| explain(&e, "the last bytes could not be written"))
}

/// Creates a temporary file for `path`; returns its name and the locked file.
fn temporary(path: &Path) -> Result<(PathBuf, File)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let tmp = beside(path, &format!(".{:x}-{count:x}.tmp", std::process::id()))?;
        let file = match OpenOptions::new().write(true).create_new(true).open(&tmp) {
            // Left by another machine on the same disk, or by an earlier process with the same id.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            other => other.map_err(|e| explain(&e, &format!("cannot create {}", tmp.display())))?,
        };
        // Between the two calls another writer of the same file may have mistaken it for a leftover and locked or
        // removed it. On disks without locks, no file is taken for a leftover.
        let is_taken = matches!(file.try_lock(), Err(fs::TryLockError::WouldBlock));
        if !is_taken && is_at(&file, &tmp) {
            return Ok((tmp, file));
        }
    }
}

/// Removes temporary files for `path` of killed processes.
fn remove_leftovers(path: &Path) -> Result<()> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let Ok(entry) = entry else { continue };
        if !is_temporary_of(&entry.file_name(), name) {
            continue;
        }
        let (other, mut options) = (entry.path(), OpenOptions::new());
        match fs::symlink_metadata(&other) {
            Ok(meta) if meta.is_symlink() => remove(&other)?,
            Ok(meta) if meta.is_file() => {
                let Ok(file) = unfollowed(options.read(true)).open(&other) else { continue };
                // Removed while locked: if its writer has only just created it, that writer creates another one.
                if file.try_lock().is_ok() && is_at(&file, &other) {
                    remove(&other)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a file name is a temporary name of the file `name`: `NAME.tmp`, or `NAME.PROCESS-COUNT.tmp`.
pub(crate) fn is_temporary_of(file: &OsStr, name: &str) -> bool {
    let is_hex = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let file = file.to_str().and_then(|file| file.strip_prefix(name)?.strip_prefix('.')?.strip_suffix("tmp"));
    file.is_some_and(|middle| match middle.strip_suffix('.') {
        Some(middle) => middle.split_once('-').is_some_and(|(process, count)| is_hex(process) && is_hex(count)),
        None => middle.is_empty(),
    })
}

/// Does not follow symbolic links and does not wait for the other end of a pipe.
fn unfollowed(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW | libc::O_NONBLOCK);
    options
}

/// Replaces the folder `path`: `fill` writes into the empty folder `PATH.tmp`, which is then renamed to `path`.
///
/// The caller holds a lock against concurrent calls. An existing `path` is moved to `PATH.old` and removed afterwards;
/// if the program is killed between the two renames, the next call restores it first.
///
/// # Errors
/// Names the path and the cause; the old content of `path` is then unchanged.
pub(crate) fn replace_dir(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (tmp, old) = (beside(path, ".tmp")?, beside(path, ".old")?);
    let replaced = (|| {
        if old.exists() && !path.exists() {
            rename(&old, path)?;
        }
        remove(&tmp)?;
        remove(&old)?;
        make_folder_of(&tmp)?;
        fs::create_dir(&tmp).map_err(|e| explain(&e, &format!("cannot create {}", tmp.display())))?;
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

/// Atomically renames the folder or file `from` to `to`, which must not exist, on the same disk.
///
/// # Errors
/// Names the paths and the cause; nothing has changed then.
pub(crate) fn move_to(from: &Path, to: &Path) -> Result<()> {
    anyhow::ensure!(fs::symlink_metadata(to).is_err(), "{} is there already", to.display());
    rename(from, to)?;
    sync_folder_of(to)?;
    sync_folder_of(from)
}

/// The SHA-256 of a file's bytes, in lower-case hexadecimal.
///
/// # Errors
/// If the file cannot be read; names it.
pub(crate) fn sha256_file(path: &Path) -> Result<String> {
    let mut file = input::open(path)?;
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

fn make_folder_of(path: &Path) -> Result<()> {
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => {
            fs::create_dir_all(folder).map_err(|e| explain(&e, &format!("cannot create {}", folder.display())))
        }
        None => Ok(()),
    }
}

fn fill_file(file: &File, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, file);
    fill(&mut out).map_err(name_full_disk)?;
    out.flush().map_err(|e| explain(&e, "the last bytes could not be written"))?;
    drop(out);
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
    // Not all systems can sync folders; there, the durability of a rename depends on the system.
    match File::open(path) {
        Err(_) if path.is_dir() => Ok(()),
        Err(e) => Err(explain(&e, &format!("cannot sync {}", path.display()))),
        Ok(file) => match file.sync_all() {
            Err(e) if !path.is_dir() => Err(explain(&e, &format!("cannot sync {}", path.display()))),
            _ => Ok(()),
        },
    }
}

/// An I/O error with the failed operation and, if known, a remedy.
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
mod tests;
