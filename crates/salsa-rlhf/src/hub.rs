//! Models and data sets by their id on the Hugging Face hub: `org/name[@revision][:folder]`.
//!
//! They are stored in the cache of Python's `huggingface_hub`, in its layout, so that downloads are shared:
//!
//! ```text
//! $HF_HUB_CACHE, or $HF_HOME/hub, or ~/.cache/huggingface/hub
//!     models--org--name/                    datasets--org--name/
//!         blobs/ETAG                        the bytes; ETAG.incomplete during the download
//!         refs/main                         the commit of a revision
//!         snapshots/COMMIT/config.json      a link to the blob
//!     .locks/models--org--name/ETAG.lock    held while a blob is written
//! ```
//!
//! Environment variables: `HF_ENDPOINT`, `HF_TOKEN` (or the file at `HF_TOKEN_PATH` or `$HF_HOME/token`),
//! `HF_HUB_OFFLINE`. The network is used only if an id is given and no path of that name exists.

mod cache;
mod client;
mod digest;
mod download;
mod id;
#[cfg(test)]
mod tests;
mod wanted;

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Serialize, de::DeserializeOwned};

use self::cache::Repo;
use self::client::{Client, Failure};
pub use self::id::Id;
use crate::config::paths::{PathKind, Places};
use crate::input;

/// The kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model, or an adapter.
    Model,
    /// A data set.
    Dataset,
}

/// Resolves `text` to a path: itself if it exists, else the snapshot of the model or data set with this id, which is
/// downloaded unless cached.
///
/// # Errors
/// If it is neither a path nor an id, or the hub does not provide it; names the cause and a remedy.
pub fn resolve(text: &str, kind: Kind) -> Result<PathBuf> {
    let path = Path::new(text);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let Some(id) = Id::parse(text).filter(|_| is_id(text)) else {
        bail!(
            "there is no {} at {text}, and {text:?} is no id of the Hugging Face hub (org/name, org/name@revision)",
            kind.noun()
        );
    };
    Hub::from_env()?.fetch(&id, kind).with_context(|| {
        format!("there is no file or folder {text} here, so it was taken for an id of the Hugging Face hub")
    })
}

/// Whether `text` is an id rather than a path: it has the form of an id, no path of that name exists, and there is no
/// local folder named as its organisation, in which case it may be a misspelt path.
pub fn is_id(text: &str) -> bool {
    let path = Path::new(text);
    let folder = path.components().next().is_some_and(|first| Path::new(first.as_os_str()).is_dir());
    !folder && !path.exists() && Id::parse(text).is_some()
}

/// The cached snapshot of this id; does not use the network.
pub fn cached(text: &str, kind: Kind) -> Option<PathBuf> {
    let id = Id::parse(text)?;
    let hub = Hub { network: Network::Offline, ..Hub::from_env().ok()? };
    hub.fetch(&id, kind).ok()
}

/// The cached model of this id and revision; does not use the network.
pub fn cached_model(name: &str, revision: Option<&str>) -> Option<PathBuf> {
    cached(&revision.map_or_else(|| name.to_owned(), |revision| format!("{name}@{revision}")), Kind::Model)
}

/// The id of the model whose cached snapshot is this folder.
pub fn id_of_snapshot(folder: &Path) -> Option<Id> {
    Hub::from_env().ok()?.id_of_snapshot(folder)
}

/// Replaces ids in a configuration by the paths of their snapshots.
///
/// # Errors
/// As [`resolve`]; names the key.
pub fn localise<C: Serialize + DeserializeOwned>(config: C) -> Result<C> {
    let mut value = serde_json::to_value(&config)?;
    let mut found = false;
    Places::of(&config)?.visit(&mut value, &mut |kind, place, text| {
        if !is_id(text) {
            return Ok(None);
        }
        found = true;
        let path = resolve(text, kind.into()).with_context(|| place.to_owned())?;
        Ok(Some(path.to_string_lossy().into_owned().into()))
    })?;
    if found { Ok(serde_json::from_value(value)?) } else { Ok(config) }
}

impl From<PathKind> for Kind {
    fn from(kind: PathKind) -> Kind {
        match kind {
            PathKind::Model => Kind::Model,
            PathKind::Data => Kind::Dataset,
        }
    }
}

/// Access to a hub and a cache.
#[derive(Clone, Debug)]
pub struct Hub {
    /// The address, such as `https://huggingface.co`, without a trailing slash.
    pub endpoint: String,
    /// The folder of the cache.
    pub cache: PathBuf,
    /// Access token; sent to the endpoint only.
    pub token: Option<String>,
    /// Whether the network may be used.
    pub network: Network,
}

/// Whether the network may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Downloads are allowed.
    #[default]
    Online,
    /// Only the cache is used.
    Offline,
}

impl Hub {
    /// The hub and cache configured by the environment.
    ///
    /// # Errors
    /// If no location of the cache is known.
    pub fn from_env() -> Result<Hub> {
        let home = match set("HF_HOME") {
            Some(home) => Ok(PathBuf::from(home)),
            None => set("XDG_CACHE_HOME")
                .map(PathBuf::from)
                .or_else(|| Some(env::home_dir()?.join(".cache")))
                .map(|cache| cache.join("huggingface"))
                .context("no home directory is known: set HF_HOME to a folder for downloads"),
        }?;
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN")
            .or_else(|| set("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| input::read_to_string(&token_file).ok());
        let offline =
            ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].into_iter().filter_map(set).any(|value| is_true(&value));
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        Ok(Hub {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            token: token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()),
            network: if offline { Network::Offline } else { Network::Online },
        })
    }

    /// The id of the model whose snapshot is this folder: `org/name` if its commit is the cached one of `main`, else
    /// `org/name@COMMIT`. `None` for other folders.
    pub fn id_of_snapshot(&self, folder: &Path) -> Option<Id> {
        let (folder, cache) = (folder.canonicalize().ok()?, self.cache.canonicalize().ok()?);
        let mut parts = folder.strip_prefix(cache).ok()?.iter().map(|part| part.to_str());
        let (repo, snapshots, commit) = (parts.next()??, parts.next()??, parts.next()??);
        if snapshots != "snapshots" || parts.next().is_some() {
            return None;
        }
        let (org, name) = repo.strip_prefix("models--")?.split_once("--")?;
        let id = Id::parse(&format!("{org}/{name}"))?;
        let main = Repo::new(&self.cache, &id, Kind::Model).commit_of(&id).ok();
        if main.as_deref() == Some(commit) { Some(id) } else { Id::parse(&format!("{org}/{name}@{commit}")) }
    }

    /// The folder of a model or data set: from the cache if that is up to date, else downloaded.
    ///
    /// # Errors
    /// If the hub has no such id or denies access, if the repository contains nothing usable, if the connection fails
    /// repeatedly or the data differs from its announced size or digest, or if offline and not cached.
    pub fn fetch(&self, id: &Id, kind: Kind) -> Result<PathBuf> {
        let repo = Repo::new(&self.cache, id, kind);
        if self.network == Network::Offline {
            return repo.held(id, kind).with_context(|| {
                format!(
                    "HF_HUB_OFFLINE is set, and {id} is not whole in the cache {}: unset it, or copy the files there",
                    self.cache.display()
                )
            });
        }
        if id.is_commit()
            && kind == Kind::Model
            && let Ok(held) = repo.held(id, kind)
        {
            return Ok(held);
        }
        let client = Client::new(self);
        let listing = match client.listing(id, kind) {
            Ok(listing) => listing,
            Err(Failure::Unreachable(reason)) => {
                let held = repo.held(id, kind).map_err(|_| {
                    anyhow!(
                        "cannot reach {}: {reason}; and {id} is not in the cache {}",
                        self.endpoint,
                        self.cache.display()
                    )
                })?;
                eprintln!("cannot reach {} ({reason}); {} is taken as it is in the cache", self.endpoint, id);
                return Ok(held);
            }
            Err(Failure::Refused(error)) => return Err(error),
        };
        let wanted = wanted::of(&listing, id, kind)?;
        download::all(&client, &repo, id, kind, &listing, &wanted)?;
        repo.write_ref(id, &listing.commit)?;
        let folder = repo.snapshot(&listing.commit);
        Ok(id.folder().map_or(folder.clone(), |inner| folder.join(inner)))
    }
}

impl Kind {
    fn noun(self) -> &'static str {
        match self {
            Kind::Model => "model",
            Kind::Dataset => "data set",
        }
    }

    /// The name of the kind in the hub's URLs.
    fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }
}

fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn is_true(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}
