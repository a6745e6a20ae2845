//! What the methods `greedy` and `search` measure means of ingredients by.
use std::path::Path;

use anyhow::{bail, ensure};
use salsa_algo::soup::{Normalize, Weights, weighted_mean};
use salsa_engine::{Device, Head, Model, ModelSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ingredients::Ingredients;
use crate::{
    checkpoint::NewTensor,
    config::paths::{ModelPath, NoEffect},
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

/// How soups are measured by the methods `greedy` and `search`: by the loss on examples or, with a reward model, by its
/// score of answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MeasureConfig {
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

impl Default for MeasureConfig {
    fn default() -> MeasureConfig {
        MeasureConfig {
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

impl MeasureConfig {
    /// Checks ranges; `key` is that of the method.
    ///
    /// # Errors
    /// If a value is invalid.
    pub(super) fn validate(&self, key: &str) -> anyhow::Result<()> {
        let given = self.dataset.paths().iter().any(|path| !path.as_os_str().is_empty());
        ensure!(given, "{key}.dataset is missing: held-out examples (loss), or prompts (with {key}.reward_model_path)");
        ensure!(self.max_examples != Some(0), "{key}.max_examples is 0; it must be at least 1");
        ensure!(self.max_length >= 2, "{key}.max_length is {}; it must be at least 2", self.max_length);
        ensure!(self.max_new_tokens > 0, "{key}.max_new_tokens is 0; it must be at least 1");
        ensure!(*self.decode_slots > 0, "{key}.decode_slots is 0; it must be at least 1");
        let temperature = self.temperature;
        ensure!(
            temperature >= 0.0 && temperature.is_finite(),
            "{key}.temperature is {temperature}; it must be 0 or above"
        );
        Ok(())
    }
}

/// The measure of a model, on one or several sets.
pub(super) enum Criterion {
    Loss(Vec<HeldOut>),
    Score(Box<Evaluator>, Vec<Questions>),
}

impl Criterion {
    /// Opens what `measure`, the keys of the method `name`, measures by, on these sets.
    ///
    /// # Errors
    /// If the ingredients are no language models, the reward model or a set cannot be used, or memory does not suffice.
    pub(super) fn open(
        name: &str,
        measure: &MeasureConfig,
        sets: &[&DataSource],
        ingredients: &Ingredients,
        dir: &Path,
        context: &StageContext,
    ) -> anyhow::Result<Criterion> {
        let model = ingredients.with_tokenizer();
        if model.spec.head == Head::Scalar {
            bail!("method {name} measures language models; {} is a reward model", model.dir().display());
        }
        let Some(reward_model) = &measure.reward_model_path else {
            let longest = measure.max_length.min(model.spec.max_positions);
            let encoder = Encoder::open(model)?.with_chat(&measure.chat);
            let open = |set: &&DataSource| {
                let data = HeldOut::open(set, &encoder, longest, measure.max_examples, context)?;
                context.say(&format!("{set}: loss on {} examples", data.len()));
                anyhow::Ok(data)
            };
            let data = sets.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
            let need = |knobs: &MemorySettings| {
                let mut need = with_soup(Roles::new(knobs.dtype), &model.spec);
                let passes = Passes::new(knobs);
                data.iter().for_each(|data| passes.forward(Passed::new(&model.spec, None), &data.largest_pass()));
                need.add(part::ACTIVATIONS, passes.bytes());
                need
            };
            memory::check(STAGE, &MemorySettings::on(&context.device), &[], &need, context)?;
            return Ok(Criterion::Loss(data));
        };
        let MeasureConfig { max_new_tokens, temperature, seed, decode_slots: NoEffect(slots), .. } = *measure;
        let answering = Answering { max_new_tokens, temperature, seed, slots, gold: None };
        let rewards = RewardSource::list(reward_model, &[]);
        let syllabus = EvalSetup::open(model.dir(), rewards, answering, &measure.chat, dir, context)?;
        let asked = |dataset: &&DataSource| {
            let (max_prompts, max_prompt_length) = (measure.max_examples, measure.max_length);
            syllabus.questions(&PromptSet { name, dataset, max_prompts, max_prompt_length }, context)
        };
        let questions = sets.iter().map(asked).collect::<anyhow::Result<Vec<_>>>()?;
        let need = |knobs: &MemorySettings| {
            let mut roles = Roles::new(knobs.dtype);
            syllabus.add_reward_models(&mut roles);
            let (mut need, passes) = (with_soup(roles, &model.spec), Passes::new(knobs));
            syllabus.add_passes(&questions, Passed::new(&syllabus.spec, None), knobs, &passes);
            need.add(part::GENERATION, passes.bytes());
            need
        };
        let slots = if name == "greedy" { "greedy.decode_slots" } else { "search.decode_slots" };
        memory::check(STAGE, &syllabus.knobs(&context.device), &[Saving::Slots(slots)], &need, context)?;
        Ok(Criterion::Score(Box::new(syllabus.load(&mut Bases::on(&context.device))?), questions))
    }

    /// What is measured.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Criterion::Loss(_) => "loss",
            Criterion::Score(..) => "score",
        }
    }

    /// Measures a model on the `set`-th set.
    ///
    /// # Errors
    /// If a number is not finite, or an answer cannot be decoded.
    pub(super) fn measure(&self, model: &Model, set: usize) -> anyhow::Result<Estimate> {
        match self {
            Criterion::Loss(data) => Ok(data[set].losses(model)?.estimate()),
            Criterion::Score(exam, questions) => Ok(estimate(&exam.answer(model, &questions[set])?.scores)),
        }
    }

    /// The measured number with the sign with which more is better.
    pub(super) fn quality(&self, measured: &Estimate) -> f64 {
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

/// A model that holds one mean of ingredients after the other.
pub(super) struct Mean<'a> {
    ingredients: &'a Ingredients,
    tensors: &'a [NewTensor],
    device: &'a Device,
    model: Option<Model>,
}

impl<'a> Mean<'a> {
    /// `tensors` are those of the soup: means are rounded to their types.
    pub(super) fn new(ingredients: &'a Ingredients, tensors: &'a [NewTensor], device: &'a Device) -> Mean<'a> {
        Mean { ingredients, tensors, device, model: None }
    }

    /// Loads the mean of these ingredients with these weights, whose sum may be any.
    ///
    /// # Errors
    /// If a file cannot be read, or a weight of the mean is not finite.
    pub(super) fn of(&mut self, members: &[(usize, f64)]) -> anyhow::Result<&Model> {
        let spec = &self.ingredients.models[0].spec;
        let language = spec.with_head(Head::LanguageModel);
        let weights = mean(self.ingredients, self.tensors, members)?;
        let weights = if language == *spec { weights } else { spec.convert(&weights, &language, 0) };
        match &mut self.model {
            Some(model) => model.set_weights(&weights)?,
            None => self.model = Some(Model::new(language, &weights, self.device.clone())?),
        }
        Ok(self.model.as_ref().expect("made above"))
    }
}

/// The weighted mean of ingredients, computed as by [`super::arithmetic::Method::Linear`].
fn mean(ingredients: &Ingredients, tensors: &[NewTensor], members: &[(usize, f64)]) -> anyhow::Result<Vec<f32>> {
    // In the order of summation in the soup.
    let mut members = members.to_vec();
    members.sort_by_key(|(member, _)| *member);
    let weights = Weights::new(&members.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(), Normalize::Divide)?;
    let sources = members.iter().map(|(i, _)| ingredients.models[*i].raw()).collect::<anyhow::Result<Vec<_>>>()?;
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
