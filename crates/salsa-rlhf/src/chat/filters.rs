//! Jinja's filters and tests that MiniJinja lacks or implements differently.

use std::cmp::Ordering;

use minijinja::value::{Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::arguments::{Bound, bind};
use super::characters::{capitalized, is_space};
use super::methods::{lines_of, padded, replaced};
use super::text::{charge, invalid, text, undefined};
use super::views::{self, View};
use super::{json, operators, printf};

/// Filters of MiniJinja that Jinja does not have.
const NOT_IN_JINJA: [&str; 7] = ["bool", "chain", "lines", "split", "zip", "pprint", "urlencode"];

/// Registers the filters.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    NOT_IN_JINJA.iter().for_each(|name| environment.remove_filter(name));
    environment.add_filter("__select", minijinja::filters::select);
    environment.add_filter("__reject", minijinja::filters::reject);
    environment.add_filter("__selectattr", minijinja::filters::selectattr);
    environment.add_filter("__rejectattr", minijinja::filters::rejectattr);
    environment.add_filter("__map", minijinja::filters::map);
    environment.add_filter("__unique", minijinja::filters::unique);
    environment.add_filter("select", views::select);
    environment.add_filter("reject", views::reject);
    environment.add_filter("selectattr", views::selectattr);
    environment.add_filter("rejectattr", views::rejectattr);
    environment.add_filter("map", views::map);
    environment.add_filter("unique", views::unique);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("attr", attr);
    environment.add_filter("string", |state: &State, value: Value| text(state, &value));
    environment.add_filter("upper", |state: &State, value: Value| Ok::<_, Error>(text(state, &value)?.to_uppercase()));
    environment.add_filter("lower", |state: &State, value: Value| Ok::<_, Error>(text(state, &value)?.to_lowercase()));
    environment
        .add_filter("capitalize", |state: &State, value: Value| Ok::<_, Error>(capitalized(&text(state, &value)?)));
    environment.add_filter("title", |state: &State, value: Value| Ok::<_, Error>(titled(&text(state, &value)?)));
    environment.add_filter("safe", |state: &State, value: Value| text(state, &value).map(Value::from_safe_string));
    environment.add_filter("trim", trim);
    environment.add_filter("replace", replace);
    environment.add_filter("center", center);
    environment.add_filter("indent", indent);
    environment.add_filter("format", format);
    environment.add_filter("join", join);
    environment.add_filter("list", |state: &State, value: Value| operators::items(state, &value));
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("sort", sort);
    environment.add_filter("dictsort", dictsort);
    environment.add_filter("min", |state: &State, value: Value, args: Rest<ValueOrKwargs>| {
        extreme(state, value, &args.into_values(), "min")
    });
    environment.add_filter("max", |state: &State, value: Value, args: Rest<ValueOrKwargs>| {
        extreme(state, value, &args.into_values(), "max")
    });
    for name in ["escape", "e", "forceescape"] {
        environment.add_filter(name, escape);
    }
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", is_iterable);
    environment.add_test("callable", |value: Value| value.kind() == ValueKind::Plain);
    environment.add_test("odd", |state: &State, value: Value| remainder_is(state, value, 1));
    environment.add_test("even", |state: &State, value: Value| remainder_is(state, value, 0));
}

/// The value under a name. As in Jinja the name is made a text first, so that a large one is charged.
fn attr(state: &State, value: Value, name: Value) -> Result<Value, Error> {
    value.get_item(&Value::from(text(state, &name)?))
}

fn is_sequence(value: Value) -> bool {
    match value.kind() {
        ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Iterable => value.len().is_some() && value.downcast_object_ref::<View>().is_none(),
        _ => false,
    }
}

fn is_iterable(value: Value) -> bool {
    let kind = value.kind();
    matches!(kind, ValueKind::Undefined | ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map)
}

fn remainder_is(state: &State, value: Value, expected: i64) -> Result<bool, Error> {
    if !value.is_number() && value.kind() != ValueKind::Bool {
        return Err(invalid(format!("a {} is neither odd nor even", value.kind())));
    }
    operators::equal(state, &operators::modulo(state, value, Value::from(2))?, &Value::from(expected))
}

/// Title case; a word starts after white space or an opening character.
fn titled(text: &str) -> String {
    let begins = |c: char| is_space(c) || matches!(c, '-' | '(' | '{' | '[' | '<');
    let (mut out, mut at_start) = (String::with_capacity(text.len()), true);
    for c in text.chars() {
        match begins(c) {
            true => out.push(c),
            false if at_start => out.extend(c.to_uppercase()),
            false => out.extend(c.to_lowercase()),
        }
        at_start = begins(c);
    }
    out
}

fn trim(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("trim", &["chars"], &args.into_values())?;
    let whole = text(state, &value)?;
    let chars: Option<Vec<char>> = bound.text_or_none(0)?.map(|chars| chars.chars().collect());
    let goes = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    let trimmed = whole.trim_matches(goes);
    Ok(if value.is_safe() { Value::from_safe_string(trimmed.to_owned()) } else { Value::from(trimmed) })
}

fn replace(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = args.into_values();
    // Numbers and other values are converted to text.
    for arg in args.iter_mut().take(2).filter(|arg| !arg.is_kwargs()) {
        *arg = Value::from(text(state, arg)?);
    }
    replaced(state, &text(state, &value)?, &bind("replace", &["old", "new", "count"], &args)?)
}

fn center(state: &State, value: Value, width: Option<i64>) -> Result<Value, Error> {
    padded(state, &text(state, &value)?, "center", &[Value::from(width.unwrap_or(80))])
}

fn indent(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("indent", &["width", "first", "blank"], &args.into_values())?;
    let whole = text(state, &value)? + "\n";
    let by = match bound.get(0).map(|width| (width, width.as_str())) {
        Some((_, Some(text))) => text.to_owned(),
        _ => {
            let width = usize::try_from(bound.number(0, 4)?).unwrap_or(0);
            charge(state, width)?;
            " ".repeat(width)
        }
    };
    let lines = lines_of(&whole);
    charge(state, lines.len().saturating_mul(by.len() + 1).saturating_add(whole.len()))?;
    let mut out = String::new();
    for (index, line) in lines.into_iter().enumerate() {
        out.push_str(if index > 0 { "\n" } else { "" });
        let is_moved = if index == 0 { bound.is_true(1) } else { bound.is_true(2) || !line.is_empty() };
        out.push_str(if is_moved { &by } else { "" });
        out.push_str(line);
    }
    Ok(Value::from(out))
}

/// `format | format(a, b)`, or with keyword arguments: applies the `%` operator.
fn format(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let mut args = args.into_values();
    let given = match args.pop_if(|last| last.is_kwargs()) {
        Some(named) if args.is_empty() => views::mapping_of(&named)?,
        Some(_) => return Err(invalid("format takes values or names, not both")),
        None => Value::from(Tuple::from(args)),
    };
    printf::printf(state, &text(state, &value)?, &given).map(Value::from)
}

fn join(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("join", &["d", "attribute"], &args.into_values())?;
    let separator = bound.get(0).map(|between| text(state, between)).transpose()?.unwrap_or_default();
    let attribute = path(&bound, 1)?;
    let mut out = String::new();
    for (index, item) in operators::items(state, &value)?.into_iter().enumerate() {
        if index > 0 {
            charge(state, separator.len())?;
            out.push_str(&separator);
        }
        let item = if attribute.is_empty() { item } else { at_path(state, item, &attribute)? };
        out.push_str(&text(state, &item)?);
    }
    Ok(Value::from(out))
}

fn default(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("default", &["default_value", "boolean"], &args.into_values())?;
    let is_missing = value.is_undefined() || bound.is_true(1) && !value.is_true();
    Ok(if is_missing { bound.get(0).cloned().unwrap_or_else(|| Value::from("")) } else { value })
}

fn escape(state: &State, value: Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value);
    }
    let plain = text(state, &value)?;
    charge(state, plain.len() * 5)?;
    Ok(Value::from_safe_string(operators::escaped(&plain)))
}

/// Strips what Python allows around and inside numbers: white space and single underscores.
fn digits(text: &str) -> Option<String> {
    let text = text.trim_matches(is_space);
    let is_apart = !text.starts_with('_') && !text.ends_with('_') && !text.contains("__");
    is_apart.then(|| text.replace('_', ""))
}

fn int(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("int", &["default", "base"], &args.into_values())?;
    let base = u32::try_from(bound.number(1, 10)?).unwrap_or(10);
    let number = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => return Ok(value),
        ValueKind::Number => whole(f64::try_from(value)?),
        ValueKind::String => {
            let digits = value.as_str().and_then(digits).unwrap_or_default();
            let parsed = based(&digits, base);
            parsed.or_else(|| digits.parse::<f64>().ok().and_then(whole))
        }
        _ => None,
    };
    let default = || bound.get(0).cloned().unwrap_or_else(|| Value::from(0));
    Ok(number.map_or_else(default, operators::number))
}

fn whole(number: f64) -> Option<i128> {
    (number.abs() < 1e30).then(|| number.trunc() as i128)
}

fn based(digits: &str, base: u32) -> Option<i128> {
    let (sign, digits) = match digits.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, digits.strip_prefix('+').unwrap_or(digits)),
    };
    let lower = digits.to_lowercase();
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits = lower.strip_prefix(prefix).unwrap_or(&lower);
    let is_base = (2..=36).contains(&base) && !digits.starts_with(['+', '-']);
    is_base.then(|| i128::from_str_radix(digits, base).ok()).flatten().map(|number| sign * number)
}

fn float(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("float", &["default"], &args.into_values())?;
    let number = match value.kind() {
        ValueKind::Undefined => return Err(undefined()),
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => i128::try_from(value).ok().map(|number| number as f64),
        ValueKind::Number => f64::try_from(value).ok(),
        ValueKind::String => value.as_str().and_then(digits).and_then(|digits| digits.parse::<f64>().ok()),
        _ => None,
    };
    let default = || bound.get(0).cloned().unwrap_or_else(|| Value::from(0.0));
    Ok(number.map_or_else(default, Value::from))
}

/// The components of `attribute="a.b"`, or of a number.
fn path(bound: &Bound<'_>, place: usize) -> Result<Vec<Value>, Error> {
    let part = |part: &str| part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from);
    match bound.some(place) {
        None => Ok(Vec::new()),
        Some(value) => match value.as_str() {
            Some(text) => Ok(text.split('.').map(part).collect()),
            None => Ok(vec![value.clone()]),
        },
    }
}

fn at_path(state: &State, value: Value, path: &[Value]) -> Result<Value, Error> {
    path.iter().try_fold(value, |value, part| operators::item(state, value, part.clone()))
}

/// The sort keys of an item: one value per attribute, texts in lower case unless case counts.
fn keys(state: &State, item: &Value, paths: &[Vec<Value>], case: Case) -> Result<Vec<Value>, Error> {
    let whole = [Vec::new()];
    let paths = if paths.is_empty() { &whole[..] } else { paths };
    let mut all = Vec::new();
    // Lists of keys and items are allocated, also during sorting.
    state.consume_fuel(3)?;
    for path in paths {
        let key = at_path(state, item.clone(), path)?;
        all.push(match (key.as_str(), case) {
            (Some(text), Case::Ignored) => {
                charge(state, text.len())?;
                Value::from(text.to_lowercase())
            }
            _ => key,
        });
    }
    Ok(all)
}

#[derive(Clone, Copy)]
enum Case {
    Ignored,
    Counts,
}

impl Case {
    fn of(counts: bool) -> Case {
        if counts { Case::Counts } else { Case::Ignored }
    }
}

fn order_of(state: &State, a: &[Value], b: &[Value]) -> Result<Ordering, Error> {
    for (a, b) in a.iter().zip(b) {
        let order = operators::order(state, a, b)?;
        if order.is_ne() {
            return Ok(order);
        }
    }
    Ok(Ordering::Equal)
}

/// A stable sort, also in reverse, as in Python. The first unordered pair is an error.
fn sorted(
    state: &State,
    items: Vec<(Vec<Value>, Value)>,
    backwards: Ordering,
) -> Result<Vec<(Vec<Value>, Value)>, Error> {
    if items.len() < 2 {
        return Ok(items);
    }
    let mut left = items;
    let right = left.split_off(left.len() / 2);
    let mut left = sorted(state, left, backwards)?.into_iter().peekable();
    let mut right = sorted(state, right, backwards)?.into_iter().peekable();
    let mut all = Vec::with_capacity(left.len() + right.len());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let takes_right = order_of(state, &b.0, &a.0)? == backwards;
        all.extend(if takes_right { right.next() } else { left.next() });
    }
    all.extend(left);
    all.extend(right);
    Ok(all)
}

/// The ordering that comes first.
fn direction(reverse: bool) -> Ordering {
    if reverse { Ordering::Greater } else { Ordering::Less }
}

fn sort(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("sort", &["reverse", "case_sensitive", "attribute"], &args.into_values())?;
    let paths: Vec<Vec<Value>> = match bound.some(2).and_then(Value::as_str) {
        Some(several) if several.contains(',') => {
            let path = |one: &str| path(&bind("sort", &["attribute"], &[Value::from(one)])?, 0);
            several.split(',').map(path).collect::<Result<_, Error>>()?
        }
        _ => Some(path(&bound, 2)?).into_iter().filter(|path| !path.is_empty()).collect(),
    };
    let case = Case::of(bound.is_true(1));
    let with_keys = |item: Value| Ok::<_, Error>((keys(state, &item, &paths, case)?, item));
    let items = operators::items(state, &value)?.into_iter().map(with_keys).collect::<Result<_, Error>>()?;
    Ok(sorted(state, items, direction(bound.is_true(0)))?.into_iter().map(|(_, item)| item).collect())
}

/// Sorts keys in Python's order.
pub(super) fn sorted_keys(state: &State, keys: Vec<Value>) -> Result<Vec<Value>, Error> {
    let with_keys = keys.into_iter().map(|key| (vec![key.clone()], key)).collect();
    Ok(sorted(state, with_keys, Ordering::Less)?.into_iter().map(|(_, key)| key).collect())
}

fn dictsort(state: &State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let bound = bind("dictsort", &["case_sensitive", "by", "reverse"], &args.into_values())?;
    let place = match bound.text_or_none(1)? {
        None | Some("key") => 0,
        Some("value") => 1,
        Some(other) => return Err(invalid(format!("dictsort: by is key or value, not {other:?}"))),
    };
    let Some(mapping) = value.as_object().filter(|_| value.kind() == ValueKind::Map) else {
        return Err(invalid(format!("dictsort: a {} is no mapping", value.kind())));
    };
    let case = Case::of(bound.is_true(0));
    let with_keys = |(key, value): (Value, Value)| {
        state.consume_fuel(2)?;
        let by = keys(state, if place == 0 { &key } else { &value }, &[], case)?;
        Ok::<_, Error>((by, Value::from(Tuple::from([key, value]))))
    };
    let pairs = mapping.try_iter_pairs().into_iter().flatten().map(with_keys).collect::<Result<_, Error>>()?;
    Ok(sorted(state, pairs, direction(bound.is_true(2)))?.into_iter().map(|(_, item)| item).collect())
}

fn extreme(state: &State, value: Value, args: &[Value], name: &str) -> Result<Value, Error> {
    let bound = bind(name, &["case_sensitive", "attribute"], args)?;
    let paths: Vec<Vec<Value>> = Some(path(&bound, 1)?).into_iter().filter(|path| !path.is_empty()).collect();
    let (case, wanted) = (Case::of(bound.is_true(0)), direction(name == "max"));
    let mut best: Option<(Vec<Value>, Value)> = None;
    for item in operators::items(state, &value)? {
        let by = keys(state, &item, &paths, case)?;
        let is_better = match &best {
            None => true,
            Some((than, _)) => order_of(state, &by, than)? == wanted,
        };
        if is_better {
            best = Some((by, item));
        }
    }
    Ok(best.map_or(Value::UNDEFINED, |(_, item)| item))
}
