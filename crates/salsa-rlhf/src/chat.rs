//! Rendering of conversations to text and tokens with the model's chat template.

mod arguments;
mod characters;
mod choice;
mod compare;
mod conversation;
mod environment;
mod filters;
mod json;
mod methods;
pub(crate) mod named;
mod nesting;
mod operators;
mod printf;
mod rewrite;
mod spans;
mod spec;
#[cfg(test)]
mod tests;
mod text;
mod views;

use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde_json::Value;

pub use self::choice::{CHATML, CHOICES, is_name_or_text, source_of};
pub use self::conversation::{Conversation, TemplateArguments};
use self::environment::Rendering;
use crate::input;
use crate::tokenizer::{SpecialTokenNames, Tokenizer};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Message {
    /// The role: `system`, `user`, `assistant`, or another one that the template supports.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// Creates a message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// Whether a rendered conversation ends with the opening of an assistant turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model answers next.
    Add,
    /// It ends where the last message ends.
    Omit,
}

/// The template of models trained from scratch. Its special tokens are [`BUILTIN_SPECIAL_TOKENS`].
pub const BUILTIN_TEMPLATE: &str = "{% for message in messages %}\
{{ '<|' + message['role'] + '|>\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|end|>' }}{% endif %}\
{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

/// The special tokens that [`BUILTIN_TEMPLATE`] needs in a tokenizer: padding, end of turn, and the three roles.
pub const BUILTIN_SPECIAL_TOKENS: [&str; 5] = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"];

/// A chat template in the Jinja dialect of transformers: blocks trimmed, loop controls, `raise_exception`,
/// `strftime_now`, Python's string methods, `{% generation %}` blocks.
#[derive(Debug)]
pub struct ChatTemplate {
    rendering: Rendering,
}

impl ChatTemplate {
    /// Compiles a template; `bos_token`, `eos_token` and `pad_token` are defined in it if `tokens` has them.
    ///
    /// # Errors
    /// If the source is no valid template; names the line.
    pub fn new(source: &str, tokens: &SpecialTokenNames) -> Result<ChatTemplate> {
        Ok(ChatTemplate { rendering: Rendering::new(source, tokens)? })
    }

    /// Loads the template of a checkpoint: `chat_template.jinja`, or `chat_template` of `tokenizer_config.json` (of
    /// several named ones the one called `default`), or `chat_template.json`. `None` if there is none.
    ///
    /// # Errors
    /// If a file cannot be read or holds no valid template; names the file.
    pub fn from_dir(dir: &Path) -> Result<Option<ChatTemplate>> {
        let Some((file, source)) = find_source(dir)? else { return Ok(None) };
        let tokens = SpecialTokenNames::from_dir(dir)?;
        ChatTemplate::new(&source, &tokens).with_context(|| format!("in {}", dir.join(file).display())).map(Some)
    }

    /// The Jinja source.
    pub fn source(&self) -> &str {
        self.rendering.source()
    }

    /// The end-of-sequence token as defined in the template.
    fn eos(&self) -> Option<&str> {
        self.rendering.token("eos_token")
    }

    /// Renders a conversation to the text that the model sees, including special tokens.
    ///
    /// # Errors
    /// If the template raises an error for the conversation (many require alternating user and assistant turns).
    pub fn render(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String> {
        self.render_with(messages, &TemplateArguments::default(), prompt)
    }

    /// The same with arguments of the template.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(
        &self,
        messages: &[Message],
        arguments: &TemplateArguments,
        prompt: GenerationPrompt,
    ) -> Result<String> {
        self.rendering.plain(messages, arguments, prompt)
    }

    /// Renders a conversation; returns the text and the byte ranges of assistant turns: the `{% generation %}` blocks
    /// or, if the template has none, what each assistant message adds after the generation prompt (including its
    /// end-of-turn token).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`]; also if a template without `{% generation %}` renders a turn depending on later
    /// ones such that its range cannot be determined.
    pub fn render_with_spans(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        self.render_with_spans_and(messages, &TemplateArguments::default())
    }

    /// The same with arguments of the template.
    ///
    /// # Errors
    /// As [`ChatTemplate::render_with_spans`].
    pub fn render_with_spans_and(
        &self,
        messages: &[Message],
        arguments: &TemplateArguments,
    ) -> Result<(String, Vec<Range<usize>>)> {
        if self.rendering.marks_generation() {
            self.rendering.marked(messages, arguments)
        } else {
            spans::by_prefixes(self, messages, arguments)
        }
    }
}

/// Encodes a conversation; returns the tokens and the token ranges of assistant turns.
///
/// Special tokens come from the template only; the tokenizer adds none, so a beginning-of-sequence token is never
/// doubled.
///
/// # Errors
/// As [`ChatTemplate::render_with_spans`] and [`Tokenizer::encode`].
pub fn encode_chat(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    messages: &[Message],
) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
    let (text, spans) = template.render_with_spans(messages)?;
    tokenizer.encode_with_spans(&text, &spans)
}

/// Encodes a conversation with a generation prompt for the next assistant turn.
///
/// # Errors
/// As [`ChatTemplate::render`] and [`Tokenizer::encode`].
pub fn encode_prompt(tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>> {
    tokenizer.encode(&template.render(messages, GenerationPrompt::Add)?)
}

fn find_source(dir: &Path) -> Result<Option<(&'static str, String)>> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.exists() {
        let source = input::read_to_string(&jinja)?;
        return Ok(Some(("chat_template.jinja", source)));
    }
    for file in ["tokenizer_config.json", "chat_template.json"] {
        let path = dir.join(file);
        if !path.exists() {
            continue;
        }
        let bytes = input::read(&path)?;
        let config: Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is no valid JSON", path.display()))?;
        if let Some(source) = pick(&config["chat_template"]).with_context(|| format!("in {}", path.display()))? {
            return Ok(Some((file, source)));
        }
    }
    Ok(None)
}

fn pick(template: &Value) -> Result<Option<String>> {
    let named = match template {
        Value::Null => return Ok(None),
        Value::String(source) => return Ok(Some(source.clone())),
        Value::Array(named) => named,
        _ => bail!("chat_template is neither text nor a list of named templates"),
    };
    let default = named.iter().find(|entry| entry["name"] == "default").and_then(|entry| entry["template"].as_str());
    default.map(|source| Some(source.to_string())).ok_or_else(|| {
        let names: Vec<&str> = named.iter().filter_map(|entry| entry["name"].as_str()).collect();
        anyhow!("chat_template is a list without one named \"default\" (it has: {}): name one so", names.join(", "))
    })
}
