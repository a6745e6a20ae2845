//! The fields of a request's body, each taken once: what is left over is not supported and is named.
use std::ops::RangeInclusive;

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields that were not taken yet. A field that is null counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// The fields of a body, which must be a JSON object. Nesting deeper than 128 is refused by the parser.
    ///
    /// # Errors
    /// If it is none.
    pub(super) fn parse(body: &[u8]) -> Result<Fields, ApiError> {
        let wrong = |what: String| ApiError::malformed(StatusCode::BAD_REQUEST, what);
        match serde_json::from_slice(body) {
            Ok(Value::Object(mut fields)) => {
                fields.retain(|_, value| !value.is_null());
                Ok(Fields(fields))
            }
            Ok(other) => Err(wrong(format!("the body is {}; it must be a JSON object", kind(&other)))),
            Err(error) => Err(wrong(format!("the body is no valid JSON: {error}"))),
        }
    }

    /// Whether a field is there.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// A field as it is.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// A field that must be there.
    ///
    /// # Errors
    /// If it is not.
    pub(super) fn needed(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::invalid(name, format!("{name} is missing")))
    }

    /// A text.
    ///
    /// # Errors
    /// If the field is something else.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a text", &other)),
        }
    }

    /// True or false; false where it is absent.
    ///
    /// # Errors
    /// If the field is something else.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(expected(name, "true or false", &other)),
        }
    }

    /// A whole number in a range.
    ///
    /// # Errors
    /// If the field is something else.
    pub(super) fn count(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| expected(name, "a whole number", &value))?;
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let (least, most) = (range.start(), range.end());
        Err(ApiError::invalid(name, format!("{name} is {number}; it must be between {least} and {most}")))
    }

    /// A finite number.
    ///
    /// # Errors
    /// If the field is something else.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| expected(name, "a finite number", &value))
    }

    /// Takes a field that may only have a value which changes nothing.
    ///
    /// # Errors
    /// If it has another one.
    pub(super) fn neutral(&mut self, name: &str, changes_nothing: impl Fn(&Value) -> bool) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !changes_nothing(&value) => {
                Err(ApiError::unsupported(name, format!("{name} is not supported here; leave it out")))
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that every field was taken.
    ///
    /// # Errors
    /// Names the first one that was not.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            Some(name) => Err(ApiError::unsupported(name, format!("there is no parameter {name:?} here"))),
            None => Ok(()),
        }
    }
}

/// A value of another kind than the one that is needed.
pub(super) fn expected(param: &str, what: &str, found: &Value) -> ApiError {
    ApiError::invalid(param, format!("{param} is {}; it must be {what}", kind(found)))
}

/// What a value is, for messages.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Whether a value is a number equal to this one.
pub(super) fn is(number: f64) -> impl Fn(&Value) -> bool {
    move |value| value.as_f64() == Some(number)
}

/// Whether a value is this truth value.
pub(super) fn is_flag(flag: bool) -> impl Fn(&Value) -> bool {
    move |value| value.as_bool() == Some(flag)
}

/// Whether a value is an empty text, list or object.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
