//! Several rated answers to one prompt, as in the raw UltraFeedback, converted to one pair.

use anyhow::{Result, anyhow, bail, ensure};
use serde_json::Value;

use super::beside::{Question, question};
use super::columns::Row;
use super::files::kind;
use super::meaning::Columns;
use super::{Content, Example, Preference, split};
use crate::chat::Message;

/// Columns that hold the answers.
pub(super) const ANSWER_LISTS: [&str; 3] = ["completions", "responses", "generations"];

/// Columns of ratings, if the answers are plain texts.
const RATINGS: [&str; 3] = ["ratings", "scores", "rating"];

/// Reads `instruction` or `prompt`, and answers with ratings.
///
/// The best rated answer is chosen (the first of equals). The rejected one is any of those rated lower, as in Zephyr's
/// data, selected by a hash of the prompt. If none is rated lower, both are the same answer, so that the record counts
/// as uninformative.
pub(super) fn read(columns: &Columns, column: &'static str) -> Result<Row> {
    let asked = if columns.has("instruction") { "instruction" } else { "prompt" };
    let Question { key, prompt, .. } = question(columns, asked)?;
    let answers = answers(columns, column)?;
    let best = answers.iter().rev().max_by(|a, b| a.rating.total_cmp(&b.rating));
    let best = best.ok_or_else(|| anyhow!("column {column}: the list of answers is empty"))?;
    let lower: Vec<&Answer> = answers.iter().filter(|answer| answer.rating < best.rating).collect();
    let other = if lower.is_empty() { best } else { lower[(split::hash(&key) % lower.len() as u64) as usize] };
    let said = |answer: &Answer| Content::from(vec![Message::new("assistant", answer.text.as_str())]);
    let pair = Preference {
        prompt: prompt.into_messages().into(),
        chosen: said(best),
        rejected: said(other),
        margin: None,
        score_chosen: Some(best.rating),
        score_rejected: Some(other.rating),
    };
    Ok(Row::new(key, Example::Preference(pair), "UltraFeedback, raw: instruction, completions"))
}

struct Answer {
    text: String,
    rating: f64,
}

fn answers(columns: &Columns, column: &'static str) -> Result<Vec<Answer>> {
    let list = columns.need(column)?;
    let list = list.as_array().ok_or_else(|| anyhow!("column {column}: expected a list, found {}", kind(list)))?;
    let ratings = RATINGS.iter().find_map(|name| columns.get(name)?.as_array());
    if let Some(ratings) = ratings {
        ensure!(
            ratings.len() == list.len(),
            "column {column} has {} answers but {} ratings",
            list.len(),
            ratings.len()
        );
    }
    let read = |(i, item): (usize, &Value)| -> Result<Option<Answer>> {
        let place = || format!("column {column}, answer {}", i + 1);
        let text =
            item.as_str().or_else(|| ["response", "text", "content"].iter().find_map(|name| item[*name].as_str()));
        let text = text.ok_or_else(|| anyhow!("{}: it has no text in \"response\"", place()))?;
        let rating = ratings.and_then(|ratings| number(&ratings[i])).or_else(|| rating(item));
        Ok(rating.map(|rating| Answer { text: text.to_string(), rating }))
    };
    let answers: Vec<Answer> =
        list.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    if answers.is_empty() && !list.is_empty() {
        bail!("column {column}: no answer has a rating in \"annotations\", \"overall_score\", \"score\" or \"rating\"");
    }
    Ok(answers)
}

/// The mean of the aspects' ratings, else the overall score. In UltraFeedback the mean is more reliable: some of its
/// overall scores are 10 where the critique gives 1.
fn rating(answer: &Value) -> Option<f64> {
    mean_of_aspects(&answer["annotations"])
        .or_else(|| ["overall_score", "score", "rating"].iter().find_map(|name| number(&answer[*name])))
}

/// The mean of numeric ratings of aspects (`{"helpfulness": {"Rating": "4"}, …}`); others are `N/A`.
fn mean_of_aspects(annotations: &Value) -> Option<f64> {
    let aspects = annotations.as_object()?.values();
    let rating = |aspect: &Value| match aspect {
        Value::Array(list) => list.first().and_then(|first| number(&first["Rating"])),
        one => number(&one["Rating"]).or_else(|| number(&one["rating"])),
    };
    let ratings: Vec<f64> = aspects.filter_map(rating).collect();
    (!ratings.is_empty()).then(|| ratings.iter().sum::<f64>() / ratings.len() as f64)
}

fn number(value: &Value) -> Option<f64> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok());
    number.filter(|x| x.is_finite())
}
