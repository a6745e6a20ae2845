//! Built-in named chat templates: those of mergekit's `chat_template`.
//!
//! Each is the training format of the models of that name, with the assistant's part marked.

use super::choice::CHATML;

/// The names.
pub(crate) const NAMES: [&str; 4] = ["chatml", "llama3", "alpaca", "mistral"];

/// The template of this name.
pub(crate) fn source(name: &str) -> Option<&'static str> {
    match name {
        "chatml" => Some(CHATML),
        "llama3" => Some(LLAMA3),
        "alpaca" => Some(ALPACA),
        "mistral" => Some(MISTRAL),
        _ => None,
    }
}

/// Llama 3: a header with the role, `<|eot_id|>` at the end of a turn, nothing between turns.
const LLAMA3: &str = "{% if bos_token is defined %}{{ bos_token }}{% endif %}\
{% for message in messages %}\
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\
{% if message['role'] == 'assistant' %}\
{% generation %}{{ (message['content'] | trim) + '<|eot_id|>' }}{% endgeneration %}\
{% else %}{{ (message['content'] | trim) + '<|eot_id|>' }}{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}";

/// Alpaca: headings, separated by empty lines.
const ALPACA: &str = "{% for message in messages %}\
{% if not loop.first %}{{ '\\n\\n' }}{% endif %}\
{% if message['role'] == 'system' %}{{ message['content'] | trim }}\
{% elif message['role'] == 'user' %}{{ '### Instruction:\\n' + (message['content'] | trim) }}\
{% elif message['role'] == 'user_context' %}{{ '### Input:\\n' + (message['content'] | trim) }}\
{% else %}{{ '### Response:\\n' }}\
{% generation %}{{ message['content'] | trim }}{% if eos_token is defined %}{{ eos_token }}{% endif %}{% endgeneration %}\
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}{{ '\\n\\n### Response:\\n' }}{% endif %}";

/// Mistral: `[INST]` around user messages, the end token after each answer; a system message precedes the first user
/// message.
const MISTRAL: &str = "{% if messages[0]['role'] == 'system' %}\
{% set preamble = messages[0]['content'] + '\\n\\n' %}{% set turns = messages[1:] %}\
{% else %}{% set preamble = '' %}{% set turns = messages %}{% endif %}\
{% if bos_token is defined %}{{ bos_token }}{% endif %}\
{% for message in turns %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) or message['role'] not in ['user', 'assistant'] %}\
{{ raise_exception('user and assistant must take turns, after at most one system message') }}{% endif %}\
{% if message['role'] == 'user' %}\
{{ ' [INST] ' + (preamble if loop.first else '') + message['content'] + ' [/INST]' }}\
{% else %}{{ ' ' }}{% generation %}{{ message['content'] + (eos_token if eos_token is defined else '') }}{% endgeneration %}\
{% endif %}\
{% endfor %}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{ChatTemplate, GenerationPrompt, Message};
    use crate::tokenizer::SpecialTokenNames;

    fn render(name: &str, talk: &[(&str, &str)], prompt: GenerationPrompt) -> anyhow::Result<String> {
        let tokens =
            SpecialTokenNames { bos: Some("<s>".to_owned()), eos: Some("</s>".to_owned()), ..Default::default() };
        let messages: Vec<Message> = talk.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        ChatTemplate::new(source(name).unwrap(), &tokens)?.render(&messages, prompt)
    }

    const TALK: [(&str, &str); 3] = [("system", "Be brief."), ("user", "Salt? "), ("assistant", "Yes.")];

    #[test]
    fn each_has_the_format_of_its_models() {
        let whole = |name| render(name, &TALK, GenerationPrompt::Omit).unwrap();
        assert_eq!(
            whole("llama3"),
            "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>\
             <|start_header_id|>user<|end_header_id|>\n\nSalt?<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>"
        );
        assert_eq!(whole("alpaca"), "Be brief.\n\n### Instruction:\nSalt?\n\n### Response:\nYes.</s>");
        assert_eq!(whole("mistral"), "<s> [INST] Be brief.\n\nSalt?  [/INST] Yes.</s>");
    }

    #[test]
    fn each_asks_for_an_answer() {
        let prompt = |name| render(name, &TALK[1..2], GenerationPrompt::Add).unwrap();
        assert!(prompt("llama3").ends_with("Salt?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"));
        assert_eq!(prompt("alpaca"), "### Instruction:\nSalt?\n\n### Response:\n");
        assert_eq!(prompt("mistral"), "<s> [INST] Salt?  [/INST]");
        assert!(render("mistral", &TALK[2..], GenerationPrompt::Omit).is_err());
    }

    #[test]
    fn every_name_has_a_template_and_no_other() {
        assert!(NAMES.into_iter().all(|name| source(name).is_some()));
        assert_eq!(source("exaone"), None);
    }
}
