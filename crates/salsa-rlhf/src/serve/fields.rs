//! The fields of a request body, each taken once; remaining ones are reported as unsupported.
use std::ops::RangeInclusive;

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::error::ApiError;

/// The fields not taken yet. A field that is null counts as absent.
pub(super) struct Fields(Map<String, Value>);

impl Fields {
    /// Parses a body, which must be a JSON object. Nesting deeper than 128 is an error of the parser.
    ///
    /// # Errors
    /// If it is not a JSON object.
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

    /// Whether a field exists.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Takes a field, unparsed.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.0.shift_remove(name)
    }

    /// Takes a required field.
    ///
    /// # Errors
    /// If it is missing.
    pub(super) fn needed(&mut self, name: &str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| ApiError::invalid(name, format!("{name} is missing")))
    }

    /// Takes a string.
    ///
    /// # Errors
    /// If the field has another type.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, ApiError> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(expected(name, "a text", &other)),
        }
    }

    /// Takes a boolean; false if absent.
    ///
    /// # Errors
    /// If the field has another type.
    pub(super) fn flag(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(expected(name, "true or false", &other)),
        }
    }

    /// Takes an integer in a range.
    ///
    /// # Errors
    /// If the field has another type or is out of range.
    pub(super) fn count(&mut self, name: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_i64().ok_or_else(|| expected(name, "a whole number", &value))?;
        if range.contains(&number) {
            return Ok(Some(number));
        }
        let (least, most) = (range.start(), range.end());
        Err(ApiError::invalid(name, format!("{name} is {number}; it must be between {least} and {most}")))
    }

    /// Takes a finite number.
    ///
    /// # Errors
    /// If the field has another type or is not finite.
    pub(super) fn number(&mut self, name: &str) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let number = value.as_f64().map(|number| number as f32).filter(|number| number.is_finite());
        number.map(Some).ok_or_else(|| expected(name, "a finite number", &value))
    }

    /// Takes an unsupported field, which may only have a value without effect.
    ///
    /// # Errors
    /// If it has another value.
    pub(super) fn require_no_effect(
        &mut self,
        name: &str,
        changes_nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), ApiError> {
        match self.take(name) {
            Some(value) if !changes_nothing(&value) => {
                Err(ApiError::unsupported(name, format!("{name} is not supported here; leave it out")))
            }
            _ => Ok(()),
        }
    }

    /// Checks that every field was taken.
    ///
    /// # Errors
    /// The first field that was not taken.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        match self.0.keys().next() {
            Some(name) => Err(ApiError::unsupported(name, format!("there is no parameter {name:?} here"))),
            None => Ok(()),
        }
    }
}

/// The error for a value of the wrong type.
pub(super) fn expected(param: &str, what: &str, found: &Value) -> ApiError {
    ApiError::invalid(param, format!("{param} is {}; it must be {what}", kind(found)))
}

/// The type of a value, for messages.
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

/// Returns a test for this number.
pub(super) fn is(number: f64) -> impl Fn(&Value) -> bool {
    move |value| value.as_f64() == Some(number)
}

/// Returns a test for this boolean.
pub(super) fn is_flag(flag: bool) -> impl Fn(&Value) -> bool {
    move |value| value.as_bool() == Some(flag)
}

/// Whether a value is an empty string, list or object.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}
