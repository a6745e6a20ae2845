//! Data and models shared by all points of a landscape, and the measurement of a point.
use anyhow::Context;
use salsa_engine::Model;
use serde::{Deserialize, Serialize};

use super::{LandscapeConfig, blend::Blend};
use crate::{
    checkpoint::Checkpoint,
    config::paths::ModelPath,
    report::{GridPoint, Landscape},
    stage::{
        StageContext,
        eval::{
            exam::{Answering, EvalSetup, Evaluator, PromptSet, Questions},
            held_out::{HeldOut, Losses},
            statistics::{estimate, paired_difference},
        },
        memory::{self, MemorySettings, Passed, Passes, Saving, part},
        models::{bases::Bases, roles::Roles},
        rewards::RewardSource,
        text::encoder::Encoder,
    },
};

/// Measurements of one point, by prompt; kept if the run is interrupted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Measured {
    pub scores: Vec<f64>,
    /// The other rewards, by name.
    #[serde(default)]
    pub others: Vec<(String, Vec<f64>)>,
    pub gold: Option<Vec<f64>>,
    pub losses: Option<Losses>,
    pub lengths: Vec<f64>,
}

/// Data and models shared by all points.
pub(super) struct Survey<'a> {
    config: &'a LandscapeConfig,
    exam: Evaluator,
    questions: Questions,
    held_out: Option<HeldOut>,
    blend: Blend,
}

impl<'a> Survey<'a> {
    /// Opens data and models after checking the memory.
    ///
    /// # Errors
    /// If a model or a set cannot be used, or memory does not suffice.
    pub(super) fn open(config: &'a LandscapeConfig, context: &StageContext) -> anyhow::Result<Survey<'a>> {
        let LandscapeConfig { max_new_tokens, max_prompts, max_prompt_length, temperature, seed, gold, .. } = *config;
        let answering = Answering { max_new_tokens, temperature, seed, slots: *config.decode_slots, gold };
        let syllabus = EvalSetup::open(
            &config.models[0],
            RewardSource::list(&config.reward_model_path, &config.rewards),
            answering,
            &config.chat,
            &config.output_dir,
            context,
        )?;
        let asked = PromptSet { name: "prompts", dataset: &config.prompts, max_prompts, max_prompt_length };
        let questions = syllabus.questions(&asked, context)?;
        let held_out = match &config.eval_dataset {
            None => None,
            Some(dataset) => {
                let checkpoint = Checkpoint::open(&config.models[0])?;
                let longest = config.max_length.min(checkpoint.spec.max_positions);
                let encoder = Encoder::open(&checkpoint)?.with_chat(&config.chat);
                let held_out = HeldOut::open(dataset, &encoder, longest, config.max_examples, context)?;
                context.say(&format!("{dataset}: loss on {} examples", held_out.len()));
                Some(held_out)
            }
        };
        let questions = [questions];
        let need = |knobs: &MemorySettings| {
            let mut roles = Roles::new(knobs.dtype);
            syllabus.add_reward_models(&mut roles);
            // The models and their mean.
            roles.ingredients(&syllabus.spec, config.models.len() + 1);
            roles.changing(&syllabus.spec);
            let (mut need, passes) = (roles.need(), Passes::new(knobs));
            let model = Passed::new(&syllabus.spec, None);
            syllabus.add_passes(&questions, model, knobs, &passes);
            if let Some(data) = &held_out {
                passes.forward(model, &data.largest_pass());
            }
            need.add(part::GENERATION, passes.bytes());
            need
        };
        let savings = [Saving::Slots("decode_slots"), Saving::Dtype];
        memory::check("landscape", &syllabus.knobs(&context.device), &savings, &need, context)?;
        let [questions] = questions;
        let exam = syllabus.load(&mut Bases::on(&context.device))?;
        let blend = Blend::open(&config.models, exam.vocab_size, &context.device)?;
        Ok(Survey { config, exam, questions, held_out, blend })
    }

    /// Measures the mean with these weights.
    ///
    /// # Errors
    /// If a weight of the mean is not finite, or an answer cannot be decoded.
    pub(super) fn measure(&mut self, weights: &[f64]) -> anyhow::Result<Measured> {
        let model: &Model = self.blend.at(weights)?;
        let answers = self.exam.answer(model, &self.questions)?;
        let lengths = answers.rollouts.lengths().into_iter().map(|length| length as f64).collect();
        let losses = self.held_out.as_ref().map(|data| data.losses(model)).transpose()?;
        let mut each = answers.each.into_iter();
        let (_, scores) = each.next().context("a landscape has a reward model")?;
        Ok(Measured { scores, others: each.collect(), gold: answers.gold, losses, lengths })
    }

    /// The estimates of all points; differences are taken prompt by prompt from the first model.
    pub(super) fn landscape(&self, points: &[Vec<f64>], measured: &[Measured]) -> Landscape {
        let is_first = |weights: &[f64]| weights[0] == 1.0 && weights[1..].iter().all(|w| *w == 0.0);
        let first = points.iter().position(|weights| is_first(weights)).map(|i| &measured[i]);
        let seed = self.config.seed;
        let spot = |(weights, point): (&Vec<f64>, &Measured)| {
            let others = first.filter(|_| !is_first(weights));
            let loss_of = |first: &Measured| Some(point.losses.as_ref()?.difference(first.losses.as_ref()?));
            let gold_of = |first: &Measured| Some(paired_difference(point.gold.as_ref()?, first.gold.as_ref()?, seed));
            GridPoint {
                weights: weights.clone(),
                gold_reward: point.gold.as_deref().map(estimate),
                gold_difference: others.and_then(gold_of),
                proxy_score: estimate(&point.scores),
                rewards: point.others.iter().map(|(name, rewards)| (name.clone(), estimate(rewards))).collect(),
                proxy_difference: others.map(|first| paired_difference(&point.scores, &first.scores, seed)),
                loss: point.losses.as_ref().map(Losses::estimate),
                loss_difference: others.and_then(loss_of),
                length_mean: estimate(&point.lengths).mean,
            }
        };
        let name = |path: &ModelPath| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Landscape {
            models: self.config.models.iter().map(name).collect(),
            prompts: self.questions.prompts.len(),
            temperature: f64::from(self.config.temperature),
            seed,
            points: points.iter().zip(measured).map(spot).collect(),
        }
    }
}
