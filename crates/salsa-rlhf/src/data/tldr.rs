//! TL;DR: posts and their summaries, as OpenAI's "Learning to summarize from human feedback" published them.

use anyhow::{Result, anyhow, bail};
use serde_json::Value;

use super::columns::{Record, Row, text};
use super::files::kind;
use super::{Content, Example, Preference, hh};

/// `info`, `summaries`, `choice`: two summaries of one post or article, and the number of the better one.
pub(super) fn comparison(record: &Record) -> Result<Row> {
    let info = record["info"].as_object().ok_or_else(|| anyhow!("column info: expected an object"))?;
    let mut info = info.clone();
    info.retain(|_, value| !value.is_null());
    let prompt = if info.contains_key("post") { post(&info)? } else { article(&info)? };
    let summaries = record["summaries"].as_array().map(Vec::as_slice);
    let Some([first, second]) = summaries else {
        bail!("column summaries: expected a list of two, found {}", kind(&record["summaries"]));
    };
    let said = |summary: &Value| {
        let text = summary["text"].as_str();
        text.map(completion).ok_or_else(|| anyhow!("column summaries: one has no text in \"text\""))
    };
    let (chosen, rejected) = match record["choice"].as_u64() {
        Some(0) => (said(first)?, said(second)?),
        Some(1) => (said(second)?, said(first)?),
        _ => bail!("column choice is {}: expected 0 or 1", record["choice"]),
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
    Ok(Row { example: Example::Preference(pair), key, recognised: "TL;DR comparisons: info, summaries, choice" })
}

/// `subreddit`, `title`, `post`, `summary`.
pub(super) fn summary(record: &Record) -> Result<Row> {
    let prompt = post(record)?;
    let example = Example::PromptCompletion {
        prompt: Content::Text(prompt.clone()),
        completion: completion(text(record, "summary")?),
    };
    let key = hh::trim(&prompt).to_string();
    Ok(Row { example, key, recognised: "TL;DR: subreddit, title, post, summary" })
}

/// The prompt of the paper's models, which the derived data sets keep.
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

/// A summary follows "TL;DR:" after one space.
fn completion(text: &str) -> Content {
    Content::Text(format!(" {}", hh::trim(text)))
}
