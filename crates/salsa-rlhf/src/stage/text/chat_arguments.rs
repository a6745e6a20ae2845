//! How prompts become tokens: keys shared by all stages that read prompts.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::chat::TemplateArguments;

/// Settings for prompts besides the chat template itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ChatArguments {
    /// Arguments of the chat template for all records, such as `{enable_thinking: false}`; a record's column of this
    /// name overrides them. Empty: none. TRL: the same.
    pub chat_template_kwargs: TemplateArguments,
    /// How a prompt given as text, not messages, is interpreted if the model has a chat template. TRL: plain.
    pub text_prompts: TextPrompts,
}

/// How a prompt given as text is interpreted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextPrompts {
    /// A text that the response continues: the chat template is not applied.
    #[default]
    Plain,
    /// The user's message: the chat template is applied, and the response is the assistant's message.
    Chat,
}
