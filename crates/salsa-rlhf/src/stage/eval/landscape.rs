//! `salsa landscape`: rewards and losses of the models on a line through two checkpoints, or on the plane of three.
//!
//! Every point is a weighted mean of the checkpoints' weights, possibly an extrapolation. Prompts are tokenised once,
//! the reward model is loaded once, all points use the same random numbers, and the weights of each point replace those
//! of the previous one in place. Finished points are kept if the run is interrupted.
use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::statistics::estimate;
use crate::{
    atomic,
    config::paths::{ModelPath, NoEffect},
    input,
    report::{Estimate, GridPoint},
    stage::{
        Interrupted, StageContext,
        device::Choice as DeviceChoice,
        gold::Gold,
        keys::{ComputeType, MOST_SEQUENCES, MOST_TOKENS, check_count, check_most},
        kind::{Produces, Product, Shown, Stage},
        ranks,
        reads::{ExampleUse, ModelUse, Reads},
        rewards::{self, RewardSource},
        text::{chat_arguments::ChatArguments, source::DataSource},
    },
};

pub(super) mod blend;
mod grid;
mod survey;
#[cfg(test)]
mod tests;

use survey::{Measured, Survey};

/// Configuration of `salsa landscape`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LandscapeConfig {
    /// Two checkpoints for a line, three for a plane, with the same architecture and tokenizer.
    #[schemars(extend("x-heading" = "Models and data"))]
    pub models: Vec<ModelPath>,
    /// The reward model that scores answers.
    pub reward_model_path: ModelPath,
    /// More rewards, each measured by itself at every point; on a line the report draws each against the first. Empty: none.
    pub rewards: Vec<RewardSource>,
    /// The prompts that every point answers.
    pub prompts: DataSource,
    /// A reward function in addition to the learned one. None: none.
    pub gold: Option<Gold>,
    /// Held-out examples for the loss of every point. None: no loss.
    pub eval_dataset: Option<DataSource>,
    /// Start of a line: 0 is the first model, 1 the second.
    #[schemars(extend("x-heading" = "Points"))]
    pub start: f64,
    /// End of a line, on the same scale; above `start`.
    pub end: f64,
    /// Number of equally spaced points on a line, including both ends; at least 2. The models themselves are added if
    /// they are not among them.
    pub steps: usize,
    /// For a plane: number of steps from one model to another, at least 1.
    pub divisions: usize,
    /// For a plane: extent beyond the triangle of the models, as a share of its sides, from 0 to 10. No weight is below
    /// minus this.
    pub margin: f64,
    /// Maximum number of prompts, taken from the start, at least 1. None: all.
    #[schemars(extend("x-heading" = "Answers and losses"))]
    pub max_prompts: Option<usize>,
    /// Prompts longer than this many tokens are omitted.
    pub max_prompt_length: usize,
    /// Maximum number of tokens of an answer, at least 1.
    pub max_new_tokens: usize,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Maximum number of examples for the loss, taken from the start, at least 1. None: all.
    pub max_examples: Option<usize>,
    /// Examples for the loss are truncated to this many tokens, at least 2.
    pub max_length: usize,
    /// Sampling temperature; 0 always takes the most likely token.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Answers generated at once, at least 1; affects speed and memory only.
    pub decode_slots: NoEffect<usize>,
    /// Seed of the sampling: every point gets the same random numbers.
    pub seed: u64,
    /// Number type of matrix products; sums, norms and softmax are 32-bit either way.
    pub dtype: ComputeType,
    /// Device; `cuda:N` is the GPU of that number, from 0.
    pub device: DeviceChoice,
    /// Directory of `landscape.json` and `landscape.html`.
    pub output_dir: PathBuf,
}

impl Default for LandscapeConfig {
    fn default() -> LandscapeConfig {
        LandscapeConfig {
            models: Vec::new(),
            reward_model_path: ModelPath::new(),
            rewards: Vec::new(),
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
            chat: ChatArguments::default(),
            max_examples: None,
            max_length: 1024,
            temperature: 1.0,
            decode_slots: NoEffect(64),
            seed: 42,
            dtype: ComputeType::Auto,
            device: DeviceChoice::Auto,
            output_dir: PathBuf::new(),
        }
    }
}

impl LandscapeConfig {
    /// The weights of the models at every point.
    fn points(&self) -> Vec<Vec<f64>> {
        match self.models.len() {
            3 => grid::plane(self.divisions, self.margin),
            _ => grid::line(self.start, self.end, self.steps),
        }
    }
}

/// Upper limit for points: more would take days, so a larger number is taken for a typing error.
const MOST_POINTS: usize = 10_000;

/// The file of the results.
pub(crate) const LANDSCAPE: &str = "landscape.json";

impl Stage for LandscapeConfig {
    const NAME: &'static str = "landscape";
    const ABOUT: &'static str = "Rewards and loss on a line through two models, or on the plane of three.";
    const EXAMPLE: &'static str = "--models sft-a sft-b --reward_model reward --prompts prompts.jsonl \\\n    \
                                   --output_dir landscape --max_prompts 200 --max_new_tokens 96";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::Results;
    const NEXT: &'static [(&'static str, &'static str)] = &[("look at it", "OUT/landscape.html")];
    const SHOWN: Shown = Shown::Landscape;

    fn check(&self) -> anyhow::Result<()> {
        let count = self.models.len();
        ensure!((2..=3).contains(&count), "models names {count} checkpoints; give two for a line or three for a plane");
        ensure!(!self.reward_model_path.as_os_str().is_empty(), "no reward model is given; say reward_model: DIR");
        rewards::config::check(&self.reward_model_path, &self.rewards)?;
        let given = self.prompts.paths().iter().any(|path| !path.as_os_str().is_empty());
        ensure!(given, "no prompts are given; say prompts: FILE");
        let (start, end) = (self.start, self.end);
        ensure!(start.is_finite() && end.is_finite(), "start is {start} and end {end}; give finite numbers");
        ensure!(start < end, "start is {start}, which is not below end, {end}");
        ensure!(self.steps >= 2, "steps is {}; it must be at least 2", self.steps);
        check_most("steps", self.steps as u64, MOST_POINTS as u64)?;
        check_count("divisions", self.divisions as u64, MOST_POINTS as u64)?;
        let margin = self.margin;
        ensure!((0.0..=10.0).contains(&margin), "margin is {margin}; it must be between 0 and 10");
        let points = match count {
            3 => grid::plane_points(self.divisions, margin),
            _ => self.steps,
        };
        ensure!(points <= MOST_POINTS, "{points} points are too many; at most {MOST_POINTS}");
        ensure!(self.max_prompts != Some(0), "max_prompts is 0; it must be at least 1");
        ensure!(self.max_examples != Some(0), "max_examples is 0; it must be at least 1");
        check_count("max_new_tokens", self.max_new_tokens as u64, MOST_TOKENS)?;
        check_count("decode_slots", *self.decode_slots as u64, MOST_SEQUENCES)?;
        ensure!(self.max_length >= 2, "max_length is {}; it must be at least 2", self.max_length);
        let temperature = self.temperature;
        ensure!(temperature >= 0.0 && temperature.is_finite(), "temperature is {temperature}; it must be 0 or above");
        Ok(())
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(self.models.first().map(AsRef::as_ref), &self.chat)
            .models("reward_model_path", ModelUse::RewardOfReader)
            .models("rewards", ModelUse::RewardOfReader)
            .examples("prompts", &self.prompts, ExampleUse::Prompt)
            .examples_if_any("eval_dataset", self.eval_dataset.as_ref(), ExampleUse::Demonstration)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.device, self.dtype))
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Measures every point and writes `landscape.json` and `landscape.html`.
///
/// # Errors
/// If a model or a set cannot be used, a file cannot be written, or the run was interrupted (finished points are kept).
pub(crate) fn run(config: &LandscapeConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let mut survey = Survey::open(config, context)?;
    let points = config.points();
    let kept = config.output_dir.join("checkpoints");
    if context.is_first() {
        fs::create_dir_all(&kept).with_context(|| format!("cannot make {}", kept.display()))?;
    }
    let total = points.len() as u64;
    let progress = context.progress("landscape", total, "points");
    let mut measured: Vec<Measured> = Vec::new();
    for (i, weights) in points.iter().enumerate() {
        let path = kept.join(format!("point-{i}.json"));
        if let Some(found) = ranks::from_first(&*context.ranks, || read(&path))? {
            measured.push(found);
            progress.start_at(i as u64 + 1);
            continue;
        }
        if context.any_interrupted()? {
            bail!(Interrupted { step: i as u64, total });
        }
        let point = survey.measure(weights).with_context(|| format!("at the weights {weights:?}"))?;
        if context.is_first() {
            atomic::write(&path, serde_json::to_string(&point).context("point as JSON")?.as_bytes())?;
        }
        progress.message(&format!("{} score {:.3}", place(weights), estimate(&point.scores).mean));
        progress.set(i as u64 + 1);
        measured.push(point);
    }
    progress.finish("");
    let landscape = survey.landscape(&points, &measured);
    if context.is_first() {
        let text = serde_json::to_string_pretty(&landscape).context("landscape as JSON")? + "\n";
        atomic::write(&config.output_dir.join(LANDSCAPE), text.as_bytes())?;
        atomic::write(&config.output_dir.join("landscape.html"), landscape.html().as_bytes())?;
    }
    let best = |pick: fn(&GridPoint) -> Option<Estimate>| {
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

/// Reads a point finished by an earlier run; `None` if it does not exist.
fn read(path: &Path) -> anyhow::Result<Option<Measured>> {
    let Some(bytes) = input::read_if_any(path)? else { return Ok(None) };
    match serde_json::from_slice(&bytes) {
        Ok(point) => Ok(Some(point)),
        Err(error) => {
            eprintln!("passing over the damaged point {}: {error}", path.display());
            Ok(None)
        }
    }
}

/// The name of a point in the progress bar.
fn place(weights: &[f64]) -> String {
    match weights {
        [_, t] => format!("t {t:.3}"),
        _ => weights.iter().map(|w| format!("{w:.2}")).collect::<Vec<_>>().join(" "),
    }
}
