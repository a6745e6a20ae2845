//! How prompts become tokens: the keys of every stage that reads some.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::TemplateArguments;

/// What is done with prompts besides the chat template itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ChatArguments {
    /// Arguments of the chat template for all records, such as `{enable_thinking: false}`; those of a record, in a column of
    /// this name, win. Empty: none. TRL: the same.
    pub chat_template_kwargs: TemplateArguments,
    /// What a prompt that is text and not messages is taken for, where the model has a chat template. TRL: plain.
    pub text_prompts: TextPrompts,
}

/// What a prompt of text is taken for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextPrompts {
    /// The beginning of a text that the response goes on with: the chat template is not applied.
    #[default]
    Plain,
    /// What the user says: the chat template makes a conversation of it, and of its response the assistant's message.
    Chat,
}
