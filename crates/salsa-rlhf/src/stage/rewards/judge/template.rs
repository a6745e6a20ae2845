//! The text that a judge reads.
use std::{borrow::Cow, sync::LazyLock};

use anyhow::{bail, ensure};
use regex::Regex;
use serde_json::Value;

use crate::{
    data::Content,
    stage::rewards::{Answered, RewardSource},
};

/// A text with `{prompt}`, `{response}` and `{COLUMN}`s of the data; all other braces stand for themselves.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::stage::rewards) struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Prompt,
    Response,
    Column(String),
}

static NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\{([A-Za-z_][A-Za-z0-9_]*)\}").expect("the expression is valid"));

impl Template {
    /// The template of a judge.
    ///
    /// # Errors
    /// As [`Template::parse`].
    pub(in crate::stage::rewards) fn of(source: &RewardSource) -> anyhow::Result<Template> {
        let RewardSource::Judge { template, .. } = source else { bail!("this reward is no judge") };
        Template::parse(template)
    }

    /// The columns of the data that a text reads; none if it is no template.
    pub(in crate::stage::rewards) fn columns_of(text: &str) -> Vec<String> {
        let parts = Template::parse(text).map(|template| template.parts).unwrap_or_default();
        let column = |part| if let Part::Column(column) = part { Some(column) } else { None };
        parts.into_iter().filter_map(column).collect()
    }

    /// # Errors
    /// If the text lacks the response.
    fn parse(text: &str) -> anyhow::Result<Template> {
        let (mut parts, mut end) = (Vec::new(), 0);
        for found in NAME.captures_iter(text) {
            let (whole, name) = (found.get(0).expect("the match"), &found[1]);
            parts.push(Part::Text(text[end..whole.start()].to_owned()));
            parts.push(match name {
                "prompt" => Part::Prompt,
                "response" => Part::Response,
                column => Part::Column(column.to_owned()),
            });
            end = whole.end();
        }
        parts.push(Part::Text(text[end..].to_owned()));
        ensure!(
            parts.contains(&Part::Response),
            "template has no {{response}}, so the judge would not see what it grades"
        );
        Ok(Template { parts })
    }

    /// The text about a response.
    pub(in crate::stage::rewards) fn fill(&self, one: &Answered<'_>) -> String {
        let part = |part: &Part| -> String {
            match part {
                Part::Text(text) => text.clone(),
                Part::Prompt => prompt(one.prompt).into_owned(),
                Part::Response => one.text.clone(),
                // `FoundRewards::check_columns` has found the column in every record.
                Part::Column(column) => one.columns.get(column).map(shown).unwrap_or_default(),
            }
        };
        self.parts.iter().map(part).collect()
    }
}

/// A prompt of one message is its text; a conversation has a line with the role before each message.
fn prompt(content: &Content) -> Cow<'_, str> {
    match content {
        Content::Messages(messages) if messages.len() > 1 => {
            let said = messages.iter().map(|message| format!("[{}]\n{}", message.role, message.content));
            Cow::Owned(said.collect::<Vec<_>>().join("\n\n"))
        }
        Content::Text(_) | Content::Messages(_) => Cow::Borrowed(content.last_words()),
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
