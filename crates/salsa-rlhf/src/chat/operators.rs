//! What Python's operators do, paid for before it is done. [`super::rewrite`] writes them as filters.

use std::cmp::Ordering;

use minijinja::value::{Rest, Tuple, ValueKind};
use minijinja::{Environment, Error, State, Value};

use super::printf;
use super::text::{DEEPEST, charge, invalid, text, undefined};
use super::views::{self, Range};

/// Adds the filters that stand for operators, and the tests of the same names.
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

/// What Python compares as one kind of value.
#[derive(PartialEq)]
enum Kind {
    Undefined,
    None,
    Number,
    Text,
    List,
    Tuple,
    Mapping,
    Other,
}

fn kind(value: &Value) -> Kind {
    match value.kind() {
        ValueKind::Undefined => Kind::Undefined,
        ValueKind::None => Kind::None,
        ValueKind::Bool | ValueKind::Number => Kind::Number,
        ValueKind::String => Kind::Text,
        ValueKind::Map => Kind::Mapping,
        _ if value.downcast_object_ref::<Tuple>().is_some() => Kind::Tuple,
        ValueKind::Seq => Kind::List,
        // Part of a list, or lists put together; a generator has no length.
        ValueKind::Iterable if value.len().is_some() => Kind::List,
        _ => Kind::Other,
    }
}

/// The items of what can be gone through, each paid for; characters of a text, keys of a mapping.
pub(super) fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => {
            for c in value.as_str().unwrap_or_default().chars() {
                state.consume_fuel(1)?;
                all.push(Value::from(c));
            }
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            for item in value.try_iter()?.checked() {
                state.consume_fuel(1)?;
                all.push(item?);
            }
        }
        other => return Err(invalid(format!("a {other} has no items to go through"))),
    }
    Ok(all)
}

/// A value that can be a key: what can be changed is none.
pub(super) fn key(state: &State, value: &Value) -> Result<Value, Error> {
    match kind(value) {
        Kind::List | Kind::Mapping => Err(invalid(format!("a {} cannot be a key of a mapping", value.kind()))),
        Kind::Text => {
            charge(state, value.as_str().unwrap_or_default().len())?;
            Ok(value.clone())
        }
        Kind::Tuple => {
            items(state, value)?.iter().try_for_each(|item| key(state, item).map(drop))?;
            Ok(value.clone())
        }
        _ => Ok(value.clone()),
    }
}

/// `a == b`
pub(super) fn equal(state: &State, a: &Value, b: &Value) -> Result<bool, Error> {
    equal_at(state, a, b, 0)
}

fn equal_at(state: &State, a: &Value, b: &Value, depth: usize) -> Result<bool, Error> {
    if depth > DEEPEST {
        return Err(invalid("values that are compared are nested too deep"));
    }
    state.consume_fuel(1)?;
    let of = kind(a);
    if of != kind(b) {
        return Ok(false);
    }
    match of {
        Kind::Undefined | Kind::None => Ok(true),
        Kind::Number => Ok(ordered_numbers(a, b) == Some(Ordering::Equal)),
        Kind::Text => {
            let (a, b) = (a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
            charge(state, if a.len() == b.len() { a.len() } else { 0 })?;
            Ok(a == b)
        }
        Kind::List | Kind::Tuple => {
            if a.len() != b.len() {
                return Ok(false);
            }
            for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
                if !equal_at(state, &a, &b, depth + 1)? {
                    return Ok(false);
                }
            }
            Ok(true)
        }
        Kind::Mapping => {
            let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return Ok(false) };
            if a.enumerator_len() != b.enumerator_len() {
                return Ok(false);
            }
            for (key, value) in a.try_iter_pairs().into_iter().flatten() {
                match b.get_value(&key) {
                    Some(other) if equal_at(state, &value, &other, depth + 1)? => {}
                    _ => return Ok(false),
                }
            }
            Ok(true)
        }
        // Functions and generators.
        Kind::Other => Ok(false),
    }
}

/// Which of two numbers is smaller; NaN is neither.
fn ordered_numbers(a: &Value, b: &Value) -> Option<Ordering> {
    let whole = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        _ if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => Some(a.cmp(&b)),
        _ => {
            let float = |value: &Value| whole(value).map(|number| number as f64).or(f64::try_from(value.clone()).ok());
            float(a)?.partial_cmp(&float(b)?)
        }
    }
}

/// How two values are ordered; of two lists the first items that differ decide.
///
/// # Errors
/// For values that Python does not order.
pub(super) fn order(state: &State, a: &Value, b: &Value) -> Result<Ordering, Error> {
    order_at(state, a, b, 0)
}

fn order_at(state: &State, a: &Value, b: &Value, depth: usize) -> Result<Ordering, Error> {
    if depth > DEEPEST {
        return Err(invalid("values that are compared are nested too deep"));
    }
    state.consume_fuel(1)?;
    let of = kind(a);
    match of {
        Kind::Number if kind(b) == Kind::Number => {
            // NaN is neither smaller nor larger: `>=` and `<` are both false in Python, and no template compares it.
            ordered_numbers(a, b).ok_or_else(|| invalid("nan cannot be compared"))
        }
        Kind::Text if kind(b) == Kind::Text => {
            let (a, b) = (a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
            charge(state, a.len().min(b.len()))?;
            Ok(a.cmp(b))
        }
        Kind::List | Kind::Tuple if kind(b) == of => {
            for (a, b) in a.try_iter()?.zip(b.try_iter()?) {
                if !equal_at(state, &a, &b, depth + 1)? {
                    return order_at(state, &a, &b, depth + 1);
                }
            }
            Ok(a.len().cmp(&b.len()))
        }
        Kind::Undefined => Err(undefined()),
        _ if b.is_undefined() => Err(undefined()),
        _ => Err(invalid(format!("a {} and a {} cannot be compared", a.kind(), b.kind()))),
    }
}

/// `item in of`
pub(super) fn contains(state: &State, of: &Value, item: &Value) -> Result<bool, Error> {
    match of.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::String => {
            let (text, Some(part)) = (of.as_str().unwrap_or_default(), item.as_str()) else {
                return Err(invalid(format!("a text cannot have a {} in it", item.kind())));
            };
            charge(state, text.len() + part.len())?;
            Ok(text.contains(part))
        }
        ValueKind::Map => {
            let key = key(state, item)?;
            Ok(of.as_object().is_some_and(|mapping| mapping.get_value(&key).is_some()))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            for other in of.try_iter()?.checked() {
                if equal(state, &other?, item)? {
                    return Ok(true);
                }
            }
            Ok(false)
        }
        other => Err(invalid(format!("a {other} cannot have anything in it"))),
    }
}

/// `a < b < c`: operators and operands in turn.
fn compared(state: &State, first: Value, rest: Rest<Value>) -> Result<bool, Error> {
    let mut left = &first;
    for pair in rest.0.chunks(2) {
        let [operator, right] = pair else { return Err(invalid("a comparison without an operand")) };
        let holds = match operator.as_str().unwrap_or_default() {
            "==" => equal(state, left, right)?,
            "!=" => !equal(state, left, right)?,
            "<" => order(state, left, right)?.is_lt(),
            "<=" => order(state, left, right)?.is_le(),
            ">" => order(state, left, right)?.is_gt(),
            ">=" => order(state, left, right)?.is_ge(),
            "in" => contains(state, right, left)?,
            _ => !contains(state, right, left)?,
        };
        if !holds {
            return Ok(false);
        }
        left = right;
    }
    Ok(true)
}

/// `a ~ b`
fn concat(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    let mut both = text(state, &a)?;
    both.push_str(&text(state, &b)?);
    Ok(Value::from(both))
}

/// `a + b`; markup escapes what it is added to.
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

/// `a + b` of what is no text.
fn sum(state: &State, a: &Value, b: &Value) -> Result<Value, Error> {
    match (kind(a), kind(b)) {
        (Kind::List, Kind::List) => Ok(Value::from(joined(state, a, b)?)),
        (Kind::Tuple, Kind::Tuple) => Ok(Value::from(Tuple::from(joined(state, a, b)?))),
        (Kind::Number, Kind::Number) => {
            let added = match (i128::try_from(a.clone()), i128::try_from(b.clone())) {
                (Ok(first), Ok(second)) if a.is_integer() && b.is_integer() => {
                    first.checked_add(second).map(Value::from)
                }
                _ => None,
            };
            let float = |value: &Value| match value.kind() {
                ValueKind::Bool => Ok(f64::from(u8::from(value.is_true()))),
                _ => f64::try_from(value.clone()),
            };
            match added {
                Some(added) => Ok(added),
                None => Ok(Value::from(float(a)? + float(b)?)),
            }
        }
        (Kind::Undefined, _) | (_, Kind::Undefined) => Err(undefined()),
        _ => Err(invalid(format!("a {} and a {} cannot be added", a.kind(), b.kind()))),
    }
}

/// Two lists end to end. An item that is copied is less work than one that is looked at: conversations are put together
/// message by message.
fn joined(state: &State, a: &Value, b: &Value) -> Result<Vec<Value>, Error> {
    let length = a.len().unwrap_or_default().saturating_add(b.len().unwrap_or_default());
    state.consume_fuel(1 + length as u64 / 8)?;
    Ok(a.try_iter()?.chain(b.try_iter()?).collect())
}

/// Text for HTML, as markupsafe writes it.
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

/// `a % b`: the remainder, or a text with values put in.
pub(super) fn modulo(state: &State, a: Value, b: Value) -> Result<Value, Error> {
    if let Some(format) = a.as_str() {
        return printf::printf(state, format, &b).map(Value::from);
    }
    let whole = |value: &Value| match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    };
    if let (Some(a), Some(b)) = (whole(&a), whole(&b)) {
        // The remainder has the sign of the divisor.
        let remainder = a.checked_rem(b).ok_or_else(|| invalid("the remainder of a division by zero"))?;
        let moved = remainder != 0 && (remainder < 0) != (b < 0);
        return Ok(number(if moved { remainder + b } else { remainder }));
    }
    let float = |value: &Value| match (whole(value), value.is_number()) {
        (Some(number), _) => Ok(number as f64),
        (None, true) => f64::try_from(value.clone()),
        _ if value.is_undefined() => Err(undefined()),
        _ => Err(invalid(format!("% of a {} and a {}", a.kind(), b.kind()))),
    };
    match (float(&a)?, float(&b)?) {
        (_, 0.0) => Err(invalid("the remainder of a division by zero")),
        (a, b) => {
            let remainder = a % b;
            let moved = remainder != 0.0 && (remainder < 0.0) != (b < 0.0);
            Ok(Value::from(if moved { remainder + b } else { remainder }))
        }
    }
}

/// A whole number in the smallest of MiniJinja's types.
pub(super) fn number(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| Value::from(number), Value::from)
}

/// `-a`
fn negated(a: Value) -> Result<Value, Error> {
    match a.kind() {
        ValueKind::Bool => Ok(Value::from(-i64::from(a.is_true()))),
        ValueKind::Number if a.is_integer() => {
            let negative = i128::try_from(a).ok().and_then(i128::checked_neg);
            negative.map(number).ok_or_else(|| invalid("the number is too large"))
        }
        ValueKind::Number => Ok(Value::from(-f64::try_from(a)?)),
        ValueKind::Undefined => Err(undefined()),
        other => Err(invalid(format!("a {other} has no negative"))),
    }
}

/// `of[at]`; undefined where there is no such item.
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
        Kind::Mapping => {
            let found = match kind(&at) {
                Kind::List | Kind::Mapping => None,
                _ => of.as_object().and_then(|mapping| mapping.get_value(&at)),
            };
            found
        }
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
        _ => Ok(Value::UNDEFINED),
    }
}

/// The places that a slice of so many items takes, in order.
pub(super) fn places(length: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let length = i128::try_from(length).unwrap_or(i128::MAX);
    // Backwards, one before the first is an end too.
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
