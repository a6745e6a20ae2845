//! `soup.json`: the inputs of a soup, and the digest of every weight file.
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    SoupConfig,
    arithmetic::{Arithmetic, Method},
    digest::FileDigest,
    greedy::Selection,
    ingredients::Ingredients,
    search::Found,
};
use crate::{
    atomic,
    checkpoint::{Checkpoint, Writer},
};

/// How a soup's weights were chosen by measuring.
pub(super) enum Choice {
    /// By adding ingredients as long as they help.
    Greedy(Selection),
    /// By a search.
    Search(Found),
}

impl Choice {
    /// The method.
    pub(super) fn method(&self) -> Method {
        match self {
            Choice::Greedy(_) => Method::Greedy,
            Choice::Search(_) => Method::Search,
        }
    }

    /// The weights of so many ingredients.
    pub(super) fn weights(&self, ingredients: usize) -> Vec<f64> {
        match self {
            Choice::Greedy(selection) => selection.weights(ingredients),
            Choice::Search(found) => found.weights().to_vec(),
        }
    }
}

/// The digests of all weight files, during the pass; empty if not requested.
pub(super) struct Digests {
    /// Digests by file, of the ingredients and, last, the base.
    pub models: Vec<Vec<FileDigest>>,
    /// Digests of the soup's files.
    pub soup: Vec<FileDigest>,
}

impl Digests {
    /// Creates the digests of the inputs and of the files of `writer`.
    pub(super) fn new(config: &SoupConfig, ingredients: &Ingredients, writer: &Writer) -> anyhow::Result<Digests> {
        if !config.digests {
            return Ok(Digests { models: Vec::new(), soup: Vec::new() });
        }
        let file = |path: &Path| Ok(FileDigest::new(path, length(path)?));
        let models = all(ingredients).map(|model| model.weight_files().map(file).collect());
        let soup = writer.files().iter().map(|(path, bytes)| FileDigest::new(path, *bytes)).collect();
        Ok(Digests { models: models.collect::<anyhow::Result<_>>()?, soup })
    }
}

/// The content of `soup.json`: method, numbers, ingredients and result. The soup's files must be in place.
pub(super) fn record(
    config: &SoupConfig,
    arithmetic: &Arithmetic,
    ingredients: &Ingredients,
    digests: &Digests,
    files: &[(std::path::PathBuf, u64)],
    choice: Option<&Choice>,
) -> anyhow::Result<Value> {
    let mut described = all(ingredients).enumerate().map(|(i, model)| {
        let digests = digests.models.get(i).map(Vec::as_slice).unwrap_or_default();
        let files = model.weight_files().enumerate().map(|(i, path)| file(path, length(path)?, digests.get(i)));
        let mut described =
            json!({ "path": model.base_dir(), "files": files.collect::<anyhow::Result<Vec<Value>>>()? });
        if let Some(adapter) = model.adapter() {
            described["adapter"] = json!({ "path": adapter.dir() });
            let weights = adapter.dir().join("adapter_model.safetensors");
            if config.digests && weights.is_file() {
                described["adapter"]["sha256"] = json!(atomic::sha256_file(&weights)?);
            }
        }
        anyhow::Ok(described)
    });
    let mut list = described.by_ref().take(ingredients.models.len()).collect::<anyhow::Result<Vec<Value>>>()?;
    let weights = arithmetic.constant_weights();
    for (i, model) in list.iter_mut().enumerate() {
        // If it varies by tensor, the configured setting.
        model["weight"] = match &weights {
            Some(weights) => json!(weights[i]),
            None => json!(config.weights.get(i)),
        };
    }
    let base = described.next().transpose()?;
    let soup = files.iter().enumerate().map(|(i, (path, bytes))| file(path, *bytes, digests.soup.get(i)));
    let settings = serde_json::to_value(config).context("configuration of the soup")?;
    let setting = |key: &str| settings[key].clone();
    let mut record = json!({
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
        "files": soup.collect::<anyhow::Result<Vec<Value>>>()?,
    });
    let own: &[&str] = match config.method {
        Method::ModelStock => &["filter_wise"],
        Method::Nuslerp => &["nuslerp_flatten", "nuslerp_row_wise"],
        Method::Karcher => &["max_iter", "tol"],
        _ => &[],
    };
    own.iter().for_each(|key| record[*key] = setting(key));
    if let Some(template) = &config.chat_template {
        record["chat_template"] = json!(template);
    }
    if !config.densities.is_empty() {
        record["density"] = setting("densities");
    }
    if let Some(choice) = choice {
        let name = choice.method().name();
        record["method"] = json!(name);
        record[name] = match choice {
            Choice::Greedy(selection) => selection.to_json(),
            Choice::Search(found) => found.to_json(),
        };
    }
    Ok(record)
}

/// The ingredients and, last, the base.
fn all(ingredients: &Ingredients) -> impl Iterator<Item = &Checkpoint> {
    ingredients.models.iter().chain(&ingredients.base)
}

fn length(path: &Path) -> anyhow::Result<u64> {
    Ok(path.metadata().with_context(|| format!("cannot read {}", path.display()))?.len())
}

fn file(path: &Path, bytes: u64, digest: Option<&FileDigest>) -> anyhow::Result<Value> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut file = json!({ "name": name, "bytes": bytes });
    if let Some(digest) = digest {
        file["blake3"] = json!(digest.finish()?);
    }
    Ok(file)
}
