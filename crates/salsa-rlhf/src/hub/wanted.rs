//! Selects the needed files of a repository.

use anyhow::{Result, bail};

use super::client::{Entry, Listing};
use super::{Id, Kind};
use crate::data;

/// Files of a model besides its weights.
const BESIDE_WEIGHTS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "adapter_config.json",
    "adapter_model.safetensors",
];

/// The needed files, in the order of the listing.
pub(super) fn of<'a>(listing: &'a Listing, id: &Id, kind: Kind) -> Result<Vec<&'a Entry>> {
    match kind {
        Kind::Model => model(listing, id),
        Kind::Dataset => dataset(listing, id),
    }
}

fn model<'a>(listing: &'a Listing, id: &Id) -> Result<Vec<&'a Entry>> {
    let prefix = id.folder().map_or(String::new(), |folder| format!("{folder}/"));
    let inside = || listing.entries.iter().filter_map(|entry| Some((entry, entry.name.strip_prefix(&prefix)?)));
    let has = |name: &str| inside().any(|(_, base)| base == name);
    let is_single = has("model.safetensors");
    let wanted = |base: &str| match base {
        "model.safetensors" => true,
        "model.safetensors.index.json" => !is_single,
        _ => BESIDE_WEIGHTS.contains(&base) || (!is_single && is_shard(base)),
    };
    let files: Vec<&Entry> = inside().filter(|(_, base)| wanted(base)).map(|(entry, _)| entry).collect();
    if !has("config.json") && !has("adapter_config.json") {
        bail!("{id} has no config.json and no adapter_config.json: it is no model that can be read");
    }
    let weights = is_single || has("model.safetensors.index.json") || has("adapter_model.safetensors");
    if !weights {
        bail!(
            "{id} has no safetensors weights{}",
            if listing.entries.iter().any(|entry| entry.name.ends_with(".bin") || entry.name.ends_with(".pth")) {
                format!(
                    ", only pickle files, which can run code when they are read. Convert it: python -c \"from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained('{}').save_pretrained('DIR')\"",
                    id.name()
                )
            } else {
                String::new()
            }
        );
    }
    Ok(files)
}

/// Matches names such as `model-00001-of-00002.safetensors`.
fn is_shard(base: &str) -> bool {
    base.starts_with("model-") && base.contains("-of-") && base.ends_with(".safetensors") && !base.contains('/')
}

fn dataset<'a>(listing: &'a Listing, id: &Id) -> Result<Vec<&'a Entry>> {
    let inside = |name: &str| {
        id.folder()
            .is_none_or(|folder| name.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
    };
    let files: Vec<&Entry> =
        listing.entries.iter().filter(|entry| inside(&entry.name) && data::is_data_file(&entry.name)).collect();
    if files.is_empty() {
        let what = if id.folder().is_some() { "there" } else { "in it" };
        bail!(
            "{id} has no data files {what} that can be read (.jsonl, .json, .parquet, .txt). Most data sets have Parquet files under another revision: {}@refs/convert/parquet",
            id.name()
        );
    }
    Ok(files)
}
