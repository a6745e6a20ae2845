//! Arena-Hard's scores, plain and controlled for style.
use std::collections::{BTreeSet, HashMap};

use anyhow::{Context, ensure};
use salsa_algo::{
    judge::{
        arena::{self, Game, Version},
        pair,
        style::{Battle, Deviation, Fit, Regression, Scale},
    },
    stats::{Interval, Resampling, Verdict, quantiles},
};
use serde_json::{Map, Value, json};

use super::{Counting, StyleControl, bias, by_name, ends, over_prompts};
use crate::stage::eval::judge::{
    protocol::{
        Protocol,
        arena::{ArenaRow, default_baseline},
    },
    question::key_of,
};

/// Bootstrap rounds of Arena-Hard.
const ROUNDS: usize = 100;

const ARENA_V01_RULE: &str = "Arena-Hard-Auto v0.1: win rate against the baseline in percent; each game is a battle, a \
                              decisive one (>>) three; a tie is half a win; games without a label are left out";
const ARENA_V2_RULE: &str = "Arena-Hard-Auto v2: win rate against the baseline in percent; each game counts once, a decisive \
                             one (>>) three times; rows in which either game has no label are left out";

pub(super) fn arenas(rows: &[ArenaRow], counting: &Counting<'_>) -> anyhow::Result<Value> {
    let categories: BTreeSet<&str> = rows.iter().map(|row| row.category.as_str()).collect();
    let of_category = |category: &str| {
        let own: Vec<&ArenaRow> = rows.iter().filter(|row| row.category == category).collect();
        let name = if category.is_empty() { "arena-hard-v0.1" } else { category };
        Ok((name.to_owned(), arena(&own, name, counting).with_context(|| format!("category {name}"))?))
    };
    let tables = categories.into_iter().map(of_category).collect::<anyhow::Result<Vec<_>>>()?;
    let rule = if counting.protocol == Protocol::ArenaHardV2 { ARENA_V2_RULE } else { ARENA_V01_RULE };
    Ok(json!({"rule": rule, "categories": by_name(tables)}))
}

/// The table of one category.
fn arena(rows: &[&ArenaRow], category: &str, counting: &Counting<'_>) -> anyhow::Result<Value> {
    let version = if counting.protocol == Protocol::ArenaHardV2 { Version::V2 } else { Version::V01 };
    let models: Vec<&str> = rows.iter().map(|row| row.model.as_str()).collect::<BTreeSet<_>>().into_iter().collect();
    let games_of = |model: &str| -> Vec<(&ArenaRow, Vec<Game>)> {
        let own = rows.iter().filter(|row| row.model == model);
        own.map(|row| (*row, row.verdicts().games(version))).collect()
    };
    let games: Vec<Vec<Game>> =
        models.iter().map(|model| games_of(model).into_iter().flat_map(|(_, games)| games).collect()).collect();
    let tool: Vec<Option<Interval>> = match version {
        Version::V01 => arena::intervals_v01(&games, ROUNDS, counting.how.seed),
        Version::V2 => games.iter().map(|games| arena::interval_v2(games, ROUNDS, counting.how.seed)).collect(),
    };
    let mut found = Map::new();
    for ((model, games), tool) in models.iter().zip(&games).zip(tool) {
        let own = games_of(model);
        let values = own.iter().flat_map(|(row, games)| {
            games.iter().map(|game| (key_of(&row.uid), game.points, game.copies as f64)).collect::<Vec<_>>()
        });
        let without = |row: &&ArenaRow| {
            let verdicts = row.verdicts();
            usize::from(verdicts.first.is_none()) + usize::from(verdicts.second.is_none())
        };
        let tokens: Option<Vec<f64>> =
            own.iter().map(|(row, _)| Some((counting.style_of)(model, &key_of(&row.uid))?.tokens)).collect();
        let tokens = tokens.filter(|tokens| !tokens.is_empty());
        let mut entry = json!({
            "score": arena::win_rate(games).map(|rate| 100.0 * rate),
            "rows": own.len(),
            "games_without_label": own.iter().map(|(row, _)| without(row)).sum::<usize>(),
            "battles": games.iter().map(|game| game.copies).sum::<usize>(),
            "average_tokens": tokens.map(|tokens| tokens.iter().sum::<f64>() / tokens.len() as f64),
            "ci95_over_prompts": over_prompts(values, counting, 100.0),
            "position_bias": bias(own.iter().map(|(row, _)| games_by_order(row))),
        });
        let key = if version == Version::V01 { "tool_interval_95" } else { "tool_interval_90" };
        entry[key] = tool.map_or(Value::Null, |interval| ends(interval, 100.0));
        found.insert((*model).to_owned(), entry);
    }
    let mut table = json!({"models": found});
    if counting.style != StyleControl::None {
        table["style_controlled"] = styled(rows, &models, version, category, counting)?;
    }
    Ok(table)
}

/// The verdicts of a row from the model's perspective; first the game in which it was shown first.
fn games_by_order(row: &ArenaRow) -> pair::Row {
    let seen = |label: Option<arena::Label>, baseline| {
        let points = label?.game(baseline).points;
        Some(Verdict::from_scores(points, 0.5))
    };
    let verdicts = row.verdicts();
    pair::Row {
        first: seen(verdicts.second, arena::Baseline::Second),
        second: seen(verdicts.first, arena::Baseline::First),
    }
}

/// Scores controlled for style.
fn styled(
    rows: &[&ArenaRow],
    models: &[&str],
    version: Version,
    category: &str,
    counting: &Counting<'_>,
) -> anyhow::Result<Value> {
    let keys: BTreeSet<String> = rows.iter().map(|row| key_of(&row.uid)).collect();
    let numbers: HashMap<&str, usize> = keys.iter().enumerate().map(|(i, key)| (key.as_str(), i)).collect();
    let mut battles = Vec::new();
    for row in rows {
        let key = key_of(&row.uid);
        let base = match (counting.baseline, row.baseline.as_str()) {
            ("", "") => default_baseline(counting.protocol, category),
            ("", of_row) => of_row,
            (given, _) => given,
        };
        let style = |model: &str| {
            (counting.style_of)(model, &key).with_context(|| {
                format!(
                    "style_control needs the answers of {model}, and there is none to {key}; give them under answers"
                )
            })
        };
        let (own, other) = (style(&row.model)?, style(base)?);
        let features = match version {
            Version::V01 => own.features_v01(&other),
            Version::V2 => own.features_v2(&other),
        };
        let model = models.iter().position(|model| *model == row.model).expect("the models are those of the rows");
        let battle = |game: Game| Battle {
            model,
            prompt: numbers[key.as_str()],
            points: game.points,
            copies: game.copies,
            features,
        };
        battles.extend(row.verdicts().games(version).into_iter().map(battle));
    }
    ensure!(battles.len() > 1, "there are no games with a label");
    let deviation = if version == Version::V01 { Deviation::Population } else { Deviation::Sample };
    let scale = counting.scale.unwrap_or_else(|| Scale::of(&battles, deviation));
    let fit = match (version, counting.style) {
        (Version::V01, _) => Fit::V01,
        (Version::V2, StyleControl::Compat) => Fit::Compat,
        (Version::V2, _) => Fit::Exact,
    };
    let regression = Regression::new(&battles, models.len(), counting.controlled, scale, fit);
    let scores = regression.scores();
    let drawn = regression.resampled_battles(ROUNDS, counting.how.seed);
    // Every resample is a regression, so there are fewer of them than for means.
    let how = Resampling { resamples: counting.how.resamples.min(MOST_REGRESSIONS), ..counting.how };
    let ours = regression.intervals_over_prompts(&how);
    let (shares, key) = match version {
        Version::V01 => ([0.025, 0.5, 0.975], "tool_interval_95"),
        Version::V2 => ([0.05, 0.5, 0.95], "tool_interval_90"),
    };
    let mut found = Map::new();
    for (number, model) in models.iter().enumerate() {
        let tool = quantiles(&drawn[number], &shares).unwrap_or_default();
        // v2 reports the median of its resamples.
        let score = if fit == Fit::Compat { tool[1] } else { scores.win_rates[number] };
        let mut entry = json!({
            "score": 100.0 * score,
            "score_without_difference": 100.0 * scores.without_difference[number],
            "ci95_over_prompts": ours[number].map(|interval| ends(interval, 100.0)),
        });
        entry[key] = json!([100.0 * tool[0], 100.0 * tool[2]]);
        found.insert((*model).to_owned(), entry);
    }
    Ok(json!({
        "rule": style_rule(fit),
        "models": found,
        "coefficients": {
            "length": scores.coefficients[0], "headers": scores.coefficients[1],
            "lists": scores.coefficients[2], "bold": scores.coefficients[3],
        },
        "scale": {"mean": scale.mean, "deviation": scale.deviation, "fixed": counting.scale.is_some()},
    }))
}

/// Upper limit for regressions of an interval over prompts.
const MOST_REGRESSIONS: usize = 500;

fn style_rule(fit: Fit) -> &'static str {
    match fit {
        Fit::V01 => {
            "Arena-Hard-Auto v0.1 --style-control: Bradley-Terry with style features, scikit-learn's default penalty (C = 1), \
             at its optimum; at the average difference of style of all models here"
        }
        Fit::Compat => {
            "Arena-Hard-Auto v2 --control-features: median of 100 resamples, each fitted by 50 steps of L-BFGS at rate .1, \
             which stops before the optimum; at the average difference of style of all models here"
        }
        Fit::Exact => {
            "Arena-Hard-Auto v2's model with style features at its optimum, without resampling; at the average difference of \
             style of all models here"
        }
    }
}
