//! Scores from rows, each by the rule of its tool; and beside it what the tool does not say: an interval over prompts, the
//! bias of position, lengths.
use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, ensure};
use salsa_algo::{
    judge::{
        alpaca::{self, Form, Gamed, Instruction},
        arena::{self, Game, Version},
        pair::{self, PositionBias},
        single::{self, Grade},
        style::{Battle, Deviation, FEATURES, Fit, Regression, Scale, Style},
        units::{self, Unit},
    },
    stats::{Interval, Resampling, Verdict, quantiles},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{
    protocol::{
        Protocol,
        alpaca::Annotation,
        arena::{ArenaRow, default_baseline},
        mt_bench::{PairRow, SingleRow},
    },
    question::key_of,
};

/// Rounds of the bootstrap that Arena-Hard does.
const ROUNDS: usize = 100;

/// Whether Arena-Hard's scores are controlled for style.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StyleControl {
    /// They are not.
    #[default]
    None,
    /// As the tool computes it, its optimiser included, which in v2 stops before the optimum.
    Compat,
    /// The same model at its optimum.
    Exact,
}

/// A feature that style control takes into account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StyleFeature {
    /// The number of tokens.
    Length,
    /// Headers, lists and bold passages.
    Markdown,
}

/// Rows of a tool's file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    /// FastChat's grades.
    Single(Vec<SingleRow>),
    /// FastChat's pairs.
    Pair(Vec<PairRow>),
    /// Arena-Hard's games.
    Arena(Vec<ArenaRow>),
    /// AlpacaEval's annotations.
    Alpaca(Vec<Annotation>),
}

/// How rows are counted.
pub(super) struct Counting<'a> {
    /// The protocol.
    pub protocol: Protocol,
    /// The model that the others are compared with, if one is given.
    pub baseline: &'a str,
    /// Our interval.
    pub how: Resampling,
    /// Arena-Hard's style control.
    pub style: StyleControl,
    /// Which of the four features it takes.
    pub controlled: [bool; FEATURES],
    /// A fixed scale of the features.
    pub scale: Option<Scale>,
    /// The style of a model's answer to a question.
    pub style_of: &'a dyn Fn(&str, &str) -> Option<Style>,
    /// The characters of a model's answer to a question.
    pub length_of: &'a dyn Fn(&str, &str) -> Option<usize>,
    /// The category of a question.
    pub category_of: &'a dyn Fn(&str) -> Option<String>,
    /// AlpacaEval: the difficulty of each instruction, in the order of the set.
    pub difficulties: Option<Vec<f64>>,
    /// AlpacaEval: rows of the gamed baseline.
    pub gamed: Option<Vec<Gamed>>,
}

impl Rows {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Rows::Single(rows) => rows.len(),
            Rows::Pair(rows) => rows.len(),
            Rows::Arena(rows) => rows.len(),
            Rows::Alpaca(rows) => rows.len(),
        }
    }

    /// Takes out rows that judge the same once more; returns how many. The first one stays.
    pub fn remove_duplicates(&mut self) -> usize {
        let before = self.len();
        match self {
            Rows::Single(rows) => retain_first(rows, |row| json!([row.question_id, row.model, row.judge, row.turn])),
            Rows::Pair(rows) => {
                retain_first(rows, |row| json!([row.question_id, row.model_1, row.model_2, row.judge, row.turn]));
            }
            Rows::Arena(rows) => retain_first(rows, |row| json!([row.uid, row.model, row.baseline, row.judge])),
            Rows::Alpaca(rows) => {
                retain_first(rows, |row| json!([row.instruction, row.generator_1, row.generator_2, row.annotator]));
            }
        }
        before - self.len()
    }

    /// The score of every model, with the rule that it is computed by.
    ///
    /// # Errors
    /// If style is to be controlled and the style of an answer is not known, or difficulties do not fit.
    pub fn scores(&self, counting: &Counting<'_>) -> anyhow::Result<Value> {
        match self {
            Rows::Single(rows) => Ok(singles(rows, counting)),
            Rows::Pair(rows) => Ok(pairs(rows, counting)),
            Rows::Arena(rows) => arenas(rows, counting),
            Rows::Alpaca(rows) => alpacas(rows, counting),
        }
    }
}

fn retain_first<T>(rows: &mut Vec<T>, key: impl Fn(&T) -> Value) {
    let mut seen = BTreeSet::new();
    rows.retain(|row| seen.insert(key(row).to_string()));
}

/// A map from names to values, in the order of the names.
fn by_name(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let sorted: BTreeMap<String, Value> = entries.into_iter().collect();
    Value::Object(sorted.into_iter().collect::<Map<_, _>>())
}

fn ends(interval: Interval, factor: f64) -> Value {
    json!([interval.low * factor, interval.high * factor])
}

/// Our interval over prompts of values under the keys of their prompts.
fn over_prompts(values: impl IntoIterator<Item = (String, f64, f64)>, counting: &Counting<'_>, factor: f64) -> Value {
    let mut of: BTreeMap<String, Unit> = BTreeMap::new();
    values.into_iter().for_each(|(key, value, weight)| of.entry(key).or_default().add(value, weight));
    let found: Vec<Unit> = of.into_values().collect();
    units::mean(&found, &counting.how).map_or(Value::Null, |estimate| ends(estimate.interval, factor))
}

const SINGLE_RULE: &str = "FastChat show_result.py, mode single: mean of the grades; answers without a grade (-1) are left \
                           out; the mean of all grades is not the mean of the two turns";

fn singles(rows: &[SingleRow], counting: &Counting<'_>) -> Value {
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

fn pairs(rows: &[PairRow], counting: &Counting<'_>) -> Value {
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

/// The games of a row seen from a model; none where it does not play.
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

fn bias(rows: impl IntoIterator<Item = pair::Row>) -> Value {
    let bias = PositionBias::of(rows);
    json!({
        "rows": bias.rows, "orders_disagree": bias.disagree, "share": bias.share(),
        "first_shown_won_both": bias.first_shown, "second_shown_won_both": bias.second_shown,
    })
}

/// Adds mean lengths, and the win rate at equal length where it can be fitted.
fn add_lengths(found: &mut Value, instructions: &[Instruction]) {
    if instructions.is_empty() {
        return;
    }
    let n = instructions.len() as f64;
    let mean = |of: &dyn Fn(&Instruction) -> usize| instructions.iter().map(|i| of(i) as f64).sum::<f64>() / n;
    let (own, other) = (mean(&|i| i.length), mean(&|i| i.baseline_length));
    found["mean_characters"] = json!(own);
    found["mean_characters_of_the_other"] = json!(other);
    found["mean_length_difference"] = json!(own - other);
    if let Some(controlled) = alpaca::length_controlled(instructions, Form::Minimal) {
        found["win_rate_at_equal_length"] = json!({
            "rule": "AlpacaEval's length_controlled_minimal: logistic regression on tanh of the standardised difference of \
                     lengths and a constant, at difference 0; in percent",
            "win_rate": controlled.win_rate, "coefficient_of_length": controlled.coefficients[1],
        });
    }
}

const ARENA_V01_RULE: &str = "Arena-Hard-Auto v0.1: win rate against the baseline in percent; each game is a battle, a \
                              decisive one (>>) three; a tie is half a win; games without a label are left out";
const ARENA_V2_RULE: &str = "Arena-Hard-Auto v2: win rate against the baseline in percent; each game counts once, a decisive \
                             one (>>) three times; rows in which either game has no label are left out";

fn arenas(rows: &[ArenaRow], counting: &Counting<'_>) -> anyhow::Result<Value> {
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

/// The verdicts of a row seen from the model, the game in which it was shown first in front.
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

/// Scores that are controlled for style.
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
    // Every resample is a regression, so there are fewer of them than of means.
    let how = Resampling { resamples: counting.how.resamples.min(MOST_REGRESSIONS), ..counting.how };
    let ours = regression.intervals_over_prompts(&how);
    let (shares, key) = match version {
        Version::V01 => ([0.025, 0.5, 0.975], "tool_interval_95"),
        Version::V2 => ([0.05, 0.5, 0.95], "tool_interval_90"),
    };
    let mut found = Map::new();
    for (number, model) in models.iter().enumerate() {
        let tool = quantiles(&drawn[number], &shares).unwrap_or_default();
        // v2 shows the median of its resamples.
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

/// Most regressions for an interval over prompts.
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

const ALPACA_RULE: &str = "AlpacaEval 2: 100 * mean(preference - 1), the preference being the judge's probability for the \
                           model's output, in one order that is drawn from the instruction; lengths are characters";

fn alpacas(rows: &[Annotation], counting: &Counting<'_>) -> anyhow::Result<Value> {
    let models: BTreeSet<&str> = rows.iter().map(|row| row.generator_2.as_str()).collect();
    let of_model = |model: &str| {
        let own: Vec<&Annotation> = rows.iter().filter(|row| row.generator_2 == model).collect();
        Ok((model.to_owned(), alpaca(&own, counting).with_context(|| model.to_owned())?))
    };
    let models = models.into_iter().map(of_model).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({"rule": ALPACA_RULE, "models": by_name(models)}))
}

fn alpaca(rows: &[&Annotation], counting: &Counting<'_>) -> anyhow::Result<Value> {
    // 0 is an older spelling of a draw.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn counting<'a>(protocol: Protocol, baseline: &'a str) -> Counting<'a> {
        Counting {
            protocol,
            baseline,
            how: Resampling { resamples: 200, ..Resampling::default() },
            style: StyleControl::None,
            controlled: [true; FEATURES],
            scale: None,
            style_of: &|_, _| None,
            length_of: &|model, _| Some(model.len() * 10),
            category_of: &|_| None,
            difficulties: None,
            gamed: None,
        }
    }

    fn pair_row(question: u64, models: [&str; 2], winners: [&str; 2]) -> PairRow {
        PairRow {
            question_id: json!(question),
            model_1: models[0].to_owned(),
            model_2: models[1].to_owned(),
            g1_winner: winners[0].to_owned(),
            g2_winner: winners[1].to_owned(),
            judge: ("j".to_owned(), "pair-v2".to_owned()),
            g1_user_prompt: String::new(),
            g1_judgment: String::new(),
            g2_user_prompt: String::new(),
            g2_judgment: String::new(),
            turn: 1,
        }
    }

    #[test]
    fn both_sides_of_a_pair_are_counted_and_the_baseline_is_not_shown() {
        let rows = vec![
            pair_row(1, ["a", "b"], ["model_1", "model_1"]),
            pair_row(2, ["a", "b"], ["model_1", "model_2"]),
            pair_row(3, ["a", "b"], ["tie", "error"]),
            pair_row(3, ["a", "b"], ["model_2", "model_2"]),
        ];
        let mut rows = Rows::Pair(rows);
        assert_eq!(rows.remove_duplicates(), 1, "the second judgment of question 3");
        let found = rows.scores(&counting(Protocol::MtBenchPair, "")).unwrap();
        assert_eq!(found["models"]["a"]["win_rate_adjusted"], 0.75);
        assert_eq!(found["models"]["b"]["win_rate_adjusted"], 0.25);
        assert_eq!((&found["models"]["a"]["dropped"], &found["models"]["a"]["ties"]), (&json!(1), &json!(1)));
        assert_eq!(found["position_bias"]["first_shown_won_both"], 1);
        let found = rows.scores(&counting(Protocol::MtBenchPair, "b")).unwrap();
        assert_eq!(found["models"].as_object().unwrap().keys().collect::<Vec<_>>(), ["a"]);
        assert!(found["rule"].as_str().unwrap().contains("both orders agree"));
    }

    fn arena_row(uid: &str, labels: [Option<&str>; 2]) -> ArenaRow {
        let game = |label: Option<&str>| {
            Some(crate::stage::eval::judge::protocol::arena::ArenaGame {
                score: label.map(str::to_owned),
                judgment: json!(""),
                user_prompt: None,
                prompt: None,
            })
        };
        ArenaRow {
            uid: json!(uid),
            category: String::new(),
            model: "m".to_owned(),
            judge: "j".to_owned(),
            baseline: "base".to_owned(),
            games: labels.map(game).into(),
        }
    }

    #[test]
    fn the_two_versions_of_arena_hard_differ_in_half_judged_rows() {
        let rows = Rows::Arena(vec![
            arena_row("1", [Some("A>>B"), Some("A>B")]), // 0 three times, 1 once
            arena_row("2", [Some("B>A"), None]),         // 1 once, or nothing
        ]);
        let score = |protocol| {
            let found = rows.scores(&counting(protocol, "base")).unwrap();
            found["categories"]["arena-hard-v0.1"]["models"]["m"]["score"].as_f64().unwrap()
        };
        assert_eq!(score(Protocol::ArenaHardV01), 40.0);
        assert_eq!(score(Protocol::ArenaHardV2), 25.0);
    }

    #[test]
    fn style_needs_answers_and_moves_scores() {
        let label = |i: usize| if i.is_multiple_of(3) { "A>B" } else { "B>A" };
        let other = |i: usize| if i.is_multiple_of(4) { "B>A" } else { "A>B" };
        let rows: Vec<ArenaRow> =
            (0..60).map(|i| arena_row(&i.to_string(), [Some(label(i)), Some(other(i))])).collect();
        let rows = Rows::Arena(rows);
        let style = StyleControl::Exact;
        let refused = Counting { style, ..counting(Protocol::ArenaHardV2, "base") };
        let error = format!("{:#}", rows.scores(&refused).unwrap_err());
        assert!(error.contains("style_control needs the answers of m"), "{error}");
        let style_of = |model: &str, key: &str| {
            let tokens = if model == "m" { 300.0 + key.len() as f64 } else { 200.0 };
            Some(Style { tokens, bold: (key.len() % 2) as f64, ..Style::default() })
        };
        for (style, protocol) in [
            (StyleControl::Exact, Protocol::ArenaHardV2),
            (StyleControl::Compat, Protocol::ArenaHardV2),
            (StyleControl::Compat, Protocol::ArenaHardV01),
        ] {
            let found = rows.scores(&Counting { style, style_of: &style_of, ..counting(protocol, "base") }).unwrap();
            let table = &found["categories"]["arena-hard-v0.1"];
            let (plain, styled) = (&table["models"]["m"], &table["style_controlled"]["models"]["m"]);
            let (plain, styled) = (plain["score"].as_f64().unwrap(), styled["score"].as_f64().unwrap());
            assert!((plain - styled).abs() < 6.0, "{plain} {styled}");
            assert!(table["style_controlled"]["rule"].as_str().unwrap().contains("style"), "a rule is given");
        }
    }

    #[test]
    fn annotations_give_win_rates_and_lengths() {
        let row = |i: usize, preference: Option<f64>| Annotation {
            instruction: format!("{i}"),
            output_1: "ö".repeat(5 + i),
            generator_1: "base".to_owned(),
            dataset: None,
            output_2: "x".repeat(10),
            generator_2: "m".to_owned(),
            annotator: "j".to_owned(),
            preference,
            raw_completion: Value::Null,
        };
        let rows: Vec<Annotation> = [Some(2.0), Some(1.0), Some(1.5), Some(0.0), None, Some(1.25), Some(1.75)]
            .into_iter()
            .enumerate()
            .map(|(i, p)| row(i, p))
            .collect();
        let found = Rows::Alpaca(rows.clone()).scores(&counting(Protocol::AlpacaEval2, "base")).unwrap();
        let model = &found["models"]["m"];
        assert_eq!((&model["win_rate"], &model["n_total"], &model["dropped"]), (&json!(50.0), &json!(6), &json!(1)));
        assert_eq!((&model["avg_length"], &model["n_draws"]), (&json!(10), &json!(2)));
        assert_eq!(model["length_controlled"]["rule"], "length_controlled_minimal");
        let few = Counting { difficulties: Some(vec![0.0; 3]), ..counting(Protocol::AlpacaEval2, "base") };
        let error = format!("{:#}", Rows::Alpaca(rows).scores(&few).unwrap_err());
        assert!(error.contains("3 difficulties and 7 instructions"), "{error}");
    }
}
