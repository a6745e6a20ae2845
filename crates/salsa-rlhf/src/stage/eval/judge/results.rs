//! Output of a run: rows in the tool's layout, and scores.
use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Context;
use salsa_algo::{judge::style::Style, stats::Resampling};
use serde_json::{Value, json};

use super::{
    JudgeConfig,
    protocol::{Inputs, Match, Protocol, alpaca, arena, mt_bench},
    recorded::ReplyIndex,
    score::{Counting, Rows, StyleFeature},
    style::{self, Encoding},
    tables,
};
use crate::{atomic, stage::text::rows as jsonl};

/// The file of scores, next to `stage.json`.
const SCORES: &str = "judgment.json";

/// Writes the scores.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write(config: &JudgeConfig, results: &Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    atomic::write(&config.output_dir.join(SCORES), text.as_bytes())
}

/// The rows made from the replies.
pub(super) fn rows(inputs: &Inputs, matches: &[Match], book: &ReplyIndex<'_>) -> Rows {
    match inputs.protocol {
        Protocol::MtBenchSingle => Rows::Single(mt_bench::single_rows(inputs, matches, book)),
        Protocol::MtBenchPair | Protocol::Pairwise => Rows::Pair(mt_bench::pair_rows(inputs, matches, book)),
        Protocol::ArenaHardV01 | Protocol::ArenaHardV2 => Rows::Arena(arena::rows(inputs, matches, book)),
        Protocol::AlpacaEval2 => Rows::Alpaca(alpaca::rows(inputs, matches, book)),
    }
}

/// Writes the files in the tool's layout below `model_judgment`.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write_rows(config: &JudgeConfig, rows: &Rows) -> anyhow::Result<()> {
    let (dir, judge) = (config.output_dir.join("model_judgment"), config.judge_file_name());
    let lines = |path: &Path, rows: Vec<Value>| {
        let objects = rows.into_iter().map(|row| match row {
            Value::Object(row) => row,
            _ => unreachable!("rows are objects"),
        });
        jsonl::write(path, objects)
    };
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    match rows {
        Rows::Single(rows) => {
            lines(&dir.join(format!("{judge}_single.jsonl")), rows.iter().map(mt_bench::SingleRow::written).collect())
        }
        Rows::Pair(rows) => {
            let rows = rows.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?;
            lines(&dir.join(format!("{judge}_pair.jsonl")), rows)
        }
        Rows::Arena(rows) => {
            let dir = dir.join(&judge);
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
            let mut by_model: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
            for row in rows {
                by_model.entry(&row.model).or_default().push(row.written(config.protocol));
            }
            by_model.into_iter().try_for_each(|(model, rows)| lines(&dir.join(format!("{model}.jsonl")), rows))
        }
        Rows::Alpaca(rows) => {
            let mut by_model: BTreeMap<&str, Vec<&alpaca::Annotation>> = BTreeMap::new();
            rows.iter().for_each(|row| by_model.entry(&row.generator_2).or_default().push(row));
            for (model, rows) in by_model {
                let dir = dir.join(model);
                fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
                let text = serde_json::to_string_pretty(&rows)? + "\n";
                atomic::write(&dir.join("annotations.json"), text.as_bytes())?;
            }
            Ok(())
        }
    }
}

/// The scores, by the configured counting.
///
/// # Errors
/// If a table needed for counting cannot be read, or an answer is missing.
pub(super) fn scores(config: &JudgeConfig, rows: &Rows, inputs: Option<&Inputs>) -> anyhow::Result<Value> {
    let none = BTreeMap::new();
    let answers = inputs.map_or(&none, |inputs| &inputs.answers);
    let encoding = if config.protocol == Protocol::ArenaHardV01 { Encoding::Cl100k } else { Encoding::O200k };
    let of = |model: &str, key: &str| answers.get(model).and_then(|answers| answers.get(key));
    let style_of = |model: &str, key: &str| -> Option<Style> {
        let answer = of(model, key)?;
        answer.style.or_else(|| Some(style::of(answer.turns.first()?, encoding)))
    };
    let length_of = |model: &str, key: &str| Some(of(model, key)?.turns.iter().map(|turn| turn.chars().count()).sum());
    let category_of = |key: &str| {
        let question = inputs?.questions.iter().find(|question| question.key() == key)?;
        Some(question.category.clone())
    };
    let has = |feature| config.control_features.contains(&feature);
    let (length, markdown) = (has(StyleFeature::Length), has(StyleFeature::Markdown));
    let counting = Counting {
        protocol: config.protocol,
        baseline: &config.baseline,
        how: Resampling { resamples: config.resamples, seed: config.seed, ..Resampling::default() },
        style: config.style_control,
        controlled: [length, markdown, markdown, markdown],
        scale: config.style_scale.as_deref().map(tables::scale).transpose()?,
        style_of: &style_of,
        length_of: &length_of,
        category_of: &category_of,
        difficulties: config.instruction_difficulty.as_deref().map(tables::difficulties).transpose()?,
        gamed: config.df_gamed.as_deref().map(tables::gamed).transpose()?,
    };
    let mut results = rows.scores(&counting)?;
    results["protocol"] = json!(config.protocol.name());
    Ok(results)
}
