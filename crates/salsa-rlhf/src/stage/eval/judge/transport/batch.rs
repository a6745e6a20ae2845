//! Calls as batch files: writes `requests.jsonl` and reads `responses.jsonl`, in the format of OpenAI's batch interface
//! and vLLM's `run_batch`.
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use super::super::{
    call::{Answer, Call, Failure, FailureKind, Settings},
    files,
};
use crate::{
    atomic,
    stage::endpoint::{
        ServerParameters,
        answer::{self, Meaning},
        body,
    },
};

/// OpenAI's limits for requests and bytes of a file.
const MOST_REQUESTS: usize = 50_000;
const MOST_BYTES: usize = 200 << 20;

/// The error of a run that wrote requests, whose answers are pending.
#[derive(Debug, thiserror::Error)]
#[error(
    "{requests} requests are in {files}; send them to the judge (OpenAI: a batch of /v1/chat/completions; vLLM: run_batch), put \
     what comes back as responses.jsonl (any number of files responses*.jsonl and errors*.jsonl) into {folder}, and run the \
     same command again"
)]
pub(in super::super) struct Waiting {
    requests: usize,
    files: String,
    folder: String,
}

/// Writes the calls as requests, split into files by the limits, and returns the error that ends the run.
///
/// # Errors
/// If a file cannot be written.
pub(in super::super) fn write(
    dir: &Path,
    model: &str,
    calls: &[&Call],
    settings: &Settings,
) -> anyhow::Result<Waiting> {
    let mut files: Vec<String> = vec![String::new()];
    let mut count = 0;
    for call in calls {
        let body = body(model, &call.messages, settings, ServerParameters::FIRST);
        let line =
            json!({"custom_id": call.id(settings), "method": "POST", "url": "/v1/chat/completions", "body": body});
        let line = format!("{line}\n");
        let last = files.last().map_or(0, String::len);
        if count == MOST_REQUESTS || (last > 0 && last + line.len() > MOST_BYTES) {
            files.push(String::new());
            count = 0;
        }
        files.last_mut().expect("there is one from the start").push_str(&line);
        count += 1;
    }
    for old in named(dir, "requests")? {
        fs::remove_file(&old).with_context(|| format!("cannot remove {}", old.display()))?;
    }
    let several = files.len() > 1;
    let mut names = Vec::new();
    for (number, text) in files.iter().enumerate() {
        let name = if several { format!("requests-{:03}.jsonl", number + 1) } else { "requests.jsonl".to_owned() };
        atomic::write(&dir.join(&name), text.as_bytes())?;
        names.push(name);
    }
    Ok(Waiting { requests: calls.len(), files: names.join(", "), folder: dir.display().to_string() })
}

/// The answers in the files of a directory, by the identity of their calls. A reply takes precedence over failures of
/// the same call.
///
/// # Errors
/// If a file cannot be read or a line is no batch answer.
pub(in super::super) fn read(dir: &Path, settings: &Settings) -> anyhow::Result<HashMap<String, Answer>> {
    let mut answers: HashMap<String, Answer> = HashMap::new();
    for path in named(dir, "responses")?.into_iter().chain(named(dir, "errors")?) {
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == 0) {
            continue;
        }
        let rows = files::rows(&path)?;
        for (id, answer) in rows.try_map(|row| one(&Value::Object(row.object.clone()), settings))? {
            if answer.is_ok() || !answers.contains_key(&id) {
                answers.insert(id, answer);
            }
        }
    }
    Ok(answers)
}

/// The answer in a line.
fn one(line: &Value, settings: &Settings) -> anyhow::Result<(String, Answer)> {
    let id = line["custom_id"].as_str().context("the line has no custom_id; a batch's output file is needed")?;
    let response = &line["response"];
    ensure!(response.is_object() || !line["error"].is_null(), "the line has neither a response nor an error");
    if !response.is_object() {
        let message = line["error"]["message"].as_str().map_or_else(|| line["error"].to_string(), str::to_owned);
        return Ok((id.to_owned(), Err(Failure::new(FailureKind::ServerError, message))));
    }
    let status = response["status_code"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(200);
    let text = response["body"].as_str().map_or_else(|| response["body"].to_string(), str::to_owned);
    let answer = match answer::read(status, None, None, &text, settings, ServerParameters::FIRST) {
        Meaning::Reply(reply) => Ok(reply),
        Meaning::Failed(failure) | Meaning::Again(failure, _) => Err(failure),
        Meaning::Fatal(reason) => Err(Failure::new(FailureKind::BadRequest, reason)),
        Meaning::Without(dialect) => Err(Failure::new(FailureKind::BadRequest, dialect.in_words().join("; "))),
    };
    Ok((id.to_owned(), answer))
}

/// The files of a directory whose names start with `start` and end with `.jsonl`, sorted by name.
fn named(dir: &Path, start: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let names = entries.filter_map(Result::ok).map(|entry| entry.path());
    let is_wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with(start) && name.ends_with(".jsonl")
    };
    let mut found: Vec<PathBuf> = names.filter(is_wanted).collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::super::super::call::test_call;
    use super::*;
    use crate::stage::fixture::{read_lines, write_lines};

    #[test]
    fn requests_come_back_as_answers_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { temperature: 0.0, top_logprobs: 0, max_tokens: 7 };
        let calls = [test_call("1", "x"), test_call("2", "y"), test_call("3", "z")];
        let waiting = write(dir.path(), "gpt", &calls.iter().collect::<Vec<_>>(), &settings).unwrap();
        assert!(waiting.to_string().contains("3 requests are in requests.jsonl"), "{waiting}");
        let requests = read_lines(&dir.path().join("requests.jsonl"));
        assert_eq!((&requests[0]["method"], &requests[0]["url"]), (&json!("POST"), &json!("/v1/chat/completions")));
        assert_eq!(requests[1]["body"]["messages"][1]["content"], "y");
        assert_eq!((&requests[1]["body"]["max_tokens"], &requests[1]["body"]["temperature"]), (&json!(7), &json!(0.0)));
        let id = |number: usize| requests[number]["custom_id"].clone();
        let body = |text: &str| json!({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]});
        write_lines(
            &dir.path().join("responses.jsonl"),
            &[
                json!({"custom_id": id(1), "response": {"status_code": 200, "body": body("[[2]]")}, "error": null}),
                json!({"custom_id": id(0), "response": {"status_code": 200, "body": body("[[1]]")}, "error": null}),
            ],
        );
        write_lines(
            &dir.path().join("errors.jsonl"),
            &[
                json!({"custom_id": id(2), "response": {"status_code": 429, "body": {"error": {"message": "slow"}}}}),
                json!({"custom_id": id(1), "response": null, "error": {"message": "expired"}}),
            ],
        );
        let answers = read(dir.path(), &settings).unwrap();
        let of = |call: &Call| answers[&call.id(&settings)].clone();
        assert_eq!(of(&calls[0]).unwrap().text, "[[1]]");
        assert_eq!(of(&calls[1]).unwrap().text, "[[2]]");
        assert_eq!(of(&calls[2]).unwrap_err().kind, FailureKind::RateLimited);
        write_lines(&dir.path().join("errors.jsonl"), &[json!({"id": 1})]);
        let error = format!("{:#}", read(dir.path(), &settings).unwrap_err());
        assert!(error.contains("line 1") && error.contains("custom_id"), "{error}");
    }
}
