//! Python's operators; fuel is consumed before the work. [`super::rewrite`] writes them as filters.

use minijinja::value::{Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::compare::{Kind, compared, contains, kind};
pub(super) use super::compare::{equal, items, key, order};
use super::printf;
use super::text::{charge, invalid, text, undefined};
use super::views::{self, Range};

/// Registers the filters for operators, and the tests of the same names.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_filter("__eq", |state: &State, a: Value, b: Value| equal(state, &a, &b));
    environment.add_filter("__ne", |state: &State, a: Value, b: Value| Ok::<_, Error>(!equal(state, &a, &b)?));
    environment.add_filter("__lt", |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_lt()));
    environment.add_filter("__le", |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_le()));
    environment.add_filter("__gt", |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_gt()));
    environment.add_filter("__ge", |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_ge()));
    environment.add_filter("__in", |state: &State, item: Value, of: Value| contains(state, &of, &item));
    environment.add_filter("__compared", compared);
    environment.add_filter("__concat", concat);
    environment.add_filter("__add", add);
    environment.add_filter("__modulo", modulo);
    environment.add_filter("__negated", negated);
    environment.add_filter("__item", item);
    environment.add_filter("__slice", slice);
    environment.add_filter("__key", |state: &State, value: Value| key(state, &value));
    environment.add_filter("__iterated", |state: &State, value: Value| items(state, &value));
    environment.add_filter("__unpacked", |state: &State, value: Value| items(state, &value));
    environment.add_filter("__assigned", |value: Value, _: Value| value);
    environment.add_filter("__method", views::method);
    for name in ["eq", "equalto", "=="] {
        environment.add_test(name, |state: &State, a: Value, b: Value| equal(state, &a, &b));
    }
    for name in ["ne", "!="] {
        environment.add_test(name, |state: &State, a: Value, b: Value| Ok::<_, Error>(!equal(state, &a, &b)?));
    }
    for name in ["lt", "lessthan", "<"] {
        environment.add_test(name, |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_lt()));
    }
    for name in ["le", "<="] {
        environment.add_test(name, |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_le()));
    }
    for name in ["gt", "greaterthan", ">"] {
        environment.add_test(name, |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_gt()));
    }
    for name in ["ge", ">="] {
        environment.add_test(name, |state: &State, a: Value, b: Value| Ok::<_, Error>(order(state, &a, &b)?.is_ge()));
    }
    environment.add_test("in", |state: &State, item: Value, of: Value| contains(state, &of, &item));
}

/// `a ~ b`
fn concat(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    let mut both = text(state, &a)?;
    both.push_str(&text(state, &b)?);
    Ok(Value::from(both))
}

/// `a + b`; safe markup escapes the other operand.
fn add(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    let (Some(first), Some(second)) = (a.as_str(), b.as_str()) else {
        return sum(state, &a, &b);
    };
    Ok(match (a.is_safe(), b.is_safe()) {
        (false, false) => Value::from([first, second].concat()),
        (true, true) => Value::from_safe_string([first, second].concat()),
        (true, false) => Value::from_safe_string(format!("{first}{}", escaped(second))),
        (false, true) => Value::from_safe_string(format!("{}{second}", escaped(first))),
    })
}

/// `a + b` for operands that are not both texts.
fn sum(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (kind(a), kind(b)) {
        (Kind::List, Kind::List) => Ok(Value::from(joined(state, a, b)?)),
        (Kind::Tuple, Kind::Tuple) => Ok(Value::from(Tuple::from(joined(state, a, b)?))),
        (Kind::Number, Kind::Number) => match (numeric(a)?, numeric(b)?) {
            (Number::Whole(a), Number::Whole(b)) => a.checked_add(b).map(number).ok_or_else(too_large),
            (a, b) => Ok(Value::from(a.real() + b.real())),
        },
        (Kind::Undefined, _) | (_, Kind::Undefined) => Err(undefined()),
        _ => Err(invalid(format!("a {} and a {} cannot be added", a.kind(), b.kind()))),
    }
}

/// Concatenates two lists. A copied item consumes less fuel than an inspected one, since conversations are built
/// message by message.
fn joined(state: &State, a: &Value, b: &Value) -> Result<Vec<Value>, Error> {
    let length = a.len().unwrap_or_default().saturating_add(b.len().unwrap_or_default());
    state.consume_fuel(1 + length as u64 / 8)?;
    Ok(a.try_iter()?.chain(b.try_iter()?).collect())
}

/// Escapes text for HTML as markupsafe does.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            _ => out.push(c),
        }
    }
    out
}

/// `a % b`: the remainder, or a formatted text.
pub(super) fn modulo(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    if let Some(format) = a.as_str() {
        return printf::printf(state, format, &b).map(Value::from);
    }
    match (numeric(&a)?, numeric(&b)?) {
        // The remainder has the sign of the divisor.
        (Number::Whole(a), Number::Whole(b)) => {
            let remainder = a.checked_rem(b).ok_or_else(|| invalid("the remainder of a division by zero"))?;
            let moved = remainder != 0 && (remainder < 0) != (b < 0);
            Ok(number(if moved { remainder + b } else { remainder }))
        }
        (a, b) => {
            let (a, b) = (a.real(), b.real());
            if b == 0.0 {
                return Err(invalid("the remainder of a division by zero"));
            }
            let remainder = a % b;
            let moved = remainder != 0.0 && (remainder < 0.0) != (b < 0.0);
            Ok(Value::from(if moved { remainder + b } else { remainder }))
        }
    }
}

/// Numbers in Python; booleans are numbers too.
enum Number {
    Whole(i128),
    Real(f64),
}

impl Number {
    fn real(&self) -> f64 {
        match self {
            Number::Whole(number) => *number as f64,
            Number::Real(number) => *number,
        }
    }
}

fn numeric(value: &Value) -> Result<Number, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(Number::Whole(i128::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => {
            i128::try_from(value.clone()).map(Number::Whole).map_err(|_| too_large())
        }
        ValueKind::Number => f64::try_from(value.clone()).map(Number::Real),
        ValueKind::Undefined => Err(undefined()),
        other => Err(invalid(format!("a number is expected, not a {other}"))),
    }
}

fn too_large() -> Error {
    invalid("a whole number is too large")
}

/// An integer in the smallest of MiniJinja's types.
pub(super) fn number(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// `-a`
fn negated(a: Value) -> Result<Value, Error> {
    match numeric(&a)? {
        Number::Whole(a) => a.checked_neg().map(number).ok_or_else(too_large),
        Number::Real(a) => Ok(Value::from(-a)),
    }
}

/// `of[at]`; undefined if there is no such item.
pub(super) fn item(state: &State, of: Value, at: Value) -> Result<Value, Error> {
    let index = || match at.kind() {
        ValueKind::Bool => Some(i64::from(at.is_true())),
        ValueKind::Number if at.is_integer() => at.as_i64(),
        _ => None,
    };
    let place = |length: usize| {
        let index = index()?;
        let place = if index < 0 { index.checked_add(i64::try_from(length).ok()?)? } else { index };
        usize::try_from(place).ok().filter(|place| *place < length)
    };
    let found = match kind(&of) {
        Kind::Undefined => return Err(undefined()),
        Kind::Text => {
            let text = of.as_str().unwrap_or_default();
            charge(state, text.len())?;
            let place = if text.is_ascii() { place(text.len()) } else { place(text.chars().count()) };
            place.and_then(|place| text.chars().nth(place)).map(Value::from)
        }
        Kind::Mapping => match kind(&at) {
            Kind::List | Kind::Mapping => None,
            _ => of.as_object().and_then(|mapping| mapping.get_value(&at)),
        },
        Kind::List | Kind::Tuple
            if of.kind() == ValueKind::Iterable && of.downcast_object_ref::<views::View>().is_some() =>
        {
            None
        }
        Kind::List | Kind::Tuple => match place(of.len().unwrap_or_default()) {
            None => None,
            Some(place) if of.kind() == ValueKind::Iterable => {
                state.consume_fuel(place as u64)?;
                of.try_iter()?.nth(place)
            }
            Some(place) => of.as_object().and_then(|list| list.get_value(&Value::from(place))),
        },
        _ => None,
    };
    Ok(found.unwrap_or(Value::UNDEFINED))
}

/// `of[start:stop:step]`
fn slice(state: &State, of: Value, start: Value, stop: Value, step: Value) -> Result<Value, Error> {
    let bound = |value: &Value| match value.kind() {
        ValueKind::None => Ok(None),
        ValueKind::Bool => Ok(Some(i64::from(value.is_true()))),
        ValueKind::Number if value.is_integer() => Ok(value.as_i64()),
        ValueKind::Undefined => Err(undefined()),
        other => Err(invalid(format!("a slice from or to a {other}"))),
    };
    let step = bound(&step)?.unwrap_or(1);
    if step == 0 {
        return Err(invalid("the step of a slice is zero"));
    }
    let (start, stop) = (bound(&start)?, bound(&stop)?);
    let of_kind = kind(&of);
    match of_kind {
        Kind::Text => {
            let text = of.as_str().unwrap_or_default();
            charge(state, text.len().saturating_mul(4))?;
            let ends: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let places = places(ends.len() - 1, start, stop, step);
            let part: String = places.map(|at| &text[ends[at]..ends[at + 1]]).collect();
            Ok(if of.is_safe() { Value::from_safe_string(part) } else { Value::from(part) })
        }
        Kind::List | Kind::Tuple => {
            let all = items(state, &of)?;
            let part: Vec<Value> = places(all.len(), start, stop, step).map(|at| all[at].clone()).collect();
            let range = of.downcast_object_ref::<Range>();
            Ok(match (range, of_kind) {
                (Some(range), _) => Value::from_object(range.part(start, stop, step)),
                (None, Kind::Tuple) => Value::from(Tuple::from(part)),
                (None, _) => Value::from(part),
            })
        }
        Kind::Undefined => Err(undefined()),
        _ => Err(invalid(format!("a {} has no slices", of.kind()))),
    }
}

/// The indices that a slice of `length` items selects, in order.
pub(super) fn places(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let length = i128::try_from(length).unwrap_or(i128::MAX);
    // For negative steps, one before the first item is a valid end.
    let (least, most) = if step > 0 { (0, length) } else { (-1, length - 1) };
    let place = |at: i64| {
        let at = i128::from(at);
        (if at < 0 { at + length } else { at }).clamp(least, most)
    };
    let (first, last) = if step > 0 { (least, most) } else { (most, least) };
    let (mut at, stop) = (start.map_or(first, place), stop.map_or(last, place));
    std::iter::from_fn(move || {
        let is_inside = if step > 0 { at < stop } else { at > stop };
        let here = at;
        at += i128::from(step);
        is_inside.then(|| usize::try_from(here).unwrap_or_default())
    })
}
