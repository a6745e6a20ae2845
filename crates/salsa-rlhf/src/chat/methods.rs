//! Methods of Python's types.

use minijinja::value::{Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::arguments::{Bound, bind};
use super::characters::{case_method, is_method, is_space};
use super::text::{charge, invalid, repr};
use super::views::{Part, View};
use super::{operators, printf};

/// Methods of mappings, which take precedence over a key of the same name in Jinja.
pub(super) const OF_MAPPINGS: [&str; 5] = ["keys", "values", "items", "get", "copy"];

/// Line separators in Python.
const LINE_ENDS: [char; 10] =
    ['\n', '\r', '\u{b}', '\u{c}', '\u{1c}', '\u{1d}', '\u{1e}', '\u{85}', '\u{2028}', '\u{2029}'];

/// Calls a method that MiniJinja does not provide.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match value.kind() {
        ValueKind::String => text_method(state, value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Number | ValueKind::Bool => number_method(value, name, args)?,
        ValueKind::Map => mapping_method(state, value, name, args)?,
        ValueKind::Seq | ValueKind::Iterable => list_method(state, value, name, args)?,
        _ => None,
    };
    found.ok_or_else(|| Error::from(ErrorKind::UnknownMethod))
}

fn number_method(value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let () = from_args(args)?;
    let float = f64::try_from(value.clone());
    Ok(match (name, float) {
        ("is_integer", Ok(number)) => Some(Value::from(number.fract() == 0.0)),
        ("bit_length", _) if value.is_integer() => {
            let size = i128::try_from(value.clone())?.unsigned_abs();
            Some(Value::from(u128::BITS - size.leading_zeros()))
        }
        _ => None,
    })
}

fn mapping_method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some(mapping) = value.as_object() else { return Ok(None) };
    let view = |part| {
        let () = from_args(args)?;
        Ok(Some(View::of(mapping.clone(), part)))
    };
    match name {
        "keys" => view(Part::Keys),
        "values" => view(Part::Values),
        "items" => view(Part::Items),
        "get" => {
            let (key, default): (Value, Option<Value>) = from_args(args)?;
            let found = mapping.get_value(&operators::key(state, &key)?);
            Ok(Some(found.or(default).unwrap_or_else(|| Value::from(()))))
        }
        "copy" => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}

fn list_method(state: &State, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match name {
        "index" => {
            let bound = bind("index", &["value", "start", "stop"], args)?;
            let (what, all) = (bound.required(0)?, operators::items(state, value)?);
            for at in operators::places(all.len(), bound.number_or_none(1)?, bound.number_or_none(2)?, 1) {
                if operators::equal(state, &all[at], what)? {
                    return Ok(Some(Value::from(at)));
                }
            }
            Err(invalid(format!("index: the list has no {}", repr(state, what)?)))
        }
        "count" => {
            let (what,): (Value,) = from_args(args)?;
            let mut count = 0;
            for item in operators::items(state, value)? {
                count += usize::from(operators::equal(state, &item, &what)?);
            }
            Ok(Some(Value::from(count)))
        }
        "copy" if value.kind() == ValueKind::Seq => {
            let () = from_args(args)?;
            Ok(Some(value.clone()))
        }
        _ => Ok(None),
    }
}

fn text_method(state: &mut State, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    charge(state, text.len())?;
    if let Some(is) = is_method(text, name) {
        let () = from_args(args)?;
        return Ok(Some(Value::from(is)));
    }
    if let Some(done) = case_method(state, text, name)? {
        let () = from_args(args)?;
        return Ok(Some(Value::from(done)));
    }
    let value = match name {
        "strip" | "lstrip" | "rstrip" => stripped(state, text, name, args)?,
        "split" | "rsplit" => split(state, text, name, args)?,
        "splitlines" => {
            let bound = bind(name, &["keepends"], args)?;
            charge(state, text.len() * 32)?;
            let ends = if bound.is_true(0) { Ends::Keep } else { Ends::Drop };
            lines(text, ends).into_iter().map(Value::from).collect()
        }
        "partition" | "rpartition" => partition(text, name, args)?,
        "replace" => replaced(state, text, &bind(name, &["old", "new", "count"], args)?)?,
        "startswith" | "endswith" => begins(state, text, name, args)?,
        "find" | "rfind" | "index" | "rindex" => found(state, text, name, args)?,
        "count" => {
            let bound = bind(name, &["sub", "start", "end"], args)?;
            bound.charge(state)?;
            let (what, part) = (bound.text(0)?, part_of(text, &bound)?.1);
            Value::from(if what.is_empty() { part.chars().count() + 1 } else { part.matches(what).count() })
        }
        "join" => joined(state, text, args)?,
        "ljust" | "rjust" | "center" | "zfill" => padded(state, text, name, args)?,
        "removeprefix" => {
            let bound = bind(name, &["prefix"], args)?;
            Value::from(text.strip_prefix(bound.text(0)?).unwrap_or(text))
        }
        "removesuffix" => {
            let bound = bind(name, &["suffix"], args)?;
            Value::from(text.strip_suffix(bound.text(0)?).unwrap_or(text))
        }
        "expandtabs" => expanded(state, text, bind(name, &["tabsize"], args)?.number(0, 8)?)?,
        "translate" => translated(state, text, &from_args::<(Value,)>(args)?.0)?,
        "format" => Value::from(printf::format(state, text, args)?),
        "format_map" => Value::from(printf::format_map(state, text, from_args::<(Value,)>(args)?.0)?),
        _ => return Ok(None),
    };
    Ok(Some(value))
}

fn stripped(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["chars"], args)?;
    let chars: Option<Vec<char>> = bound.text_or_none(0)?.map(|chars| chars.chars().collect());
    if let Some(chars) = &chars {
        // Each character may be compared with each of `chars`.
        state.consume_fuel((text.len() as u64).saturating_mul(chars.len() as u64) / 4096)?;
    }
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    Ok(Value::from(match name {
        "strip" => text.trim_matches(goes),
        "lstrip" => text.trim_start_matches(goes),
        _ => text.trim_end_matches(goes),
    }))
}

fn split(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["sep", "maxsplit"], args)?;
    let most = usize::try_from(bound.number(1, -1)?).unwrap_or(usize::MAX - 1);
    let separator = bound.text_or_none(0)?;
    if separator == Some("") {
        return Err(invalid(format!("{name}: the separator is empty")));
    }
    let count = separator.map_or(text.len() / 2, |separator| text.matches(separator).count());
    charge(state, count.min(most).saturating_mul(32))?;
    let mut parts: Vec<&str> = match (separator, name) {
        (Some(separator), "split") => text.splitn(most + 1, separator).collect(),
        (Some(separator), _) => text.rsplitn(most + 1, separator).collect(),
        (None, "split") => words(text, most),
        (None, _) => last_words(text, most),
    };
    if name == "rsplit" {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Splits at white space into at most `most` words, followed by the rest.
fn words(text: &str, most: usize) -> Vec<&str> {
    let (mut all, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
    while !rest.is_empty() {
        if all.len() == most {
            all.push(rest);
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        all.push(&rest[..end]);
        rest = rest[end..].trim_start_matches(is_space);
    }
    all
}

/// The same from the end; the last word comes first.
fn last_words(text: &str, most: usize) -> Vec<&str> {
    let (mut all, mut rest) = (Vec::new(), text.trim_end_matches(is_space));
    while !rest.is_empty() {
        if all.len() == most {
            all.push(rest);
            break;
        }
        let start = rest.char_indices().rev().find(|(_, c)| is_space(*c)).map_or(0, |(at, c)| at + c.len_utf8());
        all.push(&rest[start..]);
        rest = rest[..start].trim_end_matches(is_space);
    }
    all
}

fn partition(text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["sep"], args)?;
    let separator = bound.text(0)?;
    if separator.is_empty() {
        return Err(invalid(format!("{name}: the separator is empty")));
    }
    let (split, none) = match name {
        "partition" => (text.split_once(separator), [text, "", ""]),
        _ => (text.rsplit_once(separator), ["", "", text]),
    };
    let parts = split.map_or(none, |(before, after)| [before, separator, after]);
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// `text.replace(old, new, count)`
pub(super) fn replaced(state: &State, text: &str, bound: &Bound<'_>) -> Result<Value, Error> {
    let (old, new) = (bound.text(0)?, bound.text(1)?);
    let most = usize::try_from(bound.number(2, -1)?).unwrap_or(usize::MAX);
    bound.charge(state)?;
    let count = text.matches(old).count().min(most);
    charge(state, text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::from(text.replacen(old, new, most)))
}

fn begins(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["prefix", "start", "end"], args)?;
    let (what, (_, part)) = (bound.required(0)?, part_of(text, &bound)?);
    let is = |with: &Value| match (with.as_str(), name) {
        (Some(start), "startswith") => Ok(part.starts_with(start)),
        (Some(end), _) => Ok(part.ends_with(end)),
        (None, _) => Err(invalid(format!("{name}: expected a text or a tuple of texts, not a {}", with.kind()))),
    };
    if what.downcast_object_ref::<Tuple>().is_none() {
        return is(what).map(Value::from);
    }
    for item in operators::items(state, what)? {
        if is(&item)? {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

/// The characters from the second argument to the third, in Python's indexing, and the number of characters before
/// them.
fn part_of<'a>(text: &'a str, bound: &Bound<'_>) -> Result<(usize, &'a str), Error> {
    let (start, end) = (bound.number_or_none(1)?, bound.number_or_none(2)?);
    if start.is_none() && end.is_none() {
        return Ok((0, text));
    }
    let length = text.chars().count();
    let place = |at: i64| match usize::try_from(at) {
        Ok(at) => at.min(length),
        Err(_) => length.saturating_sub(usize::try_from(at.unsigned_abs()).unwrap_or(usize::MAX)),
    };
    let (start, end) = (start.map_or(0, place), end.map_or(length, place));
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok((start, text.get(byte(start)..byte(end)).unwrap_or_default()))
}

fn found(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["sub", "start", "end"], args)?;
    bound.charge(state)?;
    let (what, (before, part)) = (bound.text(0)?, part_of(text, &bound)?);
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

/// Lines without their separators, as in `splitlines`.
pub(super) fn lines_of(text: &str) -> Vec<&str> {
    lines(text, Ends::Drop)
}

/// `text.center(width)` and its like.
pub(super) fn padded(state: &State, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let bound = bind(name, &["width", "fillchar"], args)?;
    bound.required(0)?;
    let fill = if name == "zfill" { "0" } else { bound.text_or_none(1)?.unwrap_or(" ") };
    if fill.chars().count() != 1 {
        return Err(invalid(format!("{name}: the fill character must be exactly one character")));
    }
    let (length, width) = (text.chars().count(), usize::try_from(bound.number(0, 0)?).unwrap_or(0));
    let missing = width.saturating_sub(length);
    charge(state, missing.saturating_mul(fill.len()))?;
    let (sign, text) = match name {
        "zfill" if text.starts_with(['+', '-']) => text.split_at(1),
        _ => ("", text),
    };
    let left = match name {
        "ljust" => 0,
        // For odd widths, Python puts the odd fill character on the left.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    Ok(Value::from(format!("{sign}{}{text}{}", fill.repeat(left), fill.repeat(missing - left))))
}

fn joined(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (values,): (Value,) = from_args(args)?;
    let mut all = String::new();
    for (index, item) in operators::items(state, &values)?.into_iter().enumerate() {
        let Some(item) = item.as_str() else {
            return Err(invalid(format!("join: item {index} is a {}, not a text", item.kind())));
        };
        charge(state, separator.len() + item.len())?;
        all.push_str(if index > 0 { separator } else { "" });
        all.push_str(item);
    }
    Ok(Value::from(all))
}

fn expanded(state: &State, text: &str, size: i64) -> Result<Value, Error> {
    let size = usize::try_from(size).unwrap_or(0);
    charge(state, text.matches('\t').count().saturating_mul(size))?;
    let (mut out, mut column) = (String::with_capacity(text.len()), 0);
    for c in text.chars() {
        match c {
            '\t' => {
                let spaces = if size == 0 { 0 } else { size - column % size };
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\n' | '\r' => {
                out.push(c);
                column = 0;
            }
            _ => {
                out.push(c);
                column += 1;
            }
        }
    }
    Ok(Value::from(out))
}

/// `text.translate(table)`: replaces characters by code point, with another code point, a text, or nothing.
fn translated(state: &State, text: &str, table: &Value) -> Result<Value, Error> {
    let Some(table) = table.as_object() else { return Err(invalid("translate: the table is no mapping")) };
    let mut out = String::new();
    for c in text.chars() {
        state.consume_fuel(1)?;
        match table.get_value(&Value::from(u32::from(c))) {
            None => out.push(c),
            Some(other) if other.is_none() => {}
            Some(other) => {
                match (other.as_str(), other.as_usize().and_then(|code| char::from_u32(u32::try_from(code).ok()?))) {
                    (Some(text), _) => {
                        charge(state, text.len())?;
                        out.push_str(text);
                    }
                    (None, Some(other)) => out.push(other),
                    (None, None) => return Err(invalid("translate: a character becomes a text, a number or none")),
                }
            }
        }
    }
    Ok(Value::from(out))
}
