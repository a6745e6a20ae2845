//! Which examples a stage reads: files, parts of files, and mixtures.
use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::{self, Dataset, Example, Which, split_by_prompt};

/// Where examples come from: a path, one part of it, or several of these together.
///
/// ```yaml
/// dataset: pairs.jsonl
/// dataset: {path: pairs.jsonl, split: train}
/// dataset: [{path: a.jsonl, split: train}, b.jsonl]
/// dataset: {path: ultrachat_200k, split: train_sft}
/// ```
///
/// Where the names of a folder's files tell splits (`data/test-00000-of-00001.parquet`), `split` means those.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DataSource {
    /// All examples of a file or folder.
    Path(PathBuf),
    /// Several sources, one after the other.
    Mixture(Vec<DataSource>),
    // Behind the list: a mapping may be given as a list of its values, and two paths are a list.
    /// The examples of one part.
    Part(DataPart),
}

/// One part of a file or folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPart {
    /// File or folder.
    pub path: PathBuf,
    /// Which part.
    pub split: Part,
}

/// Part of a data set: a split that it was published with or, of one without, part of the deterministic split by prompt,
/// where a hash of the prompt decides, so that equal prompts always land together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Part {
    /// The split `train`, or 80 % of the prompts.
    Train,
    /// The split `validation`, or 10 % of the prompts.
    Validation,
    /// The split `test`, or the other 10 %.
    Test,
    /// Everything.
    All,
    /// A split of another name, as published.
    Named(String),
}

impl From<String> for Part {
    fn from(name: String) -> Part {
        match name.as_str() {
            "train" => Part::Train,
            "validation" | "eval" => Part::Validation,
            "test" => Part::Test,
            "all" => Part::All,
            _ => Part::Named(name),
        }
    }
}

impl From<Part> for String {
    fn from(part: Part) -> String {
        part.to_string()
    }
}

/// The examples of a source.
pub struct Loaded {
    /// Examples, in the order of the sources and of their files.
    pub examples: Vec<Example>,
    /// Preference pairs left out because both answers are the same.
    pub dropped_identical: usize,
}

impl Default for DataSource {
    fn default() -> DataSource {
        DataSource::Path(PathBuf::new())
    }
}

impl DataSource {
    /// Reads the examples.
    ///
    /// # Errors
    /// If the source is empty, or a file cannot be read or understood.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let mut loaded = Loaded { examples: Vec::new(), dropped_identical: 0 };
        self.load_into(&mut loaded)?;
        ensure!(!loaded.examples.is_empty(), "{self} holds no examples");
        Ok(loaded)
    }

    /// The files and folders it names.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            DataSource::Path(path) | DataSource::Part(DataPart { path, .. }) => vec![path],
            DataSource::Mixture(sources) => sources.iter().flat_map(DataSource::paths).collect(),
        }
    }

    fn load_into(&self, loaded: &mut Loaded) -> anyhow::Result<()> {
        let set = match self {
            DataSource::Path(path) => data::load(given(path)?)?,
            DataSource::Part(DataPart { path, split }) => split.load(given(path)?)?,
            DataSource::Mixture(sources) => return sources.iter().try_for_each(|source| source.load_into(loaded)),
        };
        loaded.dropped_identical += set.dropped_identical;
        loaded.examples.extend(set.examples);
        Ok(())
    }
}

impl Part {
    /// Reads this part of a file or folder.
    fn load(&self, path: &Path) -> anyhow::Result<Dataset> {
        let name = self.to_string();
        let published = !data::splits(path)?.is_empty();
        match self {
            Part::All => data::load_split(path, Which::All),
            _ if published => data::load_split(path, Which::Named(&name)),
            Part::Train => Ok(split_by_prompt(&data::load(path)?).train),
            Part::Validation => Ok(split_by_prompt(&data::load(path)?).validation),
            Part::Test => Ok(split_by_prompt(&data::load(path)?).test),
            Part::Named(name) => bail!(
                "{} has no split {name:?}: by prompt it can be divided into train, validation and test (or all)",
                path.display()
            ),
        }
    }
}

fn given(path: &Path) -> anyhow::Result<&Path> {
    ensure!(!path.as_os_str().is_empty(), "no data set is given; say dataset: PATH (or --dataset PATH)");
    Ok(path)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Train => "train",
            Part::Validation => "validation",
            Part::Test => "test",
            Part::All => "all",
            Part::Named(name) => name,
        })
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Path(path) => write!(f, "{}", path.display()),
            DataSource::Part(DataPart { path, split }) => write!(f, "{} ({split})", path.display()),
            DataSource::Mixture(sources) => {
                let names: Vec<String> = sources.iter().map(DataSource::to_string).collect();
                f.write_str(&names.join(" + "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_paths_are_two_sources_and_no_path_with_its_split() {
        let source: DataSource = serde_json::from_str(r#"["a.jsonl", {"path": "b.jsonl", "split": "train"}]"#).unwrap();
        let DataSource::Mixture(sources) = source else { panic!("a list is a mixture") };
        assert_eq!(sources[0], DataSource::Path("a.jsonl".into()));
        assert!(matches!(&sources[1], DataSource::Part(part) if part.path == Path::new("b.jsonl")));
        let two: DataSource = serde_json::from_str(r#"["a.jsonl", "b.jsonl"]"#).unwrap();
        assert_eq!(
            two,
            DataSource::Mixture(vec![DataSource::Path("a.jsonl".into()), DataSource::Path("b.jsonl".into())])
        );
    }
}
