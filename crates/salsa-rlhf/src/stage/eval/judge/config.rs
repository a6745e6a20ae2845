//! The keys of `salsa judge`.
use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{bail, ensure};
use salsa_algo::stats::Resampling;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    protocol::Protocol,
    score::{StyleControl, StyleFeature},
    transport::Transport,
};
use crate::{
    config::{
        names::check_component,
        paths::{DataPath, ModelPath, NoEffect},
    },
    stage::{
        device::Choice as DeviceChoice,
        endpoint::http,
        keys::{ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count, check_most, check_range},
        text::chat_arguments::ChatArguments,
    },
};

/// Configuration of `salsa judge`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct JudgeConfig {
    /// How the judge is prompted and how its verdicts are counted.
    #[schemars(extend("x-heading" = "What is judged"))]
    pub protocol: Protocol,
    /// Questions: `question.jsonl` of FastChat or Arena-Hard, a list of instructions of AlpacaEval, or rows with
    /// `prompt`. None: for `pairwise` and `alpaca_eval2`, those answered by the baseline.
    pub questions: Option<DataPath>,
    /// Answer files by model name, in the tool's layout (`model_answer/NAME.jsonl`, `model_outputs.json`) or in that of
    /// `salsa generate`. Baselines belong here too. Empty: none.
    pub answers: BTreeMap<String, DataPath>,
    /// Checkpoints by name that generate answers to the questions first. Empty: none.
    pub models: BTreeMap<String, ModelPath>,
    /// The model to compare the others with. Empty: `arena_hard_v0.1` and `arena_hard_v2` use the tool's own, and
    /// `mt_bench_pair` compares all pairs.
    pub baseline: String,
    /// Maximum number of questions, taken from the start; 0: all.
    pub limit: usize,
    /// Existing judgments: a `judgments.jsonl` of another run, or files of the tool. They are not requested again;
    /// without answers and models they are only counted. Empty: none.
    pub judgments: Vec<DataPath>,
    /// Judge prompts: FastChat's `judge_prompts.jsonl`, Arena-Hard's `judge_config.yaml` (v0.1) or
    /// `arena-hard-v2.0.yaml`, AlpacaEval's `alpaca_eval_clf.txt`. None: if judgments are only counted.
    #[schemars(extend("x-heading" = "The judge"))]
    pub templates: Option<DataPath>,
    /// `arena_hard_v2`: the tool's `utils/judge_utils.py`, which contains the system prompts; it is parsed, not
    /// executed. None: the `system_prompt` of `templates`.
    pub judge_settings: Option<DataPath>,
    /// FastChat's `reference_answer/JUDGE.jsonl`, for math, reasoning and coding. None: no references.
    pub reference_answers: Option<DataPath>,
    /// `pairwise`: the name of the template.
    pub template: String,
    /// The judge's name, on the server and in files.
    pub judge_model: String,
    /// How calls reach the judge.
    pub transport: Transport,
    /// Maximum number of tokens of a judgment. None: as the tool, 2048, 4096 (v0.1), 16000 (v2) or 1 (AlpacaEval).
    pub max_tokens: Option<usize>,
    /// The judge's temperature, 0 or above. None: as the tool, 0, or 1 (AlpacaEval, whose verdict is a probability).
    pub temperature: Option<f64>,
    /// `http`: address of an OpenAI-compatible server, up to `/chat/completions`.
    #[schemars(extend("x-heading" = "Transport"))]
    pub base_url: NoEffect<String>,
    /// `http`: the environment variable with the key. Keys are never part of a recipe.
    pub api_key_env: NoEffect<String>,
    /// `http`: a file with the key, used instead. Empty: none.
    pub api_key_file: NoEffect<String>,
    /// `http`: number of concurrent calls, at least 1.
    pub concurrency: NoEffect<usize>,
    /// `http`: timeout of a call in seconds, above 0.
    pub timeout: NoEffect<f64>,
    /// `http`: number of retries of a call if the server is busy or fails.
    pub max_retries: NoEffect<u32>,
    /// `local`: the checkpoint that judges. None: for other transports.
    pub judge_path: Option<ModelPath>,
    /// Number of calls without a reply with which the stage is still complete; with more it stops, and the next run
    /// retries them.
    pub max_failures: NoEffect<usize>,
    /// Only reports how many calls and tokens the run would need.
    pub dry_run: NoEffect<bool>,
    /// Arena-Hard: scores controlled for style.
    #[schemars(extend("x-heading" = "Counting"))]
    pub style_control: StyleControl,
    /// Arena-Hard: the features to control for.
    pub control_features: Vec<StyleFeature>,
    /// Arena-Hard: JSON with `mean` and `deviation` of the four features for their standardisation, so that adding a
    /// model does not change scores. None: computed from the models of this run, as the tool does.
    pub style_scale: Option<DataPath>,
    /// `alpaca_eval2`: `instruction_difficulty.csv`. None: the length-controlled rate is that of `length_controlled_minimal`.
    pub instruction_difficulty: Option<DataPath>,
    /// `alpaca_eval2`: `df_gamed.csv`. None: the length-controlled rate is that of `length_controlled_noreg`.
    pub df_gamed: Option<DataPath>,
    /// Resamples of the intervals over prompts, at least 1.
    pub resamples: usize,
    /// Seed of the intervals and of the answers of `models`.
    pub seed: u64,
    /// Maximum number of tokens of an answer of `models`. None: 1024 for MT-Bench, else 4096.
    #[schemars(extend("x-heading" = "Answers of checkpoints"))]
    pub max_new_tokens: Option<usize>,
    /// Temperature of the answers of `models`. None: MT-Bench by category (0.7 for writing and roleplay, 0.1 for stem and
    /// humanities, else 0), others 0.
    pub answer_temperature: Option<f64>,
    /// Sequences decoded at once, at least 1; affects memory and speed only.
    pub batch_size: NoEffect<usize>,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    pub dtype: ComputeType,
    /// Device of `models` and of a local judge; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Directory of `judgments.jsonl` (every answer of the judge, unchanged), `model_judgment` and `model_answer` (the
    /// tool's layouts) and `judgment.json` (the scores).
    pub output_dir: PathBuf,
}

impl Default for JudgeConfig {
    fn default() -> JudgeConfig {
        JudgeConfig {
            protocol: Protocol::Pairwise,
            questions: None,
            answers: BTreeMap::new(),
            models: BTreeMap::new(),
            baseline: String::new(),
            limit: 0,
            judgments: Vec::new(),
            templates: None,
            judge_settings: None,
            reference_answers: None,
            template: "pair-v2".to_owned(),
            judge_model: "gpt-4".to_owned(),
            transport: Transport::Http,
            max_tokens: None,
            temperature: None,
            base_url: NoEffect("https://api.openai.com/v1".to_owned()),
            api_key_env: NoEffect("OPENAI_API_KEY".to_owned()),
            api_key_file: NoEffect(String::new()),
            concurrency: NoEffect(8),
            timeout: NoEffect(600.0),
            max_retries: NoEffect(8),
            judge_path: None,
            max_failures: NoEffect(0),
            dry_run: NoEffect(false),
            style_control: StyleControl::None,
            control_features: vec![StyleFeature::Length, StyleFeature::Markdown],
            style_scale: None,
            instruction_difficulty: None,
            df_gamed: None,
            resamples: Resampling::default().resamples,
            seed: 0,
            max_new_tokens: None,
            answer_temperature: None,
            batch_size: NoEffect(64),
            chat: ChatArguments::default(),
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            output_dir: PathBuf::new(),
        }
    }
}

/// Upper limit for bootstrap resamples.
const MOST_RESAMPLES: u64 = 10_000_000;

impl JudgeConfig {
    /// Checks ranges and consistency.
    ///
    /// # Errors
    /// If a value is invalid.
    pub fn validate(&self) -> anyhow::Result<()> {
        self.check_ranges()?;
        self.answers.keys().try_for_each(|name| check_component("answers", name))?;
        self.models.keys().try_for_each(|name| check_component("models", name))?;
        check_component("judge_model", &self.judge_file_name())?;
        if let Some(name) = self.models.keys().find(|name| self.answers.contains_key(*name)) {
            bail!("{name} is both among answers and among models; give each name once");
        }
        if self.only_counts() {
            ensure!(
                !self.judgments.is_empty(),
                "nothing is to be judged; give answers (files), models (checkpoints), or judgments to be counted"
            );
            return Ok(());
        }
        self.check_templates()?;
        self.check_baseline()?;
        match (self.transport, &self.judge_path) {
            (Transport::Local, None) => bail!("transport is local; say which checkpoint judges: judge_path: DIR"),
            (Transport::Local, _) => Ok(()),
            (_, Some(_)) => bail!("judge_path is for transport: local; leave it out or choose that"),
            (Transport::Http, None) => http::check_address(&self.base_url),
            (Transport::Batch | Transport::Recorded, None) => Ok(()),
        }
    }

    fn check_ranges(&self) -> anyhow::Result<()> {
        let count =
            |key, value: Option<usize>, most| value.map_or(Ok(()), |value| check_count(key, value as u64, most));
        count("max_tokens", self.max_tokens, MOST_TOKENS)?;
        count("max_new_tokens", self.max_new_tokens, MOST_TOKENS)?;
        check_count("batch_size", self.batch_size.0 as u64, MOST_SEQUENCES)?;
        check_count("concurrency", self.concurrency.0 as u64, http::MOST_CALLS)?;
        check_count("resamples", self.resamples as u64, MOST_RESAMPLES)?;
        check_most("max_retries", u64::from(self.max_retries.0), 1000)?;
        check_range("timeout", self.timeout.0, f64::MIN_POSITIVE..=86_400.0)?;
        for (key, value) in [("temperature", self.temperature), ("answer_temperature", self.answer_temperature)] {
            value.map_or(Ok(()), |value| check_range(key, value, 0.0..=f64::MAX))?;
        }
        ensure!(!self.control_features.is_empty(), "control_features is empty; name length, markdown or both");
        ensure!(
            self.df_gamed.is_none() || self.instruction_difficulty.is_some(),
            "df_gamed is used together with instruction_difficulty; give both"
        );
        Ok(())
    }

    fn check_templates(&self) -> anyhow::Result<()> {
        let needed = match self.protocol {
            Protocol::MtBenchSingle | Protocol::MtBenchPair | Protocol::Pairwise => "FastChat's judge_prompts.jsonl",
            Protocol::ArenaHardV01 => "Arena-Hard-Auto's config/judge_config.yaml",
            Protocol::ArenaHardV2 => "Arena-Hard-Auto's config/arena-hard-v2.0.yaml",
            Protocol::AlpacaEval2 => "AlpacaEval's alpaca_eval_clf.txt",
        };
        ensure!(self.templates.is_some(), "no judge prompts are given; say templates: the path of {needed}");
        let own = matches!(self.protocol, Protocol::AlpacaEval2 | Protocol::Pairwise);
        ensure!(own || self.questions.is_some(), "no questions are given; say questions: FILE");
        Ok(())
    }

    fn check_baseline(&self) -> anyhow::Result<()> {
        let is_needed = matches!(self.protocol, Protocol::AlpacaEval2 | Protocol::Pairwise);
        ensure!(
            !is_needed || !self.baseline.is_empty(),
            "{} compares with a baseline; say baseline: one of the names under answers and models",
            self.protocol.name()
        );
        let known = self.answers.contains_key(&self.baseline) || self.models.contains_key(&self.baseline);
        ensure!(
            self.baseline.is_empty() || known,
            "baseline is {:?}, which is not among answers and models",
            self.baseline
        );
        Ok(())
    }

    /// Whether the run makes no calls and only counts existing judgments.
    pub fn only_counts(&self) -> bool {
        self.answers.is_empty() && self.models.is_empty()
    }

    /// The judge's name, escaped for file names.
    pub(super) fn judge_file_name(&self) -> String {
        self.judge_model.replace(['/', ':', '\\'], "__")
    }
}
