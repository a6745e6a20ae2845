//! Which examples a stage reads: files, parts of files, and mixtures.
use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use serde::{Deserialize, Serialize};

use crate::data::{self, Example, split_by_prompt};

/// Where examples come from: a path, one part of it, or several of these together.
///
/// ```yaml
/// dataset: pairs.jsonl
/// dataset: {path: pairs.jsonl, split: train}
/// dataset: [{path: a.jsonl, split: train}, b.jsonl]
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DataSource {
    /// All examples of a file or folder.
    Path(PathBuf),
    /// The examples of one part of the split by prompt.
    Part(DataPart),
    /// Several sources, one after the other.
    Mixture(Vec<DataSource>),
}

/// One part of a file or folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPart {
    /// File or folder.
    pub path: PathBuf,
    /// Which part of the split by prompt.
    pub split: Part,
}

/// Part of the deterministic split by prompt: a hash of the prompt decides, so equal prompts always land together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// 80 % of the prompts.
    Train,
    /// 10 % of the prompts.
    #[serde(alias = "eval")]
    Validation,
    /// The other 10 %.
    Test,
    /// Everything.
    All,
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
        let (path, part) = match self {
            DataSource::Path(path) => (path, Part::All),
            DataSource::Part(DataPart { path, split }) => (path, *split),
            DataSource::Mixture(sources) => return sources.iter().try_for_each(|source| source.load_into(loaded)),
        };
        ensure!(!path.as_os_str().is_empty(), "no data set is given; say dataset: PATH (or --dataset PATH)");
        let set = data::load(path)?;
        let set = match part {
            Part::All => set,
            Part::Train => split_by_prompt(&set).train,
            Part::Validation => split_by_prompt(&set).validation,
            Part::Test => split_by_prompt(&set).test,
        };
        loaded.dropped_identical += set.dropped_identical;
        loaded.examples.extend(set.examples);
        Ok(())
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Path(path) => write!(f, "{}", path.display()),
            DataSource::Part(DataPart { path, split }) => write!(f, "{} ({split:?})", path.display()),
            DataSource::Mixture(sources) => {
                let names: Vec<String> = sources.iter().map(DataSource::to_string).collect();
                f.write_str(&names.join(" + "))
            }
        }
    }
}
