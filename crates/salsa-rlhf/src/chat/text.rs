//! Values as text: Python's `str` and `repr`, which consume fuel as the text grows.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{AutoEscape, Error, ErrorKind, Output, State, Value};

use super::operators;
use super::views::{Range, View};

/// Maximum nesting of a value written as text: deeper than any real value, and safe for the stack.
pub(super) const DEEPEST: usize = 100;

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

pub(super) fn undefined() -> Error {
    Error::new(ErrorKind::UndefinedError, "undefined value")
}

/// Consumes fuel for this many bytes before they are allocated: 1 per 64, as the engine does afterwards.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

/// Python's `str(value)`.
pub(super) fn text(state: &State, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        // The engine consumes fuel for the operand of an operator or a filter, and for its result.
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(state, value),
    }
}

/// Python's `repr(value)`.
pub(super) fn repr(state: &State, value: &Value) -> Result<String, Error> {
    let mut writer = Writer { out: String::new(), state };
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// Writes the value of `{{ … }}`.
pub(super) fn write_value(out: &mut Output<'_>, state: &mut State, value: &Value) -> Result<(), Error> {
    let is_plain = matches!(state.auto_escape(), AutoEscape::None) || value.is_safe();
    match (value.as_str(), is_plain) {
        (Some(text), true) => out.write_str(text),
        (None, true) => out.write_str(&text(state, value)?),
        (_, false) => out.write_str(&operators::escaped(&text(state, value)?)),
    }
    .map_err(Error::from)
}

struct Writer<'a, 'template, 'env> {
    out: String,
    state: &'a State<'template, 'env>,
}

impl Writer<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(invalid("a value that is written as text is nested too deep"));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::Undefined => self.out.push_str("Undefined"),
            ValueKind::None => self.out.push_str("None"),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "True" } else { "False" }),
            ValueKind::Number => self.out.push_str(&number(value)),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default())?,
            ValueKind::Map => self.mapping(value, depth)?,
            _ => self.sequence(value, depth)?,
        }
        Ok(())
    }

    fn mapping(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.out.push('{');
        for (index, key) in value.try_iter()?.enumerate() {
            self.out.push_str(if index > 0 { ", " } else { "" });
            self.write(&key, depth + 1)?;
            self.out.push_str(": ");
            self.write(&value.get_item(&key)?, depth + 1)?;
        }
        self.out.push('}');
        Ok(())
    }

    fn sequence(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if let Some(range) = value.downcast_object_ref::<Range>() {
            self.out.push_str(&range.repr());
            return Ok(());
        }
        if let Some(view) = value.downcast_object_ref::<View>() {
            self.out.push_str(view.name());
            self.out.push('(');
            self.items(value, ("[", "]"), depth)?;
            self.out.push(')');
            return Ok(());
        }
        if value.downcast_object_ref::<Tuple>().is_some() {
            let close = if value.len() == Some(1) { ",)" } else { ")" };
            return self.items(value, ("(", close), depth);
        }
        match value.kind() {
            ValueKind::Seq => self.items(value, ("[", "]"), depth),
            ValueKind::Iterable if value.len().is_some() => self.items(value, ("[", "]"), depth),
            // Python's output contains a memory address here.
            ValueKind::Iterable => Err(invalid("a generator cannot be written as text; add | list")),
            ValueKind::Plain if value.as_object().is_some() => {
                let text = value.to_string();
                charge(self.state, text.len())?;
                self.out.push_str(&text);
                Ok(())
            }
            other => Err(invalid(format!("a {other} cannot be written as text"))),
        }
    }

    fn items(&mut self, value: &Value, (open, close): (&str, &str), depth: usize) -> Result<(), Error> {
        // A repeated list may be lazy, so fuel for its items is consumed before the first one.
        self.state.consume_fuel(value.len().unwrap_or_default() as u64)?;
        self.out.push_str(open);
        for (index, item) in value.try_iter()?.enumerate() {
            self.out.push_str(if index > 0 { ", " } else { "" });
            self.write(&item, depth + 1)?;
        }
        self.out.push_str(close);
        Ok(())
    }

    fn quote(&mut self, text: &str) -> Result<(), Error> {
        // Each character is inspected.
        charge(self.state, text.len().saturating_mul(8))?;
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        self.out.push(quote);
        for c in text.chars() {
            match c {
                '\n' => self.out.push_str("\\n"),
                '\r' => self.out.push_str("\\r"),
                '\t' => self.out.push_str("\\t"),
                '\\' => self.out.push_str("\\\\"),
                _ if c == quote => self.out.extend(['\\', c]),
                _ if is_printable(c) => self.out.push(c),
                _ => self.out.push_str(&match u32::from(c) {
                    code @ ..0x100 => format!("\\x{code:02x}"),
                    code @ ..0x1_0000 => format!("\\u{code:04x}"),
                    code => format!("\\U{code:08x}"),
                }),
            }
        }
        self.out.push(quote);
        Ok(())
    }
}

/// Python's `str.isprintable` of one character.
pub(super) fn is_printable(c: char) -> bool {
    // Rust escapes the same characters, except that it also escapes a combining character at the start of a text.
    matches!(c, ' '..='~') || format!("a{c}").escape_debug().eq(['a', c])
}

/// Python's text of a number.
pub(super) fn number(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if !value.is_integer() => float(number),
        _ => value.to_string(),
    }
}

/// Python's `repr` of a float: the shortest digits that round-trip, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        return exponential(&format!("{number:e}"));
    }
    format!("{number:?}")
}

/// `1.5e-7` as C and Python write it: `1.5e-07`.
pub(super) fn exponential(text: &str) -> String {
    let (digits, exponent) = text.split_once('e').unwrap_or((text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}
