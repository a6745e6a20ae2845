//! A request for chat or text completions: parsed, and checked against the model.
use hyper::StatusCode;
use salsa_engine::{Prompt, Sampling};
use serde_json::{Value, json};

use super::{
    catalogue::{Catalogue, Kind, Served},
    error::ApiError,
    fields::{Fields, expected, is_empty, is_flag},
    messages,
    parameters::{Parameters, token_ids},
};
use crate::{chat::Conversation, data::Content};

/// Maximum of `top_logprobs` and `logprobs`: the number of most likely tokens per token.
const MOST_LIKELY: i64 = 20;

/// Maximum number of log-probs that one reply holds in memory; each takes some hundred bytes until it is sent.
const MAX_LOGPROBS: usize = 1 << 20;

/// Default `max_tokens` of text completions, as OpenAI's.
const DEFAULT_TOKENS: usize = 16;

/// The API form of a request and its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `/v1/chat/completions`
    Chat,
    /// `/v1/completions`
    Text,
}

/// A valid request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Asked {
    /// Its form.
    pub form: Form,
    /// The model's index in the catalogue.
    pub model: usize,
    /// Tokens of the prompts.
    pub prompts: Vec<Vec<u32>>,
    /// Sampling and reply parameters.
    pub parameters: Parameters,
    /// Number of most likely tokens to return per token, if log-probs are requested.
    pub ranked: Option<usize>,
    /// Whether the reply starts with the prompt.
    pub echo: Echo,
    /// Maximum number of tokens of a reply.
    pub new_tokens: usize,
}

/// Whether a reply starts with the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Echo {
    /// The reply starts with the prompt.
    Prompt,
    /// It does not.
    Nothing,
}

impl Asked {
    /// Parses the body of a request.
    ///
    /// # Errors
    /// The parameter that is invalid or not supported.
    pub(super) fn read(form: Form, body: &[u8], catalogue: &Catalogue, most: usize) -> Result<Asked, ApiError> {
        let mut fields = Fields::parse(body)?;
        let parameters = Parameters::take(&mut fields)?;
        let model = catalogue.find(parameters.model.as_deref(), Kind::Language)?;
        let served = &catalogue.models[model];
        let (input, ranked, echo) = match form {
            Form::Chat => (Input::Chat(messages::take(&mut fields)?), chat_logprobs(&mut fields)?, Echo::Nothing),
            Form::Text => {
                let echo = if fields.flag("echo")? { Echo::Prompt } else { Echo::Nothing };
                let ranked = fields.count("logprobs", 0..=MOST_LIKELY)?.map(|count| count as usize);
                (Input::take(&mut fields)?, ranked, echo)
            }
        };
        refuse_tools(&mut fields)?;
        fields.finish()?;
        check_count(input.count(), parameters.n, most)?;
        let prompts = input.tokens(served)?;
        let mut new_tokens = 0;
        for (at, tokens) in prompts.iter().enumerate() {
            let name = input.name(at);
            check_tokens(&name, tokens, served)?;
            // For several prompts it does not depend on their lengths.
            new_tokens = room(form, &name, tokens.len(), &parameters, echo, served)?;
        }
        let outside = parameters.stop_token_ids.iter().position(|&id| id as usize >= served.spec().vocab_size);
        if let Some(at) = outside {
            return Err(ApiError::invalid(format!("stop_token_ids[{at}]"), "the model has no such token"));
        }
        // A reply is text even if the prompt is a list of tokens, so the tokenizer is required.
        served.encoder()?;
        let asked = Asked { form, model, prompts, parameters, ranked, echo, new_tokens };
        asked.check_logprobs()?;
        Ok(asked)
    }

    /// Limits the log-probs of a reply held in memory. Those of sampled tokens in a stream are sent as they are
    /// generated.
    fn check_logprobs(&self) -> Result<(), ApiError> {
        let Some(top) = self.ranked else { return Ok(()) };
        let prompts: usize = self.prompts.iter().map(Vec::len).sum();
        let echoed = if self.echo == Echo::Prompt { prompts * self.parameters.n as usize } else { 0 };
        let drawn = if self.parameters.stream.is_none() { self.choices() * self.new_tokens } else { 0 };
        let told = (echoed + drawn) * (top + 1);
        if told <= MAX_LOGPROBS {
            return Ok(());
        }
        let message = format!("up to {told} log-probs are asked for; at most {MAX_LOGPROBS} are told in one reply");
        Err(ApiError::invalid("logprobs", message))
    }

    /// The number of requested replies.
    pub(super) fn choices(&self) -> usize {
        self.prompts.len() * self.parameters.n as usize
    }

    /// The prompts of all choices; those of one prompt are adjacent.
    pub(super) fn each_choice(&self) -> Vec<Prompt> {
        let choice = |id: usize, sample| Prompt { tokens: self.prompts[id].clone(), id: id as u64, sample };
        (0..self.prompts.len()).flat_map(|id| (0..self.parameters.n).map(move |sample| choice(id, sample))).collect()
    }

    /// The sampling parameters.
    pub(super) fn sampling(&self, served: &Served) -> Sampling {
        let Parameters { temperature, top_k, top_p, seed, ignore_eos, ref stop_token_ids, .. } = self.parameters;
        let ends = if ignore_eos { &[][..] } else { &served.checkpoint.tokens.eos };
        Sampling {
            temperature,
            top_k,
            top_p,
            seed,
            max_new_tokens: self.new_tokens,
            stop_tokens: [ends, stop_token_ids].concat(),
            ..Sampling::default()
        }
    }
}

/// What is to be continued.
enum Input {
    Chat(Conversation),
    Texts(Vec<String>),
    Tokens(Vec<Vec<u32>>),
}

impl Input {
    /// Parses the prompt of a text completion: a text, token ids, or a list of either.
    fn take(fields: &mut Fields) -> Result<Input, ApiError> {
        let wanted = "a text, a list of texts, a list of token numbers, or a list of such lists";
        let items = match fields.needed("prompt")? {
            Value::String(text) => return Ok(Input::Texts(vec![text])),
            Value::Array(items) if items.is_empty() => return Err(ApiError::invalid("prompt", "prompt is empty")),
            Value::Array(items) => items,
            other => return Err(expected("prompt", wanted, &other)),
        };
        match &items[0] {
            Value::Number(_) => Ok(Input::Tokens(vec![token_ids("prompt", &items)?])),
            Value::String(_) => {
                let text = |(at, item): (usize, Value)| match item {
                    Value::String(text) => Ok(text),
                    other => Err(expected(&format!("prompt[{at}]"), "a text, as the first one", &other)),
                };
                Ok(Input::Texts(items.into_iter().enumerate().map(text).collect::<Result<_, _>>()?))
            }
            Value::Array(_) => {
                let tokens = |(at, item): (usize, &Value)| match item {
                    Value::Array(items) => token_ids(&format!("prompt[{at}]"), items),
                    other => Err(expected(&format!("prompt[{at}]"), "a list of token numbers", other)),
                };
                Ok(Input::Tokens(items.iter().enumerate().map(tokens).collect::<Result<_, _>>()?))
            }
            other => Err(expected("prompt[0]", wanted, other)),
        }
    }

    fn count(&self) -> usize {
        match self {
            Input::Chat(_) => 1,
            Input::Texts(texts) => texts.len(),
            Input::Tokens(sequences) => sequences.len(),
        }
    }

    /// The name of the parameter of a prompt.
    fn name(&self, at: usize) -> String {
        match self {
            Input::Chat(_) => "messages".to_owned(),
            _ if self.count() == 1 => "prompt".to_owned(),
            _ => format!("prompt[{at}]"),
        }
    }

    fn tokens(&self, served: &Served) -> Result<Vec<Vec<u32>>, ApiError> {
        let encode = |at: usize, content: Content| {
            let tokens = served.encoder()?.prompt(&content);
            tokens.map_err(|error| ApiError::invalid(self.name(at), format!("{error:#}")))
        };
        match self {
            Input::Chat(conversation) => Ok(vec![encode(0, conversation.clone().into())?]),
            Input::Texts(texts) => {
                texts.iter().enumerate().map(|(at, text)| encode(at, Content::Text(text.clone()))).collect()
            }
            Input::Tokens(sequences) => Ok(sequences.clone()),
        }
    }
}

/// `logprobs` and `top_logprobs` of a chat.
fn chat_logprobs(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    let logprobs = fields.flag("logprobs")?;
    match (logprobs, fields.count("top_logprobs", 0..=MOST_LIKELY)?) {
        (false, Some(1..)) => Err(ApiError::invalid("top_logprobs", "top_logprobs are only told with logprobs: true")),
        (true, count) => Ok(Some(count.unwrap_or(0) as usize)),
        (false, _) => Ok(None),
    }
}

/// Checks fields for tools, formats and templates, which may only have values without effect.
fn refuse_tools(fields: &mut Fields) -> Result<(), ApiError> {
    for name in ["tools", "functions", "documents", "audio", "prediction", "web_search_options"] {
        fields.require_no_effect(name, is_empty)?;
    }
    for name in ["tool_choice", "function_call"] {
        fields.require_no_effect(name, |value| value.as_str() == Some("none"))?;
    }
    fields.require_no_effect("response_format", |value| *value == json!({"type": "text"}))?;
    fields.require_no_effect("modalities", |value| *value == json!(["text"]))?;
    fields.require_no_effect("parallel_tool_calls", Value::is_boolean)?;
    fields.require_no_effect("add_generation_prompt", is_flag(true))?;
    fields.require_no_effect("continue_final_message", is_flag(false))?;
    fields.require_no_effect("echo", is_flag(false))
}

/// A request with more replies than the queue has places could never be served.
fn check_count(prompts: usize, n: u32, most: usize) -> Result<(), ApiError> {
    let choices = prompts.saturating_mul(n as usize);
    if choices <= most {
        return Ok(());
    }
    let param = if prompts > 1 { "prompt" } else { "n" };
    Err(ApiError::invalid(param, format!("{choices} replies are asked for; at most {most} are made for one request")))
}

/// Checks that the model can read a sequence.
///
/// # Errors
/// If it is empty, too long or has a token outside the vocabulary.
pub(super) fn check_tokens(name: &str, tokens: &[u32], served: &Served) -> Result<(), ApiError> {
    let (length, context, vocabulary) = (tokens.len(), served.context, served.spec().vocab_size);
    if tokens.is_empty() {
        return Err(ApiError::invalid(name, format!("{name} has no token")));
    }
    if length > context {
        return Err(ApiError::too_long(name, format!("{length} tokens do not fit the model's context of {context}")));
    }
    match tokens.iter().find(|&&token| token as usize >= vocabulary) {
        Some(token) => {
            let message = format!("token {token} is not in the model's vocabulary of {vocabulary}");
            Err(ApiError::invalid(name, message))
        }
        None => Ok(()),
    }
}

/// The maximum number of tokens of the reply to a prompt of `length` tokens.
fn room(
    form: Form,
    name: &str,
    length: usize,
    parameters: &Parameters,
    echo: Echo,
    served: &Served,
) -> Result<usize, ApiError> {
    let (context, left) = (served.context, served.context - length);
    let new = match (form, parameters.max_tokens) {
        (_, Some(0)) if echo == Echo::Nothing => {
            return Err(ApiError::invalid("max_tokens", "max_tokens is 0; it must be at least 1"));
        }
        (_, Some(given)) => given,
        (Form::Chat, None) => left.max(1),
        (Form::Text, None) => DEFAULT_TOKENS,
    };
    if new <= left {
        return Ok(new);
    }
    let message = format!(
        "a prompt of {length} tokens and a reply of {new} do not fit the model's context of {context}; shorten the prompt \
         or lower max_tokens"
    );
    Err(ApiError::too_long(name, message))
}

/// The error for a body that is not JSON.
pub(super) fn not_json() -> ApiError {
    ApiError::malformed(StatusCode::UNSUPPORTED_MEDIA_TYPE, "send the body with Content-Type: application/json")
}
