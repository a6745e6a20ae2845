//! Positional and keyword arguments of methods and filters, bound as in Python.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

use super::text::invalid;

/// The arguments of a call, in the order of the parameter names.
pub(super) struct Bound<'a> {
    function: &'a str,
    names: &'a [&'a str],
    values: Vec<Option<Value>>,
}

/// Binds arguments to these parameter names.
///
/// # Errors
/// For too many, unknown or duplicate arguments.
pub(super) fn bind<'a>(function: &'a str, names: &'a [&'a str], args: &[Value]) -> Result<Bound<'a>, Error> {
    let (placed, named) = match args.split_last() {
        Some((last, placed)) if last.is_kwargs() => (placed, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    if placed.len() > names.len() {
        return Err(invalid(format!("{function}: at most {} arguments are possible", names.len())));
    }
    let mut values: Vec<Option<Value>> = placed.iter().cloned().map(Some).collect();
    values.resize(names.len(), None);
    for name in named.iter().flat_map(Kwargs::args) {
        let place = names.iter().position(|known| *known == name);
        let place = place.ok_or_else(|| invalid(format!("{function}: there is no argument {name}")))?;
        if values[place].is_some() {
            return Err(invalid(format!("{function}: {name} is given twice")));
        }
        values[place] = named.as_ref().map(|named| named.peek(name)).transpose()?;
    }
    Ok(Bound { function, names, values })
}

impl Bound<'_> {
    fn wrong(&self, place: usize, expected: &str, given: &Value) -> Error {
        invalid(format!("{}: {} is {expected}, not a {}", self.function, self.names[place], given.kind()))
    }

    /// The argument, if given.
    pub(super) fn get(&self, place: usize) -> Option<&Value> {
        self.values[place].as_ref()
    }

    /// The argument, if given and not `none`.
    pub(super) fn some(&self, place: usize) -> Option<&Value> {
        self.get(place).filter(|value| !value.is_none())
    }

    pub(super) fn required(&self, place: usize) -> Result<&Value, Error> {
        let missing = || invalid(format!("{}: {} is missing", self.function, self.names[place]));
        self.get(place).ok_or_else(missing)
    }

    pub(super) fn text(&self, place: usize) -> Result<&str, Error> {
        let value = self.required(place)?;
        value.as_str().ok_or_else(|| self.wrong(place, "a text", value))
    }

    pub(super) fn text_or_none(&self, place: usize) -> Result<Option<&str>, Error> {
        self.some(place).map(|value| value.as_str().ok_or_else(|| self.wrong(place, "a text", value))).transpose()
    }

    pub(super) fn number_or_none(&self, place: usize) -> Result<Option<i64>, Error> {
        let whole = |value: &Value| match value.kind() {
            ValueKind::Bool => Ok(i64::from(value.is_true())),
            // Clamping is exact enough: no text is that long.
            ValueKind::Number if value.is_integer() => {
                let number = i128::try_from(value.clone()).unwrap_or(i128::MAX);
                Ok(i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX }))
            }
            _ => Err(self.wrong(place, "a whole number", value)),
        };
        self.some(place).map(whole).transpose()
    }

    pub(super) fn number(&self, place: usize, default: i64) -> Result<i64, Error> {
        Ok(self.number_or_none(place)?.unwrap_or(default))
    }

    pub(super) fn is_true(&self, place: usize) -> bool {
        self.get(place).is_some_and(Value::is_true)
    }

    /// Consumes fuel for the texts among the arguments.
    pub(super) fn charge(&self, state: &State) -> Result<(), Error> {
        let texts = self.values.iter().flatten().filter_map(Value::as_str);
        super::text::charge(state, texts.map(str::len).sum())
    }
}
