//! The contents of a study file.
use std::path::{Path, PathBuf};

use anyhow::{bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    config::{self, Origin},
    input,
    stage::keys::ByteSize,
};

/// The keys of a study file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct StudyConfig {
    /// The name of the study. Empty: that of the file.
    pub name: String,
    /// The question of the study in a few words: the heading of the report. Empty: the name.
    pub title: String,
    /// A description of one or two sentences, below the heading. Empty: nothing.
    pub description: String,
    /// The recipe, relative to the study file.
    pub recipe: String,
    /// The directory of the study, relative to the study file. Empty: `runs/NAME`, relative to the current directory.
    pub out: String,
    /// Stages that the recipe lacks: names with the keys that differ from a stage of the recipe, such as
    /// `sft-c: {stage: sft-a, seed: 13}`. Empty: none.
    pub stages: Map<String, Value>,
    /// Key paths of the recipe with their values in every cell, such as `stages.world.sft: 500`. Empty: none.
    pub set: Map<String, Value>,
    /// The factors that are varied, each with its values; a factor whose name ends in `seed` is repeated, not compared.
    /// Empty: nothing.
    pub factors: Map<String, Value>,
    /// The arms that are compared: names with the keys that differ from a stage of the recipe.
    pub arms: Map<String, Value>,
    /// How each arm's setting is chosen. None: by the recipe's true reward on `validation`, over all factors but seeds.
    pub select: Option<Select>,
    /// Pairs of arms: the report tests whether the first is better than the second. Empty: none.
    pub compare: Vec<(String, String)>,
    /// The anchor of the evaluation that KL is measured to. Empty: its baseline if that is an anchor, else its first.
    pub anchor: String,
    /// The stage of the recipe that evaluates. Empty: the last one of kind `evaluate`.
    pub evaluate: String,
    /// The largest difference that counts as none, in units of the compared number, at least 0.
    pub margin: f64,
    /// The maximum size of the study's directory, such as `20GB`. None: the free space of the disk.
    pub max_disk: Option<ByteSize>,
}

/// How the setting of an arm is chosen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The factors whose values are chosen, one or several. For the others, every value is reported separately.
    #[serde(default)]
    pub key: Names,
    /// The number that decides; the largest wins.
    #[serde(default)]
    pub by: Option<Measure>,
    /// The set of prompts on which settings are chosen; the report's numbers come from the other sets.
    #[serde(default)]
    pub on: Option<String>,
}

/// A name or several.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Names {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Default for Names {
    fn default() -> Names {
        Names::Several(Vec::new())
    }
}

impl Names {
    /// Each of them.
    pub fn list(&self) -> Vec<&str> {
        match self {
            Names::One(name) => vec![name],
            Names::Several(names) => names.iter().map(String::as_str).collect(),
        }
    }
}

/// The measured quantity of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The true reward, in [0, 1].
    GoldReward,
    /// The score of the reward model, normalised.
    ProxyScore,
}

impl Measure {
    /// Its name in files.
    pub fn key(self) -> &'static str {
        match self {
            Measure::GoldReward => "gold_reward",
            Measure::ProxyScore => "proxy_score",
        }
    }

    /// Its name in text.
    pub fn words(self) -> &'static str {
        match self {
            Measure::GoldReward => "gold reward",
            Measure::ProxyScore => "proxy score",
        }
    }
}

/// A parsed study file.
pub struct StudyFile {
    /// Its path.
    pub path: PathBuf,
    /// Its text, unchanged.
    pub text: String,
    /// Its contents.
    pub config: StudyConfig,
}

impl StudyFile {
    /// Reads a study file.
    ///
    /// # Errors
    /// If it cannot be read, or has an unknown key or an invalid value.
    pub fn read(path: &Path) -> anyhow::Result<StudyFile> {
        let text = input::read_to_string(path)?;
        let shown = path.display();
        let given = match config::parse(&text).map_err(|message| anyhow::anyhow!("{shown}: {message}"))? {
            Value::Object(given) => given,
            _ => bail!("{shown}: expected `recipe:`, `factors:` and `arms:`"),
        };
        let mut config: StudyConfig = config::from_mapping(&given, &Origin::file(path))?;
        ensure!(!config.recipe.is_empty(), "{shown}: recipe is missing; say which recipe the cells run");
        ensure!(!config.arms.is_empty(), "{shown}: arms is empty; name at least one, as in `arms: {{ppo: {{}}}}`");
        let margin = config.margin;
        ensure!(margin >= 0.0 && margin.is_finite(), "{shown}: margin is {margin}; it must be 0 or above");
        if config.name.is_empty() {
            config.name = path.file_stem().map_or("study".to_owned(), |stem| stem.to_string_lossy().into_owned());
        }
        Ok(StudyFile { path: path.to_owned(), text, config })
    }

    /// The base of relative paths.
    pub fn base(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}
