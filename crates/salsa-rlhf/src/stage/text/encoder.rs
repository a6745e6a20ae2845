//! Encodes text and messages in the same way for every stage: SFT trains on the token sequences that generation uses
//! and the reward model scores.
//!
//! Prompt and response are tokenised separately and concatenated, as when a response is sampled.
//! [`Tokenizer::encode_after`] encodes the response, so that tokenizers that begin every text with a space (Llama 2) do
//! not insert one in the middle.
use std::{borrow::Cow, path::Path};

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::chat_arguments::{ChatArguments, TextPrompts};
use crate::{
    chat::{self, ChatTemplate, Conversation, GenerationPrompt, Message},
    checkpoint::{Checkpoint, SpecialTokens},
    data::{Content, Example, Preference},
    stage::text::sequence::Sequence,
    tokenizer::Tokenizer,
};

/// An assistant message for probing the template.
const SAMPLE_RESPONSE: &str = "A response.";

/// A checkpoint's tokenizer, chat template and end tokens.
pub struct Encoder {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
    ends: Vec<u32>,
    chat: ChatArguments,
}

impl Encoder {
    /// The encoder of a checkpoint, or `None` if it has no `tokenizer.json`.
    ///
    /// # Errors
    /// If tokenizer or template cannot be read, or token ids exceed the model's vocabulary.
    pub fn open_if_any(checkpoint: &Checkpoint) -> anyhow::Result<Option<Encoder>> {
        if !checkpoint.dir().join("tokenizer.json").exists() {
            return Ok(None);
        }
        let (tokenizer, template) = (checkpoint.tokenizer()?, ChatTemplate::from_dir(checkpoint.dir())?);
        let mut ends = checkpoint.tokens.eos.clone();
        if ends.is_empty() {
            ends.extend(tokenizer.eos());
        }
        Ok(Some(Encoder::new(tokenizer, template, ends)))
    }

    /// The encoder of a checkpoint.
    ///
    /// # Errors
    /// As [`Encoder::open_if_any`], and if the checkpoint has no tokenizer or no end token.
    pub fn open(checkpoint: &Checkpoint) -> anyhow::Result<Encoder> {
        let dir = checkpoint.dir().display();
        let encoder = Encoder::open_if_any(checkpoint)?
            .with_context(|| format!("{dir} holds no tokenizer.json; put the model's tokenizer there"))?;
        ensure!(!encoder.ends.is_empty(), "{dir}: config.json names no eos_token_id, so no response could ever end");
        Ok(encoder)
    }

    /// The encoder of a directory that may lack weights, with the chat template named by `template`
    /// ([`chat::source_of`]) or else its own.
    ///
    /// # Errors
    /// If tokenizer or template cannot be read, or no end token is known.
    pub fn from_dir(dir: &Path, template: Option<&str>) -> anyhow::Result<Encoder> {
        let tokenizer = Tokenizer::from_dir(dir)?;
        let tokens = SpecialTokens::from_dir(dir)?;
        ensure!(!tokens.eos.is_empty(), "{}: no file names an eos_token, so no response could ever end", dir.display());
        let encoder = Encoder::new(tokenizer, ChatTemplate::from_dir(dir)?, tokens.eos);
        match template {
            Some(choice) => encoder.with_template(&chat::source_of(choice)?),
            None => Ok(encoder),
        }
    }

    /// Replaces the chat template.
    ///
    /// # Errors
    /// If the source is no valid template.
    pub fn with_template(self, source: &str) -> anyhow::Result<Encoder> {
        let template = ChatTemplate::new(source, self.tokenizer.names())?;
        Ok(Encoder { template: Some(template), ..self })
    }

    /// An encoder of these parts; the first of `ends` is appended where an end token is missing.
    pub fn new(tokenizer: Tokenizer, template: Option<ChatTemplate>, ends: Vec<u32>) -> Encoder {
        Encoder { tokenizer, template, ends, chat: ChatArguments::default() }
    }

    /// Replaces the stage's keys for prompts.
    pub fn with_chat(self, chat: &ChatArguments) -> Encoder {
        Encoder { chat: chat.clone(), ..self }
    }

    /// A note on prompts given as text: how they are interpreted, and which key changes that. `None` if there is no
    /// choice.
    pub fn text_prompt_note(&self) -> Option<&'static str> {
        match self.chat.text_prompts {
            TextPrompts::Plain if self.has_template() => Some(
                "prompts are plain text, which is taken as it is: the model's chat template is not applied \
                 (text_prompts: chat makes each the user's message)",
            ),
            TextPrompts::Plain => None,
            TextPrompts::Chat => {
                Some("prompts are plain text: each is the user's message for the chat template (text_prompts: chat)")
            }
        }
    }

    /// The text that the chat template writes after the end token of the last response, if any: the line feed of
    /// ChatML.
    pub fn behind_the_end(&self) -> Option<String> {
        let tokens = self.tokens_of_two_turns()?;
        let end = tokens.iter().rposition(|token| self.ends.contains(token))?;
        let behind = self.tokenizer.decode_with_special(&tokens[end + 1..]).ok()?;
        (!behind.is_empty() && !behind.contains(SAMPLE_RESPONSE)).then_some(behind)
    }

    /// Whether the chat template begins every turn, not only the conversation, with the BOS token.
    pub fn begins_turns_with_bos(&self) -> bool {
        let tokens = self.tokens_of_two_turns().unwrap_or_default();
        self.bos().is_some_and(|bos| tokens.iter().filter(|token| **token == bos).count() > 1)
    }

    /// Tokens of a rendered question and response; `None` if there is no template, or it refuses them.
    fn tokens_of_two_turns(&self) -> Option<Vec<u32>> {
        let messages = vec![Message::new("user", "A question."), Message::new("assistant", SAMPLE_RESPONSE)];
        let text = self.render(&messages.into(), GenerationPrompt::Omit).ok()?;
        self.tokenizer.encode(&text).ok()
    }

    /// Tokens at which a response ends.
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Whether the encoder has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// The BOS token, if the tokenizer has one.
    pub fn bos(&self) -> Option<u32> {
        self.tokenizer.bos()
    }

    /// Renders a conversation by the chat template.
    ///
    /// # Errors
    /// If there is no chat template, or it refuses the messages.
    pub fn render(&self, conversation: &Conversation, prompt: GenerationPrompt) -> anyhow::Result<String> {
        let arguments = conversation.arguments.over(&self.chat.chat_template_kwargs);
        self.template()?.render_with(conversation, &arguments, prompt)
    }

    /// The tokens of a rendered text: no special tokens are added to those of the template.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn tokens_of_rendered(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.tokenizer.encode(text)
    }

    /// Decodes tokens, including special ones.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode_with_special(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.tokenizer.decode_with_special(tokens)
    }

    /// Decodes tokens, omitting special ones.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn decode(&self, tokens: &[u32]) -> anyhow::Result<String> {
        self.tokenizer.decode(tokens)
    }

    /// The bytes of a token within a text.
    ///
    /// # Errors
    /// If the tokenizer's decoder fails.
    pub fn token_bytes(&self, token: u32) -> anyhow::Result<Vec<u8>> {
        self.tokenizer.token_bytes(token)
    }

    /// Tokens of a complete text, with the tokenizer's prefix (once) and an end token.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn text(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.opening(text)?;
        self.close(&mut tokens)?;
        Ok(tokens)
    }

    /// Tokens of a truncated text, without an end token.
    ///
    /// # Errors
    /// If the text cannot be tokenised.
    pub fn cut_text(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        self.opening(text)
    }

    /// Tokens of a prompt, up to the start of the response.
    ///
    /// # Errors
    /// If there are messages and no chat template, or the template refuses them.
    pub fn prompt(&self, prompt: &Content) -> anyhow::Result<Vec<u32>> {
        match &*self.taken(prompt)? {
            Content::Text(text) => self.opening(text),
            Content::Messages(messages) => self.tokenizer.encode(&self.render(messages, GenerationPrompt::Add)?),
        }
    }

    /// Tokens of a prompt, its response and an end token; and the number of prompt tokens.
    ///
    /// A response given as text after a prompt of messages is the assistant's next message.
    ///
    /// # Errors
    /// As [`Encoder::prompt`], and if the rendered conversation does not start with the rendered prompt.
    pub fn prompt_and_response(&self, prompt: &Content, response: &Content) -> anyhow::Result<(Vec<u32>, usize)> {
        let (mut tokens, mut response) = self.apart(prompt, response)?;
        self.close(&mut response)?;
        let length = tokens.len();
        tokens.extend(response);
        Ok((tokens, length))
    }

    /// Tokens of a prompt and a truncated response, without an end token.
    ///
    /// # Errors
    /// As [`Encoder::prompt_and_response`].
    pub fn prompt_and_cut_response(&self, prompt: &Content, response: &Content) -> anyhow::Result<Vec<u32>> {
        let (mut tokens, mut response) = self.apart(prompt, response)?;
        if let Some(end) = self.end_of_turn(&response)? {
            response.truncate(end - 1);
        }
        tokens.extend(response);
        Ok(tokens)
    }

    /// Tokens of a prompt and of its response; the response's end, if any, is unchanged.
    fn apart(&self, prompt: &Content, response: &Content) -> anyhow::Result<(Vec<u32>, Vec<u32>)> {
        let prompt = &*self.taken(prompt)?;
        let (before, text) = match (prompt, response) {
            (Content::Text(before), Content::Text(text)) => (before.clone(), text.clone()),
            (Content::Messages(before), Content::Text(text)) => {
                self.continuation(before, &[Message::new("assistant", text)])?
            }
            (Content::Messages(before), Content::Messages(after)) => self.continuation(before, after)?,
            (Content::Text(_), Content::Messages(_)) => bail!("the prompt is text but the response is messages"),
        };
        Ok((self.prompt(prompt)?, self.tokenizer.encode_after(&before, &text)?))
    }

    /// A conversation whose assistant turns are learned, each with its end token. Text after the last one is omitted.
    ///
    /// # Errors
    /// As [`Encoder::prompt_and_response`], and if there is no assistant message.
    pub fn conversation(&self, conversation: &Conversation) -> anyhow::Result<Sequence> {
        let arguments = conversation.arguments.over(&self.chat.chat_template_kwargs);
        let (text, turns) = self.template()?.render_with_spans_and(conversation, &arguments)?;
        let last = turns.last().context("no message is the assistant's, so there is nothing to learn")?.end;
        let mut sequence = Sequence { tokens: Vec::new(), learned: Vec::new() };
        let (mut before, mut done) = ("", 0);
        for turn in turns {
            let asked = &text[done..turn.start];
            sequence.tokens.extend(self.tokenizer.encode_after(before, asked)?);
            let mut tokens = self.tokenizer.encode_after(asked, &text[turn.clone()])?;
            if turn.end == last {
                self.close(&mut tokens)?;
            }
            let start = sequence.tokens.len();
            sequence.learned.push(start.max(1)..start + self.end_of_turn(&tokens)?.unwrap_or(tokens.len()));
            sequence.tokens.extend(tokens);
            (before, done) = (&text[turn.clone()], turn.end);
        }
        Ok(sequence)
    }

    /// The sequence that SFT trains on: completions, assistant turns, the preferred response, or a whole text.
    ///
    /// # Errors
    /// If the example is a prompt without response, or cannot be tokenised.
    pub fn example(&self, example: &Example) -> anyhow::Result<Sequence> {
        let completion = |prompt: &Content, response: &Content| -> anyhow::Result<Sequence> {
            let (tokens, prompt) = self.prompt_and_response(prompt, response)?;
            Ok(Sequence::from(tokens, prompt))
        };
        match example {
            Example::Text(text) => Ok(Sequence::whole(self.text(text)?)),
            Example::Messages(messages) => self.conversation(messages),
            Example::PromptCompletion { prompt, completion: response } => completion(prompt, response),
            Example::Preference(Preference { prompt, chosen, .. }) => completion(prompt, chosen),
            Example::Prompt(_) => bail!("this data set holds prompts without responses; there is nothing to learn"),
        }
    }

    /// The prompt as interpreted by `text_prompts`.
    fn taken<'a>(&self, prompt: &'a Content) -> anyhow::Result<Cow<'a, Content>> {
        match (self.chat.text_prompts, prompt) {
            (TextPrompts::Chat, Content::Text(text)) => {
                ensure!(!text.is_empty(), "there is no prompt that could be the user's message (text_prompts: chat)");
                Ok(Cow::Owned(prompt.clone().into_messages().into()))
            }
            _ => Ok(Cow::Borrowed(prompt)),
        }
    }

    fn template(&self) -> anyhow::Result<&ChatTemplate> {
        self.template.as_ref().with_context(|| {
            let what = match self.chat.text_prompts {
                TextPrompts::Plain => "the data holds messages",
                TextPrompts::Chat => "the data holds messages, or text_prompts is chat,",
            };
            format!("{what} but the model has no chat template; {}", chat::CHOICES)
        })
    }

    /// Tokens of a text with the tokenizer's prefix, but without its suffix. For an empty text, the BOS token.
    fn opening(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode_with_special(text)?;
        let bare = self.tokenizer.encode(text)?;
        if bare.is_empty() {
            tokens.truncate(usize::from(tokens.first().copied() == self.bos()));
            return Ok(tokens);
        }
        while tokens.len() > bare.len() && tokens.last() != bare.last() {
            tokens.pop();
        }
        Ok(tokens)
    }

    /// The rendered `before`, and the text that the template adds for `after`.
    fn continuation(&self, before: &Conversation, after: &[Message]) -> anyhow::Result<(String, String)> {
        let opening = self.render(before, GenerationPrompt::Add)?;
        let messages = [before, after].concat();
        let whole = Conversation { messages, arguments: before.arguments.clone() };
        let whole = self.render(&whole, GenerationPrompt::Omit)?;
        let added = rest(&whole, &opening)?.to_owned();
        Ok((opening, added))
    }

    /// Makes tokens end with an end token: removes white space after one, or appends a missing one.
    fn close(&self, tokens: &mut Vec<u32>) -> anyhow::Result<()> {
        match self.end_of_turn(tokens)? {
            Some(end) => tokens.truncate(end),
            None => tokens.extend(self.ends.first()),
        }
        Ok(())
    }

    /// The length up to and including the last end token, if only white space follows it.
    fn end_of_turn(&self, tokens: &[u32]) -> anyhow::Result<Option<usize>> {
        let Some(last) = tokens.iter().rposition(|token| self.ends.contains(token)) else { return Ok(None) };
        let behind = self.tokenizer.decode_with_special(&tokens[last + 1..])?;
        Ok(behind.trim().is_empty().then_some(last + 1))
    }
}

/// How sequences longer than `max_length` are shortened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TruncationMode {
    /// Cut off their end.
    KeepStart,
    /// Cut off their beginning.
    KeepEnd,
    /// Omit and count them.
    Drop,
}

impl TruncationMode {
    /// At most `max_length` tokens, and the number cut off in front; `None` if the sequence is omitted.
    pub fn apply(self, mut tokens: Vec<u32>, max_length: usize) -> Option<(Vec<u32>, usize)> {
        let excess = tokens.len().saturating_sub(max_length);
        match self {
            _ if excess == 0 => Some((tokens, 0)),
            TruncationMode::KeepStart => {
                tokens.truncate(max_length);
                Some((tokens, 0))
            }
            TruncationMode::KeepEnd => Some((tokens.split_off(excess), excess)),
            TruncationMode::Drop => None,
        }
    }
}

fn rest<'a>(whole: &'a str, start: &str) -> anyhow::Result<&'a str> {
    whole.strip_prefix(start).with_context(|| {
        format!(
            "the chat template writes a conversation differently once it goes on: {start:?} is not how {whole:?} begins"
        )
    })
}

#[cfg(test)]
mod tests;
