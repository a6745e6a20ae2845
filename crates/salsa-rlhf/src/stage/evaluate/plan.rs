//! The memory that an evaluation will take.
use anyhow::Context;
use salsa_engine::{Head, ModelSpec};

use super::EvaluateConfig;
use crate::{
    checkpoint::Checkpoint,
    stage::{
        StageContext,
        exam::{Questions, Syllabus},
        memory::{self, Knobs, Roles, Saving},
        model_source::ModelSource,
        start::open_language_model,
    },
};

/// Says what memory the evaluation needs, and refuses it if that is too much. No weight is read.
///
/// # Errors
/// As [`memory::check`], and if a model cannot be opened.
pub(super) fn check_memory(
    config: &EvaluateConfig,
    syllabus: &Syllabus,
    sets: &[Questions],
    context: &StageContext,
) -> anyhow::Result<()> {
    let open = |source: &ModelSource| source.open().with_context(|| format!("model {source}"));
    let arms = config.arms.values().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let anchors = config.anchors.values().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let line = config.landscape.as_ref().map(|line| open_language_model(&line.models.0)).transpose()?;
    let line = line.map(|end| end.spec.with_head(Head::LanguageModel));
    let turns: Vec<Turn<'_>> = arms.iter().map(|arm| Turn::Arm(arm)).chain(line.as_ref().map(Turn::Line)).collect();
    let need = |knobs: &Knobs| {
        let mut roles = Roles::new(knobs.dtype);
        syllabus.add_reward_model(&mut roles);
        anchors.iter().for_each(|models| roles.source(models));
        roles.in_turn(&turns, |roles, turn| turn.add(roles), Turn::spec);
        if let Some(spec) = &line {
            // Both ends, and their mean.
            roles.ingredients(spec, 3);
        }
        let mut need = roles.need();
        syllabus.add_passes(sets, knobs, &mut need);
        need
    };
    memory::check("evaluate", &syllabus.knobs(), &[Saving::Slots("decode_slots"), Saving::Dtype], &need, context)
}

/// What answers questions.
enum Turn<'a> {
    /// One of the arms: the ingredients of a soup, or one checkpoint.
    Arm(&'a [Checkpoint]),
    /// The model that goes along the line, of this shape.
    Line(&'a ModelSpec),
}

impl Turn<'_> {
    fn add(&self, roles: &mut Roles) {
        match self {
            Turn::Arm(models) => roles.source(models),
            Turn::Line(spec) => roles.changing(spec),
        }
    }

    fn spec(&self) -> ModelSpec {
        match self {
            Turn::Arm(models) => models[0].spec.with_head(Head::LanguageModel),
            Turn::Line(spec) => (*spec).clone(),
        }
    }
}
