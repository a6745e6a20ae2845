//! The Jinja environment of transformers' chat templates.

use std::cell::Cell;
use std::fmt;
use std::ops::Range;

use anyhow::{Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, context};

use super::{GenerationPrompt, Message};
use crate::tokenizer::SpecialTokenNames;

const NAME: &str = "chat_template";

/// What one rendering may use: an instruction of the template costs one, 64 bytes that it makes or reads cost one. The
/// templates of known models use some ten per message.
const FUEL: u64 = 10_000_000;

/// Deeper than anything that is written as JSON, and far from the end of the stack.
const DEEPEST_JSON: usize = 100;

thread_local! {
    /// What encloses `{% generation %}` blocks of the rendering under way on this thread.
    static MARKS: Cell<Option<(char, char)>> = const { Cell::new(None) };
}

/// A compiled template.
pub(super) struct Rendering {
    environment: Environment<'static>,
    source: String,
    tokens: Vec<(&'static str, String)>,
    marks_generation: bool,
}

impl fmt::Debug for Rendering {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rendering").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Rendering {
    pub(super) fn new(source: &str, tokens: &SpecialTokenNames) -> Result<Rendering> {
        let (runnable, marks_generation) = generation_as_call(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the default delimiters are valid"));
        environment.set_fuel(Some(FUEL));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("__generation", generation);
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, runnable)
            .map_err(|e| anyhow!("the chat template is not valid: {}", describe(&e)))?;
        let tokens = [("bos_token", &tokens.bos), ("eos_token", &tokens.eos), ("pad_token", &tokens.pad)];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token.clone()?))).collect();
        Ok(Rendering { environment, source: source.to_string(), tokens, marks_generation })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether the template has `{% generation %}` blocks.
    pub(super) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    pub(super) fn plain(&self, messages: &[Message], prompt: GenerationPrompt) -> Result<String> {
        let list: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        let tokens = Value::from_pairs(self.tokens.iter().cloned());
        let context = context! {
            messages => list,
            add_generation_prompt => prompt == GenerationPrompt::Add,
            tools => (),
            documents => (),
            ..tokens
        };
        let template = self.environment.get_template(NAME).expect("added when the environment was made");
        template.render(context).map_err(|e| anyhow!("the chat template refuses this conversation: {}", describe(&e)))
    }

    /// The text and the byte ranges of `{% generation %}` blocks.
    pub(super) fn marked(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>)> {
        let (open, close) = unused_marks(messages)?;
        MARKS.set(Some((open, close)));
        let rendered = self.plain(messages, GenerationPrompt::Omit);
        MARKS.set(None);
        let rendered = rendered?;
        let (mut text, mut spans, mut start) = (String::with_capacity(rendered.len()), Vec::new(), 0);
        for piece in rendered.split_inclusive([open, close]) {
            let plain = piece.trim_end_matches([open, close]);
            text.push_str(plain);
            if piece.ends_with(open) {
                start = text.len();
            } else if piece.ends_with(close) && text.len() > start {
                spans.push(start..text.len());
            }
        }
        Ok((text, spans))
    }
}

/// `{% generation %}` is no Jinja; a call block does the same, with the same white space control.
fn generation_as_call(source: &str) -> (String, bool) {
    let (mut out, mut found, mut rest) = (String::with_capacity(source.len()), false, source);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let inner = &rest[start + 2..start + length];
        let word = inner.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        let (before, after) = (inner.starts_with(['-', '+']), inner.ends_with(['-', '+']));
        let replacement = match word {
            "generation" => Some("call __generation()"),
            "endgeneration" => Some("endcall"),
            _ => None,
        };
        out.push_str(&rest[..start]);
        if let Some(statement) = replacement {
            found = true;
            out.push_str("{%");
            out.push_str(if before { &inner[..1] } else { "" });
            out.push_str(&format!(" {statement} "));
            out.push_str(if after { &inner[inner.len() - 1..] } else { "" });
            out.push_str("%}");
            rest = &rest[start + length + 2..];
        } else {
            out.push_str("{%");
            rest = &rest[start + 2..];
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Two characters that Unicode keeps for internal use and that the conversation does not contain.
fn unused_marks(messages: &[Message]) -> Result<(char, char)> {
    let used = |c: char| messages.iter().any(|m| m.content.contains(c) || m.role.contains(c));
    let mut free = ('\u{FDD0}'..='\u{FDEF}').filter(|c| !used(*c));
    match (free.next(), free.next()) {
        (Some(open), Some(close)) => Ok((open, close)),
        _ => {
            bail!("the conversation contains nearly all of U+FDD0 to U+FDEF, which are not characters: clean the data")
        }
    }
}

fn generation(state: &mut State, options: Kwargs) -> Result<Value, Error> {
    let caller: Value = options.get("caller")?;
    let body = caller.call(state, &[])?;
    Ok(match MARKS.get() {
        Some((open, close)) => Value::from(format!("{open}{body}{close}")),
        None => body,
    })
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The current time; `SOURCE_DATE_EPOCH` (seconds since 1970, taken as UTC) fixes it for reproducible runs.
fn strftime_now(format: String) -> Result<String, Error> {
    let failed = |e: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    let now = match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => jiff::Zoned::now(),
        Ok(seconds) => {
            let seconds =
                seconds.parse().map_err(|_| failed(format!("SOURCE_DATE_EPOCH is {seconds:?}, no number")))?;
            let time = jiff::Timestamp::from_second(seconds).map_err(|e| failed(e.to_string()))?;
            time.to_zoned(jiff::tz::TimeZone::UTC)
        }
    };
    jiff::fmt::strtime::format(&format, &now).map_err(|e| failed(e.to_string()))
}

/// Python's `json.dumps(x, ensure_ascii=False, indent=indent)`, which is what transformers puts in place of Jinja's
/// HTML-safe filter.
fn tojson(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut out = String::new();
    write_json(value, indent, 0, &mut out)?;
    Ok(out)
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    if depth > DEEPEST_JSON {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value is nested too deep"));
    }
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let line = |out: &mut String, depth: usize| {
        if let Some(width) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(width * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&value.to_string()),
        ValueKind::String => out.push_str(&quote(value.as_str().unwrap_or_default())),
        ValueKind::Map => {
            out.push('{');
            let mut empty = true;
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&quote(&key.to_string()));
                out.push_str(": ");
                write_json(&value.get_item(&key)?, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            let mut empty = true;
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index > 0 { comma } else { "" });
                line(out, depth + 1);
                write_json(&item, indent, depth + 1, out)?;
                empty = false;
            }
            if !empty {
                line(out, depth);
            }
            out.push(']');
        }
        other => return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: cannot write {other}"))),
    }
    Ok(())
}

/// What a template error says, with the line.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    match error.line() {
        Some(line) => format!("{what} (template line {line})"),
        None => what,
    }
}
