//! The metadata of a GGUF file: values by key.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, ensure};

/// The type of a value, by its number in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    Text = 8,
    List = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl Kind {
    const ALL: [Kind; 13] = {
        use Kind::*;
        [U8, I8, U16, I16, U32, I32, F32, Bool, Text, List, U64, I64, F64]
    };

    /// The type of a number in a file.
    pub(super) fn of_id(id: u32) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u32 == id)
    }

    /// Bytes of a value; for texts and lists, the least.
    pub(super) fn size(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::Text | Kind::U64 | Kind::I64 | Kind::F64 => 8,
            Kind::List => 12,
        }
    }
}

/// A value. Whole numbers of every width are one variant, and numbers of a list are kept as stored.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Whole(i128),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Kind, Vec<u8>),
}

impl Value {
    /// A number from its little-endian bytes.
    pub(super) fn number(kind: Kind, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let unsigned = u64::from_le_bytes(wide);
        match kind {
            Kind::I8 => Value::Whole((unsigned as i8).into()),
            Kind::I16 => Value::Whole((unsigned as i16).into()),
            Kind::I32 => Value::Whole((unsigned as i32).into()),
            Kind::I64 => Value::Whole((unsigned as i64).into()),
            Kind::F32 => Value::F32(f32::from_bits(unsigned as u32)),
            Kind::F64 => Value::F64(f64::from_bits(unsigned)),
            Kind::Bool => Value::Bool(unsigned != 0),
            Kind::U8 | Kind::U16 | Kind::U32 | Kind::U64 | Kind::Text | Kind::List => Value::Whole(unsigned.into()),
        }
    }

    /// What the value is, for messages.
    fn described(&self) -> String {
        match self {
            Value::Whole(number) => number.to_string(),
            Value::F32(number) => number.to_string(),
            Value::F64(number) => number.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::Text(text) => format!("{:?}", text.chars().take(40).collect::<String>()),
            Value::Texts(list) => format!("a list of {} texts", list.len()),
            Value::Numbers(kind, bytes) => format!("a list of {} numbers", bytes.len() / kind.size()),
        }
    }
}

/// The values of a file by key. A missing key is no error; one of another type is.
#[derive(Debug, Default)]
pub(super) struct Metadata(pub(super) BTreeMap<String, Value>);

impl Metadata {
    fn get<T>(&self, key: &str, wanted: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| anyhow!("{key} is {}: expected {wanted}", value.described()))
    }

    /// A whole number that is not negative.
    pub(super) fn size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |value| match value {
            Value::Whole(number) => usize::try_from(*number).ok(),
            _ => None,
        })
    }

    /// A whole number, or a list of equal ones (one for each block of the model).
    pub(super) fn size_of_all(&self, key: &str) -> Result<Option<usize>> {
        if !matches!(self.0.get(key), Some(Value::Numbers(..))) {
            return self.size(key);
        }
        let numbers = self.numbers(key)?.unwrap_or_default();
        let first = numbers.first().copied().unwrap_or(0.0);
        ensure!(
            first >= 0.0 && first.fract() == 0.0 && numbers.iter().all(|number| *number == first),
            "{key} differs from block to block: only models of equal blocks are supported"
        );
        Ok(Some(first as usize))
    }

    /// A number.
    pub(super) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a finite number", |value| match value {
            // The shortest decimal number of a float32 is what was meant.
            Value::F32(number) if number.is_finite() => number.to_string().parse().ok(),
            Value::F64(number) if number.is_finite() => Some(*number),
            _ => None,
        })
    }

    /// A truth value.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", |value| if let Value::Bool(value) = value { Some(*value) } else { None })
    }

    /// A text.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match value {
            Value::Text(text) => Ok(Some(text)),
            other => Err(anyhow!("{key} is {}: expected a text", other.described())),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &str) -> Result<Option<&[String]>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        match value {
            Value::Texts(list) => Ok(Some(list)),
            other => Err(anyhow!("{key} is {}: expected a list of texts", other.described())),
        }
    }

    /// A list of numbers.
    pub(super) fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.0.get(key) else { return Ok(None) };
        let Value::Numbers(kind, bytes) = value else {
            return Err(anyhow!("{key} is {}: expected a list of numbers", value.described()));
        };
        let number = |bytes| match Value::number(*kind, bytes) {
            Value::Whole(number) => number as f64,
            Value::F32(number) => number.into(),
            Value::F64(number) => number,
            _ => f64::NAN,
        };
        Ok(Some(bytes.chunks_exact(kind.size()).map(number).collect()))
    }
}
