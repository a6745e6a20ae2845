//! File sizes in a human-readable format.
use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error};

/// A number of bytes; read from a number or from text such as `500MB` or `5GB` (powers of ten).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ByteSize(pub u64);

const UNITS: [(&str, u64); 5] =
    [("KB", 1_000), ("MB", 1_000_000), ("GB", 1_000_000_000), ("TB", 1_000_000_000_000), ("B", 1)];

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ByteSize, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        let wrong = |text: &str| D::Error::custom(format!("{text:?} is no size; write bytes, or such as 5GB"));
        match Written::deserialize(deserializer).map_err(|_| wrong("this"))? {
            Written::Bytes(bytes) => Ok(ByteSize(bytes)),
            Written::Text(text) => parse(&text).map(ByteSize).ok_or_else(|| wrong(&text)),
        }
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"anyOf": [
            {"type": "integer", "minimum": 0, "title": "bytes"},
            {"type": "string", "pattern": "^ *[0-9.]+ *([kKmMgGtT]?[bB])? *$", "title": "5GB"}
        ]})
    }
}

fn parse(text: &str) -> Option<u64> {
    let text = text.trim().to_uppercase();
    let (number, unit) =
        UNITS.iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit))).unwrap_or((text.as_str(), 1));
    let bytes = number.trim().parse::<f64>().ok()? * unit as f64;
    (0.0..9e18).contains(&bytes).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    #[test]
    fn numbers_and_units() {
        let read = |value: Value| from_value::<ByteSize>(value).map(|size| size.0).map_err(|e| e.to_string());
        assert_eq!(read(json!(7)), Ok(7));
        assert_eq!(read(json!("5GB")), Ok(5_000_000_000));
        assert_eq!(read(json!("1.5 mb")), Ok(1_500_000));
        assert_eq!(read(json!("12")), Ok(12));
        assert_eq!(read(json!("many")).unwrap_err(), "\"many\" is no size; write bytes, or such as 5GB");
        assert!(read(json!("-1GB")).is_err() && read(json!(-1)).is_err() && read(json!("nanGB")).is_err());
    }
}
