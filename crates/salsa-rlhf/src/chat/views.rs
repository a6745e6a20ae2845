//! Python's objects that MiniJinja lacks or implements differently: `range`, the results of `keys`, `values` and
//! `items`, `dict`, and uncalled methods.

use std::sync::Arc;

use minijinja::value::{
    DynObject, Enumerator, Kwargs, Object, ObjectExt, ObjectRepr, Rest, Tuple, ValueKind, ValueOrKwargs, from_args,
};
use minijinja::{Error, ErrorKind, State, Value};

use super::operators;
use super::text::invalid;

/// `range(start, stop, step)`
#[derive(Debug)]
pub(super) struct Range {
    start: i64,
    stop: i64,
    step: i64,
}

impl Range {
    fn length(&self) -> usize {
        let (from, to) = if self.step > 0 { (self.start, self.stop) } else { (self.stop, self.start) };
        let span = i128::from(to) - i128::from(from);
        let step = i128::from(self.step).abs();
        usize::try_from((span + step - 1).max(0) / step).unwrap_or(usize::MAX)
    }

    fn at(&self, index: usize) -> Value {
        Value::from(i128::from(self.start) + index as i128 * i128::from(self.step))
    }

    /// The range of a slice.
    pub(super) fn part(&self, start: Option<i64>, stop: Option<i64>, step: i64) -> Range {
        let mut places = operators::places(self.length(), start, stop, step);
        let at = |place: usize| {
            self.start.saturating_add(self.step.saturating_mul(i64::try_from(place).unwrap_or(i64::MAX)))
        };
        let step = self.step.saturating_mul(step);
        let Some(first) = places.next() else { return Range { start: 0, stop: 0, step: 1 } };
        let last = places.last().unwrap_or(first);
        Range { start: at(first), stop: at(last).saturating_add(step.signum()), step }
    }

    pub(super) fn repr(&self) -> String {
        match self.step {
            1 => format!("range({}, {})", self.start, self.stop),
            step => format!("range({}, {}, {step})", self.start, self.stop),
        }
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = key.as_usize()?;
        (index < self.length()).then(|| self.at(index))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.length())
    }
}

/// The function `range`. Jinja's sandbox allows 100,000 items.
pub(super) fn range(first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, stop) = second.map_or((0, first), |stop| (first, stop));
    let range = Range { start, stop, step: step.unwrap_or(1) };
    match range.step {
        0 => Err(invalid("range: the step is zero")),
        _ if range.length() > 100_000 => Err(invalid("range: more than 100000 items")),
        _ => Ok(Value::from_object(range)),
    }
}

/// The part of a mapping that a view iterates over.
#[derive(Clone, Copy, Debug)]
pub(super) enum Part {
    Keys,
    Values,
    Items,
}

/// `mapping.keys()`, `mapping.values()`, `mapping.items()`: no lists, so they cannot be indexed.
#[derive(Debug)]
pub(super) struct View {
    mapping: DynObject,
    part: Part,
}

impl View {
    pub(super) fn of(mapping: DynObject, part: Part) -> Value {
        Value::from_object(View { mapping, part })
    }

    pub(super) fn name(&self) -> &'static str {
        match self.part {
            Part::Keys => "dict_keys",
            Part::Values => "dict_values",
            Part::Items => "dict_items",
        }
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|view| {
            let Some(pairs) = view.mapping.try_iter_pairs() else { return Box::new(std::iter::empty()) };
            match view.part {
                Part::Keys => Box::new(pairs.map(|(key, _)| key)),
                Part::Values => Box::new(pairs.map(|(_, value)| value)),
                Part::Items => Box::new(pairs.map(|(key, value)| Value::from(Tuple::from([key, value])))),
            }
        })
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.mapping.enumerator_len()
    }
}

/// The function `dict`, and its method `fromkeys`.
#[derive(Debug)]
pub(super) struct Dict;

impl Object for Dict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let (from, named): (Option<Value>, Kwargs) = from_args(args)?;
        let mut pairs = match from {
            Some(from) => pairs_of(state, &from)?,
            None => Vec::new(),
        };
        for name in named.args() {
            pairs.push((Value::from(name), named.peek::<Value>(name)?));
        }
        state.consume_fuel(pairs.len() as u64)?;
        Ok(Value::from_pairs(pairs))
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        if name != "fromkeys" {
            return Err(Error::from(ErrorKind::UnknownMethod));
        }
        let (keys, value): (Value, Option<Value>) = from_args(args)?;
        let value = value.unwrap_or_else(|| Value::from(()));
        let keys = operators::items(state, &keys)?.into_iter();
        let pairs: Result<Vec<_>, Error> = keys.map(|key| Ok((operators::key(state, &key)?, value.clone()))).collect();
        Ok(Value::from_pairs(pairs?))
    }
}

fn pairs_of(state: &State, from: &Value) -> Result<Vec<(Value, Value)>, Error> {
    if let (ValueKind::Map, Some(mapping)) = (from.kind(), from.as_object()) {
        return Ok(mapping.try_iter_pairs().into_iter().flatten().collect());
    }
    let pair = |item: Value| match &operators::items(state, &item)?[..] {
        [key, value] => Ok((operators::key(state, key)?, value.clone())),
        _ => Err(invalid("dict: an item is no pair of a key and a value")),
    };
    operators::items(state, from)?.into_iter().map(pair).collect()
}

/// Keyword arguments as a mapping.
pub(super) fn mapping_of(named: &Value) -> Result<Value, Error> {
    let named = Kwargs::try_from(named.clone())?;
    let pairs: Result<Vec<_>, Error> = named.args().map(|name| Ok((name, named.peek::<Value>(name)?))).collect();
    Ok(Value::from_pairs(pairs?))
}

/// A method that is not called: true, defined and callable.
#[derive(Debug)]
pub(super) struct Method {
    of: Value,
    name: String,
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.of.call_method(state, &self.name, args)
    }
}

/// `mapping.items` without a call; for other values the attribute is undefined.
pub(super) fn method(of: Value, name: String) -> Result<Value, Error> {
    match of.kind() {
        ValueKind::Undefined => Err(super::text::undefined()),
        ValueKind::Map => Ok(Value::from_object(Method { of, name })),
        _ => Ok(Value::UNDEFINED),
    }
}

/// A generator, which can be iterated once.
pub(super) fn generator(items: Vec<Value>) -> Value {
    Value::make_one_shot_iterator(items.into_iter())
}

/// Filters that return generators.
pub(super) fn select(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__select", value, args.into_values())
}

pub(super) fn reject(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__reject", value, args.into_values())
}

pub(super) fn selectattr(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__selectattr", value, args.into_values())
}

pub(super) fn rejectattr(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__rejectattr", value, args.into_values())
}

pub(super) fn map(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__map", value, args.into_values())
}

pub(super) fn unique(state: &mut State, value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    built_in(state, "__unique", value, args.into_values())
}

/// Applies a filter of MiniJinja and returns its list as a generator.
fn built_in(state: &mut State, filter: &str, value: Value, args: Vec<Value>) -> Result<Value, Error> {
    // Names of tests, filters and attributes; the engine would convert other values to text.
    if args.first().is_some_and(|name| !name.is_kwargs() && name.as_str().is_none() && !name.is_number()) {
        return Err(invalid("the name of a test, a filter or an attribute is no text"));
    }
    // A false value has nothing to select, whatever its type.
    let items = if filter == "__unique" || value.is_true() { operators::items(state, &value)? } else { Vec::new() };
    let mut all = vec![Value::from(items)];
    all.extend(args);
    let list = state.apply_filter(filter, &all)?;
    Ok(generator(operators::items(state, &list)?))
}
