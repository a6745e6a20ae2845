//! Replies in OpenAI's form: whole, or as the chunks of a stream.
use serde_json::{Map, Value, json};

use super::{
    completion::Form,
    generated::Piece,
    parameters::Streaming,
    tokens::{self, TokenLogprobs},
};

/// The echoed prompt at the start of a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Opening {
    /// The prompt.
    pub text: String,
    /// Its log-probs, if requested.
    pub logprobs: Vec<TokenLogprobs>,
}

/// A reply under construction.
pub(super) struct Reply {
    /// Its form.
    pub form: Form,
    /// Its id.
    pub id: String,
    /// Its creation time, in seconds since 1970.
    pub created: u64,
    /// The name of the model.
    pub model: String,
    /// Program, instruction set and number type: everything but the request that the bytes depend on.
    pub fingerprint: String,
    /// Tokens of all prompts.
    pub prompt_tokens: usize,
    /// Whether log-probs are included.
    pub has_logprobs: bool,
    /// The streaming mode; none for a whole reply.
    pub streaming: Option<Streaming>,
    /// The start of each choice; empty without `echo`.
    pub openings: Vec<Opening>,
    /// The characters emitted so far of each choice.
    pub offsets: Vec<usize>,
}

/// A finished choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Whole {
    /// Its text.
    pub text: String,
    /// Its log-probs, if requested.
    pub logprobs: Vec<TokenLogprobs>,
    /// Why it ended.
    pub finish: &'static str,
}

impl Reply {
    /// Builds the whole reply.
    pub(super) fn whole(mut self, choices: Vec<Whole>, drawn: usize) -> Value {
        let openings = std::mem::take(&mut self.openings);
        let choice = |(index, (opening, choice)): (usize, (Opening, Whole))| {
            let (text, told) = (opening.text + &choice.text, [opening.logprobs, choice.logprobs].concat());
            let logprobs = self.logprobs(index, &told);
            match self.form {
                Form::Chat => json!({
                    "index": index,
                    "message": {"role": "assistant", "content": text, "refusal": null},
                    "logprobs": logprobs,
                    "finish_reason": choice.finish,
                }),
                Form::Text => {
                    json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": choice.finish})
                }
            }
        };
        let choices: Vec<Value> = openings.into_iter().zip(choices).enumerate().map(choice).collect();
        let mut reply = self.envelope(choices);
        reply.insert("usage".to_owned(), self.usage(drawn));
        Value::Object(reply)
    }

    /// The chunks before the first token.
    pub(super) fn first_chunks(&mut self) -> Vec<Value> {
        let openings = std::mem::take(&mut self.openings);
        let mut chunks = Vec::new();
        for (index, opening) in openings.into_iter().enumerate() {
            match self.form {
                Form::Chat => {
                    chunks.push(self.chat_chunk(index, json!({"role": "assistant", "content": ""}), None, None))
                }
                Form::Text if opening == Opening::default() => {}
                Form::Text => chunks.push(self.text_chunk(index, &opening.text, &opening.logprobs, None)),
            }
        }
        chunks
    }

    /// The chunks of a piece.
    pub(super) fn chunks(&mut self, piece: &Piece) -> Vec<Value> {
        let Piece { choice, text, logprobs, finish } = piece;
        match self.form {
            Form::Text => vec![self.text_chunk(*choice, text, logprobs, *finish)],
            Form::Chat => {
                let mut chunks = Vec::new();
                if !(text.is_empty() && logprobs.is_empty()) {
                    chunks.push(self.chat_chunk(*choice, json!({"content": text}), Some(logprobs), None));
                }
                if finish.is_some() {
                    chunks.push(self.chat_chunk(*choice, json!({}), None, *finish));
                }
                chunks
            }
        }
    }

    /// The chunk with the token counts, if requested.
    pub(super) fn last_chunk(&self, drawn: usize) -> Option<Value> {
        (self.streaming == Some(Streaming::WithUsage)).then(|| {
            let mut chunk = self.envelope(Vec::new());
            chunk.insert("usage".to_owned(), self.usage(drawn));
            Value::Object(chunk)
        })
    }

    fn chat_chunk(
        &mut self,
        index: usize,
        delta: Value,
        told: Option<&[TokenLogprobs]>,
        finish: Option<&str>,
    ) -> Value {
        let logprobs = told.map_or(Value::Null, |told| self.logprobs(index, told));
        self.chunk(json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}))
    }

    fn text_chunk(&mut self, index: usize, text: &str, told: &[TokenLogprobs], finish: Option<&str>) -> Value {
        let logprobs = self.logprobs(index, told);
        self.chunk(json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}))
    }

    fn chunk(&self, choice: Value) -> Value {
        let mut chunk = self.envelope(vec![choice]);
        if self.streaming == Some(Streaming::WithUsage) {
            chunk.insert("usage".to_owned(), Value::Null);
        }
        Value::Object(chunk)
    }

    fn logprobs(&mut self, choice: usize, told: &[TokenLogprobs]) -> Value {
        match (self.has_logprobs, self.form) {
            (false, _) => Value::Null,
            (true, Form::Chat) => tokens::for_chat(told),
            (true, Form::Text) => tokens::for_completion(told, &mut self.offsets[choice]),
        }
    }

    fn envelope(&self, choices: Vec<Value>) -> Map<String, Value> {
        let object = match (self.form, self.streaming) {
            (Form::Text, _) => "text_completion",
            (Form::Chat, None) => "chat.completion",
            (Form::Chat, Some(_)) => "chat.completion.chunk",
        };
        let mut envelope = Map::new();
        let mut put = |name: &str, value: Value| envelope.insert(name.to_owned(), value);
        put("id", json!(self.id));
        put("object", json!(object));
        put("created", json!(self.created));
        put("model", json!(self.model));
        put("system_fingerprint", json!(self.fingerprint));
        put("choices", Value::Array(choices));
        envelope
    }

    fn usage(&self, drawn: usize) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self.prompt_tokens + drawn,
        })
    }
}
