//! Checks that the files of a model directory still exist.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::{
    files::{INDEX, SINGLE, weight_map},
    peft::{self, PeftAdapter},
};

/// The first file missing from a model directory; `None` if it is complete, or no model directory. Only the index of
/// the weights is opened.
///
/// # Errors
/// When the index cannot be read.
pub(crate) fn missing_file(dir: &Path) -> Result<Option<PathBuf>> {
    let is_gone = |path: &PathBuf| !path.is_file();
    let (config, single, index) = (dir.join("config.json"), dir.join(SINGLE), dir.join(INDEX));
    if PeftAdapter::is_one(dir) {
        return Ok(Some(dir.join(peft::WEIGHTS)).filter(is_gone));
    }
    if single.is_file() {
        return Ok(Some(config).filter(is_gone));
    }
    if index.is_file() {
        let shards = weight_map(&index)?.into_values().map(|shard| dir.join(shard));
        return Ok([config].into_iter().chain(shards).find(is_gone));
    }
    Ok(config.is_file().then_some(single))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_missing_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = || missing_file(dir.path()).unwrap().map(|path| path.file_name().unwrap().to_owned());
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        let remove = |name: &str| fs::remove_file(dir.path().join(name)).unwrap();
        write("evaluation.json", "{}");
        assert_eq!(missing(), None, "no model directory");
        write("config.json", "{}");
        assert_eq!(missing(), Some(SINGLE.into()));
        write(INDEX, r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#);
        assert_eq!(missing(), Some("model-1.safetensors".into()));
        write("model-1.safetensors", "");
        assert_eq!(missing(), Some("model-2.safetensors".into()));
        write("model-2.safetensors", "");
        assert_eq!(missing(), None);
        remove("config.json");
        assert_eq!(missing(), Some("config.json".into()));
        write(SINGLE, "");
        assert_eq!(missing(), Some("config.json".into()));
        write("adapter_config.json", "{}");
        assert_eq!(missing(), Some("adapter_model.safetensors".into()));
        write("adapter_model.safetensors", "");
        assert_eq!(missing(), None);
    }
}
