//! Requests for scores and log-probs: `POST /score` and `POST /logprobs`.
use serde_json::{Map, Value, json};

use super::{
    catalogue::{Catalogue, Kind, Served},
    completion::check_tokens,
    engine::{Asked, Passed},
    error::ApiError,
    fields::{Fields, expected},
};
use crate::stage::text::rows::Row;

/// A valid request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Readings {
    /// The model's index in the catalogue.
    pub model: usize,
    /// The sequences to read.
    pub sequences: Vec<Vec<u32>>,
    /// The requested output.
    pub asked: Asked,
    form: Form,
}

/// The form of the response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// One entry per item of `input`.
    Data,
    /// OpenRLHF's form: a list of scores.
    Rewards,
}

impl Readings {
    /// Parses a request for scores: `input`, a list of rows as `salsa score` reads them, or OpenRLHF's `query`, a list
    /// of texts of prompt and response as rendered by the chat template.
    ///
    /// # Errors
    /// The parameter that is invalid or not supported.
    pub(super) fn scores(body: &[u8], catalogue: &Catalogue, most: usize) -> Result<Readings, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = catalogue.find(fields.text("model")?.as_deref(), Kind::Reward)?;
        let served = &catalogue.models[model];
        let form = if fields.has("query") { Form::Rewards } else { Form::Data };
        let sequences = match form {
            Form::Data => rows(&mut fields, served, most)?,
            Form::Rewards => {
                // OpenRLHF sends these for reward functions; a reward model does not need them.
                fields.take("prompts");
                fields.take("labels");
                queries(&mut fields, served, most)?
            }
        };
        fields.finish()?;
        Ok(Readings { model, sequences, asked: Asked::Scores, form })
    }

    /// Parses a request for log-probs: `input`, a list of rows as `salsa logprobs` reads them.
    ///
    /// # Errors
    /// As [`Readings::scores`].
    pub(super) fn logprobs(body: &[u8], catalogue: &Catalogue, most: usize) -> Result<Readings, ApiError> {
        let mut fields = Fields::parse(body)?;
        let model = catalogue.find(fields.text("model")?.as_deref(), Kind::Language)?;
        let sequences = rows(&mut fields, &catalogue.models[model], most)?;
        fields.finish()?;
        Ok(Readings { model, sequences, asked: Asked::Logprobs, form: Form::Data })
    }

    /// Builds the response.
    pub(super) fn answer(&self, served: &Served, passed: Passed) -> Value {
        let entries: Vec<Map<String, Value>> = match passed {
            Passed::Scores(scores) if self.form == Form::Rewards => {
                // Newer versions of OpenRLHF read `scores` and `extra_logs` too.
                return json!({"rewards": scores, "scores": scores, "extra_logs": {}});
            }
            Passed::Scores(scores) => scores.iter().map(|&score| scored(served, score)).collect(),
            Passed::Logprobs(all) => self.sequences.iter().zip(&all).map(|(tokens, own)| told(tokens, own)).collect(),
            Passed::Rankings(_) => unreachable!("neither request asks for rankings"),
        };
        let numbered = |(index, entry): (usize, Map<String, Value>)| {
            let mut numbered = Map::from_iter([("index".to_owned(), json!(index))]);
            numbered.extend(entry);
            Value::Object(numbered)
        };
        let tokens: usize = self.sequences.iter().map(Vec::len).sum();
        json!({
            "object": "list",
            "model": served.name,
            "data": entries.into_iter().enumerate().map(numbered).collect::<Vec<_>>(),
            "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
        })
    }
}

/// The keys that `salsa score` adds to a row.
fn scored(served: &Served, score: f32) -> Map<String, Value> {
    let mut entry = Map::from_iter([("score".to_owned(), json!(score))]);
    if let Some((mean, deviation)) = served.checkpoint.score_normalization() {
        entry.insert("score_normalized".to_owned(), json!((f64::from(score) - mean) / deviation));
    }
    entry
}

/// The keys that `salsa logprobs` adds to a row.
fn told(tokens: &[u32], logprobs: &[f32]) -> Map<String, Value> {
    Map::from_iter([("tokens".to_owned(), json!(tokens)), ("logprobs".to_owned(), json!(logprobs))])
}

/// Takes the list of this name, with at least one item and at most as many as the queue has places.
fn list(fields: &mut Fields, name: &str, most: usize) -> Result<Vec<Value>, ApiError> {
    match fields.needed(name)? {
        Value::Array(items) if items.is_empty() => Err(ApiError::invalid(name, format!("{name} is empty"))),
        Value::Array(items) if items.len() > most => {
            let message = format!("{name} has {} items; at most {most} are taken in one request", items.len());
            Err(ApiError::invalid(name, message))
        }
        Value::Array(items) => Ok(items),
        other => Err(expected(name, "a list", &other)),
    }
}

/// Tokenises rows as the commands do.
fn rows(fields: &mut Fields, served: &Served, most: usize) -> Result<Vec<Vec<u32>>, ApiError> {
    let spec = served.spec();
    let sequence = |(index, item): (usize, Value)| {
        let name = format!("input[{index}]");
        let Value::Object(object) = item else { return Err(expected(&name, "an object", &item)) };
        let row = Row { line: index + 1, index, object };
        let tokens = row.sequence(served.encoder.as_ref(), &spec);
        let tokens = tokens.map_err(|error| ApiError::invalid(&name, format!("{name}: {error:#}")))?;
        check_tokens(&name, &tokens, served)?;
        Ok(tokens)
    };
    list(fields, "input", most)?.into_iter().enumerate().map(sequence).collect()
}

/// Tokenises OpenRLHF's texts: removes padding, and ends each with an end token.
fn queries(fields: &mut Fields, served: &Served, most: usize) -> Result<Vec<Vec<u32>>, ApiError> {
    let encoder = served.encoder()?;
    let (pad, ends) = (served.checkpoint.tokens.pad, encoder.ends());
    let sequence = |(index, item): (usize, Value)| {
        let name = format!("query[{index}]");
        let Value::String(text) = item else { return Err(expected(&name, "a text", &item)) };
        let tokens = encoder.tokens_of_rendered(&text);
        let tokens = tokens.map_err(|error| ApiError::invalid(&name, format!("{name}: {error:#}")))?;
        let is_padding = |token: &u32| Some(*token) == pad || ends.contains(token);
        let (Some(first), Some(last)) =
            (tokens.iter().position(|token| !is_padding(token)), tokens.iter().rposition(|token| !is_padding(token)))
        else {
            return Err(ApiError::invalid(&name, format!("{name} has no token besides padding and ends")));
        };
        let mut tokens = tokens[first..=last].to_vec();
        tokens.extend(ends.first());
        check_tokens(&name, &tokens, served)?;
        Ok(tokens)
    };
    list(fields, "query", most)?.into_iter().enumerate().map(sequence).collect()
}
