//! Chat templates: the source, and behind `\n---\n` what the messages say.
#![no_main]

use libfuzzer_sys::fuzz_target;
use salsa_rlhf::chat::{ChatTemplate, GenerationPrompt, Message};
use salsa_rlhf::tokenizer::SpecialTokenNames;

#[path = "../ceiling.rs"]
mod ceiling;
#[path = "../seeds.rs"]
mod seeds;

fuzz_target!(init: seeds::write(seeds::templates()), |input: &[u8]| {
    let (source, said) = ceiling::cut(input).unwrap_or((input, b"hello"));
    let (Ok(source), Ok(said)) = (std::str::from_utf8(source), std::str::from_utf8(said)) else { return };
    let names = SpecialTokenNames { bos: Some("<s>".into()), eos: Some("</s>".into()), pad: None };
    let Ok(template) = ChatTemplate::new(source, &names) else { return };
    let roles = ["system", "user", "assistant", "user", "assistant"];
    let messages: Vec<Message> = roles.iter().map(|role| Message::new(*role, said)).collect();
    for messages in [&messages[..], &messages[1..3], &messages[1..2], &[]] {
        let plain = template.render(messages, GenerationPrompt::Omit);
        let _ = template.render(messages, GenerationPrompt::Add);
        let marked = template.render_with_spans(messages);
        if let (Ok(plain), Ok((text, spans))) = (plain, marked)
            && !source.contains("strftime_now")
        {
            assert_eq!(plain, text);
            let mut end = 0;
            for span in spans {
                assert!(span.start >= end && text.get(span.clone()).is_some(), "{span:?} in {text:?}");
                end = span.end;
            }
        }
    }
});
