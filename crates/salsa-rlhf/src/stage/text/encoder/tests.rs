//! Tokens of texts, prompts, responses and conversations.
use super::*;
use crate::{
    chat::{BUILTIN_SPECIAL_TOKENS, BUILTIN_TEMPLATE},
    tokenizer::SpecialTokenNames,
};

fn encoder(template: &str) -> Encoder {
    let texts = ["the cat sat on the mat", "yes and no"].map(str::to_owned);
    let tokenizer = Tokenizer::train_bpe(texts.into_iter(), 280, &BUILTIN_SPECIAL_TOKENS).unwrap();
    let names = SpecialTokenNames { bos: None, eos: Some("<|end|>".to_owned()), pad: None };
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    Encoder::new(tokenizer, Some(ChatTemplate::new(template, &names).unwrap()), vec![end])
}

fn learned(encoder: &Encoder, sequence: &Sequence) -> Vec<String> {
    let text = |range: &std::ops::Range<usize>| {
        encoder.tokenizer.decode_with_special(&sequence.tokens[range.clone()]).unwrap()
    };
    sequence.learned.iter().map(text).collect()
}

fn whole(encoder: &Encoder, tokens: &[u32]) -> String {
    encoder.tokenizer.decode_with_special(tokens).unwrap()
}

fn dialogue() -> Vec<Message> {
    [("user", "the cat?"), ("assistant", "yes"), ("user", "no"), ("assistant", " sat")]
        .map(|(role, content)| Message::new(role, content))
        .to_vec()
}

/// The built-in template without markers around assistant messages.
const UNMARKED: &str = "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>\n' }}\
                        {% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}";

#[test]
fn every_assistant_turn_is_learned_with_its_end_and_nothing_else() {
    for template in [BUILTIN_TEMPLATE, UNMARKED] {
        let encoder = encoder(template);
        let sequence = encoder.conversation(&dialogue().into()).unwrap();
        assert_eq!(learned(&encoder, &sequence), ["yes<|end|>", " sat<|end|>"]);
        assert_eq!(sequence.tokens.last(), encoder.ends().first(), "nothing follows the last turn");
    }
    let encoder = encoder(UNMARKED);
    assert_eq!(
        whole(&encoder, &encoder.conversation(&dialogue().into()).unwrap().tokens),
        "<|user|>the cat?<|end|>\n<|assistant|>yes<|end|>\n<|user|>no<|end|>\n<|assistant|> sat<|end|>"
    );
}

#[test]
fn a_turn_is_tokenised_as_it_is_generated() {
    let encoder = encoder(BUILTIN_TEMPLATE);
    let messages = dialogue();
    let (prompt, last) = (Content::from(messages[..3].to_vec()), Content::from(messages[3..].to_vec()));
    let (tokens, length) = encoder.prompt_and_response(&prompt, &last).unwrap();
    assert_eq!(tokens[..length], encoder.prompt(&prompt).unwrap());
    assert_eq!(tokens, encoder.conversation(&messages.into()).unwrap().tokens);
    let as_text = encoder.prompt_and_response(&prompt, &Content::Text(" sat".to_owned())).unwrap();
    assert_eq!(as_text, (tokens, length), "a text after messages is the assistant's message");
}

#[test]
fn completions_end_once() {
    let encoder = encoder(BUILTIN_TEMPLATE);
    for completion in [" sat", " sat<|end|>", " sat<|end|>\n"] {
        let example = Example::PromptCompletion {
            prompt: Content::Text("the cat".to_owned()),
            completion: Content::Text(completion.to_owned()),
        };
        let sequence = encoder.example(&example).unwrap();
        assert_eq!(learned(&encoder, &sequence), [" sat<|end|>"]);
        assert_eq!(whole(&encoder, &sequence.tokens), "the cat sat<|end|>");
    }
    let text = encoder.example(&Example::Text("yes".to_owned())).unwrap();
    assert_eq!(whole(&encoder, &text.tokens), "yes<|end|>");
}

#[test]
fn a_token_that_begins_sequences_may_begin_turns() {
    let begins = |template: &str, bos: &str| {
        let mut encoder = encoder(template);
        let dir = tempfile::tempdir().unwrap();
        let names = SpecialTokenNames { bos: Some(bos.to_owned()), eos: Some("<|end|>".to_owned()), pad: None };
        encoder.tokenizer.save(dir.path(), &names, None).unwrap();
        encoder.tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        encoder.begins_turns_with_bos()
    };
    let chatml = "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}";
    assert!(begins(chatml, "<|user|>"));
    assert!(!begins(chatml, "<|system|>") && !begins(&format!("<|system|>{chatml}"), "<|system|>"));
    assert!(!encoder(chatml).begins_turns_with_bos(), "the tokenizer has no such token");
}

#[test]
fn what_a_template_writes_behind_the_last_end_token_is_known() {
    let written = |template: &str| encoder(template).behind_the_end();
    assert_eq!(written(UNMARKED), Some("\n".to_owned()));
    let message = "{{ '<|' + message['role'] + '|>' + message['content'] }}";
    let each = |end: &str| format!("{{% for message in messages %}}{message}{end}{{% endfor %}}");
    assert_eq!(written(&each("<|end|>")), None);
    assert_eq!(written(&each("<|end|>\n\n")), Some("\n\n".to_owned()));
    assert_eq!(
        written(&each("{% if message['role'] == 'user' %}<|end|>{% endif %}")),
        None,
        "it has no end of its own"
    );
    assert_eq!(written("{{ raise_exception('no') }}"), None);
    assert_eq!(Encoder { template: None, ..encoder(UNMARKED) }.behind_the_end(), None);
}

/// Like Llama's: `<|begin
/// ` before every text, and `<|end
/// ` after it.
fn encoder_with_bos() -> Encoder {
    let dir = tempfile::tempdir().unwrap();
    let specials = ["<|begin|>", "<|end|>"];
    let tokenizer = Tokenizer::train_bpe(["the cat sat".to_owned()].into_iter(), 262, &specials).unwrap();
    let [bos, eos] = specials.map(|name| Some(name.to_owned()));
    tokenizer.save(dir.path(), &SpecialTokenNames { bos, eos, pad: None }, None).unwrap();
    let path = dir.path().join("tokenizer.json");
    let mut json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let special = |name: &str| serde_json::json!({"SpecialToken": {"id": name, "type_id": 0}});
    let text = serde_json::json!({"Sequence": {"id": "A", "type_id": 0}});
    let known = |id: u32, name: &str| serde_json::json!({"id": name, "ids": [id], "tokens": [name]});
    json["post_processor"] = serde_json::json!({
        "type": "TemplateProcessing", "single": [special("<|begin|>"), text, special("<|end|>")], "pair": [text],
        "special_tokens": {"<|begin|>": known(0, "<|begin|>"), "<|end|>": known(1, "<|end|>")},
    });
    std::fs::write(&path, json.to_string()).unwrap();
    Encoder::new(Tokenizer::from_dir(dir.path()).unwrap(), None, vec![1])
}

#[test]
fn a_sequence_begins_once_whatever_its_prompt_is() {
    let encoder = encoder_with_bos();
    for (prompt, written) in [("", "<|begin|>"), ("the", "<|begin|>the"), ("<|begin|>the", "<|begin|>the")] {
        let text = |text: &str| Content::Text(text.to_owned());
        let (tokens, length) = encoder.prompt_and_response(&text(prompt), &text(" cat")).unwrap();
        assert_eq!(whole(&encoder, &tokens[..length]), written, "{prompt:?}");
        assert_eq!(whole(&encoder, &tokens), format!("{written} cat<|end|>"));
        assert_eq!(encoder.prompt(&text(prompt)).unwrap(), tokens[..length]);
    }
    assert_eq!(whole(&encoder, &encoder.text("").unwrap()), "<|begin|><|end|>");
    let without = self::encoder(BUILTIN_TEMPLATE);
    assert!(without.prompt(&Content::Text(String::new())).unwrap().is_empty());
}

#[test]
fn what_cannot_be_learned_is_said() {
    let encoder = encoder(BUILTIN_TEMPLATE);
    let prompt = Content::Text("the cat".to_owned());
    let error = encoder.example(&Example::Prompt(prompt)).unwrap_err().to_string();
    assert!(error.contains("prompts without responses"), "{error}");
    let error = encoder.conversation(&dialogue()[..1].to_vec().into()).unwrap_err().to_string();
    assert!(error.contains("no message is the assistant's"), "{error}");
    let bare = Encoder::new(encoder.tokenizer, None, encoder.ends);
    let error = bare.prompt(&Content::from(dialogue())).unwrap_err().to_string();
    assert!(error.contains("has no chat template"), "{error}");
}

#[test]
fn a_response_that_was_cut_off_has_no_end() {
    let encoder = encoder(UNMARKED);
    let response = Content::Text(" sat".to_owned());
    for prompt in [Content::Text("the cat".to_owned()), Content::from(dialogue()[..3].to_vec())] {
        let (whole, _) = encoder.prompt_and_response(&prompt, &response).unwrap();
        let cut = encoder.prompt_and_cut_response(&prompt, &response).unwrap();
        assert_eq!([&cut[..], &encoder.ends()[..1]].concat(), whole);
    }
}

#[test]
fn truncation_modes() {
    let tokens = vec![1, 2, 3];
    assert_eq!(TruncationMode::KeepStart.apply(tokens.clone(), 2), Some((vec![1, 2], 0)));
    assert_eq!(TruncationMode::KeepEnd.apply(tokens.clone(), 2), Some((vec![2, 3], 1)));
    assert_eq!(TruncationMode::Drop.apply(tokens.clone(), 2), None);
    assert_eq!(TruncationMode::Drop.apply(tokens.clone(), 3), Some((tokens, 0)));
}

/// A short form of Qwen 3's: tools in front, and an empty thought if thinking is disabled.
const THINKING: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}{{ '<|' + m.role + '|>' }}\
                        {% if m.role == 'assistant' and quiet %}{{ '()' }}{% endif %}{{ m.content + '<|end|>' }}{% endfor %}\
                        {% if add_generation_prompt %}{{ '<|assistant|>' }}{% if quiet %}{{ '()' }}{% endif %}{% endif %}";

fn arguments(value: serde_json::Value) -> ChatArguments {
    serde_json::from_value(value).unwrap()
}

fn asked(columns: serde_json::Value) -> Example {
    let mut record = serde_json::json!({"messages": [
        {"role": "user", "content": "cat"}, {"role": "assistant", "content": "sat"}]});
    record.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    crate::data::example(record.as_object().unwrap().clone()).unwrap()
}

#[test]
fn template_arguments_of_the_run_and_of_the_record_reach_the_template() {
    use serde_json::json;
    let plain = "<|user|>cat<|end|><|assistant|>sat<|end|>";
    let quiet = "<|user|>cat<|end|><|assistant|>()sat<|end|>";
    let table = [
        (json!({}), json!({}), plain),
        (json!({"chat_template_kwargs": {"quiet": true}}), json!({}), quiet),
        (json!({}), json!({"chat_template_kwargs": {"quiet": true}}), quiet),
        (json!({"chat_template_kwargs": {"quiet": true}}), json!({"chat_template_kwargs": {"quiet": false}}), plain),
        (
            json!({"chat_template_kwargs": {"quiet": false}}),
            json!({"chat_template_kwargs": "{\"quiet\": true}"}),
            quiet,
        ),
    ];
    for marked in [false, true] {
        let generation = "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}";
        let template =
            if marked { THINKING.replace("{{ m.content + '<|end|>' }}", generation) } else { THINKING.into() };
        for (run, record, written) in &table {
            let encoder = encoder(&template).with_chat(&arguments(run.clone()));
            let example = asked(record.clone());
            assert_eq!(whole(&encoder, &encoder.example(&example).unwrap().tokens), *written, "{run} {record}");
            let prompt = example.prompt().unwrap();
            let (tokens, length) = encoder.prompt_and_response(&prompt, &Content::Text("sat".to_owned())).unwrap();
            assert_eq!(whole(&encoder, &tokens), *written, "{run} {record}");
            assert_eq!(whole(&encoder, &tokens[..length]), written.strip_suffix("sat<|end|>").unwrap());
            assert_eq!(encoder.prompt(&prompt).unwrap(), tokens[..length]);
        }
    }
}

#[test]
fn tools_reach_the_template_as_they_are_written() {
    let tools = serde_json::json!([{"type": "function", "function": {"name": "weather", "a": 1.5, "b": null}}]);
    let encoder = encoder(THINKING);
    let example = asked(serde_json::json!({ "tools": tools }));
    let written = whole(&encoder, &encoder.example(&example).unwrap().tokens);
    let list = r#"[{"type": "function", "function": {"name": "weather", "a": 1.5}}]"#;
    assert_eq!(written, format!("{list}\n<|user|>cat<|end|><|assistant|>sat<|end|>"));
}

#[test]
fn prompts_of_text_are_taken_as_the_key_says() {
    use serde_json::json;
    let chat = arguments(json!({"text_prompts": "chat"}));
    let (plain, chat) = (encoder(UNMARKED), encoder(UNMARKED).with_chat(&chat));
    let text = |text: &str| Content::Text(text.to_owned());
    for (encoder, prompt) in [(&plain, "the cat"), (&chat, "<|user|>the cat<|end|>\n<|assistant|>")] {
        let (tokens, length) = encoder.prompt_and_response(&text("the cat"), &text("sat")).unwrap();
        assert_eq!(whole(encoder, &tokens), format!("{prompt}sat<|end|>"));
        assert_eq!(whole(encoder, &tokens[..length]), prompt);
        assert_eq!(encoder.prompt(&text("the cat")).unwrap(), tokens[..length]);
        let cut = encoder.prompt_and_cut_response(&text("the cat"), &text("sat")).unwrap();
        assert_eq!(whole(encoder, &cut), format!("{prompt}sat"));
        // A text that is trained on from its start is no prompt.
        assert_eq!(whole(encoder, &encoder.example(&Example::Text("yes".to_owned())).unwrap().tokens), "yes<|end|>");
    }
    assert!(plain.text_prompt_note().unwrap().contains("text_prompts: chat makes each"));
    assert!(chat.text_prompt_note().unwrap().contains("each is the user's message"));
    let error = chat.prompt(&text("")).unwrap_err().to_string();
    assert!(error.contains("there is no prompt"), "{error}");
    let bare = Encoder { template: None, ..encoder(UNMARKED) };
    assert_eq!(bare.text_prompt_note(), None, "there is no choice");
    let bare = bare.with_chat(&arguments(json!({"text_prompts": "chat"})));
    let error = bare.prompt(&text("cat")).unwrap_err().to_string();
    assert!(error.contains("text_prompts is chat, but the model has no chat template"), "{error}");
}
