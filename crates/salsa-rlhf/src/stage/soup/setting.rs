//! A number that may vary by tensor: mergekit's filters and gradients.
use std::borrow::Cow;

use anyhow::{Context, bail, ensure};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use serde_json::Value;

/// One number for all tensors, a gradient over the layers, or a list of filters.
///
/// ```yaml
/// t: 0.5
/// t: [0, 0.3, 1]                                       # from the first layer to the last
/// t: [{filter: self_attn, value: 0.2}, {filter: mlp, value: [0, 1]}, {value: 0.5}]
/// ```
///
/// A gradient's values are equally spaced over the layers and linearly interpolated; embedding, last norm and head take
/// the first one. The first filter whose text is part of the tensor's name applies; one without text, or with `*`,
/// matches all.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Setting {
    /// The same rule for all tensors.
    Everywhere(Ramp),
    /// By tensor name.
    Filters(Vec<Filter>),
}

/// One number, or several over the layers.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Ramp {
    /// The same in all layers.
    Number(f64),
    /// From the first layer to the last; at least one value.
    Gradient(Vec<f64>),
}

/// A value for the tensors whose name contains this text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Filter {
    /// The text; `None` or `*`: all tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// The value.
    pub value: Ramp,
}

impl Setting {
    /// The same number for all tensors.
    pub fn number(value: f64) -> Setting {
        Setting::Everywhere(Ramp::Number(value))
    }

    /// The number for a tensor at relative depth `place`, from 0 in the first layer to 1 in the last; `None` if no
    /// filter matches.
    pub fn at(&self, tensor: &str, place: f64) -> Option<f64> {
        match self {
            Setting::Everywhere(ramp) => Some(ramp.at(place)),
            Setting::Filters(filters) => {
                let fits = |text: &str| text == "*" || tensor.contains(text);
                let filter = filters.iter().find(|filter| filter.filter.as_deref().is_none_or(fits));
                filter.map(|filter| filter.value.at(place))
            }
        }
    }

    /// The number, if it is the same for all tensors.
    pub fn constant(&self) -> Option<f64> {
        match self {
            Setting::Everywhere(Ramp::Number(value)) => Some(*value),
            _ => None,
        }
    }

    /// All numbers of the setting.
    pub fn numbers(&self) -> Vec<f64> {
        match self {
            Setting::Everywhere(ramp) => ramp.numbers().to_vec(),
            Setting::Filters(filters) => filters.iter().flat_map(|filter| filter.value.numbers()).copied().collect(),
        }
    }

    /// This setting, with `next` as fallback if no filter matches.
    pub(super) fn or(self, next: Setting) -> Setting {
        match self {
            Setting::Filters(mut filters) => {
                filters.extend(match next {
                    Setting::Everywhere(value) => vec![Filter { filter: None, value }],
                    Setting::Filters(more) => more,
                });
                Setting::Filters(filters)
            }
            everywhere => everywhere,
        }
    }

    /// Parses a setting.
    ///
    /// # Errors
    /// If the value has another form; the error names it.
    pub(super) fn read(value: &Value) -> anyhow::Result<Setting> {
        match value {
            Value::Array(items) if items.iter().any(Value::is_object) => {
                let filters = items.iter().enumerate();
                let read = |(i, item)| Filter::read(item).with_context(|| format!("filter {}", i + 1));
                Ok(Setting::Filters(filters.map(read).collect::<anyhow::Result<_>>()?))
            }
            Value::Object(_) => Ok(Setting::Filters(vec![Filter::read(value)?])),
            _ => Ok(Setting::Everywhere(Ramp::read(value)?)),
        }
    }
}

impl Ramp {
    fn at(&self, place: f64) -> f64 {
        match self {
            Ramp::Number(value) => *value,
            Ramp::Gradient(values) => {
                let scaled = place * (values.len() - 1) as f64;
                let from = (scaled as usize).min(values.len() - 1);
                let (to, share) = ((from + 1).min(values.len() - 1), scaled - from as f64);
                (1.0 - share) * values[from] + share * values[to]
            }
        }
    }

    fn numbers(&self) -> &[f64] {
        match self {
            Ramp::Number(value) => std::slice::from_ref(value),
            Ramp::Gradient(values) => values,
        }
    }

    fn read(value: &Value) -> anyhow::Result<Ramp> {
        let number = |value: &Value| value.as_f64().with_context(|| format!("{value} is no number"));
        match value {
            Value::Array(values) => {
                ensure!(!values.is_empty(), "an empty list is no gradient; give at least one number");
                Ok(Ramp::Gradient(values.iter().map(number).collect::<anyhow::Result<_>>()?))
            }
            Value::Number(_) => Ok(Ramp::Number(number(value)?)),
            other => bail!("{other} is no number, no list of numbers and no list of filters"),
        }
    }
}

impl Filter {
    fn read(value: &Value) -> anyhow::Result<Filter> {
        let fields =
            value.as_object().with_context(|| format!("{value} is no filter; write {{filter: mlp, value: 1}}"))?;
        if let Some(key) = fields.keys().find(|key| !["filter", "value"].contains(&key.as_str())) {
            bail!("a filter has no key {key:?}; it has filter and value");
        }
        let filter = match fields.get("filter") {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(other) => bail!("filter is {other}; give a part of the tensors' names"),
        };
        let value = fields.get("value").context("a filter without a value")?;
        Ok(Filter { filter, value: Ramp::read(value)? })
    }
}

impl<'de> Deserialize<'de> for Setting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Setting, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Setting::read(&value).map_err(|error| D::Error::custom(format!("{error:#}")))
    }
}

impl JsonSchema for Setting {
    fn schema_name() -> Cow<'static, str> {
        "Setting".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let number = json_schema!({"type": "number"});
        let gradient = json_schema!({
            "type": "array", "minItems": 1, "items": number,
            "description": "Numbers at equal distances from the first layer to the last, with straight lines between them."
        });
        let filter = json_schema!({
            "type": "object",
            "properties": {
                "filter": {
                    "type": ["string", "null"], "description": "A part of the tensors' names; none or `*`: all tensors."
                },
                "value": {"anyOf": [number, gradient], "description": "The number for them, or a list over the layers."}
            },
            "required": ["value"],
            "description": "The first filter that fits a tensor decides."
        });
        json_schema!({"anyOf": [number, gradient, filter, {"type": "array", "items": filter}]})
    }
}

/// Relative depth of a tensor in the layers, from 0 to 1; 0 outside of them.
pub(super) fn place(tensor: &str, layers: usize) -> f64 {
    let layer = tensor.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
    match layer {
        None => 0.0,
        Some(_) if layers < 2 => 1.0,
        Some(layer) => layer as f64 / (layers - 1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(setting: Value, tensor: &str, layers: usize) -> Option<f64> {
        Setting::read(&setting).unwrap().at(tensor, place(tensor, layers))
    }

    #[test]
    fn gradients_run_over_the_layers() {
        let layer = |i: usize| format!("model.layers.{i}.mlp.up_proj.weight");
        let values = |gradient: Value, layers| -> Vec<f64> {
            (0..layers).map(|i| at(gradient.clone(), &layer(i), layers).unwrap()).collect()
        };
        assert_eq!(values(json!([0, 1]), 5), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert_eq!(values(json!([0, 1, 0]), 5), [0.0, 0.5, 1.0, 0.5, 0.0]);
        assert_eq!(values(json!([3, 7, 9]), 2), [3.0, 9.0]);
        assert_eq!(values(json!([2, 4]), 1), [4.0]);
        assert_eq!(values(json!([2]), 3), [2.0; 3]);
        for outside in ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "score.weight"] {
            assert_eq!(at(json!([2, 4]), outside, 3), Some(2.0));
        }
    }

    #[test]
    fn the_first_filter_that_fits_decides() {
        let t = json!([{"filter": "self_attn", "value": [0, 1]}, {"filter": "mlp", "value": 3}, {"value": 0.5}]);
        assert_eq!(at(t.clone(), "model.layers.2.self_attn.q_proj.weight", 3), Some(1.0));
        assert_eq!(at(t.clone(), "model.layers.2.mlp.down_proj.weight", 3), Some(3.0));
        assert_eq!(at(t, "model.norm.weight", 3), Some(0.5));
        let all = json!([{"filter": "*", "value": 2}, {"filter": "mlp", "value": 3}]);
        assert_eq!(at(all, "model.layers.0.mlp.down_proj.weight", 3), Some(2.0));
        let some = json!({"filter": "mlp", "value": 3});
        assert_eq!(at(some.clone(), "model.norm.weight", 3), None);
        let both = Setting::read(&some).unwrap().or(Setting::number(7.0));
        assert_eq!((both.at("mlp", 0.0), both.at("norm", 0.0)), (Some(3.0), Some(7.0)));
        assert_eq!(Setting::number(1.0).or(both), Setting::number(1.0));
    }

    #[test]
    fn they_are_written_as_they_are_read() {
        for text in [json!(0.5), json!([0.0, 1.0]), json!([{"filter": "mlp", "value": [1.0, 2.0]}, {"value": 0.5}])] {
            let setting: Setting = serde_json::from_value(text.clone()).unwrap();
            assert_eq!(serde_json::to_value(setting).unwrap(), text);
        }
    }

    #[test]
    fn what_is_no_setting_is_said() {
        let refused = |value: Value| format!("{:#}", Setting::read(&value).unwrap_err());
        assert!(refused(json!("much")).contains("\"much\" is no number"));
        assert!(refused(json!([])).contains("an empty list is no gradient"));
        assert!(refused(json!([1, "x"])).contains("\"x\" is no number"));
        assert!(refused(json!([{"filter": "mlp"}])).contains("filter 1: a filter without a value"));
        assert!(refused(json!([{"value": 1}, 2])).contains("filter 2: 2 is no filter"));
        assert!(refused(json!([{"value": 1, "layer": 2}])).contains("a filter has no key \"layer\""));
        assert!(refused(json!([{"filter": 1, "value": 2}])).contains("filter is 1"));
    }
}
