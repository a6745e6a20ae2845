//! Text formatting: `format % values`, and `format.format(values)`.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::spec::{Reader, Spec, sized};
use super::text::{charge, invalid, number, repr, text, undefined};
use super::{operators, views};

/// `format % values`
pub(super) fn printf(state: &State, format: &str, values: &Value) -> Result<String, Error> {
    charge(state, format.len())?;
    let is_tuple = values.downcast_object_ref::<Tuple>().is_some();
    let placed = if is_tuple { operators::items(state, values)? } else { vec![values.clone()] };
    let mut placed = placed.into_iter();
    let (mut out, mut reader) = (String::new(), Reader { rest: format });
    loop {
        let before = reader.until(&['%']);
        out.push_str(before);
        if reader.next().is_none() {
            break;
        }
        let named = match reader.skip('(') {
            false => None,
            true => {
                let name = reader.until(&[')']);
                reader.next();
                if values.kind() != ValueKind::Map {
                    return Err(invalid("format requires a mapping"));
                }
                let found = values.as_object().and_then(|mapping| mapping.get_value(&Value::from(name)));
                Some(found.ok_or_else(|| invalid(format!("format: there is no {name:?}")))?)
            }
        };
        let spec = printf_spec(&mut reader, &mut placed)?;
        if spec.kind == Some('%') {
            out.push('%');
            continue;
        }
        let value = match named {
            Some(value) => value,
            None => placed.next().ok_or_else(|| invalid("not enough arguments for format string"))?,
        };
        let part = converted(state, &spec, &value)?;
        charge(state, part.len())?;
        out.push_str(&part);
    }
    // An unused list or mapping is no error, as in Python.
    if placed.next().is_some()
        && (is_tuple || !matches!(values.kind(), ValueKind::Map | ValueKind::Seq))
        && !names(format)
    {
        return Err(invalid("not all arguments converted during string formatting"));
    }
    Ok(out)
}

fn names(format: &str) -> bool {
    format.contains("%(")
}

fn printf_spec(reader: &mut Reader<'_>, placed: &mut impl Iterator<Item = Value>) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    while let Some(flag @ ('-' | '+' | ' ' | '#' | '0')) = reader.peek() {
        reader.next();
        match flag {
            '-' => spec.align = Some('<'),
            '#' => spec.is_alternate = true,
            '0' if spec.align.is_none() => (spec.fill, spec.align) = (Some('0'), Some('=')),
            '0' => {}
            _ if spec.sign == Some('+') => {}
            sign => spec.sign = Some(sign),
        }
    }
    let mut star = |spec: &mut Spec| {
        let given = placed.next().and_then(|value| value.as_i64()).ok_or_else(|| invalid("* wants a whole number"))?;
        if given < 0 {
            spec.align = Some('<');
        }
        sized(usize::try_from(given.unsigned_abs()).ok())
    };
    spec.width = if reader.skip('*') { star(&mut spec)? } else { reader.number()?.unwrap_or(0) };
    if reader.skip('.') {
        let precision = if reader.skip('*') { star(&mut spec)? } else { reader.number()?.unwrap_or(0) };
        spec.precision = Some(precision);
    }
    while matches!(reader.peek(), Some('h' | 'l' | 'L')) {
        reader.next();
    }
    spec.kind = Some(reader.next().ok_or_else(|| invalid("incomplete format"))?);
    Ok(spec)
}

/// Formats one value for `%`.
fn converted(state: &State, spec: &Spec, value: &Value) -> Result<String, Error> {
    let kind = spec.kind.unwrap_or('s');
    let of_text = Spec {
        fill: None,
        sign: None,
        is_alternate: false,
        align: spec.align.filter(|a| *a == '<').or(Some('>')),
        ..spec.clone()
    };
    match kind {
        's' => of_text.text(state, &text(state, value)?),
        'r' | 'a' => of_text.text(state, &repr(state, value)?),
        'c' => {
            let character = match (value.as_str(), value.as_usize()) {
                (Some(text), _) if text.chars().count() == 1 => text.to_owned(),
                (None, Some(code)) => {
                    let c = u32::try_from(code).ok().and_then(char::from_u32);
                    c.ok_or_else(|| invalid("%c wants the number of a character"))?.to_string()
                }
                _ => return Err(invalid("%c wants a number or one character")),
            };
            of_text.text(state, &character)
        }
        'd' | 'i' | 'u' => spec.whole(state, truncated(value)?),
        'x' | 'X' | 'o' if !value.is_integer() && value.kind() != ValueKind::Bool => {
            Err(invalid(format!("%{kind} wants a whole number")))
        }
        'x' | 'X' | 'o' => spec.whole(state, truncated(value)?),
        'e' | 'E' | 'f' | 'F' | 'g' | 'G' => spec.real(state, real(value)?),
        other => Err(invalid(format!("unsupported format character {other:?}"))),
    }
}

fn truncated(value: &Value) -> Result<i128, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => Ok(i128::try_from(value.clone())?),
        ValueKind::Number => {
            let float = f64::try_from(value.clone())?;
            // Beyond this, a float has no exact digits.
            if float.abs() < 1e30 { Ok(float.trunc() as i128) } else { Err(invalid("the number is too large")) }
        }
        ValueKind::Undefined => Err(undefined()),
        other => Err(invalid(format!("a number is expected, not a {other}"))),
    }
}

fn real(value: &Value) -> Result<f64, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(i128::try_from(value.clone())? as f64),
        ValueKind::Number => f64::try_from(value.clone()),
        ValueKind::Undefined => Err(undefined()),
        other => Err(invalid(format!("a number is expected, not a {other}"))),
    }
}

/// The arguments of `str.format`.
struct Given<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    placed: Vec<Value>,
    named: Option<Value>,
    /// Number of automatically numbered fields so far.
    next: usize,
}

/// `format.format(…)`
pub(super) fn format(state: &State, format: &str, args: &[Value]) -> Result<String, Error> {
    let (placed, named) = match args.split_last() {
        Some((last, placed)) if last.is_kwargs() => (placed.to_vec(), Some(views::mapping_of(last)?)),
        _ => (args.to_vec(), None),
    };
    Given { state, placed, named, next: 0 }.filled(format, 0)
}

/// `format.format_map(mapping)`
pub(super) fn format_map(state: &State, format: &str, mapping: Value) -> Result<String, Error> {
    Given { state, placed: Vec::new(), named: Some(mapping), next: 0 }.filled(format, 0)
}

impl Given<'_, '_, '_> {
    fn filled(&mut self, format: &str, depth: usize) -> Result<String, Error> {
        charge(self.state, format.len())?;
        let (mut out, mut reader) = (String::new(), Reader { rest: format });
        loop {
            out.push_str(reader.until(&['{', '}']));
            match (reader.next(), reader.peek()) {
                (None, _) => return Ok(out),
                (Some('{'), Some('{')) | (Some('}'), Some('}')) => out.extend(reader.next()),
                (Some('}'), _) => return Err(invalid("single '}' encountered in format string")),
                _ if depth > 0 => return Err(invalid("format: fields are nested too deep")),
                _ => {
                    let field = self.field(&mut reader)?;
                    charge(self.state, field.len())?;
                    out.push_str(&field);
                }
            }
        }
    }

    /// Formats a field, after its opening brace.
    fn field(&mut self, reader: &mut Reader<'_>) -> Result<String, Error> {
        let name = reader.until(&['!', ':', '}', '{']);
        let value = self.value(name)?;
        let conversion = if reader.skip('!') { Some(reader.next()) } else { None };
        let spec = if reader.skip(':') { self.spec_text(reader)? } else { String::new() };
        if !reader.skip('}') {
            return Err(invalid("expected '}' before end of string"));
        }
        let value = match conversion {
            None => value,
            Some(Some('s')) => Value::from(text(self.state, &value)?),
            Some(Some('r' | 'a')) => Value::from(repr(self.state, &value)?),
            Some(_) => return Err(invalid("format: after ! comes s, r or a")),
        };
        formatted(self.state, &value, &spec)
    }

    /// The format specification of a field, with nested fields resolved.
    fn spec_text(&mut self, reader: &mut Reader<'_>) -> Result<String, Error> {
        let mut spec = String::new();
        loop {
            spec.push_str(reader.until(&['{', '}']));
            if !reader.skip('{') {
                return Ok(spec);
            }
            let inner = reader.until(&['}']);
            reader.next();
            spec.push_str(&self.filled(&format!("{{{inner}}}"), 0)?);
        }
    }

    /// Resolves `0`, `name`, `name[0]`, or an empty name for the next argument.
    fn value(&mut self, name: &str) -> Result<Value, Error> {
        let (first, path) = name.split_at(name.find(['[', '.']).unwrap_or(name.len()));
        let missing = || invalid(format!("format: there is no argument {first:?}"));
        let mut value = match first.parse::<usize>() {
            Ok(place) => self.placed.get(place).cloned().ok_or_else(missing)?,
            Err(_) if first.is_empty() => {
                self.next += 1;
                self.placed.get(self.next - 1).cloned().ok_or_else(missing)?
            }
            Err(_) => {
                let named = self.named.as_ref().and_then(Value::as_object);
                named.and_then(|named| named.get_value(&Value::from(first))).ok_or_else(missing)?
            }
        };
        let mut reader = Reader { rest: path };
        while reader.skip('[') {
            let key = reader.until(&[']']);
            reader.next();
            let key = key.parse::<i64>().map_or_else(|_| Value::from(key), Value::from);
            value = operators::item(self.state, value, key)?;
            if value.is_undefined() {
                return Err(missing());
            }
        }
        if reader.rest.is_empty() { Ok(value) } else { Err(invalid("format: attributes cannot be named")) }
    }
}

/// Formats one value for `str.format`.
fn formatted(state: &State, value: &Value, spec: &str) -> Result<String, Error> {
    if spec.is_empty() {
        return text(state, value);
    }
    let spec = format_spec(spec)?;
    match (value.kind(), spec.kind) {
        (ValueKind::String, None | Some('s')) => spec.text(state, value.as_str().unwrap_or_default()),
        (ValueKind::Number | ValueKind::Bool, Some('e' | 'E' | 'f' | 'F' | 'g' | 'G' | '%')) => {
            spec.real(state, real(value)?)
        }
        (ValueKind::Number, None | Some('n')) if !value.is_integer() => spec.real(state, real(value)?),
        (ValueKind::Number | ValueKind::Bool, Some('c')) => converted(state, &spec, value),
        (ValueKind::Bool, None | Some('d' | 'x' | 'X' | 'o' | 'b' | 'n')) => spec.whole(state, truncated(value)?),
        (ValueKind::Number, None | Some('d' | 'x' | 'X' | 'o' | 'b' | 'n')) if value.is_integer() => {
            match spec.precision {
                None => spec.whole(state, truncated(value)?),
                Some(_) => Err(invalid("a whole number has no precision")),
            }
        }
        (ValueKind::Undefined, _) => Err(undefined()),
        (ValueKind::Number, Some(kind)) => Err(invalid(format!("format {kind:?} is not for {}", number(value)))),
        (kind, _) => Err(invalid(format!("a {kind} cannot be written in this format"))),
    }
}

fn format_spec(text: &str) -> Result<Spec, Error> {
    let (mut spec, mut reader) = (Spec::default(), Reader { rest: text });
    let is_align = |c: char| matches!(c, '<' | '>' | '^' | '=');
    let mut chars = text.chars();
    let (first, second) = (chars.next(), chars.next());
    if second.is_some_and(is_align) {
        (spec.fill, spec.align) = (reader.next(), reader.next());
    } else if first.is_some_and(is_align) {
        spec.align = reader.next();
    }
    if matches!(reader.peek(), Some('+' | '-' | ' ')) {
        spec.sign = reader.next();
    }
    spec.is_alternate = reader.skip('#');
    if reader.rest.starts_with('0') && spec.align.is_none() {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    spec.width = reader.number()?.unwrap_or(0);
    if matches!(reader.peek(), Some(',' | '_')) {
        spec.grouping = reader.next();
    }
    if reader.skip('.') {
        spec.precision = Some(reader.number()?.ok_or_else(|| invalid("format: the precision is missing"))?);
    }
    spec.kind = reader.next();
    if reader.rest.is_empty() { Ok(spec) } else { Err(invalid(format!("invalid format {text:?}"))) }
}
