//! Questions and answers, in the layouts of FastChat, Arena-Hard (v0.1 and v2) and AlpacaEval.
use std::{collections::HashMap, path::Path};

use anyhow::{Context, bail, ensure};
use salsa_algo::judge::style::Style;
use serde_json::{Map, Value};

use super::files;
use crate::{data::Content, stage::text::rows::Row};

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Question {
    /// Its id as in the files: a number or a text.
    pub id: Value,
    /// Its category, or empty.
    pub category: String,
    /// The user's messages, by turn.
    pub turns: Vec<String>,
    /// Its required temperature.
    pub required_temperature: Option<f64>,
    /// AlpacaEval: its source data set.
    pub dataset: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// The model's messages, by turn.
    pub turns: Vec<String>,
    /// Its style counts, if the file contains them.
    pub style: Option<Style>,
}

/// The answers of a model, by the id of the question.
pub(super) type Answers = HashMap<String, Answer>;

impl Question {
    /// The id as text, the key of its answers.
    pub(super) fn key(&self) -> String {
        key_of(&self.id)
    }
}

/// An id as text.
pub(super) fn key_of(id: &Value) -> String {
    id.as_str().map_or_else(|| id.to_string(), str::to_owned)
}

/// The questions of a file: FastChat's and Arena-Hard's `question.jsonl`, AlpacaEval's list of instructions, or prompts
/// in the layouts of other stages.
///
/// # Errors
/// If a row is no question, or two have the same id.
pub(super) fn questions(path: &Path) -> anyhow::Result<Vec<Question>> {
    let rows = files::rows(path)?;
    let mut seen = HashMap::new();
    let questions = rows.try_map(question)?;
    for (row, question) in rows.rows.iter().zip(&questions) {
        if let Some(before) = seen.insert(question.key(), row.line) {
            bail!("{}: the id {} stands in line {before} too", rows.place(row), question.id);
        }
    }
    Ok(questions)
}

fn question(row: &Row) -> anyhow::Result<Question> {
    let object = &row.object;
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let turns = match (object.get("turns"), text("instruction"), text("prompt")) {
        (Some(Value::Array(turns)), ..) => turns.iter().map(turn).collect::<anyhow::Result<Vec<_>>>()?,
        (None, Some(instruction), _) => vec![instruction.to_owned()],
        (None, None, Some(prompt)) => vec![prompt.to_owned()],
        _ => vec![words_of_prompt(row)?],
    };
    ensure!(!turns.is_empty(), "the question has no turn");
    let id = ["question_id", "uid", "id"].iter().find_map(|key| object.get(*key)).cloned();
    let instruction = text("instruction").map(|text| Value::String(text.to_owned()));
    Ok(Question {
        id: id.or(instruction).unwrap_or_else(|| Value::String(turns[0].clone())),
        category: text("category").unwrap_or_default().to_owned(),
        required_temperature: object.get("required_temperature").and_then(Value::as_f64),
        dataset: text("dataset").map(str::to_owned),
        turns,
    })
}

/// A turn: a text, or a mapping with one.
fn turn(value: &Value) -> anyhow::Result<String> {
    let text = value.as_str().or_else(|| value["content"].as_str());
    Ok(text.context("a turn is no text and has no \"content\"")?.to_owned())
}

/// The user's text in a prompt of another layout: the text, the only message, or all messages with their roles.
fn words_of_prompt(row: &Row) -> anyhow::Result<String> {
    Ok(match row.prompt()? {
        Content::Text(text) => text,
        Content::Messages(messages) => match &messages[..] {
            [message] => message.content.clone(),
            all => all
                .iter()
                .map(|message| format!("{}: {}", message.role, message.content))
                .collect::<Vec<_>>()
                .join("\n\n"),
        },
    })
}

/// The answers of a file by question id; the last of several to the same question counts, as in the tools.
///
/// # Errors
/// If a row is no answer.
pub(super) fn answers(path: &Path) -> anyhow::Result<Answers> {
    let rows = files::rows(path)?;
    Ok(rows.try_map(answer)?.into_iter().collect())
}

fn answer(row: &Row) -> anyhow::Result<(String, Answer)> {
    let object = &row.object;
    let turns = match () {
        () if object.contains_key("choices") => choice(object)?,
        () if object.contains_key("messages") && !object.contains_key("response") => vec![last_message(object)?],
        () => {
            let text = ["output", "response", "completion"].iter().find_map(|key| object.get(*key));
            let text = text.context("no \"choices\", \"messages\", \"output\" or \"response\"")?;
            vec![text.as_str().context("the answer is no text")?.to_owned()]
        }
    };
    let style = ["conv_metadata", "metadata"].iter().find_map(|key| style(object.get(*key)?));
    Ok((question_key(row)?, Answer { turns, style }))
}

/// The id of the question that a row answers; without an id, that of its own prompt.
fn question_key(row: &Row) -> anyhow::Result<String> {
    match ["question_id", "uid", "id"].iter().find_map(|key| row.object.get(*key)) {
        Some(id) => Ok(key_of(id)),
        None => Ok(question(row)?.key()),
    }
}

/// The turns of the first choice; only this one is judged.
fn choice(object: &Map<String, Value>) -> anyhow::Result<Vec<String>> {
    let turns = object["choices"].pointer("/0/turns").and_then(Value::as_array);
    turns.context("\"choices\" has no first choice with \"turns\"")?.iter().map(turn).collect()
}

/// Arena-Hard v2: the last message, whose content is a mapping with an `answer`, or a text.
fn last_message(object: &Map<String, Value>) -> anyhow::Result<String> {
    let last = object["messages"].as_array().and_then(|messages| messages.last());
    let content = &last.context("\"messages\" is empty")?["content"];
    let text = content.as_str().or_else(|| content["answer"].as_str());
    Ok(text.context("the last message has no text and no \"answer\"")?.to_owned())
}

/// The style counts that Arena-Hard stores with an answer; counts in a mapping are summed.
fn style(metadata: &Value) -> Option<Style> {
    let count = |key: &str| match &metadata[key] {
        Value::Object(parts) => Some(parts.values().filter_map(Value::as_f64).sum()),
        other => other.as_f64(),
    };
    Some(Style {
        tokens: count("token_len")?,
        headers: count("header_count")?,
        lists: count("list_count")?,
        bold: count("bold_count")?,
    })
}

/// A question for tests.
#[cfg(test)]
pub(super) fn test_question(id: impl Into<Value>, category: &str, turns: &[&str]) -> Question {
    Question {
        id: id.into(),
        category: category.to_owned(),
        turns: turns.iter().map(|turn| (*turn).to_owned()).collect(),
        required_temperature: None,
        dataset: None,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;
    use crate::stage::fixture::write_lines;

    fn file(dir: &Path, rows: &[Value]) -> PathBuf {
        let path = dir.join("rows.jsonl");
        write_lines(&path, rows);
        path
    }

    #[test]
    fn questions_of_every_tool() {
        let dir = tempfile::tempdir().unwrap();
        let rows = [
            json!({"question_id": 81, "category": "writing", "turns": ["a", "b"], "required_temperature": 0.3}),
            json!({"question_id": "x", "category": "c", "turns": [{"content": "a"}]}),
            json!({"uid": "y", "category": "d", "prompt": "a\u{2028}b"}),
            json!({"instruction": "do", "dataset": "koala", "output": "done"}),
            json!({"prompt": "p", "response": "r"}),
            json!({"prompt": [{"role": "user", "content": "hi"}], "response": "r"}),
        ];
        let found = questions(&file(dir.path(), &rows)).unwrap();
        let keys: Vec<String> = found.iter().map(Question::key).collect();
        assert_eq!(keys, ["81", "x", "y", "do", "p", "hi"]);
        assert_eq!(
            (&found[0].turns[..], found[0].required_temperature),
            (&["a".to_owned(), "b".to_owned()][..], Some(0.3))
        );
        assert_eq!((found[2].turns[0].as_str(), found[3].dataset.as_deref()), ("a\u{2028}b", Some("koala")));
        let twice = file(dir.path(), &[rows[0].clone(), rows[0].clone()]);
        assert!(format!("{:#}", questions(&twice).unwrap_err()).contains("line 1 too"));
    }

    #[test]
    fn answers_of_every_tool() {
        let dir = tempfile::tempdir().unwrap();
        let metadata = json!({"token_len": 7, "header_count": {"h1": 1, "h2": 2}, "list_count": {"ordered": 4, "unordered": 0},
            "bold_count": {"**": 1, "__": 1}});
        let rows = [
            json!({"question_id": 81, "choices": [{"index": 0, "turns": ["old", "b"]}]}),
            json!({"question_id": 81, "choices": [{"index": 0, "turns": ["new", "b"]}]}),
            json!({"question_id": "x", "choices": [{"turns": [{"content": "c", "token_len": 1}]}], "conv_metadata": metadata}),
            json!({"uid": "y", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": {"answer": "d"}}]}),
            json!({"instruction": "do", "output": "done", "generator": "m"}),
            json!({"prompt": "p", "response": "r"}),
        ];
        let found = answers(&file(dir.path(), &rows)).unwrap();
        for (key, text) in [("81", "new"), ("x", "c"), ("y", "d"), ("do", "done"), ("p", "r")] {
            assert_eq!(found[key].turns[0], text);
        }
        assert_eq!(found["x"].style, Some(Style { tokens: 7.0, headers: 3.0, lists: 4.0, bold: 2.0 }));
        assert_eq!((found.len(), found["y"].style), (5, None));
        let error = format!("{:#}", answers(&file(dir.path(), &[json!({"uid": "z"})])).unwrap_err());
        assert!(error.contains("line 1") && error.contains("choices"), "{error}");
    }
}
