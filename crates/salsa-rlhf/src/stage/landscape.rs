//! `salsa landscape`: rewards and loss of the models on a line through two checkpoints, or on the plane of three.
//!
//! Every point is a weighted mean of the checkpoints' weights, inside and outside of them. Prompts are tokenised once, the
//! reward model is loaded once, all points answer with the same random numbers, and the weights of one point replace those
//! of the one before in place. A finished point is kept if the run is interrupted.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use salsa_engine::Model;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Interrupted, StageContext,
    arguments::ComputeType,
    bases::Bases,
    encoder::Encoder,
    evaluate::statistics::{estimate, paired_difference},
    exam::{Answering, Asked, Exam, Questions, Syllabus},
    held_out::{HeldOut, Losses},
    memory::{self, Knobs, Roles, Saving, part, shape},
    ppo::config::Gold,
    source::DataSource,
};
use crate::{
    atomic,
    checkpoint::Checkpoint,
    progress::Progress,
    report::{Estimate, Landscape, Spot},
};

pub(super) mod blend;
mod grid;
#[cfg(test)]
mod tests;

use blend::Blend;

/// What `salsa landscape` can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LandscapeConfig {
    /// Two checkpoints for a line, three for a plane; of one architecture and tokenizer.
    pub models: Vec<PathBuf>,
    /// The reward model that scores answers.
    pub reward_model_path: PathBuf,
    /// The prompts that every point answers.
    pub prompts: DataSource,
    /// A reward function besides the learned one.
    pub gold: Option<Gold>,
    /// Held-out examples on which every point's loss is taken; none: no loss.
    pub eval_dataset: Option<DataSource>,
    /// Where a line begins: 0 is the first model, 1 the second.
    pub start: f64,
    /// Where it ends.
    pub end: f64,
    /// Points on a line, at equal distances, both ends among them. The models themselves are added if they are not.
    pub steps: usize,
    /// Of a plane: how many parts the way from one model to another is cut into.
    pub divisions: usize,
    /// Of a plane: how far beyond the triangle of the models it goes, as a share of that way. No weight is below minus this.
    pub margin: f64,
    /// Only the first so many prompts; none: all.
    pub max_prompts: Option<usize>,
    /// Prompts longer than this many tokens are left out.
    pub max_prompt_length: usize,
    /// The longest answer, in tokens.
    pub max_new_tokens: usize,
    /// Only the first so many examples for the loss; none: all.
    pub max_examples: Option<usize>,
    /// Examples for the loss are cut off behind so many tokens.
    pub max_length: usize,
    /// Sampling temperature; 0 always takes the likeliest token.
    pub temperature: f32,
    /// Answers generated at once; changes none of them, only memory and speed.
    pub decode_slots: usize,
    /// Seed of the sampling: the same random numbers for every point.
    pub seed: u64,
    /// Number type of matrix products: `auto` (bfloat16 where this machine multiplies it faster), `f32` or `bf16`.
    pub dtype: ComputeType,
    /// Where `landscape.json` and `landscape.html` go.
    pub output_dir: PathBuf,
}

impl Default for LandscapeConfig {
    fn default() -> LandscapeConfig {
        LandscapeConfig {
            models: Vec::new(),
            reward_model_path: PathBuf::new(),
            prompts: DataSource::default(),
            gold: None,
            eval_dataset: None,
            start: -0.5,
            end: 1.5,
            steps: 17,
            divisions: 4,
            margin: 0.25,
            max_prompts: None,
            max_prompt_length: 1024,
            max_new_tokens: 128,
            max_examples: None,
            max_length: 1024,
            temperature: 1.0,
            decode_slots: 64,
            seed: 42,
            dtype: ComputeType::Auto,
            output_dir: PathBuf::new(),
        }
    }
}

impl LandscapeConfig {
    /// Checks ranges and relations.
    ///
    /// # Errors
    /// Names the key that makes no sense.
    pub fn validate(&self) -> anyhow::Result<()> {
        let count = self.models.len();
        ensure!((2..=3).contains(&count), "models names {count} checkpoints; give two for a line or three for a plane");
        ensure!(!self.reward_model_path.as_os_str().is_empty(), "no reward model is given; say reward_model: DIR");
        let given = self.prompts.paths().iter().any(|path| !path.as_os_str().is_empty());
        ensure!(given, "no prompts are given; say prompts: FILE");
        let (start, end) = (self.start, self.end);
        ensure!(start.is_finite() && end.is_finite(), "start is {start} and end {end}; give finite numbers");
        ensure!(start < end, "start is {start}, which is not below end, {end}");
        ensure!(self.steps >= 2, "steps is {}; it must be at least 2", self.steps);
        ensure!(self.divisions >= 1, "divisions is 0; it must be at least 1");
        let margin = self.margin;
        ensure!((0.0..=10.0).contains(&margin), "margin is {margin}; it must be between 0 and 10");
        ensure!(
            self.points().len() <= MOST_POINTS,
            "{} points are too many; at most {MOST_POINTS}",
            self.points().len()
        );
        ensure!(self.max_new_tokens > 0, "max_new_tokens is 0; it must be at least 1");
        ensure!(self.decode_slots > 0, "decode_slots is 0; it must be at least 1");
        ensure!(self.max_length >= 2, "max_length is {}; it must be at least 2", self.max_length);
        let temperature = self.temperature;
        ensure!(temperature >= 0.0 && temperature.is_finite(), "temperature is {temperature}; it must be 0 or above");
        Ok(())
    }

    /// The weights of the models at every point.
    fn points(&self) -> Vec<Vec<f64>> {
        match self.models.len() {
            3 => grid::plane(self.divisions, self.margin),
            _ => grid::line(self.start, self.end, self.steps),
        }
    }
}

/// More would take days, and be a mistyped number.
const MOST_POINTS: usize = 10_000;

/// The file with the numbers.
pub const LANDSCAPE: &str = "landscape.json";

/// Measures every point and writes `landscape.json` and `landscape.html`.
///
/// # Errors
/// If a model or a set cannot be used, the disk refuses, or the run was interrupted (finished points are kept).
pub fn run(config: &LandscapeConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.validate()?;
    let mut survey = Survey::open(config, context)?;
    let points = config.points();
    let kept = config.output_dir.join("checkpoints");
    fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    let total = points.len() as u64;
    let progress = Progress::new("landscape", total, "points");
    let mut measured: Vec<Measured> = Vec::new();
    for (i, weights) in points.iter().enumerate() {
        let path = kept.join(format!("point-{i}.json"));
        if let Some(found) = read(&path)? {
            measured.push(found);
            progress.start_at(i as u64 + 1);
            continue;
        }
        if context.interrupted() {
            bail!(Interrupted { step: i as u64, total });
        }
        let point = survey.measure(weights).with_context(|| format!("at the weights {weights:?}"))?;
        atomic::write(&path, serde_json::to_string(&point).context("point as JSON")?.as_bytes())?;
        progress.message(&format!("{} score {:.3}", place(weights), estimate(&point.scores).mean));
        progress.set(i as u64 + 1);
        measured.push(point);
    }
    progress.finish("");
    let landscape = survey.landscape(&points, &measured);
    let text = serde_json::to_string_pretty(&landscape).context("landscape as JSON")? + "\n";
    atomic::write(&config.output_dir.join(LANDSCAPE), text.as_bytes())?;
    atomic::write(&config.output_dir.join("landscape.html"), landscape.html().as_bytes())?;
    let best = |pick: fn(&Spot) -> Option<Estimate>| {
        let spots = landscape.points.iter().filter_map(|spot| Some((spot, pick(spot)?)));
        let best = spots.max_by(|(_, a), (_, b)| a.mean.total_cmp(&b.mean));
        best.map(|(spot, estimate)| json!({"mean": estimate.mean, "weights": spot.weights}))
    };
    Ok(json!({
        "points": points.len(),
        "prompts": landscape.prompts,
        "best_score": best(|spot| Some(spot.proxy_score)),
        "best_gold": best(|spot| spot.gold_reward),
    }))
}

/// What one point gave, prompt by prompt: what is kept of an interrupted run.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Measured {
    scores: Vec<f64>,
    gold: Option<Vec<f64>>,
    losses: Option<Losses>,
    lengths: Vec<f64>,
}

/// A point that an earlier run finished.
fn read(path: &Path) -> anyhow::Result<Option<Measured>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged; remove it", path.display()))
}

/// Everything that all points share.
struct Survey<'a> {
    config: &'a LandscapeConfig,
    exam: Exam,
    questions: Questions,
    held_out: Option<HeldOut>,
    blend: Blend,
}

impl<'a> Survey<'a> {
    fn open(config: &'a LandscapeConfig, context: &StageContext) -> anyhow::Result<Survey<'a>> {
        let LandscapeConfig { max_new_tokens, max_prompts, max_prompt_length, temperature, seed, gold, .. } = *config;
        let answering = Answering { max_new_tokens, temperature, seed, slots: config.decode_slots, gold };
        let syllabus = Syllabus::open(&config.models[0], &config.reward_model_path, answering)?;
        let asked = Asked { name: "prompts", dataset: &config.prompts, max_prompts, max_prompt_length };
        let questions = syllabus.questions(&asked, context)?;
        let held_out = match &config.eval_dataset {
            None => None,
            Some(dataset) => {
                let checkpoint = Checkpoint::open(&config.models[0])?;
                let longest = config.max_length.min(checkpoint.spec.max_positions);
                let encoder = Encoder::open(&checkpoint)?;
                let held_out = HeldOut::open(dataset, &encoder, longest, config.max_examples)?;
                context.say(&format!("{dataset}: loss on {} examples", held_out.len()));
                Some(held_out)
            }
        };
        let questions = [questions];
        let need = |knobs: &Knobs| {
            let mut roles = Roles::new(knobs.dtype);
            syllabus.add_reward_model(&mut roles);
            // The models, and their mean.
            roles.ingredients(&syllabus.spec, config.models.len() + 1);
            roles.changing(&syllabus.spec);
            let mut need = roles.need();
            let passes = syllabus.add_passes(&questions, knobs, &mut need);
            let losses = held_out.as_ref().map(|data| data.passes().beside(&passes)).unwrap_or_default();
            need.add(part::ACTIVATIONS, shape::forward_pass(&syllabus.spec, losses.tokens()));
            need
        };
        let savings = [Saving::Slots("decode_slots"), Saving::Dtype];
        memory::check("landscape", &syllabus.knobs(), &savings, &need, context)?;
        let [questions] = questions;
        let exam = syllabus.load(&mut Bases::default())?;
        let blend = Blend::open(&config.models, exam.vocab_size)?;
        Ok(Survey { config, exam, questions, held_out, blend })
    }

    fn measure(&mut self, weights: &[f64]) -> anyhow::Result<Measured> {
        let model: &Model = self.blend.at(weights)?;
        let answers = self.exam.answer(model, &self.questions)?;
        let lengths = answers.rollouts.lengths().into_iter().map(|length| length as f64).collect();
        let losses = self.held_out.as_ref().map(|data| data.losses(model));
        Ok(Measured { scores: answers.scores, gold: answers.gold, losses, lengths })
    }

    /// The estimates of all points; differences are taken prompt by prompt against the first model.
    fn landscape(&self, points: &[Vec<f64>], measured: &[Measured]) -> Landscape {
        let is_first = |weights: &[f64]| weights[0] == 1.0 && weights[1..].iter().all(|w| *w == 0.0);
        let first = points.iter().position(|weights| is_first(weights)).map(|i| &measured[i]);
        let seed = self.config.seed;
        let spot = |(weights, point): (&Vec<f64>, &Measured)| {
            let others = first.filter(|_| !is_first(weights));
            let loss_of = |first: &Measured| Some(point.losses.as_ref()?.difference(first.losses.as_ref()?));
            let gold_of = |first: &Measured| Some(paired_difference(point.gold.as_ref()?, first.gold.as_ref()?, seed));
            Spot {
                weights: weights.clone(),
                gold_reward: point.gold.as_deref().map(estimate),
                gold_difference: others.and_then(gold_of),
                proxy_score: estimate(&point.scores),
                proxy_difference: others.map(|first| paired_difference(&point.scores, &first.scores, seed)),
                loss: point.losses.as_ref().map(Losses::estimate),
                loss_difference: others.and_then(loss_of),
                length_mean: estimate(&point.lengths).mean,
            }
        };
        let name = |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Landscape {
            models: self.config.models.iter().map(name).collect(),
            prompts: self.questions.texts.len(),
            temperature: f64::from(self.config.temperature),
            seed,
            points: points.iter().zip(measured).map(spot).collect(),
        }
    }
}

/// A point for a progress bar.
fn place(weights: &[f64]) -> String {
    match weights {
        [_, t] => format!("t {t:.3}"),
        _ => weights.iter().map(|w| format!("{w:.2}")).collect::<Vec<_>>().join(" "),
    }
}
