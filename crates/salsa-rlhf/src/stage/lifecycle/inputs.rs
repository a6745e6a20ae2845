//! The inputs of a stage: paths and their SHA-256.
mod known;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{checkpoint::PeftAdapter, input};

/// One input of a stage: a file, a data folder or a model directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Input {
    /// Its path when it was read.
    pub path: PathBuf,
    /// A digest of its content: the bytes of a file, or names and bytes of a directory's files.
    pub sha256: String,
    /// For a PEFT directory, the digest of older records, which included the path of the base.
    #[serde(skip)]
    pub with_path_of_base: Option<String>,
}

/// Files that a stage writes next to a model without changing it. A soup's report contains the paths of its
/// ingredients.
const BESIDE: &[&str] = &[
    "metrics.jsonl",
    "trainer_state.json",
    "timings.json",
    "stage.json",
    "README.md",
    "samples.jsonl",
    "soup.json",
    "geometry.json",
    "geometry.html",
];

impl Input {
    /// Reads and digests an input.
    ///
    /// For a directory, every file counts, including subfolders, but not hidden files, logs, and files of the stage
    /// runner. For a PEFT directory, the bytes of the base model count too, but not its path: an adapter that is
    /// recreated after its run was moved has the same digest.
    ///
    /// # Errors
    /// If it does not exist or cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Input> {
        let kind = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        let with_path_of_base = match kind.is_dir() && PeftAdapter::is_one(path) {
            true => Some(directory(path, Base::ByPathToo)?),
            false => None,
        };
        let sha256 = if kind.is_dir() { directory(path, Base::ByBytes)? } else { known::sha256(path)? };
        Ok(Input { path: path.to_owned(), sha256, with_path_of_base })
    }

    /// Whether its content equals that of a recorded input.
    pub fn is_still(&self, then: &Input) -> bool {
        self.sha256 == then.sha256 || self.with_path_of_base.as_ref() == Some(&then.sha256)
    }
}

/// How the base of a PEFT directory is included in a digest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    ByBytes,
    ByPathToo,
}

fn directory(dir: &Path, base: Base) -> anyhow::Result<String> {
    // A data folder may hold files of these names as data.
    let is_of_a_stage = ["stage.json", "config.json", ADAPTER].iter().any(|name| dir.join(name).exists());
    let is_log = |name: &str| BESIDE.contains(&name) && (is_of_a_stage || name == "README.md");
    let found = input::files_below(dir, usize::MAX, &|name| {
        !(name.starts_with('.') || name.starts_with("events.out.tfevents") || is_log(name))
    })?;
    if found.is_empty() {
        bail!("{} is an empty directory", dir.display());
    }
    let is_adapter = PeftAdapter::is_one(dir);
    let digest_of =
        |(name, path): &(String, PathBuf)| match is_adapter && base == Base::ByBytes && is_adapter_config(name) {
            true => without_base(path),
            false => known::sha256(path),
        };
    let files = found.par_iter().map(digest_of).collect::<anyhow::Result<Vec<_>>>()?;
    let mut digest = Sha256::new();
    for ((name, _), file) in found.iter().zip(files) {
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(file);
    }
    if is_adapter {
        digest.update(directory(&PeftAdapter::base_of(dir)?, base)?);
    }
    Ok(hex(&digest.finalize()))
}

/// The file of a PEFT directory that contains the path of its base.
const ADAPTER: &str = "adapter_config.json";

/// Whether a file below such a directory is one: that of the adapter, or of the critic trained with it.
fn is_adapter_config(name: &str) -> bool {
    name.rsplit('/').next() == Some(ADAPTER)
}

/// The digest of this file without the base's path.
fn without_base(path: &Path) -> anyhow::Result<String> {
    let mut config: Value =
        serde_json::from_slice(&input::read(path)?).with_context(|| format!("{} is damaged", path.display()))?;
    if let Some(keys) = config.as_object_mut() {
        ["base_model_name_or_path", "revision"].iter().for_each(|key| drop(keys.shift_remove(*key)));
    }
    Ok(hex(&Sha256::digest(config.to_string())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_that_sha256sum_prints() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Input::read(&path).unwrap().sha256, expected);
    }

    #[test]
    fn a_directory_is_known_by_names_and_bytes_but_not_by_logs() {
        let dir = tempfile::tempdir().unwrap();
        let digest = || Input::read(dir.path()).unwrap().sha256;
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/x"), "1").unwrap();
        let first = digest();
        fs::write(dir.path().join(".lock"), "").unwrap();
        assert_eq!(digest(), first);
        fs::write(dir.path().join("samples.jsonl"), "{}").unwrap();
        assert_ne!(digest(), first, "no stage made this folder: the file may be data");
        fs::write(dir.path().join("stage.json"), "{}").unwrap();
        for log in ["metrics.jsonl", "samples.jsonl"] {
            fs::write(dir.path().join(log), "log").unwrap();
        }
        assert_eq!(digest(), first);
        fs::write(dir.path().join("a/x"), "2").unwrap();
        assert_ne!(digest(), first);
        fs::write(dir.path().join("a/x"), "1").unwrap();
        assert_eq!(digest(), first);
        fs::rename(dir.path().join("a/x"), dir.path().join("a/y")).unwrap();
        assert_ne!(digest(), first);
    }

    #[test]
    fn an_adapter_is_known_by_its_base_too() {
        let dir = tempfile::tempdir().unwrap();
        let adapter = dir.path().join("adapter");
        let digest = || Input::read(&adapter).unwrap().sha256;
        fs::create_dir(&adapter).unwrap();
        fs::create_dir(dir.path().join("base")).unwrap();
        fs::write(dir.path().join("base/x"), "1").unwrap();
        let config = r#"{"peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": "../base"}"#;
        fs::write(adapter.join("adapter_config.json"), config).unwrap();
        let first = digest();
        fs::write(dir.path().join("base/x"), "2").unwrap();
        assert_ne!(digest(), first);
        fs::remove_dir_all(dir.path().join("base")).unwrap();
        let error = format!("{:#}", Input::read(&adapter).unwrap_err());
        assert!(error.contains("its base model \"../base\" is not there"), "{error}");
    }

    #[test]
    fn an_adapter_counts_without_the_path_of_its_base_and_as_older_records_have_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |folder: &str, base: &str, rank: u64| {
            let adapter = dir.path().join(folder).join("adapter");
            fs::create_dir_all(&adapter).unwrap();
            fs::create_dir_all(dir.path().join(folder).join("base")).unwrap();
            fs::write(dir.path().join(folder).join("base/x"), "1").unwrap();
            let config = serde_json::json!({
                "peft_type": "LORA", "r": rank, "lora_alpha": 1, "base_model_name_or_path": base, "revision": null,
            });
            fs::create_dir_all(adapter.join("critic")).unwrap();
            for name in ["adapter_config.json", "critic/adapter_config.json"] {
                fs::write(adapter.join(name), config.to_string()).unwrap();
            }
            Input::read(&adapter).unwrap()
        };
        let (here, moved) = (write("here", "here/base", 1), write("moved", "moved/base", 1));
        assert_eq!(here.sha256, moved.sha256);
        assert!(moved.is_still(&here) && !write("other", "here/base", 2).is_still(&here));
        let files = ["adapter_config.json", "critic/adapter_config.json"].map(|name| {
            let bytes = fs::read(dir.path().join("here/adapter").join(name)).unwrap();
            [name.as_bytes(), &[0], hex(&Sha256::digest(bytes)).as_bytes()].concat()
        });
        let base = [b"x\0".as_slice(), hex(&Sha256::digest(b"1")).as_bytes()].concat();
        let older = [files.concat(), hex(&Sha256::digest(base)).into_bytes()].concat();
        let older = Input { sha256: hex(&Sha256::digest(older)), ..here.clone() };
        assert_ne!(older.sha256, here.sha256);
        assert!(here.is_still(&older) && !moved.is_still(&older));
    }

    #[test]
    fn adapters_that_name_themselves_or_each_other_as_base_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (name, base) in [("own", "own"), ("first", "second"), ("second", "first")] {
            let (adapter, base) = (dir.path().join(name), dir.path().join(base));
            fs::create_dir(&adapter).unwrap();
            let config = serde_json::json!({
                "peft_type": "LORA", "r": 1, "lora_alpha": 1, "base_model_name_or_path": base,
            });
            fs::write(adapter.join("adapter_config.json"), config.to_string()).unwrap();
        }
        for name in ["own", "first", "second"] {
            let error = format!("{:#}", Input::read(&dir.path().join(name)).unwrap_err());
            assert!(error.contains("is an adapter itself: merge that into its own base first"), "{error}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = format!("{:#}", Input::read(Path::new("/nowhere/x")).unwrap_err());
        assert!(error.starts_with("cannot read /nowhere/x"), "{error}");
    }
}
