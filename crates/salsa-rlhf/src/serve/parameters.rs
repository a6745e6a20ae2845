//! Sampling and reply parameters, common to chat and text completions.
use std::hash::{BuildHasher, RandomState};

use serde_json::Value;

use super::{
    error::ApiError,
    fields::{Fields, expected, is, is_empty, is_flag},
};

/// Maximum number of choices per prompt.
const MOST_CHOICES: i64 = 128;

/// Maximum number of stop texts, and of bytes of each.
const MOST_STOPS: (usize, usize) = (16, 1024);

/// The lowest temperature above 0: dividing logits by less would overflow.
const LEAST_TEMPERATURE: f32 = 1e-4;

/// The highest temperature.
const MOST_TEMPERATURE: f32 = 100.0;

/// Parameters of both kinds of completions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameters {
    /// The name of the model.
    pub model: Option<String>,
    /// Choices per prompt.
    pub n: u32,
    /// Maximum number of tokens of a reply; none: the rest of the context (chat), or 16.
    pub max_tokens: Option<usize>,
    /// Divisor of the logits; 0 takes the most likely token.
    pub temperature: f32,
    /// Samples from the most likely tokens whose cumulative probability reaches this value.
    pub top_p: f32,
    /// Samples from this many most likely tokens; 0: all.
    pub top_k: usize,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Texts that end a reply and are not part of it.
    pub stop: Vec<String>,
    /// Further tokens that end a reply.
    pub stop_token_ids: Vec<u32>,
    /// Whether to ignore the model's own end tokens.
    pub ignore_eos: bool,
    /// Whether and how the reply is streamed.
    pub stream: Option<Streaming>,
}

/// The end of a streamed reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Streaming {
    /// The last piece.
    Bare,
    /// A chunk with the token counts.
    WithUsage,
}

impl Parameters {
    /// Takes the parameters from a request.
    ///
    /// # Errors
    /// The parameter that is invalid or not supported.
    pub(super) fn take(fields: &mut Fields) -> Result<Parameters, ApiError> {
        let n = fields.count("n", 1..=MOST_CHOICES)?.unwrap_or(1);
        fields.require_no_effect("best_of", |value| value.as_i64() == Some(n))?;
        refuse_what_changes_replies(fields)?;
        Ok(Parameters {
            model: fields.text("model")?,
            n: n as u32,
            max_tokens: max_tokens(fields)?,
            temperature: temperature(fields)?,
            top_p: top_p(fields)?,
            top_k: fields.count("top_k", -1..=i64::from(u32::MAX))?.unwrap_or(0).max(0) as usize,
            seed: seed(fields)?,
            stop: stop(fields)?,
            stop_token_ids: stop_token_ids(fields)?,
            ignore_eos: fields.flag("ignore_eos")?,
            stream: streaming(fields)?,
        })
    }
}

/// Checks unsupported parameters of other servers: values that would change a reply are errors, bookkeeping fields are
/// dropped.
fn refuse_what_changes_replies(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["frequency_penalty", "presence_penalty", "min_p", "min_tokens"] {
        fields.require_no_effect(name, is(0.0))?;
    }
    for name in ["repetition_penalty", "length_penalty"] {
        fields.require_no_effect(name, is(1.0))?;
    }
    for name in ["logit_bias", "suffix", "bad_words"] {
        fields.require_no_effect(name, is_empty)?;
    }
    for name in ["use_beam_search", "include_stop_str_in_output", "store"] {
        fields.require_no_effect(name, is_flag(false))?;
    }
    for name in ["skip_special_tokens", "spaces_between_special_tokens"] {
        fields.require_no_effect(name, is_flag(true))?;
    }
    for name in ["user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key"] {
        fields.take(name);
    }
    Ok(())
}

/// The maximum number of tokens of a reply, under either name; the newer name wins.
fn max_tokens(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let mut read = |name| fields.count(name, 0..=i64::from(u32::MAX));
    let (old, new) = (read("max_tokens")?, read("max_completion_tokens")?);
    Ok(new.or(old).map(|count| count as usize))
}

fn temperature(fields: &mut Fields) -> Result<f32, ApiError> {
    let temperature = fields.number("temperature")?.unwrap_or(1.0);
    if temperature == 0.0 || (LEAST_TEMPERATURE..=MOST_TEMPERATURE).contains(&temperature) {
        return Ok(temperature);
    }
    let message =
        format!("temperature is {temperature}; it must be 0, or between {LEAST_TEMPERATURE} and {MOST_TEMPERATURE}");
    Err(ApiError::invalid("temperature", message))
}

fn top_p(fields: &mut Fields) -> Result<f32, ApiError> {
    match fields.number("top_p")?.unwrap_or(1.0) {
        top_p if top_p > 0.0 && top_p <= 1.0 => Ok(top_p),
        top_p => Err(ApiError::invalid("top_p", format!("top_p is {top_p}; it must be above 0 and at most 1"))),
    }
}

/// The seed; by default a random one per request. Negative seeds are reinterpreted as unsigned.
fn seed(fields: &mut Fields) -> Result<u64, ApiError> {
    let Some(value) = fields.take("seed") else { return Ok(RandomState::new().hash_one(0)) };
    let seed = value.as_u64().or_else(|| value.as_i64().map(|seed| seed as u64));
    seed.ok_or_else(|| expected("seed", "a whole number of 64 bits", &value))
}

fn stop(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let texts = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::String(text)) => vec![text],
        Some(Value::Array(items)) => {
            let text = |(at, item)| match item {
                Value::String(text) => Ok(text),
                other => Err(expected(&format!("stop[{at}]"), "a text", &other)),
            };
            items.into_iter().enumerate().map(text).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(expected("stop", "a text or a list of texts", &other)),
    };
    let (most, longest) = MOST_STOPS;
    if texts.len() > most {
        return Err(ApiError::invalid("stop", format!("stop has {} texts; at most {most} are taken", texts.len())));
    }
    match texts.iter().position(|text| text.is_empty() || text.len() > longest) {
        Some(at) => {
            Err(ApiError::invalid(format!("stop[{at}]"), format!("a stop text has between 1 and {longest} bytes")))
        }
        None => Ok(texts),
    }
}

fn stop_token_ids(fields: &mut Fields) -> Result<Vec<u32>, ApiError> {
    match fields.take("stop_token_ids") {
        None => Ok(Vec::new()),
        Some(Value::Array(items)) if items.len() <= 1024 => token_ids("stop_token_ids", &items),
        Some(other) => Err(expected("stop_token_ids", "a list of at most 1024 token numbers", &other)),
    }
}

/// Parses token ids.
///
/// # Errors
/// The first item that is not a token id.
pub(super) fn token_ids(name: &str, items: &[Value]) -> Result<Vec<u32>, ApiError> {
    let id = |(at, item): (usize, &Value)| {
        let id = item.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| expected(&format!("{name}[{at}]"), "a token number", item))
    };
    items.iter().enumerate().map(id).collect()
}

fn streaming(fields: &mut Fields) -> Result<Option<Streaming>, ApiError> {
    let stream = fields.flag("stream")?;
    let usage = match fields.take("stream_options") {
        None => false,
        Some(_) if !stream => {
            return Err(ApiError::invalid("stream_options", "stream_options are only taken with stream: true"));
        }
        Some(Value::Object(mut options)) => {
            let usage = options.shift_remove("include_usage").unwrap_or(Value::Null);
            options.shift_remove("include_obfuscation");
            if let Some(name) = options.keys().next() {
                let name = format!("stream_options.{name}");
                return Err(ApiError::unsupported(&name, format!("there is no parameter {name} here")));
            }
            match usage {
                Value::Null => false,
                Value::Bool(usage) => usage,
                other => return Err(expected("stream_options.include_usage", "true or false", &other)),
            }
        }
        Some(other) => return Err(expected("stream_options", "an object", &other)),
    };
    Ok(stream.then_some(if usage { Streaming::WithUsage } else { Streaming::Bare }))
}
