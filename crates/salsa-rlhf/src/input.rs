//! Opening of input files: a named pipe, a device or a circular link is an error and never blocks.
//!
//! Only regular files are read. Standard input is read if it is given by an explicit name (`/dev/stdin`, `/dev/fd/N`,
//! `/proc/self/fd/N`), where a pipe is intended.
use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};

/// Maximum size of a file that is read at once; the largest tokenizers have some 40 MB.
const MOST_BYTES: u64 = 1 << 30;

/// Maximum number of files and folders below one folder.
const MOST_ENTRIES: usize = 1_000_000;

/// Opens a regular file for reading.
///
/// # Errors
/// Names the path, and its type if it is no regular file.
pub(crate) fn open(path: &Path) -> Result<File> {
    opened(path)?.with_context(|| format!("cannot read {}", path.display()))
}

/// [`open`], or none if the file does not exist.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_if_any(path: &Path) -> Result<Option<File>> {
    match opened(path)? {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The file, or the system's error; fails if it is no regular file.
fn opened(path: &Path) -> Result<io::Result<File>> {
    // Some devices act when opened, so the type is checked first, and again after opening.
    match fs::metadata(path) {
        Ok(meta) => check_kind(path, &meta)?,
        Err(error) => return Ok(Err(error)),
    }
    let mut options = OpenOptions::new();
    let options = if is_descriptor(path) { options.read(true) } else { not_waiting(options.read(true)) };
    let file = options.open(path);
    if let Ok(file) = &file {
        check_kind(path, &file.metadata()?)?;
    }
    Ok(file)
}

/// Reads a regular file of at most 1 GiB.
///
/// # Errors
/// As [`open`], and if the file is larger.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    read_open(path, open(path)?)
}

/// [`read`], or none if the file does not exist.
///
/// # Errors
/// As [`read`].
pub(crate) fn read_if_any(path: &Path) -> Result<Option<Vec<u8>>> {
    open_if_any(path)?.map(|file| read_open(path, file)).transpose()
}

/// Reads a regular file as text.
///
/// # Errors
/// As [`read`], and if the file is not UTF-8.
pub(crate) fn read_to_string(path: &Path) -> Result<String> {
    let bytes = read(path)?;
    check_utf8(path, &bytes)?;
    Ok(String::from_utf8(bytes).expect("it was checked"))
}

fn read_open(path: &Path, file: File) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file.take(MOST_BYTES + 1).read_to_end(&mut bytes);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= MOST_BYTES,
        "{} is larger than {} MiB, which is too much for a file of this kind",
        path.display(),
        MOST_BYTES >> 20
    );
    Ok(bytes)
}

/// Checks that bytes are UTF-8; the error names another encoding if it is recognised.
///
/// # Errors
/// If they are not UTF-8; names the line.
pub(crate) fn check_utf8(path: &Path, bytes: &[u8]) -> Result<()> {
    check_not_utf16(path, bytes)?;
    match std::str::from_utf8(bytes) {
        Ok(_) => Ok(()),
        Err(error) => {
            let line = 1 + bytes[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count();
            bail!("{}, line {line}: a byte that is no UTF-8; convert it: {}", path.display(), converted(path, "latin1"))
        }
    }
}

/// Rejects text that starts as UTF-16 or UTF-32: with a byte order mark, or with zero bytes between ASCII characters.
///
/// # Errors
/// If it does; the message explains the conversion.
pub(crate) fn check_not_utf16(path: &Path, start: &[u8]) -> Result<()> {
    let encoding = match start {
        [0xFF, 0xFE, 0, 0, ..] | [0, 0, 0xFE, 0xFF, ..] => "UTF-32",
        [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => "UTF-16",
        [0, 1..=127, 0, 1..=127, ..] => "UTF-16BE",
        [1..=127, 0, 1..=127, 0, ..] => "UTF-16LE",
        _ => return Ok(()),
    };
    bail!(
        "{} is {encoding} (as PowerShell's > writes it), and UTF-8 is needed; convert it: {}",
        path.display(),
        converted(path, encoding)
    )
}

fn converted(path: &Path, encoding: &str) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!("iconv -f {encoding} -t UTF-8 {name} > utf8-{name}")
}

/// Lists the files below a folder, sorted by their relative paths (with `/`), with their locations. Names that `wanted`
/// rejects are skipped with their contents, and so are folders more than `deepest` levels down. A link to one of its
/// own ancestors is not followed.
///
/// # Errors
/// If a folder cannot be listed, or there are more than a million files and folders.
pub(crate) fn files_below(
    folder: &Path,
    deepest: usize,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Vec<(String, PathBuf)>> {
    let mut walk = Walk { deepest, wanted, above: Vec::new(), entries: 0, found: Vec::new() };
    walk.folder(folder, "")?;
    walk.found.sort();
    Ok(walk.found)
}

struct Walk<'a> {
    deepest: usize,
    wanted: &'a dyn Fn(&str) -> bool,
    /// The chain of folders down to the current one.
    above: Vec<PathBuf>,
    entries: usize,
    found: Vec<(String, PathBuf)>,
}

impl Walk<'_> {
    fn folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let refused = || format!("cannot list {}", folder.display());
        let itself = folder.canonicalize().with_context(refused)?;
        if self.above.contains(&itself) || self.above.len() > self.deepest {
            return Ok(());
        }
        self.above.push(itself);
        for entry in fs::read_dir(folder).with_context(refused)? {
            let entry = entry.with_context(refused)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !(self.wanted)(&name) {
                continue;
            }
            self.entries += 1;
            ensure!(
                self.entries <= MOST_ENTRIES,
                "{} holds more than {MOST_ENTRIES} files and folders; give a folder that holds what is needed",
                self.above[0].display()
            );
            let (name, path) = (format!("{prefix}{name}"), entry.path());
            if path.is_dir() {
                self.folder(&path, &format!("{name}/"))?;
            } else {
                self.found.push((name, path));
            }
        }
        self.above.pop();
        Ok(())
    }
}

/// Whether a path refers to an open descriptor of this process.
fn is_descriptor(path: &Path) -> bool {
    path == Path::new("/dev/stdin") || ["/dev/fd", "/proc/self/fd"].iter().any(|folder| path.starts_with(folder))
}

fn check_kind(path: &Path, meta: &Metadata) -> Result<()> {
    if meta.is_file() || (is_descriptor(path) && !meta.is_dir() && is_stream(path, meta)) {
        return Ok(());
    }
    bail!("{} is not a regular file but {}; give a file", path.display(), kind(meta))
}

#[cfg(unix)]
fn kind(meta: &Metadata) -> &'static str {
    use std::os::unix::fs::FileTypeExt;
    let kind = meta.file_type();
    match () {
        () if kind.is_dir() => "a folder",
        () if kind.is_fifo() => "a named pipe",
        () if kind.is_socket() => "a socket",
        () => "a device",
    }
}

#[cfg(not(unix))]
fn kind(meta: &Metadata) -> &'static str {
    if meta.is_dir() { "a folder" } else { "a device" }
}

/// Whether a descriptor is a stream that can end: a pipe or a terminal.
#[cfg(unix)]
fn is_stream(path: &Path, meta: &Metadata) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let is_terminal = || File::open(path).is_ok_and(|file| io::IsTerminal::is_terminal(&file));
    meta.file_type().is_fifo() || (meta.file_type().is_char_device() && is_terminal())
}

#[cfg(not(unix))]
fn is_stream(_: &Path, _: &Metadata) -> bool {
    true
}

/// Opens without waiting for a writer and without acquiring a controlling terminal.
fn not_waiting(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

#[cfg(test)]
mod tests;
