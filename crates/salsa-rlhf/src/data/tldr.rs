//! TL;DR: posts and their summaries, as OpenAI's "Learning to summarize from human feedback" published them.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::columns::Row;
use super::files::kind;
use super::meaning::{Columns, Record};
use super::{Content, Example, Preference, hh};

/// `info`, `summaries`, `choice`: two summaries of one post or article, and the number of the better one.
pub(super) fn comparison(columns: &Columns) -> Result<Row> {
    let info = columns.need("info")?.as_object().ok_or_else(|| anyhow!("column info: expected an object"))?;
    let mut info = info.clone();
    info.retain(|_, value| !value.is_null());
    let prompt = if info.contains_key("post") { post(&info)? } else { article(&info)? };
    let (summaries, choice) = (columns.need("summaries")?, columns.need("choice")?);
    let Some([first, second]) = summaries.as_array().map(Vec::as_slice) else {
        bail!("column summaries: expected a list of two, found {}", kind(summaries));
    };
    let said = |summary: &Value| {
        let text = summary["text"].as_str();
        text.map(completion).ok_or_else(|| anyhow!("column summaries: one has no text in \"text\""))
    };
    let (chosen, rejected) = match choice.as_u64() {
        Some(0) => (said(first)?, said(second)?),
        Some(1) => (said(second)?, said(first)?),
        _ => bail!("column choice is {choice}: expected 0 or 1"),
    };
    let pair = Preference {
        prompt: Content::Text(prompt.clone()),
        chosen,
        rejected,
        margin: None,
        score_chosen: None,
        score_rejected: None,
    };
    let key = hh::trim(&prompt).to_string();
    Ok(Row::new(key, Example::Preference(pair), "TL;DR comparisons: info, summaries, choice"))
}

/// `subreddit`, `title`, `post`, `summary`.
pub(super) fn summary(columns: &Columns) -> Result<Row> {
    let part = |name| columns.text(name).map(|text| (name.to_owned(), Value::from(text)));
    let record = ["subreddit", "title", "post"].into_iter().map(part).collect::<Result<Record>>()?;
    let prompt = post(&record)?;
    let example = Example::PromptCompletion {
        prompt: Content::Text(prompt.clone()),
        completion: completion(columns.text("summary")?),
    };
    let key = hh::trim(&prompt).to_string();
    Ok(Row::new(key, example, "TL;DR: subreddit, title, post, summary"))
}

/// The prompt format of the paper's models, which the derived data sets use.
fn post(record: &Record) -> Result<String> {
    let part = |name: &str| text(record, name).map(hh::trim);
    let subreddit = part("subreddit")?;
    let subreddit = subreddit.strip_prefix("r/").unwrap_or(subreddit);
    Ok(format!("SUBREDDIT: r/{subreddit}\n\nTITLE: {}\n\nPOST: {}\n\nTL;DR:", part("title")?, part("post")?))
}

fn article(record: &Record) -> Result<String> {
    let title = record.get("title").and_then(Value::as_str).map(hh::trim).filter(|title| !title.is_empty());
    let title = title.map_or(String::new(), |title| format!("Title: {title}\n\n"));
    Ok(format!("{title}Article: {}\n\nTL;DR:", hh::trim(text(record, "article")?)))
}

fn text<'a>(record: &'a Record, column: &str) -> Result<&'a str> {
    let value = record.get(column).ok_or_else(|| anyhow!("column {column} is missing"))?;
    value.as_str().ok_or_else(|| anyhow!("column {column}: expected text, found {}", kind(value)))
}

/// A summary follows "TL;DR:" after one space.
fn completion(text: &str) -> Content {
    Content::Text(format!(" {}", hh::trim(text)))
}
