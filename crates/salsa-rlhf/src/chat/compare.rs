//! Python's comparisons and membership tests; each inspected item consumes fuel.

use std::cmp::Ordering;

use minijinja::value::{Rest, Tuple, ValueKind};
use minijinja::{Error, State, Value};

use super::text::{DEEPEST, charge, invalid, undefined};

/// The types that Python's comparisons distinguish.
#[derive(PartialEq)]
pub(super) enum Kind {
    Undefined,
    None,
    Number,
    Text,
    List,
    Tuple,
    Mapping,
    Other,
}

pub(super) fn kind(value: &Value) -> Kind {
    match value.kind() {
        ValueKind::Undefined => Kind::Undefined,
        ValueKind::None => Kind::None,
        ValueKind::Bool | ValueKind::Number => Kind::Number,
        ValueKind::String => Kind::Text,
        ValueKind::Map => Kind::Mapping,
        _ if value.downcast_object_ref::<Tuple>().is_some() => Kind::Tuple,
        ValueKind::Seq => Kind::List,
        // A slice or concatenation of lists; a generator has no length.
        ValueKind::Iterable if value.len().is_some() => Kind::List,
        _ => Kind::Other,
    }
}

/// The items of an iterable: characters of a text, keys of a mapping. Each consumes fuel.
pub(super) fn items(state: &State, value: &Value) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => {
            let text = value.as_str().unwrap_or_default();
            state.consume_fuel(text.chars().count() as u64)?;
            all.extend(text.chars().map(Value::from));
        }
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            // Fuel for a known length is consumed at once: a repeated list may be lazy.
            let (counted, each) = value.len().map_or((0, 1), |length| (length as u64, 0));
            state.consume_fuel(counted)?;
            for item in value.try_iter()?.checked() {
                state.consume_fuel(each)?;
                all.push(item?);
            }
        }
        other => return Err(invalid(format!("a {other} has no items to go through"))),
    }
    Ok(all)
}

/// Checks that a value can be a key; mutable ones cannot.
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
            state.consume_fuel(a.len().unwrap_or_default() as u64 / 8)?;
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

/// The order of two numbers; none for NaN.
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

/// The order of two values; lists compare lexicographically.
///
/// # Errors
/// For values that Python cannot order.
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
            // NaN is unordered: in Python both `>=` and `<` are false, and templates do not compare it.
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

/// `a < b < c`: alternating operators and operands.
pub(super) fn compared(state: &State, first: Value, rest: Rest<Value>) -> Result<bool, Error> {
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
