//! Folders of data files: which files they contain, and the split of each.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail};

use super::{
    Which,
    files::{Format, KNOWN},
};
use crate::input;

/// Maximum nesting of folders; data sets have two or three levels.
const DEEPEST: usize = 8;

/// Metadata files that Hugging Face's library writes next to data.
const NO_DATA: &[&str] =
    &["dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "metadata.json", "config.json"];

/// A data file of a folder.
#[derive(Debug)]
pub(super) struct DataFile {
    pub path: PathBuf,
    /// Its path relative to the folder, with `/`.
    pub name: String,
    /// The split according to its name, by Hugging Face's conventions.
    pub split: Option<String>,
}

/// The data files of a folder and its subfolders that `which` selects, in the order of their names.
pub(super) fn select(folder: &Path, which: Which<'_>) -> Result<Vec<DataFile>> {
    let files = list(folder)?;
    let sets = sets(&files);
    if sets.len() > 1 {
        let names: Vec<&str> = sets.keys().map(String::as_str).collect();
        bail!(
            "{} holds several data sets: {}. Give the folder of one of them",
            folder.display(),
            names.join(", ").replace("./", "")
        );
    }
    let splits = names(&files);
    match which {
        Which::All => Ok(files),
        Which::TheOnly => {
            let unnamed = files.iter().filter(|file| file.split.is_none()).count();
            if splits.len() > 1 || (unnamed > 0 && !splits.is_empty()) {
                let others = if unnamed > 0 { format!(", and {unnamed} files of none") } else { String::new() };
                bail!(
                    "{} has the splits {}{others}. Say which one: {{path: {0}, split: {}}}, or split: all",
                    folder.display(),
                    splits.join(", "),
                    splits[0]
                );
            }
            Ok(files)
        }
        Which::Named(name) if splits.iter().any(|split| split == name) => {
            Ok(files.into_iter().filter(|file| file.split.as_deref() == Some(name)).collect())
        }
        Which::Named(name) if splits.is_empty() => {
            bail!("{} has no files of a split {name:?}: no file name there tells a split", folder.display())
        }
        Which::Named(name) => {
            bail!("{} has no split {name:?}: it has {}", folder.display(), splits.join(", "))
        }
    }
}

/// The splits named by the files of a folder, sorted; empty for a file, or if no name contains one.
pub(super) fn splits(path: &Path) -> Result<Vec<String>> {
    if path.is_dir() { Ok(names(&list(path)?)) } else { Ok(Vec::new()) }
}

fn names(files: &[DataFile]) -> Vec<String> {
    let mut names: Vec<String> = files.iter().filter_map(|file| file.split.clone()).collect();
    names.sort();
    names.dedup();
    names
}

fn list(folder: &Path) -> Result<Vec<DataFile>> {
    let all = input::files_below(folder, DEEPEST, &|name| !name.starts_with('.'))?;
    let mut files: Vec<_> = all.iter().filter(|(_, path)| is_data_file(path)).cloned().collect();
    // Next to other data, a table is a list of files or statistics.
    if files.iter().any(|(_, path)| !is_table(path)) {
        files.retain(|(_, path)| !is_table(path));
    }
    if files.is_empty() {
        if let Some(remedy) = arrow_remedy(folder, &all) {
            bail!("{} holds .arrow files, which save_to_disk wrote. Convert it: {remedy}", folder.display());
        }
        bail!("{} has no data files: expected {KNOWN} files in it", folder.display());
    }
    Ok(files.into_iter().map(|(name, path)| DataFile { split: split_of(&name), path, name }).collect())
}

fn is_table(path: &Path) -> bool {
    matches!(Format::of(path), Some(Format::Csv | Format::Tsv))
}

/// Whether a file of this name contains data.
pub(super) fn is_data_file(path: &Path) -> bool {
    let base = path.file_name().unwrap_or_default().to_string_lossy();
    !base.starts_with('.') && !NO_DATA.contains(&base.as_ref()) && Format::of(path).is_some()
}

/// The command that converts the output of `save_to_disk`, if the folder contains that: one data set, or one per split.
fn arrow_remedy(folder: &Path, files: &[(String, PathBuf)]) -> Option<String> {
    files.iter().find(|(name, _)| name.ends_with(".arrow"))?;
    let shown = folder.display();
    let convert = match folder.join("dataset_dict.json").exists() {
        true => format!("[part.to_parquet(name + '.parquet') for name, part in load_from_disk('{shown}').items()]"),
        false => format!("load_from_disk('{shown}').to_parquet('data.parquet')"),
    };
    Some(format!("python -c \"from datasets import load_from_disk; {convert}\""))
}

/// The data sets of a folder: the names of its files' folders, apart from `data` and names of splits.
fn sets(files: &[DataFile]) -> BTreeMap<String, usize> {
    let mut sets = BTreeMap::new();
    for file in files {
        let folders: Vec<&str> = file.name.split('/').collect();
        let own: Vec<&str> =
            folders[..folders.len() - 1].iter().copied().filter(|f| *f != "data" && keyword(f).is_none()).collect();
        let set = if own.is_empty() { "./".to_owned() } else { own.join("/") };
        *sets.entry(set).or_insert(0) += 1;
    }
    sets
}

/// `data/train_sft-00000-of-00003.parquet` gives `train_sft`; otherwise a split's keyword in the file's name, then in
/// its folders' names, innermost first.
fn split_of(name: &str) -> Option<String> {
    let mut parts = name.rsplit('/');
    let base = parts.next().unwrap_or(name);
    let stem = base.split('.').next().unwrap_or(base);
    sharded(stem).map(str::to_owned).or_else(|| std::iter::once(stem).chain(parts).find_map(keyword).map(str::to_owned))
}

/// The split of `SPLIT-00000-of-00003`, optionally followed by a hash.
fn sharded(stem: &str) -> Option<&str> {
    let at = stem.find("-of-")?;
    let (before, after) = (&stem[..at], &stem[at + 4..]);
    let (split, number) = before.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let count = after.split('-').next().unwrap_or(after);
    (digits(number) && digits(count) && !split.is_empty()).then_some(split)
}

/// The split of a keyword.
fn keyword(name: &str) -> Option<&'static str> {
    name.split([' ', '-', '_', '.']).find_map(|word| match word.to_ascii_lowercase().as_str() {
        "train" | "training" => Some("train"),
        "validation" | "valid" | "val" | "dev" => Some("validation"),
        "test" | "testing" | "eval" | "evaluation" => Some("test"),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_splits() {
        let table = [
            ("data/train_sft-00000-of-00003.parquet", Some("train_sft")),
            ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet", Some("train")),
            ("helpful-base/test.jsonl.gz", Some("test")),
            ("helpful-base-test.jsonl.gz", Some("test")),
            ("gsm8k_train.jsonl.gz", Some("train")),
            ("default/train/0000.parquet", Some("train")),
            ("dev.json", Some("validation")),
            ("Training set.jsonl", Some("train")),
            ("trained.jsonl", None),
            ("databricks-dolly-15k.jsonl", None),
            ("a-of-b.jsonl", None),
            ("0000.parquet", None),
        ];
        for (name, split) in table {
            assert_eq!(split_of(name).as_deref(), split, "{name}");
        }
    }
}
