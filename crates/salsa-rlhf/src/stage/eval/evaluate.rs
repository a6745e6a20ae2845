//! Evaluation: every arm answers the same prompts with the same random numbers; answers are scored, compared in pairs
//! and shown side by side.
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use salsa_engine::{Device, Model};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    exam::{Answering, Answers, Asked, Exam, Questions, Syllabus},
    landscape::blend::Blend,
};
use crate::{
    atomic,
    config::{
        names,
        paths::{ModelPath, NoEffect},
    },
    metrics,
    progress::Progress,
    report::{
        Answer, Comparison, Contrast, INTERVAL, LandscapePoint, Ordered, Report, Run, Sample, SplitSummary, Summary,
        Versus, label,
    },
    stage::{
        StageContext,
        device::{self, Choice as DeviceChoice},
        eval::statistics::{self, estimate, paired_difference, win_rate},
        gold::Gold,
        keys::{ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count, check_range},
        models::{bases::Bases, model_source::ModelSource},
        rollout::split,
        text::{chat_arguments::ChatArguments, rows, source::DataSource},
    },
};

mod plan;
mod profile;
#[cfg(test)]
mod tests;

use plan::Plan;
use profile::{Rewards, profile};

/// What an evaluation can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct EvaluateConfig {
    /// The models to compare, by names of your own. `sft_a`, `sft_b`, `soup`, `ppo` and `salsa` are known to the report
    /// by name, others by their keys.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub arms: BTreeMap<String, ModelSource>,
    /// The arm against which win rates are counted, by its name.
    pub baseline: String,
    /// The prompts, set by set, all of which every arm answers.
    pub datasets: Vec<EvalSet>,
    /// The reward model that scores every answer.
    pub reward_model_path: ModelPath,
    /// Models to which each arm's KL is measured, by names of your own; `kl_NAME` in the results. Empty: none.
    pub anchors: BTreeMap<String, ModelSource>,
    /// Pairs of arms to compare on top, the first against the second, such as `[[salsa, ppo]]`. Empty: none.
    pub comparisons: Vec<(String, String)>,
    /// Rewards on the line between two models, on every set. None: no such line.
    pub landscape: Option<Landscape>,
    /// Training runs whose curves the report shows: the directory of a stage, by the name of its arm. Empty: none.
    pub runs: BTreeMap<String, ModelPath>,
    /// A reward function besides the learned one; win rates are then counted by it. None: by the reward model.
    pub gold: Option<Gold>,
    /// The longest answer, in tokens, at least 1.
    #[schemars(extend("x-heading" = "Answers"))]
    pub max_new_tokens: usize,
    /// Prompts longer than this many tokens are left out.
    pub max_prompt_length: usize,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Sampling temperature, above 0; KLs are measured at it.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Answers generated at once, at least 1; changes none of them, only speed and memory.
    pub decode_slots: NoEffect<usize>,
    /// Seed of the sampling: the same random numbers for every arm.
    pub seed: u64,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    pub dtype: ComputeType,
    /// Where it is computed; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Prompts shown side by side in the report, per set; 0: none.
    #[schemars(extend("x-heading" = "Report"))]
    pub samples: usize,
    /// Title of the report, and of the page.
    pub title: NoEffect<String>,
    /// What was run, in one or two sentences, below the title. Empty: nothing.
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
    /// Only the first so many prompts, at least 1. None: all.
    pub max_prompts: Option<usize>,
}

/// A line through two models: `(1 - alpha) * from + alpha * to`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Landscape {
    /// The two models at the ends of the line.
    pub models: (ModelPath, ModelPath),
    /// Places on the line: 0 is the first model, 1 the second; others are blends of their weights.
    pub alphas: Vec<f64>,
}

impl Default for EvaluateConfig {
    fn default() -> EvaluateConfig {
        EvaluateConfig {
            arms: BTreeMap::new(),
            baseline: "sft_a".into(),
            datasets: Vec::new(),
            reward_model_path: ModelPath::new(),
            anchors: BTreeMap::new(),
            comparisons: Vec::new(),
            landscape: None,
            runs: BTreeMap::new(),
            gold: None,
            max_new_tokens: 128,
            max_prompt_length: 1024,
            chat: ChatArguments::default(),
            temperature: 1.0,
            decode_slots: NoEffect(64),
            seed: 42,
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            samples: 8,
            title: NoEffect("SALSA evaluation".into()),
            description: NoEffect::default(),
            output_dir: PathBuf::new(),
        }
    }
}

impl EvaluateConfig {
    /// Checks relations.
    ///
    /// # Errors
    /// Names the key that makes no sense.
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
        check_range("temperature", self.temperature.into(), f64::MIN_POSITIVE..=f64::from(f32::MAX))?;
        check_count("max_new_tokens", self.max_new_tokens as u64, MOST_TOKENS)?;
        check_count("decode_slots", *self.decode_slots as u64, MOST_SEQUENCES)?;
        self.check_names()
    }

    /// Names of arms and sets make file names, and no two files may have the same one.
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

/// What every arm is measured with.
struct Bench<'a> {
    config: &'a EvaluateConfig,
    exam: Exam,
    anchors: Vec<(&'a str, Model)>,
    bases: Bases,
}

/// Evaluates all arms and writes `evaluation.json` (all that a report needs) and `answers-ARM-SET.jsonl`.
///
/// # Errors
/// If a model or a set cannot be used, or the disk refuses.
pub fn run(config: &EvaluateConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let (mut bench, sets) = Bench::open(config, context)?;
    let alphas = config.landscape.as_ref().map_or(0, |line| line.alphas.len());
    let steps = (config.arms.len() + alphas) * sets.len();
    let progress = Progress::new("evaluate", steps as u64, "set");
    let mut done = 0;
    let mut advance = |what: &str| {
        done += 1;
        progress.message(what);
        progress.set(done);
    };
    let mut answers: BTreeMap<&str, Vec<Answers>> = BTreeMap::new();
    let mut summaries: BTreeMap<&str, Vec<SplitSummary>> = BTreeMap::new();
    for (arm, source) in &config.arms {
        let model = bench.model(source)?;
        for set in &sets {
            let given = bench.exam.answer(&model, set)?;
            summaries.entry(arm).or_default().push(bench.summarise(&given));
            write_answers(&config.output_dir, arm, set, &given)?;
            answers.entry(arm).or_default().push(given);
            advance(&format!("{arm} on {}", set.name));
        }
    }
    for (arm, given) in &answers {
        for (i, answers_of_set) in given.iter().enumerate() {
            let (own, base) = (answers_of_set.judged(), answers[config.baseline.as_str()][i].judged());
            let summary = &mut summaries.get_mut(arm).expect("every arm has been summarised")[i];
            summary.versus.win_rates.insert(&config.baseline, win_rate(own, base));
        }
    }
    let summary = Summary {
        version: env!("CARGO_PKG_VERSION").into(),
        seed: config.seed,
        isa: salsa_engine::isa().into(),
        device: device::label(&Device::current()),
        arms: arms_in_order(&summaries, &sets),
        landscape: bench.landscape(&sets, &answers, &mut advance)?,
        comparisons: comparisons(config, &answers, &sets),
        seconds: Ordered::new(),
    };
    progress.finish(&format!("{} arms", config.arms.len()));
    let report = Report {
        title: config.title.to_string(),
        description: config.description.to_string(),
        threads: 0,
        runs: training_runs(config)?,
        samples: samples(config, &answers, &sets),
        line: config.landscape.as_ref().map(|line| [&line.models.0, &line.models.1].map(|model| config.name_of(model))),
        summary,
        ..Report::default()
    };
    let text = serde_json::to_string_pretty(&report).context("evaluation as JSON")? + "\n";
    atomic::write(&config.output_dir.join(EVALUATION), text.as_bytes())?;
    let of_set =
        |set: &SplitSummary| json!({"score": set.proxy_score.mean, "gold": set.gold_reward.map(|gold| gold.mean)});
    let of_arm = |arm: &str| -> serde_json::Map<_, _> {
        sets.iter().zip(&summaries[arm]).map(|(set, summary)| (set.name.clone(), of_set(summary))).collect()
    };
    let arms: serde_json::Map<_, _> = config.arms.keys().map(|arm| (arm.clone(), of_arm(arm).into())).collect();
    let left_out: serde_json::Map<_, _> = sets.iter().map(|set| (set.name.clone(), set.left_out.into())).collect();
    Ok(json!({"arms": arms, "left_out": left_out}))
}

impl EvaluateConfig {
    /// The arm that is the model at an end of the line: it answers the same prompts with the same random numbers, so its
    /// answers are those of the end.
    fn arm_at_end(&self, line: &Landscape, alpha: f64) -> Option<&str> {
        let model = match alpha {
            0.0 => &line.models.0,
            1.0 => &line.models.1,
            _ => return None,
        };
        let is_it = |source: &ModelSource| matches!(source, ModelSource::Path(path) if path == model);
        self.arms.iter().find(|(_, source)| is_it(source)).map(|(arm, _)| arm.as_str())
    }

    /// What an arm or an anchor that is this model is called, or else the model's folder.
    fn name_of(&self, model: &Path) -> String {
        let mut named = self.arms.iter().chain(&self.anchors);
        let is_it = |source: &ModelSource| matches!(source, ModelSource::Path(path) if path.as_ref() == model);
        match named.find(|(_, source)| is_it(source)) {
            Some((name, _)) => label(name),
            None => model.file_name().unwrap_or(model.as_os_str()).to_string_lossy().into_owned(),
        }
    }
}

/// The file from which a report is made.
pub const EVALUATION: &str = "evaluation.json";

impl<'a> Bench<'a> {
    fn open(config: &'a EvaluateConfig, context: &StageContext) -> anyhow::Result<(Bench<'a>, Vec<Questions>)> {
        let baseline = &config.arms[&config.baseline];
        let first = baseline.paths().into_iter().next().context("the baseline names no model")?;
        let EvaluateConfig { max_new_tokens, temperature, seed, gold, .. } = *config;
        let answering = Answering { max_new_tokens, temperature, seed, slots: *config.decode_slots, gold };
        let syllabus = Syllabus::open(first, &config.reward_model_path, answering, &config.chat, context)?;
        let questions = |set: &EvalSet| {
            let EvalSet { name, dataset, max_prompts } = set;
            let max_prompt_length = config.max_prompt_length;
            syllabus.questions(&Asked { name, dataset, max_prompts: *max_prompts, max_prompt_length }, context)
        };
        let sets = config.datasets.iter().map(questions).collect::<anyhow::Result<Vec<_>>>()?;
        let plan = Plan::open(config)?;
        plan.check_fit(&syllabus, &sets)?;
        plan.check_memory(&syllabus, &sets, context)?;
        let mut bases = Bases::default();
        let exam = syllabus.load(&mut bases)?;
        let mut bench = Bench { config, exam, anchors: Vec::new(), bases };
        for (name, source) in &config.anchors {
            let model = bench.model(source)?;
            bench.anchors.push((name, model));
        }
        Ok((bench, sets))
    }

    fn model(&mut self, source: &ModelSource) -> anyhow::Result<Model> {
        source.load(&mut self.bases).with_context(|| format!("model {source}"))
    }

    fn summarise(&self, answers: &Answers) -> SplitSummary {
        let rollouts = &answers.rollouts;
        let lengths = rollouts.lengths();
        let own = split(&rollouts.logprobs, &lengths);
        let kl_to = |model: &Model| {
            let other = rollouts.logprobs_of(model);
            let pairs = own.iter().zip(split(&other, &lengths));
            estimate(&pairs.map(|(own, other)| own.iter().sum::<f64>() - other.iter().sum::<f64>()).collect::<Vec<_>>())
        };
        let kls = self.anchors.iter().map(|(name, model)| (*name, kl_to(model))).collect();
        let length = estimate(&lengths.iter().map(|&length| length as f64).collect::<Vec<_>>());
        let empty = answers.texts.iter().filter(|text| text.is_empty()).count() as f64 / answers.texts.len() as f64;
        SplitSummary {
            gold_reward: answers.gold.as_deref().map(estimate),
            proxy_score: estimate(&answers.scores),
            versus: Versus { kls, ..Versus::default() },
            length_mean: length.mean,
            length_ci95: Some(length.ci95),
            empty_rate: empty,
            empty_rate_ci95: Some(statistics::share(empty, answers.texts.len())),
        }
    }

    /// Gold and proxy reward along the line, set by set.
    fn landscape(
        &self,
        sets: &[Questions],
        of_arms: &BTreeMap<&str, Vec<Answers>>,
        advance: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Vec<LandscapePoint>> {
        let Some(line) = &self.config.landscape else { return Ok(Vec::new()) };
        let (from, to) = line.models.clone();
        let mut blend = Blend::open(&[from, to], self.exam.vocab_size).context("landscape")?;
        let mut given: Vec<Vec<Rewards>> = sets.iter().map(|_| Vec::new()).collect();
        for &alpha in &line.alphas {
            let arm = self.config.arm_at_end(line, alpha).map(|arm| &of_arms[arm]);
            for (i, set) in sets.iter().enumerate() {
                given[i].push(match arm {
                    Some(answers) => Rewards::of(&answers[i]),
                    None => Rewards::of(&self.exam.answer(blend.at(&[1.0 - alpha, alpha])?, set)?),
                });
                advance(&format!("landscape alpha {alpha} on {}", set.name));
            }
        }
        Ok(sets.iter().zip(&given).flat_map(|(set, given)| profile(&set.name, &line.alphas, given)).collect())
    }
}

/// Arms in the order in which people think of them: the known ones first.
fn in_order<'a>(arms: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let known = ["sft_a", "sft_b", "soup", "ppo", "salsa"];
    let mut arms: Vec<&str> = arms.collect();
    arms.sort_by_key(|arm| known.iter().position(|name| name == arm).unwrap_or(known.len()));
    arms
}

/// The summaries, arm by arm.
fn arms_in_order(summaries: &BTreeMap<&str, Vec<SplitSummary>>, sets: &[Questions]) -> Ordered<Ordered<SplitSummary>> {
    let mut arms = Ordered::new();
    for arm in in_order(summaries.keys().copied()) {
        let mut splits = Ordered::new();
        for (set, summary) in sets.iter().zip(&summaries[arm]) {
            splits.insert(set.name.clone(), summary.clone());
        }
        arms.insert(arm, splits);
    }
    arms
}

fn comparisons(config: &EvaluateConfig, answers: &BTreeMap<&str, Vec<Answers>>, sets: &[Questions]) -> Vec<Comparison> {
    let mut all = Vec::new();
    for (arm, versus) in &config.comparisons {
        for (i, set) in sets.iter().enumerate() {
            let (a, b) = (&answers[arm.as_str()][i], &answers[versus.as_str()][i]);
            let mut push = |metric, estimate| {
                all.push(Comparison {
                    arm: arm.clone(),
                    versus: versus.clone(),
                    split: set.name.clone(),
                    metric,
                    estimate,
                });
            };
            push(Contrast::WinRate, win_rate(a.judged(), b.judged()));
            if let (Some(a), Some(b)) = (&a.gold, &b.gold) {
                push(Contrast::GoldDifference, paired_difference(a, b, config.seed));
            }
            push(Contrast::ProxyDifference, paired_difference(&a.scores, &b.scores, config.seed));
        }
    }
    all
}

fn training_runs(config: &EvaluateConfig) -> anyhow::Result<Vec<Run>> {
    config.runs.iter().map(|(arm, dir)| Ok(Run::from_metrics(arm, &metrics::read(dir)?))).collect()
}

/// The first prompts of each set with all answers.
fn samples(config: &EvaluateConfig, answers: &BTreeMap<&str, Vec<Answers>>, sets: &[Questions]) -> Vec<Sample> {
    let mut all = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        for at in 0..config.samples.min(set.prompts.len()) {
            let answer = |arm: &str| {
                let given = &answers[arm][i];
                let gold = given.gold.as_ref().map(|gold| gold[at]);
                Answer { arm: arm.to_owned(), text: given.texts[at].clone(), gold, score: Some(given.scores[at]) }
            };
            let answers = in_order(answers.keys().copied()).into_iter().map(answer).collect();
            all.push(Sample { split: set.name.clone(), prompt: set.prompts[at].last_words().to_owned(), answers });
        }
    }
    all
}

/// One line per prompt, as `salsa generate` writes it, so that the answers can be judged again.
fn write_answers(dir: &Path, arm: &str, set: &Questions, answers: &Answers) -> anyhow::Result<()> {
    let mut text = String::new();
    for (i, prompt) in set.prompts.iter().enumerate() {
        let mut line = json!({
            "prompt": prompt,
            "response": answers.texts[i],
            "score": answers.scores[i],
        });
        for (column, value) in prompt.columns() {
            line[column] = value;
        }
        if let Some(gold) = &answers.gold {
            line["gold"] = gold[i].into();
        }
        line[rows::FINISH_REASON] = rows::finish_reason(answers.rollouts.endings[i]).into();
        line["tokens"] = json!(answers.rollouts.sequences[i]);
        text += &format!("{line}\n");
    }
    atomic::write(&dir.join(answers_file(arm, &set.name)), text.as_bytes())
}

fn answers_file(arm: &str, set: &str) -> String {
    format!("answers-{arm}-{set}.jsonl")
}
