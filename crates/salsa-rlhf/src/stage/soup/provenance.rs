//! `soup.json`: what a soup was made of.
use std::path::{Path, PathBuf};

use anyhow::Context;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::{SoupConfig, arithmetic::Arithmetic, ingredients::Ingredients};
use crate::{atomic, checkpoint::Checkpoint};

/// Method, numbers and ingredients with a digest of every weight file.
pub(super) fn record(config: &SoupConfig, arithmetic: &Arithmetic, ingredients: &Ingredients) -> anyhow::Result<Value> {
    let models: Vec<&Checkpoint> = ingredients.models.iter().chain(&ingredients.base).collect();
    let paths: Vec<PathBuf> = models.iter().flat_map(|model| model.weight_files().map(Path::to_path_buf)).collect();
    let digests: Vec<Value> = paths.par_iter().map(|path| file(path, config)).collect::<anyhow::Result<_>>()?;
    let mut digests = digests.into_iter();
    let mut described = models.iter().map(|model| {
        let files: Vec<Value> = digests.by_ref().take(model.weight_files().count()).collect();
        json!({ "path": model.dir(), "files": files })
    });
    let mut list: Vec<Value> = described.by_ref().take(ingredients.models.len()).collect();
    for (model, weight) in list.iter_mut().zip(&arithmetic.weights) {
        model["weight"] = json!(weight);
    }
    let base = described.next();
    let settings = serde_json::to_value(config).context("configuration of the soup")?;
    let setting = |key: &str| settings[key].clone();
    Ok(json!({
        "salsa": env!("CARGO_PKG_VERSION"),
        "method": setting("method"),
        "density": setting("density"),
        "scale": setting("scale"),
        "t": setting("t"),
        "seed": setting("seed"),
        "normalize": setting("normalize"),
        "dtype": setting("dtype"),
        "ingredients": list,
        "base": base,
    }))
}

fn file(path: &Path, config: &SoupConfig) -> anyhow::Result<Value> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bytes = path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len();
    let mut file = json!({ "name": name, "bytes": bytes });
    if config.digests {
        file["sha256"] = json!(atomic::sha256_file(path)?);
    }
    Ok(file)
}
