//! Checks of an evaluation before any weight is read: compatibility of its models with the questions, and memory.
use anyhow::{Context, ensure};
use salsa_engine::{Head, LoraSpec, ModelSpec};

use super::{EvaluateConfig, Landscape};
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        eval::exam::{EvalSetup, Questions},
        memory::{self, MemorySettings, Passed, Passes, Saving, part},
        models::{frozen::open_language_model, model_source::ModelSource, roles::Roles},
    },
};

/// The opened models of an evaluation.
pub(super) struct Plan<'a> {
    config: &'a EvaluateConfig,
    arms: Vec<Vec<Checkpoint>>,
    anchors: Vec<Vec<Checkpoint>>,
    /// The models at the ends of the line.
    line: Option<[Checkpoint; 2]>,
}

impl Plan<'_> {
    /// Opens the models. Reads no weights.
    ///
    /// # Errors
    /// If a model cannot be opened.
    pub(super) fn open(config: &EvaluateConfig) -> anyhow::Result<Plan<'_>> {
        let open = |source: &ModelSource| source.open().with_context(|| format!("model {source}"));
        let ends = |line: &Landscape| -> anyhow::Result<[Checkpoint; 2]> {
            Ok([open_language_model(&line.models.0)?, open_language_model(&line.models.1)?])
        };
        Ok(Plan {
            config,
            arms: config.arms.values().map(open).collect::<anyhow::Result<_>>()?,
            anchors: config.anchors.values().map(open).collect::<anyhow::Result<_>>()?,
            line: config.landscape.as_ref().map(ends).transpose()?,
        })
    }

    /// Checks vocabulary and context of every model against the questions, which are encoded by the baseline's
    /// tokenizer.
    ///
    /// # Errors
    /// If a model has another vocabulary, or no room for the longest prompt and a response; the error names the first
    /// such model.
    pub(super) fn check_fit(&self, syllabus: &EvalSetup, sets: &[Questions]) -> anyhow::Result<()> {
        let (baseline, expected) = (&self.config.baseline, syllabus.spec.vocab_size);
        let longest = sets.iter().flat_map(|set| &set.tokens).map(Vec::len).max().unwrap_or(0);
        let new = self.config.max_new_tokens;
        let models = self.arms.iter().chain(&self.anchors).flatten().chain(self.line.iter().flatten());
        for model in models {
            let (name, vocab, positions) = (model.dir().display(), model.spec.vocab_size, model.spec.max_positions);
            ensure!(
                vocab == expected,
                "{name} has a vocabulary of {vocab}, the baseline {baseline:?} one of {expected}; only models with one \
                 tokenizer can be compared"
            );
            ensure!(
                longest + new <= positions,
                "{name}: prompt of {longest} tokens and max_new_tokens {new} exceed the model's context of {positions}; \
                 lower max_new_tokens, or leave longer prompts out with max_prompt_length"
            );
        }
        Ok(())
    }

    /// Reports the memory that the evaluation needs, and fails if that is too much.
    ///
    /// # Errors
    /// As [`memory::check`].
    pub(super) fn check_memory(
        &self,
        syllabus: &EvalSetup,
        sets: &[Questions],
        context: &StageContext,
    ) -> anyhow::Result<()> {
        let line = self.line.as_ref().map(|[end, _]| end.spec.with_head(Head::LanguageModel));
        let arms = self.arms.iter().map(|arm| Turn::Arm(arm));
        let turns: Vec<Turn<'_>> = arms.chain(line.as_ref().map(Turn::Line)).collect();
        let need = |knobs: &MemorySettings| {
            let mut roles = Roles::new(knobs.dtype);
            syllabus.add_reward_models(&mut roles);
            self.anchors.iter().for_each(|models| roles.source(models));
            roles.in_turn(&turns, |roles, turn| turn.add(roles));
            if let Some(spec) = &line {
                // Both ends, and their mean.
                roles.ingredients(spec, 3);
            }
            let (mut need, passes) = (roles.need(), Passes::new(knobs));
            for turn in &turns {
                passes.release();
                syllabus.add_passes(sets, Passed::new(&turn.spec(), turn.lora()), knobs, &passes);
            }
            for model in self.anchors.iter().flatten() {
                let lora = model.adapter().map(|adapter| &adapter.lora);
                let spec = model.spec.with_head(Head::LanguageModel);
                for set in sets {
                    passes.forward(Passed::new(&spec, lora), &syllabus.scoring_pass(&set.tokens));
                }
            }
            need.add(part::GENERATION, passes.bytes());
            need
        };
        memory::check(
            "evaluate",
            &syllabus.knobs(&context.device),
            &[Saving::Slots("decode_slots"), Saving::Dtype],
            &need,
            context,
        )
    }
}

/// A model that answers questions, one at a time.
enum Turn<'a> {
    /// One of the arms: the ingredients of a soup, or one checkpoint.
    Arm(&'a [Checkpoint]),
    /// The interpolated model on the line, of this shape.
    Line(&'a ModelSpec),
}

impl Turn<'_> {
    fn add(&self, roles: &mut Roles) {
        match self {
            Turn::Arm(models) => roles.source(models),
            Turn::Line(spec) => roles.changing(spec),
        }
    }

    /// The shape of its adapter, if it is one; for a soup, that of its first ingredient.
    fn lora(&self) -> Option<&LoraSpec> {
        match self {
            Turn::Arm(models) => models[0].adapter().map(|adapter| &adapter.lora),
            Turn::Line(_) => None,
        }
    }

    fn spec(&self) -> ModelSpec {
        match self {
            Turn::Arm(models) => models[0].spec.with_head(Head::LanguageModel),
            Turn::Line(spec) => (*spec).clone(),
        }
    }
}
