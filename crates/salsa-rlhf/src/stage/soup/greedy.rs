//! The greedy soup: tries ingredients from best to worst and keeps each one that does not worsen the mean.
//!
//! Source: Wortsman et al. 2022 (2203.05482), recipe 1.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_algo::soup::{Normalize, Weights, weighted_mean};
use salsa_engine::{Device, Head, Model, ModelSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{SoupConfig, ingredients::Ingredients};
use crate::{
    checkpoint::NewTensor,
    config::paths::{ModelPath, NoEffect},
    progress::Progress,
    report::Estimate,
    stage::{
        StageContext,
        eval::{
            exam::{Answering, EvalSetup, Evaluator, PromptSet, Questions},
            held_out::HeldOut,
            statistics::estimate,
        },
        memory::{self, MemorySettings, Need, Passed, Passes, Saving, part},
        models::{bases::Bases, roles::Roles},
        rewards::RewardSource,
        text::{chat_arguments::ChatArguments, encoder::Encoder, source::DataSource},
    },
};

/// How the greedy soup is measured: by the loss on examples or, with a reward model, by its score of answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct GreedyConfig {
    /// Held-out examples for the loss, or prompts for the score.
    pub dataset: DataSource,
    /// The reward model that scores answers. None: the loss is used.
    pub reward_model_path: Option<ModelPath>,
    /// Maximum number of examples or prompts, taken from the start. None: all.
    pub max_examples: Option<usize>,
    /// Maximum length in tokens, at least 2: longer examples are truncated, longer prompts omitted.
    pub max_length: usize,
    /// How prompts become tokens.
    #[serde(flatten)]
    pub chat: ChatArguments,
    /// Maximum number of tokens of an answer, at least 1.
    pub max_new_tokens: usize,
    /// Sampling temperature of answers; 0 always takes the most likely token.
    #[serde(serialize_with = "crate::config::shortest")]
    pub temperature: f32,
    /// Answers generated at once, at least 1; affects speed and memory only.
    pub decode_slots: NoEffect<usize>,
    /// Seed of the answers: every model gets the same random numbers.
    pub seed: u64,
}

impl Default for GreedyConfig {
    fn default() -> GreedyConfig {
        GreedyConfig {
            dataset: DataSource::default(),
            reward_model_path: None,
            max_examples: None,
            max_length: 1024,
            chat: ChatArguments::default(),
            max_new_tokens: 128,
            temperature: 0.0,
            decode_slots: NoEffect(64),
            seed: 42,
        }
    }
}

impl GreedyConfig {
    /// Checks ranges.
    ///
    /// # Errors
    /// If a value is invalid.
    pub(super) fn validate(&self) -> anyhow::Result<()> {
        let given = self.dataset.paths().iter().any(|path| !path.as_os_str().is_empty());
        ensure!(
            given,
            "greedy.dataset is missing: held-out examples (loss), or prompts (with greedy.reward_model_path)"
        );
        ensure!(self.max_examples != Some(0), "greedy.max_examples is 0; it must be at least 1");
        ensure!(self.max_length >= 2, "greedy.max_length is {}; it must be at least 2", self.max_length);
        ensure!(self.max_new_tokens > 0, "greedy.max_new_tokens is 0; it must be at least 1");
        ensure!(*self.decode_slots > 0, "greedy.decode_slots is 0; it must be at least 1");
        let temperature = self.temperature;
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "greedy.temperature is {temperature}; it must be 0 or above"
        );
        Ok(())
    }
}

/// The record of a greedy selection.
#[derive(Clone, Debug)]
pub(crate) struct Selection {
    measure: &'static str,
    /// Measurement of each ingredient alone.
    alone: Vec<Estimate>,
    steps: Vec<Step>,
    /// The ingredients of the soup, in the order of their addition.
    pub kept: Vec<usize>,
}

/// A trial of one ingredient.
#[derive(Clone, Debug)]
struct Step {
    ingredient: usize,
    /// Measurement of the mean with it.
    measured: Estimate,
    kept: bool,
}

impl Selection {
    /// The weights of the ingredients: equal, or 0.
    pub(super) fn weights(&self, ingredients: usize) -> Vec<f64> {
        (0..ingredients).map(|i| if self.kept.contains(&i) { 1.0 } else { 0.0 }).collect()
    }

    /// The entry in `soup.json`. Ingredients are counted from 0.
    pub(super) fn to_json(&self) -> Value {
        let step = |step: &Step| json!({"ingredient": step.ingredient, "soup": step.measured, "kept": step.kept});
        json!({
            "measure": self.measure,
            "alone": self.alone,
            "steps": self.steps.iter().map(step).collect::<Vec<_>>(),
            "kept": self.kept,
        })
    }
}

/// Chooses the ingredients. `tensors` are those of the soup; measured means are rounded to their types.
///
/// # Errors
/// If a model, the data or the reward model cannot be used, or the work was interrupted.
pub(super) fn choose(
    config: &SoupConfig,
    ingredients: &Ingredients,
    tensors: &[NewTensor],
    context: &StageContext,
) -> anyhow::Result<Selection> {
    let greedy = config.greedy.as_ref().context("greedy.dataset is missing")?;
    let judge = Criterion::open(greedy, ingredients, &config.output_dir, context)?;
    let count = ingredients.models.len();
    let progress = Progress::new("greedy soup", 2 * count as u64 - 1, "models");
    let mut model = None;
    let mut done = 0;
    let mut measure = |members: &[usize]| -> anyhow::Result<Estimate> {
        ensure!(!context.interrupted(), "interrupted; no soup was made, the same command starts anew");
        let measured = judge.measure(load(&mut model, ingredients, tensors, members, &context.device)?)?;
        ensure!(measured.mean.is_finite(), "the {} of {members:?} is {}", judge.name(), measured.mean);
        done += 1;
        progress.message(&format!("{} {:.4}", judge.name(), measured.mean));
        progress.set(done);
        Ok(measured)
    };
    let alone = (0..count).map(|i| measure(&[i])).collect::<anyhow::Result<Vec<Estimate>>>()?;
    let quality = |measured: &Estimate| judge.quality(measured);
    let mut order: Vec<usize> = (0..count).collect();
    // Stable: in a tie, the one named first.
    order.sort_by(|a, b| quality(&alone[*b]).total_cmp(&quality(&alone[*a])));
    let mut kept = vec![order[0]];
    let mut best = alone[order[0]];
    let mut steps = vec![Step { ingredient: order[0], measured: best, kept: true }];
    for &ingredient in &order[1..] {
        let members: Vec<usize> = kept.iter().copied().chain([ingredient]).collect();
        let measured = measure(&members)?;
        let keeps = quality(&measured) >= quality(&best);
        if keeps {
            (kept, best) = (members, measured);
        }
        steps.push(Step { ingredient, measured, kept: keeps });
    }
    progress.finish(&format!("{} of {count} kept, {} {:.4}", kept.len(), judge.name(), best.mean));
    Ok(Selection { measure: judge.name(), alone, steps, kept })
}

/// The measure of a model.
enum Criterion {
    Loss(HeldOut),
    Score(Box<Evaluator>, Questions),
}

impl Criterion {
    fn open(
        greedy: &GreedyConfig,
        ingredients: &Ingredients,
        dir: &Path,
        context: &StageContext,
    ) -> anyhow::Result<Criterion> {
        let model = ingredients.with_tokenizer();
        if model.spec.head == Head::Scalar {
            bail!("method greedy measures language models; {} is a reward model", model.dir().display());
        }
        let Some(reward_model) = &greedy.reward_model_path else {
            let longest = greedy.max_length.min(model.spec.max_positions);
            let encoder = Encoder::open(model)?.with_chat(&greedy.chat);
            let data = HeldOut::open(&greedy.dataset, &encoder, longest, greedy.max_examples, context)?;
            context.say(&format!("{}: loss on {} examples", greedy.dataset, data.len()));
            let need = |knobs: &MemorySettings| {
                let mut need = with_soup(Roles::new(knobs.dtype), &model.spec);
                let passes = Passes::new(knobs);
                passes.forward(Passed::new(&model.spec, None), &data.largest_pass());
                need.add(part::ACTIVATIONS, passes.bytes());
                need
            };
            memory::check(STAGE, &MemorySettings::on(&context.device), &[], &need, context)?;
            return Ok(Criterion::Loss(data));
        };
        let GreedyConfig { max_new_tokens, temperature, seed, decode_slots: NoEffect(slots), .. } = *greedy;
        let answering = Answering { max_new_tokens, temperature, seed, slots, gold: None };
        let rewards = RewardSource::list(reward_model, &[]);
        let syllabus = EvalSetup::open(model.dir(), rewards, answering, &greedy.chat, dir, context)?;
        let asked = PromptSet {
            name: "greedy",
            dataset: &greedy.dataset,
            max_prompts: greedy.max_examples,
            max_prompt_length: greedy.max_length,
        };
        let questions = [syllabus.questions(&asked, context)?];
        let need = |knobs: &MemorySettings| {
            let mut roles = Roles::new(knobs.dtype);
            syllabus.add_reward_models(&mut roles);
            let (mut need, passes) = (with_soup(roles, &model.spec), Passes::new(knobs));
            syllabus.add_passes(&questions, Passed::new(&syllabus.spec, None), knobs, &passes);
            need.add(part::GENERATION, passes.bytes());
            need
        };
        memory::check(
            STAGE,
            &syllabus.knobs(&context.device),
            &[Saving::Slots("greedy.decode_slots")],
            &need,
            context,
        )?;
        let [questions] = questions;
        Ok(Criterion::Score(Box::new(syllabus.load(&mut Bases::on(&context.device))?), questions))
    }

    fn name(&self) -> &'static str {
        match self {
            Criterion::Loss(_) => "loss",
            Criterion::Score(..) => "score",
        }
    }

    fn measure(&self, model: &Model) -> anyhow::Result<Estimate> {
        match self {
            Criterion::Loss(data) => Ok(data.losses(model)?.estimate()),
            Criterion::Score(exam, questions) => Ok(estimate(&exam.answer(model, questions)?.scores)),
        }
    }

    fn quality(&self, measured: &Estimate) -> f64 {
        match self {
            Criterion::Loss(_) => -measured.mean,
            Criterion::Score(..) => measured.mean,
        }
    }
}

/// Name for memory errors.
const STAGE: &str = "soup";

/// Memory of the mean of some ingredients of this shape, both while it is computed and as a model.
fn with_soup(mut roles: Roles, spec: &ModelSpec) -> Need {
    let language = spec.with_head(Head::LanguageModel);
    roles.ingredients(spec, 1);
    if language != *spec {
        roles.ingredients(&language, 1);
    }
    roles.changing(&language);
    roles.need()
}

/// Loads the mean of these ingredients into a model, rounded like the soup.
fn load<'m>(
    model: &'m mut Option<Model>,
    ingredients: &Ingredients,
    tensors: &[NewTensor],
    members: &[usize],
    device: &Device,
) -> anyhow::Result<&'m Model> {
    let spec = &ingredients.models[0].spec;
    let language = spec.with_head(Head::LanguageModel);
    let weights = mean(ingredients, tensors, members)?;
    let weights = if language == *spec { weights } else { spec.convert(&weights, &language, 0) };
    match model {
        Some(model) => model.set_weights(&weights)?,
        None => *model = Some(Model::new(language, &weights, device.clone())?),
    }
    Ok(model.as_ref().expect("made above"))
}

/// The equal mean of ingredients, computed as by [`super::arithmetic::Method::Linear`].
fn mean(ingredients: &Ingredients, tensors: &[NewTensor], members: &[usize]) -> anyhow::Result<Vec<f32>> {
    let weights = Weights::new(&vec![1.0; members.len()], Normalize::Divide)?;
    // In the order of summation in the soup.
    let mut members = members.to_vec();
    members.sort_unstable();
    let sources = members.iter().map(|i| ingredients.models[*i].raw()).collect::<anyhow::Result<Vec<_>>>()?;
    let views = ingredients.models[0].spec.tensors();
    let mut all = vec![0f32; ingredients.parameters()];
    let (mut wide, mut bytes) = (vec![Vec::new(); sources.len()], Vec::new());
    for (tensor, (view, new)) in views.into_iter().zip(tensors).enumerate() {
        for (block, out) in all[view.range].chunks_mut(BLOCK).enumerate() {
            for (source, wide) in sources.iter().zip(&mut wide) {
                wide.resize(out.len(), 0.0);
                source.read_f32(tensor, block * BLOCK, wide)?;
            }
            let pieces: Vec<&[f32]> = wide.iter().map(Vec::as_slice).collect();
            weighted_mean(&pieces, &weights, out);
            let rounded = new.dtype.encode(out, &mut bytes);
            rounded.map_err(|at| anyhow::anyhow!("{} is {} in the mean of {members:?}", new.name, out[at]))?;
            new.dtype.widen(&bytes, out);
        }
    }
    Ok(all)
}

/// Number of weights read at a time.
const BLOCK: usize = 1 << 16;
