//! What Python's values do in templates and MiniJinja's do not, or do without a limit.

use std::fmt::{self, Write};

use minijinja::value::{ValueKind, from_args};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Where Python ends a line.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// Deeper than anything that is written as text, and far from the end of the stack.
const DEEPEST: usize = 100;

pub(super) fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.into())
}

/// Pays for this many bytes before they are made: as much as the engine takes afterwards, 1 for 64.
pub(super) fn charge(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

/// Text that is paid for while it grows. A list can be repeated without being made, so its length says nothing.
struct Paid<'a, 'template, 'env> {
    text: String,
    state: &'a State<'template, 'env>,
    out_of_fuel: Option<Error>,
}

impl Write for Paid<'_, '_, '_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        if let Err(error) = self.state.consume_fuel(1 + part.len() as u64 / 64) {
            self.out_of_fuel = Some(error);
            return Err(fmt::Error);
        }
        self.text.push_str(part);
        Ok(())
    }
}

/// Pays for every item before any is written: Rust's formatting goes through all of a list even after it was refused.
fn charge_items(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(invalid("a value that is written as text is nested too deep"));
    }
    let is_map = value.kind() == ValueKind::Map;
    if !is_map && !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Ok(());
    }
    // An iterator without a length is written as one word, and going through it would use it up.
    let Some(length) = value.len() else { return Ok(()) };
    state.consume_fuel(length as u64)?;
    for item in value.try_iter()? {
        match is_map {
            true => charge_items(state, &value.get_item(&item)?, depth + 1)?,
            false => charge_items(state, &item, depth + 1)?,
        }
    }
    Ok(())
}

/// What a list or mapping is as text.
fn text(state: &State, value: &Value) -> Result<String, Error> {
    charge_items(state, value, 0)?;
    let mut paid = Paid { text: String::new(), state, out_of_fuel: None };
    match (write!(paid, "{value}"), paid.out_of_fuel) {
        (_, Some(error)) => Err(error),
        (Ok(()), None) => Ok(paid.text),
        (Err(_), None) => Err(invalid(format!("a {} cannot be written as text", value.kind()))),
    }
}

/// Writes the value of `{{ … }}`.
pub(super) fn write_value(out: &mut Output<'_>, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.as_object().is_none() {
        return minijinja::escape_formatter(out, state, value);
    }
    out.write_str(&text(state, value)?).map_err(Error::from)
}

/// The filter `string`.
pub(super) fn string(state: &State, value: &Value) -> Result<Value, Error> {
    match value.as_object() {
        Some(_) => text(state, value).map(Value::from),
        None if value.as_str().is_some() => Ok(value.clone()),
        None => Ok(Value::from(value.to_string())),
    }
}

/// The methods of Python's types.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.as_str() {
        Some(text) => text_method(state, text, name, args)?,
        None => list_method(state, value, name, args)?,
    };
    match found {
        Some(found) => Ok(found),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

fn list_method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let is_list = matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    match name {
        "index" if is_list => {
            let (what,): (&Value,) = from_args(args)?;
            for (at, item) in value.try_iter()?.enumerate() {
                state.consume_fuel(1)?;
                if item == *what {
                    return Ok(Some(Value::from(at)));
                }
            }
            Err(invalid(format!("index: the list has no {}", text(state, what)?)))
        }
        "count" if is_list => {
            let (what,): (&Value,) = from_args(args)?;
            let mut count = 0;
            for item in value.try_iter()? {
                state.consume_fuel(1)?;
                count += usize::from(item == *what);
            }
            Ok(Some(Value::from(count)))
        }
        "copy" if is_list || value.kind() == ValueKind::Map => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}

fn text_method(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match name {
        "find" | "rfind" | "index" | "rindex" => found(text, name, args)?,
        "count" => {
            let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
            let (_, part) = part_of(text, start, end);
            Value::from(if what.is_empty() { part.chars().count() + 1 } else { part.matches(what).count() })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(suffix).unwrap_or(text))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid(format!("{name}: the separator is empty")));
            }
            let (split, none) = match name {
                "partition" => (text.split_once(separator), [text, "", ""]),
                _ => (text.rsplit_once(separator), ["", "", text]),
            };
            let parts = match split {
                Some((before, after)) => [before, separator, after],
                None => none,
            };
            parts.into_iter().map(Value::from).collect()
        }
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            charge(state, text.len() * 32)?;
            let ends = if keep == Some(true) { Ends::Keep } else { Ends::Drop };
            lines(text, ends).into_iter().map(Value::from).collect()
        }
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, name, args)?,
        "swapcase" => {
            let () = from_args(args)?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::from(text.chars().map(swap).collect::<String>())
        }
        "isdecimal" => {
            let () = from_args(args)?;
            Value::from(!text.is_empty() && text.chars().all(|c| c.is_ascii_digit()))
        }
        "join" => joined(state, text, args)?,
        "format" => {
            charge(state, widths(text)?)?;
            return Ok(None);
        }
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// The characters from `start` to `end`, counted as Python counts, and how many come before.
fn part_of(text: &str, start: Option<i64>, end: Option<i64>) -> (usize, &str) {
    let length = text.chars().count();
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at.min(length),
        Err(_) => length.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(length, place));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    (start, text.get(byte(start)..byte(end)).unwrap_or_default())
}

fn found(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (what, start, end): (&str, Option<i64>, Option<i64>) = from_args(args)?;
    let (before, part) = part_of(text, start, end);
    let at = if name.starts_with('r') { part.rfind(what) } else { part.find(what) };
    match at {
        Some(at) => Ok(Value::from(before + part[..at].chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid(format!("{name}: substring not found"))),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Ends {
    Keep,
    Drop,
}

fn lines(text: &str, ends: Ends) -> Vec<&str> {
    let (mut lines, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let stop = rest.find(LINE_ENDS).unwrap_or(rest.len());
        let end = match rest[stop..].chars().next() {
            Some('\r') if rest[stop..].starts_with("\r\n") => stop + 2,
            Some(end) => stop + end.len_utf8(),
            None => stop,
        };
        lines.push(&rest[..if ends == Ends::Keep { end } else { stop }]);
        rest = &rest[end..];
    }
    lines
}

fn padded(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let fill = if name == "zfill" { "0" } else { fill.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(invalid(format!("{name}: the fill character must be exactly one character")));
    }
    let (length, width) = (text.chars().count(), usize::try_from(width).unwrap_or(0));
    let missing = width.saturating_sub(length);
    charge(state, missing.saturating_mul(fill.len()))?;
    let (sign, text) = match name {
        "zfill" if text.starts_with(['+', '-']) => text.split_at(1),
        _ => ("", text),
    };
    let left = match name {
        "ljust" => 0,
        // Python puts the odd character left where the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    Ok(Value::from(format!("{sign}{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn joined(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (values,): (&Value,) = from_args(args)?;
    let mut all = String::new();
    for (index, item) in values.try_iter()?.enumerate() {
        let Some(item) = item.as_str() else {
            return Err(invalid(format!("join: item {index} is a {}, not a string", item.kind())));
        };
        state.consume_fuel(1 + (separator.len() + item.len()) as u64 / 64)?;
        all.push_str(if index > 0 { separator } else { "" });
        all.push_str(item);
    }
    Ok(Value::from(all))
}

/// The widths and precisions that a format string for `str.format` asks for, together.
fn widths(format: &str) -> Result<usize, Error> {
    let (mut total, mut number, mut in_field, mut before) = (0usize, 0usize, false, ' ');
    for c in format.chars() {
        let last = std::mem::replace(&mut before, c);
        match c {
            '{' if in_field && last != '{' => return Err(invalid("format: a field inside a field is not supported")),
            '{' => in_field = !in_field,
            _ if !in_field => {}
            '0'..='9' => {
                number = number.saturating_mul(10).saturating_add(c as usize - '0' as usize);
                if number > WIDEST {
                    return Err(invalid(format!("format: a width or precision is more than {WIDEST}")));
                }
                continue;
            }
            '}' => in_field = false,
            _ => {}
        }
        total = total.saturating_add(number);
        number = 0;
    }
    Ok(total)
}

/// Of a field of a format string.
const WIDEST: usize = 100_000;

/// The filter `center`.
pub(super) fn center(state: &State, text: &str, width: Option<i64>) -> Result<Value, Error> {
    padded(state, text, "center", &[Value::from(width.unwrap_or(80))])
}
