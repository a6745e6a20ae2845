//! The greedy soup: tries ingredients from best to worst and keeps each one that does not worsen the mean.
//!
//! Source: Wortsman et al. 2022 (2203.05482), recipe 1.

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::{
    SoupConfig,
    criterion::{Criterion, Mean},
    ingredients::Ingredients,
};
use crate::{checkpoint::NewTensor, progress::Progress, report::Estimate, stage::StageContext};

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
    let judge = Criterion::open("greedy", greedy, &[&greedy.dataset], ingredients, &config.output_dir, context)?;
    let count = ingredients.models.len();
    let progress = Progress::new("greedy soup", 2 * count as u64 - 1, "models");
    let mut mean = Mean::new(ingredients, tensors, &context.device);
    let mut done = 0;
    let mut measure = |members: &[usize]| -> anyhow::Result<Estimate> {
        ensure!(!context.interrupted(), "interrupted; no soup was made, the same command starts anew");
        let equal: Vec<(usize, f64)> = members.iter().map(|&member| (member, 1.0)).collect();
        let measured = judge.measure(mean.of(&equal)?, 0)?;
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
