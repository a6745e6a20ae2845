//! FastChat's scores: grades of single answers, and pairs in both orders.
use std::collections::{BTreeMap, BTreeSet};

use salsa_algo::{
    judge::{
        alpaca::Instruction,
        pair,
        single::{self, Grade},
    },
    stats::Verdict,
};
use serde_json::{Value, json};

use super::{Counting, add_lengths, bias, by_name, over_prompts};
use crate::stage::eval::judge::{
    protocol::mt_bench::{PairRow, SingleRow},
    question::key_of,
};

const SINGLE_RULE: &str = "FastChat show_result.py, mode single: mean of the grades; answers without a grade (-1) are left \
                           out; the mean of all grades is not the mean of the two turns";

pub(super) fn singles(rows: &[SingleRow], counting: &Counting<'_>) -> Value {
    let models: BTreeSet<&str> = rows.iter().map(|row| row.model.as_str()).collect();
    let of_model = |model: &str| {
        let own: Vec<&SingleRow> = rows.iter().filter(|row| row.model == model).collect();
        let grades: Vec<Grade> = own.iter().map(|row| Grade { turn: row.turn, score: row.grade() }).collect();
        let means = single::means(&grades);
        let graded = own.iter().filter_map(|row| Some((key_of(&row.question_id), row.grade()?, 1.0)));
        let mut found = json!({
            "score": means.all, "turn_1": means.turn_1, "turn_2": means.turn_2,
            "rows": own.len(), "graded": means.graded, "dropped": means.dropped,
            "ci95_over_questions": over_prompts(graded, counting, 1.0),
        });
        let mut categories: BTreeMap<String, Vec<Grade>> = BTreeMap::new();
        for (row, grade) in own.iter().zip(&grades) {
            let category = (counting.category_of)(&key_of(&row.question_id)).filter(|category| !category.is_empty());
            category.into_iter().for_each(|category| categories.entry(category).or_default().push(*grade));
        }
        if !categories.is_empty() {
            let mean = |(category, grades): (String, Vec<Grade>)| (category, json!(single::means(&grades).all));
            found["categories"] = by_name(categories.into_iter().map(mean));
        }
        (model.to_owned(), found)
    };
    json!({"rule": SINGLE_RULE, "models": by_name(models.into_iter().map(of_model))})
}

const PAIR_RULE: &str = "FastChat show_result.py, mode pairwise: a row counts once, as a win if both orders agree and else \
                         as a tie; rows with an error in either order are left out; win_rate_adjusted counts ties half";

pub(super) fn pairs(rows: &[PairRow], counting: &Counting<'_>) -> Value {
    let mut models: BTreeSet<&str> = rows.iter().flat_map(|row| [row.model_1.as_str(), &row.model_2]).collect();
    models.remove(counting.baseline);
    let of_model = |model: &str| {
        let own: Vec<(&PairRow, pair::Row)> =
            rows.iter().filter_map(|row| Some((row, seen_from(model, row)?))).collect();
        let (tally, dropped) = pair::tally(own.iter().map(|(_, games)| *games));
        let share = |count: usize| (tally.rows() > 0).then(|| count as f64 / tally.rows() as f64);
        let judged = || own.iter().filter_map(|(row, games)| Some((*row, points(games.verdict()?))));
        let values = judged().map(|(row, points)| (key_of(&row.question_id), points, 1.0));
        let mut found = json!({
            "win_rate_adjusted": tally.win_rate(), "win_rate": share(tally.wins), "loss_rate": share(tally.losses),
            "wins": tally.wins, "losses": tally.losses, "ties": tally.ties, "rows": own.len(), "dropped": dropped,
            "ci95_over_questions": over_prompts(values, counting, 1.0),
        });
        let other = |row: &PairRow| if row.model_1 == model { row.model_2.clone() } else { row.model_1.clone() };
        let instructions: Vec<Instruction> = judged()
            .filter_map(|(row, points)| {
                let key = key_of(&row.question_id);
                Some(Instruction {
                    preference: Some(1.0 + points),
                    length: (counting.length_of)(model, &key)?,
                    baseline_length: (counting.length_of)(&other(row), &key)?,
                    difficulty: 0.0,
                })
            })
            .collect();
        add_lengths(&mut found, &instructions);
        (model.to_owned(), found)
    };
    let models = by_name(models.into_iter().map(of_model));
    json!({"rule": PAIR_RULE, "models": models, "position_bias": bias(rows.iter().map(PairRow::games))})
}

/// The games of a row from a model's perspective; `None` if it does not take part.
fn seen_from(model: &str, row: &PairRow) -> Option<pair::Row> {
    let games = row.games();
    let turned = |verdict: Option<Verdict>| verdict.map(Verdict::reversed);
    match model {
        _ if model == row.model_1 => Some(games),
        _ if model == row.model_2 => Some(pair::Row { first: turned(games.second), second: turned(games.first) }),
        _ => None,
    }
}

fn points(verdict: Verdict) -> f64 {
    match verdict {
        Verdict::Win => 1.0,
        Verdict::Tie => 0.5,
        Verdict::Loss => 0.0,
    }
}
