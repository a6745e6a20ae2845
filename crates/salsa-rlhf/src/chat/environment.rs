//! The Jinja environment of transformers' chat templates.

use std::fmt;
use std::ops::Range;

use anyhow::{Context, Result, anyhow, bail};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Serde};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::{GenerationPrompt, Message, TemplateArguments, filters, methods, nesting, operators, rewrite, text, views};
use crate::tokenizer::SpecialTokenNames;

const NAME: &str = "chat_template";

/// The variable with the marks around `{% generation %}` blocks: none, or two characters.
const MARKS: &str = "__generation_marks";

/// 2024-07-26 00:00 UTC, in seconds since 1970.
const FIXED_DATE: i64 = 1_721_952_000;

/// Fuel of a first attempt at rendering: one per template instruction, and one per 64 bytes produced or read. A message
/// costs about fifty. Fuel bounds the nesting of values, such that dropping them cannot overflow the stack of a usual
/// thread.
const LITTLE_FUEL: u64 = 3_000;

/// Fuel of a longer conversation, rendered on a separate stack.
const MUCH_FUEL: u64 = 1_000_000;

/// Stack size for values nested as deep as [`MUCH_FUEL`] permits; memory is only committed when used.
const LARGE_STACK: usize = 1 << 30;

/// Maximum number of characters of a template's error message.
const LONGEST_MESSAGE: usize = 1_000;

/// A compiled template.
pub(super) struct Rendering {
    /// With [`LITTLE_FUEL`].
    short: Environment<'static>,
    /// With [`MUCH_FUEL`].
    long: Environment<'static>,
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
        let syntax = syntax.expect("the default delimiters are valid");
        nesting::check(&runnable, &syntax)?;
        environment.set_syntax(rewrite::syntax());
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_unknown_method_callback(methods::method);
        environment.set_formatter(text::write_value);
        environment.remove_global("debug");
        environment.add_function("range", views::range);
        environment.add_global("dict", Value::from_object(views::Dict));
        environment.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.0));
        environment.add_function("joiner", minijinja_contrib::globals::joiner);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_function("__generation", generation);
        operators::add_to(&mut environment);
        filters::add_to(&mut environment);
        // The parser is recursive in the nesting depth, of which `nesting` permits some thousands.
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().stack_size(LARGE_STACK);
            let compile = || {
                let rewritten = rewrite::rewrite(&runnable, NAME, syntax)?;
                environment.add_template_owned(NAME, rewritten)
            };
            let thread = thread.spawn_scoped(scope, compile);
            let thread = thread.context("cannot start a thread to compile a chat template")?;
            anyhow::Ok(thread.join().map_err(|_| anyhow!("the chat template cannot be compiled"))?)
        })?
        .map_err(|e| anyhow!("the chat template is not valid: {}", describe(&e)))?;
        let tokens = [("bos_token", &tokens.bos), ("eos_token", &tokens.eos), ("pad_token", &tokens.pad)];
        let tokens = tokens.into_iter().filter_map(|(name, token)| Some((name, token.clone()?))).collect();
        let with = |fuel| {
            let mut environment = environment.clone();
            environment.set_fuel(Some(fuel));
            environment
        };
        let (short, long) = (with(LITTLE_FUEL), with(MUCH_FUEL));
        Ok(Rendering { short, long, source: source.to_string(), tokens, marks_generation })
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// A special token defined in the template.
    pub(super) fn token(&self, name: &str) -> Option<&str> {
        self.tokens.iter().find(|(known, _)| *known == name).map(|(_, token)| token.as_str())
    }

    /// Whether the template has `{% generation %}` blocks.
    pub(super) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    pub(super) fn plain(
        &self,
        messages: &[Message],
        arguments: &TemplateArguments,
        prompt: GenerationPrompt,
    ) -> Result<String> {
        self.render(&self.context(messages, arguments, prompt, None))
    }

    /// The variables of the template, with the marks around `{% generation %}` blocks. Arguments override special
    /// tokens, as in transformers.
    fn context(
        &self,
        messages: &[Message],
        arguments: &TemplateArguments,
        prompt: GenerationPrompt,
        marks: Option<(char, char)>,
    ) -> Value {
        let list: Vec<Value> = messages
            .iter()
            .map(|m| Value::from_pairs([("role", m.role.as_str()), ("content", m.content.as_str())]))
            .collect();
        let given = [
            ("messages", Value::from(list)),
            ("add_generation_prompt", Value::from(prompt == GenerationPrompt::Add)),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
        ];
        let tokens = self.tokens.iter().map(|(name, token)| (*name, Value::from(token.as_str())));
        let arguments = arguments.iter().map(|(name, value)| (name, Value::from(Serde(value))));
        let marks = (MARKS, marks.map_or_else(|| Value::from(()), |(open, close)| Value::from(vec![open, close])));
        Value::from_pairs(given.into_iter().chain(tokens).chain(arguments).chain([marks]))
    }

    fn render(&self, context: &Value) -> Result<String> {
        let render = |environment: &Environment<'static>| environment.get_template(NAME)?.render(context);
        let rendered = match render(&self.short) {
            Err(error) if error.kind() == ErrorKind::OutOfFuel => std::thread::scope(|scope| {
                let long = || render(&self.long);
                let thread = std::thread::Builder::new().stack_size(LARGE_STACK).spawn_scoped(scope, long);
                let thread = thread.context("cannot start a thread to render a long conversation")?;
                let done = thread.join().map_err(|_| anyhow!("the chat template cannot be rendered"))?;
                anyhow::Ok(done)
            })?,
            done => done,
        };
        rendered.map_err(|e| anyhow!("the chat template refuses this conversation: {}", describe(&e)))
    }

    /// Returns the text and the byte ranges of `{% generation %}` blocks; a nested block belongs to the outer one.
    pub(super) fn marked(
        &self,
        messages: &[Message],
        arguments: &TemplateArguments,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let context = |marks| self.context(messages, arguments, GenerationPrompt::Omit, marks);
        let (open, close) = unused_marks(&self.source, messages, arguments)?;
        let rendered = self.render(&context(Some((open, close))))?;
        let (mut text, mut spans) = (String::with_capacity(rendered.len()), Vec::new());
        let (mut start, mut depth, mut paired) = (0, 0usize, true);
        for piece in rendered.split_inclusive([open, close]) {
            text.push_str(piece.trim_end_matches([open, close]));
            if piece.ends_with(open) {
                if depth == 0 {
                    start = text.len();
                }
                depth += 1;
            } else if piece.ends_with(close) {
                paired &= depth > 0;
                depth = depth.saturating_sub(1);
                if depth == 0 && text.len() > start {
                    spans.push(start..text.len());
                }
            }
        }
        paired &= depth == 0;
        // Templates that count or cut characters see the marks, so the text is compared with a rendering without marks.
        // That is skipped with `strftime_now`, as a clock may tick between two renderings.
        let timeless = !self.source.contains("strftime_now");
        if !paired || timeless && text != self.render(&context(None))? {
            bail!(
                "the chat template changes the text of a {{% generation %}} block after the block (cuts, counts or reverses it), so that the assistant's part cannot be told: write the block where the text goes out"
            );
        }
        Ok((text, spans))
    }
}

/// Replaces `{% generation %}`, which is no Jinja, by a call block with the same white space control. The content of
/// `{% raw %}` is unchanged, including a line break directly after the tag, which MiniJinja would remove.
fn generation_as_call(source: &str) -> (String, bool) {
    let (mut out, mut found, mut rest, mut is_raw) = (String::with_capacity(source.len()), false, source, false);
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let inner = &rest[start + 2..start + 2 + length];
        let behind = &rest[start + 2 + length + 2..];
        let word = inner.trim_matches(['-', '+', ' ', '\t', '\r', '\n']);
        let (before, after) = (inner.starts_with(['-', '+']), inner.ends_with(['-', '+']));
        let replacement = match word {
            "endraw" => {
                is_raw = false;
                None
            }
            _ if is_raw => None,
            "raw" => {
                is_raw = true;
                (!after && behind.starts_with('\n')).then_some("raw")
            }
            "generation" => Some("call __generation(__generation_marks)"),
            "endgeneration" => Some("endcall"),
            _ => None,
        };
        out.push_str(&rest[..start]);
        if let Some(statement) = replacement {
            found |= word == "generation";
            out.push_str("{%");
            out.push_str(if before { &inner[..1] } else { "" });
            out.push_str(&format!(" {statement} "));
            out.push_str(if after { &inner[inner.len() - 1..] } else { "" });
            out.push_str(if statement == "raw" { "%}\n" } else { "%}" });
            rest = behind;
        } else {
            out.push_str("{%");
            rest = &rest[start + 2..];
        }
    }
    out.push_str(rest);
    (out, found)
}

/// Two Unicode noncharacters that neither the template nor the conversation contains.
fn unused_marks(source: &str, messages: &[Message], arguments: &TemplateArguments) -> Result<(char, char)> {
    let arguments: String = arguments.iter().map(|(_, value)| value.to_string()).collect();
    // A template may also write a character by its code point.
    let numbered = source.to_lowercase();
    let used = |c: char| {
        numbered.contains(&format!("{:x}", u32::from(c)))
            || source.contains(c)
            || arguments.contains(c)
            || messages.iter().any(|m| m.content.contains(c) || m.role.contains(c))
    };
    let mut free = ('\u{FDD0}'..='\u{FDEF}').filter(|c| !used(*c));
    match (free.next(), free.next()) {
        (Some(open), Some(close)) => Ok((open, close)),
        _ => {
            bail!("the conversation contains nearly all of U+FDD0 to U+FDEF, which are not characters: clean the data")
        }
    }
}

/// The text of a `{% generation %}` block, between the marks `[open, close]` if there are any.
fn generation(state: &mut State, marks: Value, options: Kwargs) -> Result<Value, Error> {
    let caller: Value = options.get("caller")?;
    let body = caller.call(state, &[])?;
    if marks.is_none() {
        return Ok(body);
    }
    let (open, close) = (marks.get_item_by_index(0)?, marks.get_item_by_index(1)?);
    Ok(Value::from(format!("{open}{body}{close}")))
}

fn raise_exception(state: &State, message: Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, text::text(state, &message)?))
}

/// Maximum bytes of the format of a date.
const LONGEST_DATE: usize = 1000;

/// The date for templates that use it. The clock is not read: training would depend on the day, and a run resumed after
/// midnight would differ. The date is the default of Llama's templates, 26 July 2024, unless `SOURCE_DATE_EPOCH`
/// (seconds since 1970, in UTC) is set.
fn strftime_now(format: Value) -> Result<String, Error> {
    let format = format.as_str().ok_or_else(|| text::invalid("strftime_now: the format is no text"))?;
    let failed = |e: String| Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {e}"));
    if format.len() > LONGEST_DATE {
        return Err(failed(format!("the format has {} bytes; at most {LONGEST_DATE} are supported", format.len())));
    }
    let seconds = match std::env::var("SOURCE_DATE_EPOCH") {
        Err(_) => FIXED_DATE,
        Ok(seconds) => seconds.parse().map_err(|_| failed(format!("SOURCE_DATE_EPOCH is {seconds:?}, no number")))?,
    };
    let time = jiff::Timestamp::from_second(seconds).map_err(|e| failed(e.to_string()))?;
    jiff::fmt::strtime::format(format, &time.to_zoned(jiff::tz::TimeZone::UTC)).map_err(|e| failed(e.to_string()))
}

/// The message of a template error, with the line.
fn describe(error: &Error) -> String {
    if error.kind() == ErrorKind::OutOfFuel {
        return "it does more work than a rendering may: it does not come to an end, makes values that are too large, or the conversation has many thousands of messages".to_owned();
    }
    let mut what = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    // The argument of `raise_exception` may be as long as a rendering.
    if let Some((end, _)) = what.char_indices().nth(LONGEST_MESSAGE) {
        what.truncate(end);
        what.push('…');
    }
    match error.line() {
        Some(line) => format!("{what} (template line {line})"),
        None => what,
    }
}
