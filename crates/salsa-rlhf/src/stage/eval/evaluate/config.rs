//! The keys of `evaluate`.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    config::{
        names,
        paths::{ModelPath, NoEffect},
    },
    report::INTERVAL,
    stage::{
        device::Choice as DeviceChoice,
        gold::Gold,
        keys::{ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count, check_range},
        models::model_source::ModelSource,
        rewards::{self, RewardSource},
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

/// Configuration of `salsa evaluate`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EvaluateConfig {
    /// The models to compare, by names of your choice. The report describes `sft_a`, `sft_b`, `soup`, `ppo` and `salsa`
    /// by name, others by their keys.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub arms: BTreeMap<String, ModelSource>,
    /// Name of the arm that win rates compare with.
    pub baseline: String,
    /// The sets of prompts, answered by every arm.
    pub datasets: Vec<EvalSet>,
    /// The reward model that scores every answer. None: if `rewards` has others.
    pub reward_model_path: ModelPath,
    /// More rewards, as in `salsa ppo`; the score of an answer is their sum. Empty: none.
    pub rewards: Vec<RewardSource>,
    /// Models that each arm's KL is measured against, by names of your choice; `kl_NAME` in the results. Empty: none.
    pub anchors: BTreeMap<String, ModelSource>,
    /// Additional pairs of arms to compare, the first against the second, such as `[[salsa, ppo]]`. Empty: none.
    pub comparisons: Vec<(String, String)>,
    /// Rewards on the line between two models, on every set. None: not computed.
    pub landscape: Option<Landscape>,
    /// Training runs whose curves the report shows: the stage directory, by the name of its arm. Empty: none.
    pub runs: NoEffect<BTreeMap<String, ModelPath>>,
    /// A reward function in addition to the learned one, used for win rates. None: win rates use the reward model.
    pub gold: Option<Gold>,
    /// Maximum number of tokens of an answer, at least 1.
    #[schemars(extend("x-heading" = "Answers"))]
    pub max_new_tokens: usize,
    /// Prompts longer than this many tokens are omitted.
    pub max_prompt_length: usize,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Sampling temperature, above 0; also used for KLs.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Answers generated at once, at least 1; affects speed and memory only.
    pub decode_slots: NoEffect<usize>,
    /// Seed of the sampling: every arm gets the same random numbers.
    pub seed: u64,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Prompts shown side by side in the report, per set; 0: none.
    #[schemars(extend("x-heading" = "Report"))]
    pub samples: NoEffect<usize>,
    /// Title of the report and of its page.
    pub title: NoEffect<String>,
    /// Description below the title, one or two sentences. Empty: none.
    pub description: NoEffect<String>,
    /// Directory of `evaluation.json` and the answers.
    pub output_dir: PathBuf,
}

/// One set of prompts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalSet {
    /// Its name in the results, such as `test` or `ood`.
    pub name: String,
    /// The prompts of this set.
    pub dataset: DataSource,
    /// Maximum number of prompts, taken from the start, at least 1. None: all.
    pub max_prompts: Option<usize>,
}

/// A line through two models: `(1 - alpha) * from + alpha * to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Landscape {
    /// The two models at the ends of the line.
    pub models: (ModelPath, ModelPath),
    /// Points on the line: 0 is the first model, 1 the second; others are interpolations of their weights.
    pub alphas: Vec<f64>,
}

impl Default for EvaluateConfig {
    fn default() -> EvaluateConfig {
        EvaluateConfig {
            arms: BTreeMap::new(),
            baseline: "sft_a".into(),
            datasets: Vec::new(),
            reward_model_path: ModelPath::new(),
            rewards: Vec::new(),
            anchors: BTreeMap::new(),
            comparisons: Vec::new(),
            landscape: None,
            runs: NoEffect::default(),
            gold: None,
            max_new_tokens: 128,
            max_prompt_length: 1024,
            chat: ChatArguments::default(),
            temperature: 1.0,
            decode_slots: NoEffect(64),
            seed: 42,
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            samples: NoEffect(8),
            title: NoEffect("SALSA evaluation".into()),
            description: NoEffect::default(),
            output_dir: PathBuf::new(),
        }
    }
}

impl EvaluateConfig {
    /// All rewards.
    pub(super) fn reward_list(&self) -> Vec<RewardSource> {
        RewardSource::list(&self.reward_model_path, &self.rewards)
    }

    /// Checks that the values are consistent.
    ///
    /// # Errors
    /// If a value is invalid; the error names the key.
    pub fn validate(&self) -> anyhow::Result<()> {
        let known = |arm: &String| self.arms.contains_key(arm);
        ensure!(!self.arms.is_empty(), "arms names no model; say arms: {{sft_a: DIR, salsa: DIR}}");
        ensure!(known(&self.baseline), "baseline is {:?}, which is not among the arms", self.baseline);
        ensure!(!self.datasets.is_empty(), "datasets is empty; say datasets: [{{name: test, dataset: FILE}}]");
        let names: std::collections::BTreeSet<&String> = self.datasets.iter().map(|set| &set.name).collect();
        ensure!(names.len() == self.datasets.len(), "two of the datasets have the same name");
        for EvalSet { name, max_prompts, .. } in &self.datasets {
            ensure!(*max_prompts != Some(0), "datasets: max_prompts of {name:?} is 0; it must be at least 1");
        }
        for (a, b) in &self.comparisons {
            ensure!(known(a) && known(b), "comparisons names [{a}, {b}], which are not both among the arms");
        }
        for name in self.anchors.keys() {
            ensure!(
                !name.ends_with(INTERVAL),
                "anchors names {name:?}; {INTERVAL} ends the keys of intervals, so choose another"
            );
        }
        for arm in self.runs.keys() {
            ensure!(known(arm), "runs names {arm:?}, which is not among the arms");
        }
        rewards::config::check(&self.reward_model_path, &self.rewards)?;
        check_range("temperature", self.temperature.into(), f64::MIN_POSITIVE..=f64::from(f32::MAX))?;
        check_count("max_new_tokens", self.max_new_tokens as u64, MOST_TOKENS)?;
        check_count("decode_slots", *self.decode_slots as u64, MOST_SEQUENCES)?;
        self.check_names()
    }

    /// Names of arms and sets are part of file names, which must be valid and distinct.
    fn check_names(&self) -> anyhow::Result<()> {
        self.arms.keys().try_for_each(|name| names::check_component("arms", name))?;
        self.anchors.keys().try_for_each(|name| names::check_component("anchors", name))?;
        self.datasets.iter().try_for_each(|set| names::check_component("datasets", &set.name))?;
        let mut files = BTreeMap::new();
        for (arm, set) in self.arms.keys().flat_map(|arm| self.datasets.iter().map(move |set| (arm, &set.name))) {
            if let Some((other, other_set)) = files.insert(answers_file(arm, set), (arm, set)) {
                bail!(
                    "the answers of arm {other:?} to {other_set:?} and of {arm:?} to {set:?} would have one name, {}; \
                     rename one of them",
                    answers_file(arm, set)
                );
            }
        }
        Ok(())
    }
}

pub(super) fn answers_file(arm: &str, set: &str) -> String {
    format!("answers-{arm}-{set}.jsonl")
}
