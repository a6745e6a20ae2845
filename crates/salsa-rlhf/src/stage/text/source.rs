//! Which examples a stage reads: files, parts of files, and mixtures.
use std::{
    borrow::Cow,
    fmt,
    num::NonZeroUsize,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use salsa_engine::random::Random;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::{encoder::Encoder, slice::Slice};
use crate::{
    config::paths::DataPath,
    data::{self, Content, Dataset, Example, Place, Reading, Which, split_by_prompt},
    stage::StageContext,
};

/// Source of examples: a path, a part of it, or several of these together.
///
/// ```yaml
/// dataset: pairs.jsonl
/// dataset: {path: pairs.jsonl, split: train}
/// dataset: [{path: a.jsonl, split: train}, b.jsonl]
/// dataset: {path: ultrachat_200k, split: "train_sft[:500]"}
/// dataset: {path: pairs.jsonl, max_samples: 500, seed: 1}
/// ```
///
/// If the file names of a folder denote splits (`data/test-00000-of-00001.parquet`), `split` selects among those.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum DataSource {
    /// All examples of a file or folder.
    Path(DataPath),
    /// Several sources, concatenated.
    Mixture(Vec<DataSource>),
    /// The examples of one part.
    Part(DataPart),
}

/// Written by hand: for an untagged enum, serde does not report which key of a mapping is wrong.
impl<'de> Deserialize<'de> for DataSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<DataSource, D::Error> {
        deserializer.deserialize_any(Forms)
    }
}

/// Visitor for the forms of a [`DataSource`].
struct Forms;

impl<'de> Visitor<'de> for Forms {
    type Value = DataSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, a mapping such as {path: FILE, split: train}, or a list of these")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<DataSource, E> {
        if text.trim_start().starts_with(['{', '[']) {
            return Err(E::custom(format!(
                "{text} is neither a mapping nor a list in YAML; put values that hold brackets in quotation marks: \
                 {{path: FILE, split: \"train[:500]\"}}"
            )));
        }
        Ok(DataSource::Path(PathBuf::from(text).into()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DataSource, A::Error> {
        DataPart::deserialize(MapAccessDeserializer::new(map)).map(DataSource::Part)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<DataSource, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(DataSource::Mixture)
    }
}

/// One part of a file or folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataPart {
    /// A file or folder of data, or an id on the Hub.
    pub path: DataPath,
    /// Which part of it: a published split or, if there is none, a part by the hash of the prompt; `train[:500]`,
    /// `train[10%:20%]` and `train[-100:]` are slices of one. None: everything, if the data has at most one split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<Part>,
    /// Maximum number of examples: the first ones or, with `seed`, a random sample in file order. None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_samples: Option<NonZeroUsize>,
    /// Seed of the sample that `max_samples` draws. None: the first examples are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

/// Part of a data set: a published split or, for data without splits, part of a deterministic split by a hash of the
/// prompt, so that equal prompts are always in the same part.
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
    /// A split with another name, as published; for data without splits, `eval` is the validation part.
    Named(String),
    /// A slice of one of these.
    Slice(Box<Part>, Slice),
}

/// Random stream for sampling `max_samples` examples ("SAMPLE" in ASCII).
const SAMPLE_STREAM: u64 = 0x53_41_4D_50_4C_45;

impl From<String> for Part {
    fn from(name: String) -> Part {
        match name.as_str() {
            "train" => Part::Train,
            "validation" => Part::Validation,
            "test" => Part::Test,
            "all" => Part::All,
            text => match Slice::parse(text) {
                Some((name, slice)) => Part::Slice(Box::new(Part::from(name.to_owned())), slice),
                None => Part::Named(name),
            },
        }
    }
}

impl From<Part> for String {
    fn from(part: Part) -> String {
        part.to_string()
    }
}

impl JsonSchema for Part {
    fn schema_name() -> Cow<'static, str> {
        "Part".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"const": "train", "description": "The published split of this name, or 80 % of the prompts."},
            {"const": "validation", "description": "The published split of this name, or 10 % of the prompts."},
            {"const": "test", "description": "The published split of this name, or the other 10 %."},
            {"const": "all", "description": "Everything there is."},
            {"type": "string", "title": "NAME"},
            {"type": "string", "title": "NAME[FROM:TO]"}
        ]})
    }
}

/// The examples of a source.
#[derive(Default)]
pub struct Loaded {
    /// Examples, in the order of the sources and of their files.
    pub examples: Vec<Example>,
    /// Where the record of each example is.
    places: Vec<Place>,
    /// The record of each example, if records are kept.
    pub records: Vec<Map<String, Value>>,
    /// The number of preference pairs omitted because both answers are the same.
    pub dropped_identical: usize,
    /// For each example its label, if it was read as [`crate::data::Labels::Kept`] and has one.
    pub labels: Vec<Option<bool>>,
    /// Notes on how they were read, each prefixed with its file or folder.
    pub notes: Vec<String>,
}

impl Default for DataSource {
    fn default() -> DataSource {
        DataSource::Path(DataPath::new())
    }
}

impl DataSource {
    /// Reads the examples.
    ///
    /// # Errors
    /// If the source is empty, or a file cannot be read or understood.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        self.load_with(Reading::default())
    }

    /// Reads the examples, and what else is asked for.
    ///
    /// # Errors
    /// As [`DataSource::load`].
    pub fn load_with(&self, reading: Reading) -> anyhow::Result<Loaded> {
        let mut loaded = Loaded::default();
        self.load_into(&mut loaded, reading)?;
        ensure!(!loaded.examples.is_empty(), "{self} holds no examples");
        Ok(loaded)
    }

    /// The files and folders of the source.
    pub fn paths(&self) -> Vec<&Path> {
        match self {
            DataSource::Path(path) | DataSource::Part(DataPart { path, .. }) => vec![path],
            DataSource::Mixture(sources) => sources.iter().flat_map(DataSource::paths).collect(),
        }
    }

    fn load_into(&self, loaded: &mut Loaded, reading: Reading) -> anyhow::Result<()> {
        let set = match self {
            DataSource::Path(path) => data::load_split(given(path)?, Which::TheOnly, reading)?,
            DataSource::Part(part) => part.load(reading)?,
            DataSource::Mixture(sources) => {
                return sources.iter().try_for_each(|source| source.load_into(loaded, reading));
            }
        };
        loaded.dropped_identical += set.dropped_identical;
        loaded.notes.extend(set.notes.iter().map(|note| format!("{}: {note}", set.path.display())));
        loaded.labels.extend((0..set.examples.len()).map(|index| set.labels.get(index).copied()));
        loaded.examples.extend(set.examples);
        loaded.places.extend(set.places);
        loaded.records.extend(set.records);
        Ok(())
    }
}

impl Loaded {
    /// Applies `f` to every example; errors are prefixed with file and record.
    ///
    /// # Errors
    /// The first error of `f`.
    pub fn try_map<T>(&self, mut f: impl FnMut(&Example) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
        let records = self.examples.iter().zip(&self.places);
        records.map(|(example, place)| f(example).with_context(|| place.to_string())).collect()
    }

    /// Reports notes on how the examples were read, and the interpretation of prompts given as text.
    pub fn report_reading(&self, source: &DataSource, encoder: &Encoder, context: &StageContext) {
        self.notes.iter().for_each(|note| context.print_once(note));
        let is_text = |example: &Example| match example.prompt() {
            Some(Content::Text(text)) => !text.is_empty(),
            _ => false,
        };
        if let Some(note) = encoder.text_prompt_note().filter(|_| self.examples.iter().any(is_text)) {
            context.print_once(&format!("{source}: {note}"));
        }
    }
}

impl DataPart {
    fn load(&self, reading: Reading) -> anyhow::Result<Dataset> {
        let path = given(&self.path)?;
        let mut set = match &self.split {
            None => data::load_split(path, Which::TheOnly, reading)?,
            Some(split) => split.load(path, reading)?,
        };
        let count = set.examples.len();
        match (self.max_samples, self.seed) {
            (None, None) => {}
            (None, Some(_)) => bail!("{self}: seed says which examples max_samples takes; give max_samples too"),
            (Some(most), None) => set.keep(|index| index < most.get()),
            (Some(most), Some(seed)) => {
                let mut order: Vec<usize> = (0..count).collect();
                Random::new(seed, SAMPLE_STREAM).shuffle(&mut order);
                let mut taken = vec![false; count];
                order.iter().take(most.get()).for_each(|index| taken[*index] = true);
                set.keep(|index| taken[index]);
            }
        }
        Ok(set)
    }
}

impl Part {
    /// Reads this part of a file or folder.
    ///
    /// # Errors
    /// If it has no such part, or cannot be read or understood.
    pub fn load(&self, path: &Path, reading: Reading) -> anyhow::Result<Dataset> {
        let whole = || data::load_split(path, Which::TheOnly, reading);
        let name = self.to_string();
        let published = !data::splits(path)?.is_empty();
        match self {
            Part::All => data::load_split(path, Which::All, reading),
            Part::Slice(part, slice) => {
                let mut set = part.load(path, reading)?;
                let range = slice.range(set.examples.len());
                set.keep(|index| range.contains(&index));
                Ok(set)
            }
            Part::Named(name) if name.contains(['[', ']']) => {
                bail!("{name:?} is no slice of a split: write train[:500], train[10%:20%] or train[-100:]")
            }
            _ if published => data::load_split(path, Which::Named(&name), reading),
            Part::Train => Ok(split_by_prompt(&whole()?).train),
            Part::Validation => Ok(split_by_prompt(&whole()?).validation),
            Part::Test => Ok(split_by_prompt(&whole()?).test),
            Part::Named(name) if name == "eval" => Part::Validation.load(path, reading),
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
            Part::Slice(part, slice) => return write!(f, "{part}{slice}"),
        })
    }
}

impl fmt::Display for DataPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = [
            self.split.as_ref().map(Part::to_string),
            self.max_samples.map(|most| format!("{} {most}", if self.seed.is_some() { "any" } else { "first" })),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
        write!(f, "{}{said}", self.path.display())
    }
}

impl fmt::Display for DataSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DataSource::Path(path) => write!(f, "{}", path.display()),
            DataSource::Part(part) => write!(f, "{part}"),
            DataSource::Mixture(sources) => {
                let names: Vec<String> = sources.iter().map(DataSource::to_string).collect();
                f.write_str(&names.join(" + "))
            }
        }
    }
}

#[cfg(test)]
mod tests;
