//! `tojson` as in transformers: Python's `json.dumps`, replacing Jinja's filter, which escapes for HTML.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

use super::text::{charge, invalid, number, undefined};
use super::views::{Range, View};
use super::{filters, operators};

/// Maximum nesting of JSON: deeper than any real value, and safe for the stack.
const DEEPEST: usize = 100;

struct Style {
    /// The indentation per level; if set, every item has its own line.
    indent: Option<Indent>,
    item: String,
    key: String,
    is_ascii: bool,
    is_sorted: bool,
}

enum Indent {
    Spaces(usize),
    Text(String),
}

/// `json.dumps(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`
pub(super) fn tojson(
    state: &State,
    value: &Value,
    ensure_ascii: Option<Value>,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let option = |given: Option<Value>, name: &str| -> Result<Option<Value>, Error> {
        Ok(given.or(options.get::<Option<Value>>(name)?).filter(|value| !value.is_none() && !value.is_undefined()))
    };
    let is_true = |value: Option<Value>| value.is_some_and(|value| value.is_true());
    let indent = match option(indent, "indent")? {
        None => None,
        Some(text) if text.as_str().is_some() => Some(Indent::Text(text.to_string())),
        Some(width) => {
            let width = i128::try_from(width).map_err(|_| invalid("tojson: indent is neither a number nor text"))?;
            Some(Indent::Spaces(usize::try_from(width.max(0)).unwrap_or(usize::MAX)))
        }
    };
    let (item, key) = match option(None, "separators")? {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.take(3).collect();
            match pair.iter().map(Value::as_str).collect::<Vec<_>>()[..] {
                [Some(item), Some(key)] => (item.to_owned(), key.to_owned()),
                _ => return Err(invalid("tojson: separators are two texts")),
            }
        }
    };
    let is_ascii = is_true(option(ensure_ascii, "ensure_ascii")?);
    let is_sorted = is_true(option(None, "sort_keys")?);
    options.assert_all_used()?;
    let mut writer = Writer { state, style: Style { indent, item, key, is_ascii, is_sorted }, out: String::new() };
    writer.write(value, 0)?;
    Ok(writer.out)
}

/// Lists and tuples; not ranges, views and generators.
fn is_list(value: &Value) -> bool {
    let is_other = value.downcast_object_ref::<Range>().is_some() || value.downcast_object_ref::<View>().is_some();
    value.len().is_some() && !is_other
}

fn json_number(value: &Value) -> String {
    match number(value).as_str() {
        "nan" => "NaN".to_owned(),
        "inf" => "Infinity".to_owned(),
        "-inf" => "-Infinity".to_owned(),
        other => other.to_owned(),
    }
}

struct Writer<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    style: Style,
    out: String,
}

impl Writer<'_, '_, '_> {
    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEEPEST {
            return Err(invalid("tojson: the value is nested too deep"));
        }
        self.state.consume_fuel(1)?;
        match value.kind() {
            ValueKind::None => self.out.push_str("null"),
            ValueKind::Undefined => return Err(undefined()),
            ValueKind::Bool => self.out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => self.out.push_str(&json_number(value)),
            ValueKind::String => self.quote(value.as_str().unwrap_or_default())?,
            ValueKind::Map => self.mapping(value, depth)?,
            ValueKind::Seq | ValueKind::Iterable if is_list(value) => self.list(value, depth)?,
            ValueKind::Iterable => return Err(invalid("tojson: cannot write a generator or a view; add | list")),
            other => return Err(invalid(format!("tojson: cannot write {other}"))),
        }
        Ok(())
    }

    fn mapping(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let name = |key: &Value| match key.kind() {
            ValueKind::None => "null".to_owned(),
            ValueKind::Bool => key.is_true().to_string(),
            ValueKind::Number => json_number(key),
            _ => key.to_string(),
        };
        let keys = operators::items(self.state, value)?;
        let keys = if self.style.is_sorted { filters::sorted_keys(self.state, keys)? } else { keys };
        let keys: Vec<(String, Value)> = keys.into_iter().map(|key| (name(&key), key)).collect();
        self.out.push('{');
        for (index, (name, key)) in keys.iter().enumerate() {
            self.begin(index, depth)?;
            self.quote(name)?;
            self.out.push_str(&self.style.key);
            self.write(&value.get_item(key)?, depth + 1)?;
        }
        self.end(keys.len(), depth)?;
        self.out.push('}');
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut count = 0;
        self.state.consume_fuel(value.len().unwrap_or_default() as u64)?;
        self.out.push('[');
        for item in value.try_iter()? {
            self.begin(count, depth)?;
            self.write(&item, depth + 1)?;
            count += 1;
        }
        self.end(count, depth)?;
        self.out.push(']');
        Ok(())
    }

    fn begin(&mut self, index: usize, depth: usize) -> Result<(), Error> {
        if index > 0 {
            charge(self.state, self.style.item.len())?;
            self.out.push_str(&self.style.item);
        }
        self.line(depth + 1)
    }

    fn end(&mut self, count: usize, depth: usize) -> Result<(), Error> {
        if count > 0 { self.line(depth) } else { Ok(()) }
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let (width, text) = match &self.style.indent {
            None => return Ok(()),
            Some(Indent::Spaces(width)) => (*width, " "),
            Some(Indent::Text(text)) => (1, text.as_str()),
        };
        let count = width.saturating_mul(depth);
        charge(self.state, count.saturating_mul(text.len()))?;
        self.out.push('\n');
        self.out.push_str(&text.repeat(count));
        Ok(())
    }

    fn quote(&mut self, text: &str) -> Result<(), Error> {
        charge(self.state, text.len())?;
        let quoted = serde_json::Value::from(text).to_string();
        if !self.style.is_ascii {
            self.out.push_str(&quoted);
            return Ok(());
        }
        for c in quoted.chars() {
            match c {
                ' '..='~' => self.out.push(c),
                _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| self.out.push_str(&format!("\\u{unit:04x}"))),
            }
        }
        Ok(())
    }
}
