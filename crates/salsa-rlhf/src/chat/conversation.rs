//! Messages, and the arguments of the chat template.

use std::ops::Deref;

use anyhow::{Result, bail, ensure};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::Message;

/// A conversation: its messages, and its record's arguments of the chat template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The turns in order.
    pub messages: Vec<Message>,
    /// Arguments of this record; they override those of the run.
    pub arguments: TemplateArguments,
}

impl Deref for Conversation {
    type Target = [Message];

    fn deref(&self) -> &[Message] {
        &self.messages
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Conversation {
        Conversation { messages, arguments: TemplateArguments::default() }
    }
}

impl Serialize for Conversation {
    /// Serialises the list of messages; the arguments are separate columns, see [`TemplateArguments::columns`].
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.messages.serialize(serializer)
    }
}

/// Variables of a chat template besides `messages`: the keyword arguments that transformers' `apply_chat_template`
/// passes on, such as `enable_thinking`, and `tools`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct TemplateArguments(Map<String, Value>);

/// Parameters of `apply_chat_template` itself, which it would reject here or not pass on.
const RESERVED: [&str; 13] = [
    "conversation",
    "messages",
    "tools",
    "chat_template",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
];

impl TryFrom<Map<String, Value>> for TemplateArguments {
    type Error = anyhow::Error;

    fn try_from(arguments: Map<String, Value>) -> Result<TemplateArguments> {
        if let Some(name) = arguments.keys().find(|name| RESERVED.contains(&name.as_str())) {
            bail!("{name} is no argument of a chat template: it is set by other means, or by none");
        }
        Ok(TemplateArguments(arguments))
    }
}

impl JsonSchema for TemplateArguments {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TemplateArguments".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "object"})
    }
}

impl TemplateArguments {
    /// The column of data sets, and the key of stages, for arguments. TRL's name.
    pub const COLUMN: &str = "chat_template_kwargs";

    /// The column of data sets for tools.
    pub const TOOLS: &str = "tools";

    /// Parses the arguments of a record from these two columns. Each may also be a JSON text, as in TRL; empty ones are
    /// ignored. Values that are `null` are dropped: columnar files contain them if another record has a value.
    ///
    /// # Errors
    /// If the arguments are no mapping or have an invalid name, or the tools are no list of mappings.
    pub fn of_record(arguments: Option<&Value>, tools: Option<&Value>) -> Result<TemplateArguments> {
        let mut all = match arguments.map(|value| parsed(value, TemplateArguments::COLUMN)).transpose()? {
            None | Some(Value::Null) => TemplateArguments::default(),
            Some(Value::Object(given)) => TemplateArguments::try_from(without_nulls(given))?,
            Some(_) => bail!("column {}: expected a mapping", TemplateArguments::COLUMN),
        };
        match tools.map(|value| parsed(value, TemplateArguments::TOOLS)).transpose()? {
            None | Some(Value::Null) => {}
            Some(Value::Array(tools)) => {
                ensure!(
                    tools.iter().all(Value::is_object),
                    "column {}: expected a list of mappings, each the JSON schema of a tool",
                    TemplateArguments::TOOLS
                );
                if !tools.is_empty() {
                    let tools = tools.into_iter().map(pruned).collect();
                    all.0.insert(TemplateArguments::TOOLS.to_owned(), Value::Array(tools));
                }
            }
            Some(_) => bail!("column {}: expected a list of tools", TemplateArguments::TOOLS),
        }
        Ok(all)
    }

    /// Whether there are no arguments.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// These arguments, completed by those of `defaults` that are missing.
    pub fn over(&self, defaults: &TemplateArguments) -> TemplateArguments {
        let mut all = defaults.0.clone();
        all.extend(self.0.clone());
        TemplateArguments(all)
    }

    /// The columns of a record for these arguments.
    pub fn columns(&self) -> Map<String, Value> {
        let mut arguments = self.0.clone();
        let tools = arguments.shift_remove(TemplateArguments::TOOLS);
        let arguments = (!arguments.is_empty()).then_some(Value::Object(arguments));
        let columns = [(TemplateArguments::COLUMN, arguments), (TemplateArguments::TOOLS, tools)];
        columns.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Parses a JSON text; returns other values unchanged.
fn parsed(value: &Value, column: &str) -> Result<Value> {
    match value {
        Value::String(text) if text.trim().is_empty() => Ok(Value::Null),
        Value::String(text) => {
            serde_json::from_str(text).map_err(|error| anyhow::anyhow!("column {column}: the text is no JSON: {error}"))
        }
        value => Ok(value.clone()),
    }
}

fn without_nulls(mut map: Map<String, Value>) -> Map<String, Value> {
    map.retain(|_, value| !value.is_null());
    map.into_iter().map(|(name, value)| (name, pruned(value))).collect()
}

fn pruned(value: Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_nulls(map)),
        Value::Array(items) => Value::Array(items.into_iter().map(pruned).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(arguments: Value, tools: Value) -> Result<TemplateArguments> {
        TemplateArguments::of_record(Some(&arguments), Some(&tools))
    }

    #[test]
    fn columns_are_read_and_written_back() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string"}}}});
        let padded = json!([{"type": "function", "function": {"name": "f", "parameters": {"a": {"type": "string", "enum": null}, "b": null}}}]);
        let all = of(json!({"enable_thinking": false, "x": null}), padded).unwrap();
        let columns = json!({"chat_template_kwargs": {"enable_thinking": false}, "tools": [tool]});
        assert_eq!(Value::Object(all.columns()), columns);
        assert_eq!(of(json!("{\"enable_thinking\": false}"), json!(format!("[{tool}]"))).unwrap(), all);
        for nothing in [json!(null), json!(""), json!({})] {
            assert!(of(nothing, json!([])).unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_no_argument_is_refused() {
        let table = [
            (json!({"messages": []}), json!([]), "messages is no argument of a chat template"),
            (json!({"tools": []}), json!([]), "tools is no argument of a chat template"),
            (json!([1]), json!([]), "column chat_template_kwargs: expected a mapping"),
            (json!("{"), json!([]), "column chat_template_kwargs: the text is no JSON"),
            (json!({}), json!({"name": "f"}), "column tools: expected a list of tools"),
            (json!({}), json!(["f"]), "column tools: expected a list of mappings"),
        ];
        for (arguments, tools, part) in table {
            let error = of(arguments, tools).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_record_wins_over_the_run() {
        let read = |value: Value| serde_json::from_value::<TemplateArguments>(value).unwrap();
        let both = read(json!({"a": 1})).over(&read(json!({"a": 2, "b": 3})));
        assert_eq!(both, read(json!({"a": 1, "b": 3})));
    }
}
