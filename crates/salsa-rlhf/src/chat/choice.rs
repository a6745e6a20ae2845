//! A chat template named by the user, in place of the model's own.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::named;
use crate::input;

/// ChatML, with the assistant's part marked. It opens with the beginning-of-sequence token where the tokenizer has one
/// that is not also its end.
pub const CHATML: &str = "{% if bos_token is defined and bos_token != eos_token %}{{ bos_token }}{% endif %}\
{% for message in messages %}\
{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}\
{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// What to say where a model has no template and messages are to be rendered.
pub const CHOICES: &str = "say which one it was or shall be trained with: --chat_template FILE (a Jinja file) or \
     --chat_template chatml where it is trained (pretrain, sft, reward, dpo); or put a chat_template.jinja beside its tokenizer";

/// Whether this is the name of a template that is built in, or a template itself, and so no file.
pub fn is_name_or_text(choice: &str) -> bool {
    choice == "auto" || named::source(choice).is_some() || choice.contains('{')
}

/// The Jinja source that `choice` names: one of [`named::NAMES`], anything else a file.
///
/// # Errors
/// When there is no such file, or it cannot be read.
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
