//! A chat template named by the user, in place of the model's own.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::named;
use crate::input;

/// ChatML, with the assistant's part marked. It starts with the beginning-of-sequence token if the tokenizer has one
/// that differs from its end token.
pub const CHATML: &str = "{% if bos_token is defined and bos_token != eos_token %}{{ bos_token }}{% endif %}\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}\
{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Remedy for a model without a template when messages are to be rendered.
pub const CHOICES: &str = "say which one it was or shall be trained with: --chat_template FILE (a Jinja file) or \
     --chat_template chatml where it is trained (pretrain, sft, reward, dpo, kto, orpo, cpo); or put a chat_template.jinja beside its tokenizer";

/// Whether this is the name of a built-in template, or a template itself, rather than a file.
pub fn is_name_or_text(choice: &str) -> bool {
    choice == "auto" || named::source(choice).is_some() || choice.contains('{')
}

/// Returns the Jinja source for `choice`: one of `named::NAMES`, or else a file.
///
/// # Errors
/// If there is no such file, or it cannot be read.
pub fn source_of(choice: &str) -> Result<String> {
    if let Some(source) = named::source(choice) {
        return Ok(source.to_owned());
    }
    let path = Path::new(choice);
    if !path.exists() {
        bail!("there is no chat template {choice:?}: give a Jinja file, or {}", named::NAMES.join(", "));
    }
    input::read_to_string(path).with_context(|| format!("cannot read the chat template {choice}"))
}
