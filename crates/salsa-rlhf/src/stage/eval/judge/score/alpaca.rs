//! AlpacaEval's scores: win rates, plain and at equal length.
use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use salsa_algo::judge::alpaca::{self, Form, Instruction};
use serde_json::{Value, json};

use super::{Counting, by_name, over_prompts};
use crate::stage::eval::judge::protocol::alpaca::Annotation;

const ALPACA_RULE: &str = "AlpacaEval 2: 100 * mean(preference - 1), the preference being the judge's probability for the \
                           model's output, in one order that is drawn from the instruction; lengths are characters";

pub(super) fn alpacas(rows: &[Annotation], counting: &Counting<'_>) -> anyhow::Result<Value> {
    let models: BTreeSet<&str> = rows.iter().map(|row| row.generator_2.as_str()).collect();
    let of_model = |model: &str| {
        let own: Vec<&Annotation> = rows.iter().filter(|row| row.generator_2 == model).collect();
        Ok((model.to_owned(), alpaca(&own, counting).with_context(|| model.to_owned())?))
    };
    let models = models.into_iter().map(of_model).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({"rule": ALPACA_RULE, "models": by_name(models)}))
}

fn alpaca(rows: &[&Annotation], counting: &Counting<'_>) -> anyhow::Result<Value> {
    // 0 is an older notation for a draw.
    let preference = |row: &&Annotation| row.preference.map(|p| if p == 0.0 { 1.5 } else { p });
    let preferences: Vec<Option<f64>> = rows.iter().map(preference).collect();
    let valid = preferences.iter().flatten().all(|p| (1.0..=2.0).contains(p));
    ensure!(valid, "a preference lies outside of 1 to 2");
    let Some(found) = alpaca::win_rate(&preferences) else {
        return Ok(json!({"win_rate": null, "n_total": 0, "dropped": rows.len()}));
    };
    let characters = |text: &str| text.chars().count();
    let lengths: usize = rows.iter().map(|row| characters(&row.output_2)).sum();
    let values = rows.iter().zip(&preferences).filter_map(|(row, p)| Some((row.instruction.clone(), (*p)? - 1.0, 1.0)));
    let mut entry = json!({
        "win_rate": found.win_rate, "standard_error": found.standard_error,
        "discrete_win_rate": found.discrete_win_rate, "n_wins": found.wins, "n_wins_base": found.wins_baseline,
        "n_draws": found.draws, "n_total": found.total, "dropped": found.dropped, "avg_length": lengths / rows.len(),
        "ci95_over_prompts": over_prompts(values, counting, 100.0),
    });
    let (form, rule) = match (&counting.difficulties, &counting.gamed) {
        (None, _) => (Form::Minimal, "length_controlled_minimal"),
        (Some(_), None) => (Form::NoReg, "length_controlled_noreg"),
        (Some(_), Some(gamed)) => (Form::V1(gamed), "length_controlled_v1"),
    };
    if let Some(difficulties) = &counting.difficulties {
        ensure!(
            difficulties.len() == rows.len(),
            "there are {} difficulties and {} instructions; they belong to the instructions by their place in the whole set",
            difficulties.len(),
            rows.len()
        );
    }
    let instruction = |(number, row): (usize, &&Annotation)| Instruction {
        preference: preferences[number],
        length: characters(&row.output_2),
        baseline_length: characters(&row.output_1),
        difficulty: counting.difficulties.as_ref().map_or(0.0, |difficulties| difficulties[number]),
    };
    let instructions: Vec<Instruction> = rows.iter().enumerate().map(instruction).collect();
    if let Some(controlled) = alpaca::length_controlled(&instructions, form) {
        entry["length_controlled"] = json!({
            "rule": rule, "win_rate": controlled.win_rate, "standard_error": controlled.standard_error,
            "coefficients": {
                "not_gamed_baseline": controlled.coefficients[0], "length": controlled.coefficients[1],
                "instruction_difficulty": controlled.coefficients[2],
            },
            "far_from_the_raw_one": alpaca::is_extreme(found.win_rate, controlled.win_rate),
        });
    }
    Ok(entry)
}
