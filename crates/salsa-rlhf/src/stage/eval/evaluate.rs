//! Evaluation: every arm answers the same prompts with the same random numbers; answers are scored, compared in pairs
//! and shown side by side.
use std::{collections::BTreeMap, path::Path};

use anyhow::Context;
use salsa_engine::{Model, comm::CommError};
use serde_json::{Value, json};

use super::{
    exam::{Answering, Answers, EvalSetup, Evaluator, PromptSet, Questions},
    landscape::blend::Blend,
};
use crate::{
    atomic, metrics,
    report::{
        Answer, Comparison, Contrast, Estimate, LandscapePoint, Ordered, Report, Run, Sample, SplitSummary, Summary,
        Versus, label,
    },
    stage::{
        StageContext,
        device::{self, Choice as DeviceChoice},
        eval::statistics::{self, estimate, paired_difference, win_rate},
        keys::ComputeType,
        kind::{Produces, Product, Shown, Stage},
        models::{bases::Bases, model_source::ModelSource},
        reads::{ExampleUse, ModelUse, Reads},
        rollout::split,
        text::rows,
    },
};

pub(in crate::stage) mod config;
mod plan;
mod profile;
mod shown;
#[cfg(test)]
mod tests;

use config::answers_file;
pub(crate) use config::{EvalSet, EvaluateConfig, Landscape};
use plan::Plan;
use profile::{Rewards, profile};

/// Models and settings shared by all arms.
struct Bench<'a> {
    config: &'a EvaluateConfig,
    exam: Evaluator,
    anchors: Vec<(&'a str, Model)>,
    bases: Bases,
}

impl Stage for EvaluateConfig {
    const NAME: &'static str = "evaluate";
    const ABOUT: &'static str = "Compare models: answers to the same prompts, scores, win rates, KL, reward landscape.";
    const EXAMPLE: &'static str = "--config evaluate.yaml --output_dir eval";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Results;
    const NEXT: &'static [(&'static str, &'static str)] =
        &[("score answers again", "salsa score --model REWARD --input OUT/answers-ARM-SET.jsonl --output FILE")];
    const SHOWN: Shown = Shown::Evaluation;

    fn check(&self) -> anyhow::Result<()> {
        self.validate()
    }

    fn reads(&self) -> Reads {
        let reads = Reads::with_source(self.arms.get(&self.baseline), &self.chat);
        let reads = reads
            .models("reward_model_path", ModelUse::RewardOfReader)
            .models("rewards", ModelUse::RewardOfReader)
            .models("runs", ModelUse::Metrics);
        self.datasets
            .iter()
            .enumerate()
            .fold(reads, |reads, (i, set)| reads.examples(format!("datasets[{i}]"), &set.dataset, ExampleUse::Prompt))
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.device, self.dtype))
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Evaluates all arms and writes `evaluation.json` (all data of a report) and `answers-ARM-SET.jsonl`. The first process
/// writes, and returns the results.
///
/// # Errors
/// If a model or a set cannot be used, or a file cannot be written.
pub(crate) fn run(config: &EvaluateConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let (mut bench, sets) = Bench::open(config, context)?;
    let alphas = config.landscape.as_ref().map_or(0, |line| line.alphas.len());
    let steps = (config.arms.len() + alphas) * sets.len();
    let progress = context.progress("evaluate", steps as u64, "set");
    let mut done = 0;
    let mut advance = |what: &str| {
        done += 1;
        progress.message(what);
        progress.set(done);
    };
    let mut answers: BTreeMap<&str, Vec<Answers>> = BTreeMap::new();
    let mut summaries: BTreeMap<&str, Vec<SplitSummary>> = BTreeMap::new();
    for (arm, source) in &config.arms {
        // Arms of another shape take arrays of other sizes; the plan counts each arm alone.
        salsa_engine::release_memory();
        let model = bench.model(source)?;
        for set in &sets {
            let given = bench.exam.answer(&model, set)?;
            summaries.entry(arm).or_default().push(bench.summarise(&given)?);
            if context.is_first() {
                write_answers(&config.output_dir, arm, set, &given)?;
            }
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
        device: device::label(&context.device),
        prompts: sets.iter().map(|set| (set.name.as_str(), set.count())).collect(),
        arms: arms_in_order(&summaries, &sets),
        landscape: bench.landscape(&sets, &answers, &mut advance)?,
        comparisons: comparisons(config, &answers, &sets),
        seconds: Ordered::new(),
    };
    progress.finish(&format!("{} arms", config.arms.len()));
    if !context.is_first() {
        return Ok(Value::Null);
    }
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
    /// The arm that equals the model at an end of the line. Since it answers the same prompts with the same random
    /// numbers, its answers serve for that end.
    fn arm_at_end(&self, line: &Landscape, alpha: f64) -> Option<&str> {
        let model = match alpha {
            0.0 => &line.models.0,
            1.0 => &line.models.1,
            _ => return None,
        };
        let is_it = |source: &ModelSource| matches!(source, ModelSource::Path(path) if path == model);
        self.arms.iter().find(|(_, source)| is_it(source)).map(|(arm, _)| arm.as_str())
    }

    /// The name of the arm or anchor with this model, or else the model's folder.
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
pub(crate) const EVALUATION: &str = "evaluation.json";

impl<'a> Bench<'a> {
    fn open(config: &'a EvaluateConfig, context: &StageContext) -> anyhow::Result<(Bench<'a>, Vec<Questions>)> {
        let baseline = &config.arms[&config.baseline];
        let first = baseline.paths().into_iter().next().context("the baseline names no model")?;
        let EvaluateConfig { max_new_tokens, temperature, seed, gold, .. } = *config;
        let answering = Answering { max_new_tokens, temperature, seed, slots: *config.decode_slots, gold };
        let syllabus =
            EvalSetup::open(first, config.reward_list(), answering, &config.chat, &config.output_dir, context)?;
        let questions = |set: &EvalSet| {
            let EvalSet { name, dataset, max_prompts } = set;
            let max_prompt_length = config.max_prompt_length;
            syllabus.questions(&PromptSet { name, dataset, max_prompts: *max_prompts, max_prompt_length }, context)
        };
        let sets = config.datasets.iter().map(questions).collect::<anyhow::Result<Vec<_>>>()?;
        let plan = Plan::open(config)?;
        plan.check_fit(&syllabus, &sets)?;
        plan.check_memory(&syllabus, &sets, context)?;
        let mut bases = Bases::on(&context.device);
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

    fn summarise(&self, answers: &Answers) -> Result<SplitSummary, CommError> {
        let rollouts = &answers.rollouts;
        let lengths = rollouts.lengths();
        let own = split(&rollouts.logprobs, &lengths);
        let kl_to = |model: &Model| -> Result<Estimate, CommError> {
            let other = rollouts.logprobs_of(model)?;
            let pairs = own.iter().zip(split(&other, &lengths));
            let kls = pairs.map(|(own, other)| own.iter().sum::<f64>() - other.iter().sum::<f64>());
            Ok(estimate(&kls.collect::<Vec<_>>()))
        };
        let kls = self.anchors.iter().map(|(name, model)| Ok((*name, kl_to(model)?))).collect::<Result<_, _>>()?;
        let length = estimate(&lengths.iter().map(|&length| length as f64).collect::<Vec<_>>());
        let empty = answers.texts.iter().filter(|text| text.is_empty()).count() as f64 / answers.texts.len() as f64;
        Ok(SplitSummary {
            gold_reward: answers.gold.as_deref().map(estimate),
            proxy_score: estimate(&answers.scores),
            versus: Versus { kls, ..Versus::default() },
            length_mean: length.mean,
            length_ci95: Some(length.ci95),
            empty_rate: empty,
            empty_rate_ci95: Some(statistics::share(empty, answers.texts.len())),
        })
    }

    /// Gold and proxy reward along the line, for each set.
    fn landscape(
        &self,
        sets: &[Questions],
        of_arms: &BTreeMap<&str, Vec<Answers>>,
        advance: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Vec<LandscapePoint>> {
        let Some(line) = &self.config.landscape else { return Ok(Vec::new()) };
        let (from, to) = line.models.clone();
        let mut blend = Blend::open(&[from, to], self.exam.vocab_size, self.bases.device()).context("landscape")?;
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

/// Arms in display order: known names first.
fn in_order<'a>(arms: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let known = ["sft_a", "sft_b", "soup", "ppo", "salsa"];
    let mut arms: Vec<&str> = arms.collect();
    arms.sort_by_key(|arm| known.iter().position(|name| name == arm).unwrap_or(known.len()));
    arms
}

/// The summaries of all arms, in display order.
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

/// The first prompts of each set with the answers of all arms.
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

/// Writes one line per prompt in the format of `salsa generate`, so that the answers can be judged again.
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
