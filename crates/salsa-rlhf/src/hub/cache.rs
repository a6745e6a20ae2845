//! The cache of `huggingface_hub`: blobs, snapshots that link to them, and the commits of revisions.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Id, Kind, id::is_commit};
use crate::{atomic, input};

/// One repository in the cache.
pub(super) struct Repo {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repo {
    pub(super) fn new(cache: &Path, id: &Id, kind: Kind) -> Repo {
        let name = format!("{}--{}", kind.plural(), id.name().replace('/', "--"));
        Repo { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The cached snapshot of this id.
    ///
    /// # Errors
    /// When nothing is cached, or a model's files are incomplete.
    pub(super) fn held(&self, id: &Id, kind: Kind) -> Result<PathBuf> {
        let snapshot = self.snapshot(&self.commit_of(id)?);
        let folder = id.folder().map_or(snapshot.clone(), |inner| snapshot.join(inner));
        let whole = match kind {
            Kind::Model => is_whole_model(&folder),
            Kind::Dataset => folder.is_file() || crate::data::splits(&folder).is_ok(),
        };
        if whole { Ok(folder) } else { bail!("the cache has only a part of {id}") }
    }

    /// The cached commit of the revision.
    ///
    /// # Errors
    /// When none is cached.
    pub(super) fn commit_of(&self, id: &Id) -> Result<String> {
        if id.is_commit() {
            return Ok(id.revision().to_owned());
        }
        let path = self.folder.join("refs").join(id.revision());
        let text = input::read_to_string(&path).map_err(|_| anyhow!("the cache has no {id}"))?;
        let commit = text.trim();
        ensure!(is_commit(commit), "the cache names no commit for {id}");
        Ok(commit.to_owned())
    }

    /// Makes `snapshots/COMMIT/NAME` a link to the blob.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<()> {
        let link = self.snapshot(commit).join(name);
        let blob = self.blob(etag);
        if fs::canonicalize(&link).is_ok_and(|target| fs::canonicalize(&blob).is_ok_and(|blob| target == blob)) {
            return Ok(());
        }
        let parent = link.parent().unwrap_or(&self.folder);
        create(parent)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        // Another process may create the same link; a rename replaces it atomically.
        let new = parent.join(format!(".{etag}.{}.link", std::process::id()));
        let _ = fs::remove_file(&new);
        symlink(&target, &blob, &new)
            .and_then(|()| fs::rename(&new, &link))
            .map_err(|e| atomic::explain(&e, &format!("cannot link {}", link.display())))
    }

    /// Records the commit of the revision.
    pub(super) fn write_ref(&self, id: &Id, commit: &str) -> Result<()> {
        let path = self.folder.join("refs").join(id.revision());
        if id.is_commit() || input::read_to_string(&path).is_ok_and(|held| held == commit) {
            return Ok(());
        }
        let _lock = self.lock("refs")?;
        atomic::write(&path, commit.as_bytes())
    }

    /// Waits for the lock of this name, held until the file is dropped; `huggingface_hub` locks blobs in the same way.
    pub(super) fn lock(&self, name: &str) -> Result<File> {
        create(&self.locks)?;
        let path = self.locks.join(format!("{name}.lock"));
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(|e| atomic::explain(&e, &format!("cannot open {}", path.display())))?;
        if file.try_lock().is_err() {
            eprintln!("waiting for another process that downloads the same file ({})", path.display());
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        }
        Ok(file)
    }
}

/// Whether config and all weights exist.
fn is_whole_model(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).exists();
    if has("adapter_config.json") {
        return has("adapter_model.safetensors");
    }
    if !has("config.json") {
        return false;
    }
    if has("model.safetensors") {
        return true;
    }
    let index = input::read(&folder.join("model.safetensors.index.json")).ok();
    let index: Option<serde_json::Value> = index.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let shards = index.as_ref().and_then(|index| index["weight_map"].as_object());
    shards.is_some_and(|map| !map.is_empty() && map.values().all(|shard| shard.as_str().is_some_and(has)))
}

pub(super) fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| atomic::explain(&e, &format!("cannot create {}", folder.display())))
}

#[cfg(unix)]
fn symlink(target: &Path, _blob: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

/// Without the right to create links, the snapshot contains the file itself, as in `huggingface_hub`.
#[cfg(not(unix))]
fn symlink(_target: &Path, blob: &Path, link: &Path) -> io::Result<()> {
    fs::copy(blob, link).map(drop)
}
