//! Rendering as in transformers, assistant spans with and without `{% generation %}`, and the sources of templates.

use super::choice::CHATML as CHATML_BY_NAME;
use super::*;

const CHATML: &str = "{%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n";

/// Llama 2 and Mistral: the user's turn in brackets, the end-of-sequence token after the answer.
const BRACKETS: &str = "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'].strip() + ' [/INST]' }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}";

/// Gemma: the role of the assistant is `model`.
const MODEL: &str = "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}";

/// Reasoning models: thoughts are kept in the last answer only.
const THINKING: &str = "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' and loop.index0 > ns.last %}{{- '<a>\\n<think>\\n\\n</think>\\n\\n' + m.content + '<end>\\n' }}{%- else %}{{- ('<a>' if m.role == 'assistant' else '<u>') + '\\n' + m.content + '<end>\\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<a>\\n' }}{%- endif %}";

fn names() -> SpecialTokenNames {
    SpecialTokenNames { bos: Some("<s>".into()), eos: Some("</s>".into()), pad: None }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &names()).unwrap()
}

fn turns(texts: &[&str]) -> Vec<Message> {
    let role = |i: usize| if i.is_multiple_of(2) { "user" } else { "assistant" };
    texts.iter().enumerate().map(|(i, text)| Message::new(role(i), *text)).collect()
}

fn render(source: &str, messages: &[Message]) -> String {
    template(source).render(messages, GenerationPrompt::Omit).unwrap()
}

/// The assistant parts of the rendered text.
fn parts(source: &str, messages: &[Message]) -> Vec<String> {
    let template = template(source);
    let (text, spans) = template.render_with_spans(messages).unwrap();
    assert_eq!(text, template.render(messages, GenerationPrompt::Omit).unwrap());
    spans.into_iter().map(|span| text[span].to_string()).collect()
}

#[test]
fn known_shapes() {
    let talk = turns(&["a ", "b", "c"]);
    assert_eq!(
        template(CHATML).render(&talk[..1], GenerationPrompt::Add).unwrap(),
        "<|im_start|>user\na <|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(render(BRACKETS, &talk), "<s>[INST] a [/INST] b</s>[INST] c [/INST]");
    assert_eq!(
        template(MODEL).render(&talk, GenerationPrompt::Add).unwrap(),
        "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n<start_of_turn>user\nc<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(render(BUILTIN_TEMPLATE, &talk[..2]), "<|user|>\na <|end|>\n<|assistant|>\nb<|end|>\n");
    assert_eq!(
        template(BUILTIN_TEMPLATE).render(&talk[..1], GenerationPrompt::Add).unwrap(),
        "<|user|>\na <|end|>\n<|assistant|>\n"
    );
}

#[test]
fn assistant_parts() {
    let talk = turns(&["a", "b", "c", "dé"]);
    assert_eq!(parts(BUILTIN_TEMPLATE, &talk), ["b<|end|>", "dé<|end|>"]);
    assert_eq!(parts(CHATML, &talk), ["b<|im_end|>\n", "dé<|im_end|>\n"]);
    assert_eq!(parts(BRACKETS, &talk), [" b</s>", " dé</s>"]);
    assert_eq!(parts(MODEL, &talk), ["b<end_of_turn>\n", "dé<end_of_turn>\n"]);
    assert_eq!(parts(THINKING, &talk), ["b<end>\n", "<think>\n\n</think>\n\ndé<end>\n"]);
    assert_eq!(parts(CHATML, &talk[..1]), Vec::<String>::new());
    assert_eq!(parts(BUILTIN_TEMPLATE, &turns(&["a", ""])), ["<|end|>"]);
    let twice = [talk[0].clone(), talk[1].clone(), talk[1].clone()];
    assert_eq!(parts(CHATML, &twice), ["b<|im_end|>\n", "b<|im_end|>\n"]);
}

#[test]
fn turns_that_are_shortened_or_closed_late_are_found() {
    let turned = |texts: &[&str]| turns(texts);
    // A short answer that is also part of the markup.
    assert_eq!(parts(THINKING, &turned(&["a", "d", "c", "n"])), ["d<end>\n", "<think>\n\n</think>\n\nn<end>\n"]);
    let dropping = "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' and loop.index0 < ns.last %}{{- '<a>\n' + m.content.split('</think>')[-1].lstrip('\n') + '<end>\n' }}{%- else %}{{- ('<a>' if m.role == 'assistant' else '<u>') + '\n' + m.content + '<end>\n' }}{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<a>\n' }}{%- endif %}";
    let talk = turned(&["a", "<think>\nhm\n</think>\n\nyes", "b", "<think>\nso\n</think>\n\nno"]);
    assert_eq!(parts(dropping, &talk), ["yes<end>\n", "<think>\nso\n</think>\n\nno<end>\n"]);
    // Phi-3: every rendering without generation prompt ends with the end-of-sequence token.
    let closing = "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}{{ '<|assistant|>\n' if add_generation_prompt else eos_token }}";
    assert_eq!(parts(closing, &turned(&["a", "b", "c", "d"])), ["b<|end|>\n", "d<|end|>\n</s>"]);
}

/// Found by fuzzing: the end of a block shares a character with its beginning.
#[test]
fn blocks_without_a_word_are_refused() {
    for source in ["{%}", "{%}{% if %}", "{%-%}", "{%", "{%}%}", "{%-}{% generation %}"] {
        assert!(ChatTemplate::new(source, &names()).is_err(), "{source}");
    }
}

#[test]
fn a_template_without_end_is_stopped() {
    for source in [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace(s=[]) %}{% for i in range(300) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}",
    ] {
        let error = template(source).render(&turns(&["a"]), GenerationPrompt::Omit).unwrap_err().to_string();
        assert!(error.contains("refuses this conversation"), "{error}");
    }
}

#[test]
fn deeply_nested_values_do_not_end_the_program() {
    let source = "{% set ns = namespace(s=[]) %}{% for i in range(60000) %}{% set ns.s = [ns.s] %}{% endfor %}done";
    assert_eq!(render(source, &turns(&["a"])), "done");
}

#[test]
fn chatml_by_name_opens_once_and_marks_the_assistant() {
    let talk = turns(&["a", "b"]);
    let expected = "<s><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n";
    assert_eq!(render(&source_of("chatml").unwrap(), &talk), expected);
    assert_eq!(parts(CHATML_BY_NAME, &talk), ["b<|im_end|>"]);
    let without = ChatTemplate::new(CHATML_BY_NAME, &SpecialTokenNames::default()).unwrap();
    assert_eq!(without.render(&talk, GenerationPrompt::Omit).unwrap(), expected[3..]);
    let both = SpecialTokenNames { bos: Some("</s>".into()), eos: Some("</s>".into()), pad: None };
    let both = ChatTemplate::new(CHATML_BY_NAME, &both).unwrap();
    assert_eq!(both.render(&talk, GenerationPrompt::Omit).unwrap(), expected[3..]);
    let error = source_of("no-such-file").unwrap_err().to_string();
    assert!(error.contains("\"no-such-file\": give a Jinja file, or chatml"), "{error}");
}

#[test]
fn generation_blocks_keep_their_white_space_control() {
    let spaced = "{% for m in messages %}\n<{{ m.role }}>\n{% if m.role == 'assistant' %}\n    {%- generation -%}\n    {{ m.content }}\n    {% endgeneration %}\n{% else %}\n{{ m.content }}\n{% endif %}\n{% endfor %}\n";
    let talk = turns(&["a", "b"]);
    // Output of jinja2 3.1 with transformers' extension.
    assert_eq!(render(spaced, &talk), "<user>\na\n<assistant>\nb\n");
    assert_eq!(parts(spaced, &talk), ["b\n"]);
    let in_macro = "{% macro say(m) %}{% generation %}{{ m.content }}{% endgeneration %}{% endmacro %}{% for m in messages %}{{ say(m) if m.role == 'assistant' else m.content }};{% endfor %}";
    assert_eq!(parts(in_macro, &talk), ["b"]);
    let with_set = "{% for m in messages %}{% set x = m.content + '!' %}{% if m.role == 'assistant' %}{% generation %}{{ x }}{{ loop.index }}{% endgeneration %}{% endif %}{% endfor %}";
    assert_eq!(parts(with_set, &talk), ["b!2"]);
}

#[test]
fn content_that_looks_like_a_mark_is_left_alone() {
    let talk = turns(&["a", "\u{FDD0}b\u{FDD1}{% generation %}"]);
    assert_eq!(parts(BUILTIN_TEMPLATE, &talk), ["\u{FDD0}b\u{FDD1}{% generation %}<|end|>"]);
    // Found by fuzzing: a template that contains a mark, literally or by its code point.
    for mark in ["\u{FDD0}", "{{ '\\ufdd0' }}"] {
        let source = format!(
            "{{% for m in messages %}}{{% generation %}}{mark}{{{{ m.content }}}}{{% endgeneration %}}{{% endfor %}}"
        );
        assert_eq!(parts(&source, &turns(&["a"])), ["\u{FDD0}a"]);
    }
    let all: String = ('\u{FDD0}'..='\u{FDEF}').collect();
    let error = template(BUILTIN_TEMPLATE).render_with_spans(&turns(&[&all, "b"])).unwrap_err().to_string();
    assert!(error.contains("U+FDD0"), "{error}");
}

#[test]
fn a_template_that_cuts_a_marked_text_is_refused() {
    // Found by fuzzing: the marks were cut and counted with the text.
    let source = "{% set x %}{% generation %}{{ messages[0].content }}{% endgeneration %}{% endset %}{{ x[::2] }}";
    assert_eq!(template(source).render(&turns(&["abcde"]), GenerationPrompt::Omit).unwrap(), "ace");
    let error = template(source).render_with_spans(&turns(&["abcde"])).unwrap_err().to_string();
    assert!(error.contains("{% generation %}") && error.contains("cannot be told"), "{error}");
    // Reversed, the text is right and the marks are in the wrong order.
    let source = source.replace("[::2]", "[::-1]");
    assert_eq!(template(&source).render(&turns(&["abcde"]), GenerationPrompt::Omit).unwrap(), "edcba");
    let error = template(&source).render_with_spans(&turns(&["abcde"])).unwrap_err().to_string();
    assert!(error.contains("cannot be told"), "{error}");
}

#[test]
fn a_block_inside_another_belongs_to_the_outer_one() {
    // Found by fuzzing: the inner end closed the outer block, and the outer end started at the inner one.
    let source = "<{% generation %}a{% generation %}{{ messages[0].content }}{% endgeneration %}b{% endgeneration %}>";
    assert_eq!(parts(source, &turns(&["x"])), ["axb"]);
    let source =
        "<{% generation %}{% generation %}a{% endgeneration %}{% endgeneration %}>{% generation %}b{% endgeneration %}";
    assert_eq!(parts(source, &turns(&["x"])), ["a", "b"]);
}

#[test]
fn turns_that_seem_to_lie_in_each_other_are_refused() {
    // Found by fuzzing: one line per character of the last messages' representation, so no turn follows another.
    let source = "{% for m in messages[::-2] | join(', ') %}\n e%}\n{% endfor %}\n";
    let said = " G\0\0\0\0\0\0\0\0\0\0\0\0et(G\0üloop\u{7}";
    let talk: Vec<Message> =
        ["system", "user", "assistant", "user", "assistant"].iter().map(|role| Message::new(*role, said)).collect();
    let error = template(source).render_with_spans(&talk).unwrap_err().to_string();
    assert!(error.contains("cannot tell which part of the rendered conversation is message 5"), "{error}");
}

#[test]
fn the_dialect_of_transformers() {
    let m = turns(&["a\"<é>", "b"]);
    let table = [
        ("{{ messages[0].content | tojson }}", r#""a\"<é>""#),
        (
            "{{ messages | tojson }}",
            r#"[{"role": "user", "content": "a\"<é>"}, {"role": "assistant", "content": "b"}]"#,
        ),
        (
            "{{ {'a': [1, 2.5, true, none], 'b': {}, 'c': []} | tojson(indent=2) }}",
            "{\n  \"a\": [\n    1,\n    2.5,\n    true,\n    null\n  ],\n  \"b\": {},\n  \"c\": []\n}",
        ),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "assistant",
        ),
        ("{{ messages[1]['content'].upper() }}{{ ' x '.strip() }}{{ 'a,b'.split(',')[-1] }}", "Bxb"),
        ("{{ messages[1:] | length }}{{ (messages | last).content }}{{ messages[::-1][0].content }}", "1bb"),
        ("{% if tools is none and not (x is defined) %}ok{% endif %}{{ pad_token }}{{ eos_token }}", "ok</s>"),
        (
            "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n",
            "a\"<é>\n",
        ),
        ("{% for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}", "role=assistant;content=b;"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("{{ messages[1].get('name', 'none') }}{{ 'name' in messages[1] }}", "noneFalse"),
        ("{{ messages[1].content is string }}{{ messages[0] is mapping }}", "TrueTrue"),
    ];
    for (source, expected) in table {
        assert_eq!(render(source, &m), expected, "{source}");
    }
    // The date does not depend on the clock.
    assert_eq!(render("{{ strftime_now('%d %b %Y %H:%M') }}", &m), "26 Jul 2024 00:00");
}

#[test]
fn refusals_say_what_the_template_says() {
    let error =
        template(BRACKETS).render(&turns(&["a", "b", "c"])[1..], GenerationPrompt::Omit).unwrap_err().to_string();
    assert!(error.contains("refuses this conversation: Conversation roles must alternate"), "{error}");
    let error = ChatTemplate::new("a\n{% if %}", &names()).unwrap_err().to_string();
    assert!(error.contains("not valid") && error.contains("line 2"), "{error}");
    let error =
        template("{{ raise_exception('é' * 5000) }}").render(&[], GenerationPrompt::Omit).unwrap_err().to_string();
    assert!(error.contains("é…") && error.chars().count() < 1_100, "{error}");
    // Line numbers are those of the source, before rewriting.
    let source = "a\n{% if true %}\n{# two\nlines #}\n  {{ messages | length }}\n  {%- for m in messages %}\n\n{{ m.content % 1 }}{% endfor %}{% endif %}";
    let error = template(source).render(&turns(&["a"]), GenerationPrompt::Omit).unwrap_err().to_string();
    assert!(error.ends_with("(template line 8)"), "{error}");
    let error = template("{{ strftime_now('%') }}").render(&[], GenerationPrompt::Omit).unwrap_err().to_string();
    assert!(error.contains("strftime_now"), "{error}");
    // The number of messages comes first, so no rendering of fewer messages is a prefix of the whole.
    let counting = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let error = template(counting).render_with_spans(&turns(&["a", "b"])).unwrap_err().to_string();
    assert!(error.contains("message 2") && error.contains("{% generation %}"), "{error}");
}

#[test]
fn where_a_template_comes_from() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let rendered = || {
        let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
        template.render(&[], GenerationPrompt::Omit).unwrap()
    };
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    write("tokenizer_config.json", r#"{"bos_token":"<s>"}"#);
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    write("chat_template.json", r#"{"chat_template":"json"}"#);
    assert_eq!(rendered(), "json");
    write(
        "tokenizer_config.json",
        r#"{"bos_token":{"content":"<s>"},"chat_template":[{"name":"tool_use","template":"no"},{"name":"default","template":"{{bos_token}}config"}]}"#,
    );
    assert_eq!(rendered(), "<s>config");
    write("chat_template.jinja", "{{bos_token}}jinja\n");
    assert_eq!(rendered(), "<s>jinja");
    write("chat_template.jinja", "{% if");
    let error = format!("{:#}", ChatTemplate::from_dir(dir.path()).unwrap_err());
    assert!(error.contains("chat_template.jinja"), "{error}");
    std::fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    write("tokenizer_config.json", r#"{"chat_template":[{"name":"rag","template":"no"}]}"#);
    let error = format!("{:#}", ChatTemplate::from_dir(dir.path()).unwrap_err());
    assert!(error.contains("\"default\"") && error.contains("rag"), "{error}");
}

#[test]
fn tokens_of_a_chat_and_of_its_prompt_agree() {
    let texts = (0..4).map(|_| "user a b c assistant the answer is five ".to_string());
    let specials = [&BUILTIN_SPECIAL_TOKENS[..], &["<s>", "</s>"]].concat();
    let tokenizer = Tokenizer::train_bpe(texts, 300, &specials).unwrap();
    let talk = turns(&["a b", "the answer", "c", "is five"]);
    for source in [BUILTIN_TEMPLATE, BRACKETS] {
        let template = template(source);
        let (tokens, spans) = encode_chat(&tokenizer, &template, &talk).unwrap();
        let said: Vec<String> = spans.iter().map(|s| tokenizer.decode(&tokens[s.clone()]).unwrap()).collect();
        assert_eq!(said.iter().map(|s| s.trim()).collect::<Vec<_>>(), ["the answer", "is five"]);
        for (span, turn) in spans.iter().zip([1, 3]) {
            assert_eq!(encode_prompt(&tokenizer, &template, &talk[..turn]).unwrap(), tokens[..span.start]);
        }
        // The end of the turn has loss too.
        let end = tokenizer.token_to_id(if source == BRACKETS { "</s>" } else { "<|end|>" }).unwrap();
        assert!(spans.iter().all(|span| tokens[span.end - 1] == end));
        let bos = tokenizer.token_to_id("<s>").unwrap();
        let expected = if source == BRACKETS { 1 } else { 0 };
        assert_eq!(tokens.iter().filter(|t| **t == bos).count(), expected);
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The spans are the answers in order, for any content.
        #[test]
        fn spans_hold_the_answers(texts in proptest::collection::vec("[a-z<|>{}%é\\n]{0,12}", 2..7)) {
            let refs: Vec<&str> = texts.iter().map(String::as_str).collect();
            let talk = turns(&refs);
            let expected: Vec<String> = talk.iter().filter(|m| m.role == "assistant").map(|m| m.content.clone()).collect();
            let found: Vec<String> =
                parts(BUILTIN_TEMPLATE, &talk).iter().map(|p| p.strip_suffix("<|end|>").unwrap().to_string()).collect();
            prop_assert_eq!(&found, &expected);
            let found: Vec<String> =
                parts(CHATML, &talk).iter().map(|p| p.strip_suffix("<|im_end|>\n").unwrap().to_string()).collect();
            prop_assert_eq!(&found, &expected);
        }
    }
}

/// Widths, indents and repetitions consume fuel before they are allocated.
#[test]
fn large_values_are_refused_at_once() {
    for source in [
        "{{ messages | tojson(indent=9223372036854775807) }}",
        "{{ messages | tojson(indent=18446744073709551615) }}",
        "{{ messages | tojson(indent=1000000000) }}",
        "{{ messages | tojson(separators=('x' * 50000000, ':')) }}",
        "{{ '{:>18446744073709551615}'.format(1) }}",
        "{{ '{:>9223372036854775807}'.format(1) }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '{:.9223372036854775807f}'.format(1.5) }}",
        "{{ '{:{}}'.format(1, 1000000000) }}",
        "{{ ('{:>99999}' * 9999).format(1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ [0] * 100000000 }}",
        "{{ {'a': [[0] * 100000000]} }}",
        "{{ ([0] * 100000000) | string }}",
        "{{ ''.join([''] * 100000000) }}",
        "{{ ([0] * 100000000).count(1) }}",
        "{{ ([0] * 100000000) | join }}",
        "{{ messages[0] | attr([0] * 100000000) }}",
        "{{ messages[0] | attr({'a': [0] * 100000000}) }}",
        "{{ ([0] * 100000000) | tojson }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'.center(9223372036854775807) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a' | indent(1000000000, true) }}",
        "{{ 'a' * 99999999 }}",
        "{{ '' ~ [0] * 100000000 }}",
        "{{ [0] * 100000000 ~ '' }}",
        "{{ [0] * 100000000 in 'abc' }}",
        "{{ [[0] * 10000] * 10000 == [[0] * 10000] * 10000 }}",
        "{{ ([0] * 100000000)[99999999:] }}",
        "{{ ([0] * 100000000)[99999999] }}",
        "{{ '%s' % ([0] * 100000000) }}",
        "{{ '%9999999999d' % 1 }}",
        "{{ ('%40000d' * 9999) % ((1,) * 9999) }}",
        "{{ ([0] * 100000000) | title }}",
        "{{ ([0] * 100000000) | safe }}",
        "{{ raise_exception([0] * 100000000) }}",
        "{{ strftime_now([0] * 100000000) }}",
        "{{ strftime_now('é' * 3000000) }}",
        "{{ messages | map([0] * 100000000) | list }}",
        "{{ 'a'.expandtabs(1000000000) ~ '\t'.expandtabs(1000000000) }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(200) %}{% set ns.l = ns.l + ns.l %}{% endfor %}{{ ns.l | length }}",
        "{% for x in [0] * 100000000 %}{% endfor %}",
        "{{ {[0] * 100000000: 1} }}",
        "{{ ('\\n' * 999999) | sort }}",
        "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    ] {
        let begun = std::time::Instant::now();
        let error = template(source).render(&turns(&["a"]), GenerationPrompt::Omit).expect_err(source).to_string();
        assert!(error.contains("refuses this conversation"), "{source}: {error}");
        assert!(begun.elapsed().as_secs() < 10, "{source}: {:?}", begun.elapsed());
    }
}

#[test]
fn long_chains_do_not_end_the_program() {
    let elifs = "{% elif a %}".repeat(20_000);
    for source in [
        format!("{{{{ 1{} }}}}", "+1".repeat(20_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(60_000)),
        format!("{{{{ a{} }}}}", "|e".repeat(60_000)),
        format!("{{{{ a{} }}}}", "~'}}'".repeat(20_000)),
        format!("{{% raw %}}{{{{ ' {{% endraw %}}{{{{ 1{} }}}}", "+1".repeat(20_000)),
        format!("{{# ' #}}{{{{ 1{} }}}}", "+1".repeat(20_000)),
        format!("{{% if a %}}{elifs}{{% endif %}}"),
        format!("{{{{ {} }}}}", "(".repeat(60_000)),
        format!("{{{{ {}a }}}}", "not ".repeat(60_000)),
        "{% if a %}".repeat(20_000),
    ] {
        let error = ChatTemplate::new(&source, &names()).unwrap_err().to_string();
        assert!(error.contains("the chat template is not valid"), "{error}");
    }
    // The maximum depth.
    let sum = format!("{{{{ 1{} }}}}", "+1".repeat(1_990));
    assert_eq!(render(&sum, &turns(&["a"])), "1991");
    let choice = format!("{{% if a %}}{}b{{% else %}}c{{% endif %}}", "{% elif a %}".repeat(499));
    assert_eq!(render(&choice, &turns(&["a"])), "c");
}

/// Expected outputs are Python's.
#[test]
fn idioms_of_python() {
    for (source, expected) in [
        ("{{ {'b': 1, 'a': 'é🌮'} | tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":"é🌮","b":1}"#),
        ("{{ 'é🌮' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83c\udf2e""#),
        ("{{ [1, {}] | tojson(indent=2) }}", "[\n  1,\n  {}\n]"),
        ("{{ [1] | tojson(indent='\t') }}", "[\n\t1\n]"),
        ("{{ [1] | tojson(indent=none) }}", "[1]"),
        (
            "{{ 'banana'.index('n') }} {{ 'banana'.rindex('a') }} {{ 'banana'.find('n', 3) }} {{ 'a'.rfind('b') }}",
            "2 5 4 -1",
        ),
        ("{{ 'banana'.count('a', 2) }} {{ [1, 2, 1].index(2) }} {{ [1, 2, 1].count(1) }}", "2 1 2"),
        ("{{ 'banana'.removeprefix('ba') }} {{ 'banana'.removesuffix('na') }}", "nana bana"),
        ("{{ 'a=b=c'.partition('=')[2] }} {{ 'a=b=c'.rpartition('=')[0] }}", "b=c a=b"),
        (
            "{{ 'ab'.ljust(4) }}|{{ 'ab'.rjust(4, '.') }}|{{ 'ab'.center(5, '*') }}|{{ '-7'.zfill(4) }}",
            "ab  |..ab|**ab*|-007",
        ),
        ("{{ 'a\\u2028b\\r\\nc'.splitlines() | length }} {{ 'aB'.swapcase() }} {{ '12'.isdecimal() }}", "3 Ab True"),
        (
            "{{ 'abc'[::-1] }} {{ [1, 2, 3][::-1][0] }} {{ '{:>4}'.format(7) }} {{ 'ab'.startswith(('x', 'a')) }}",
            "cba 3    7 True",
        ),
    ] {
        assert_eq!(render(source, &turns(&["a"])), expected, "{source}");
    }
}

/// Outputs of transformers for every idiom; `tests/idioms.py` writes the file.
#[test]
fn idioms_of_transformers() {
    let mut lines = include_str!("../../tests/idioms.jsonl").lines().map(|line| serde_json::from_str(line).unwrap());
    let context: Value = lines.next().unwrap();
    let text_of = |value: &Value| value.as_str().unwrap().to_owned();
    let messages = context["messages"].as_array().unwrap().iter();
    let messages: Vec<Message> = messages.map(|m| Message::new(text_of(&m["role"]), text_of(&m["content"]))).collect();
    let arguments: TemplateArguments = serde_json::from_value(context["arguments"].clone()).unwrap();
    let (mut wrong, mut count) = (String::new(), 0);
    for line in lines {
        let (source, expected) = (text_of(&line["template"]), line["text"].as_str());
        let found = ChatTemplate::new(&source, &names())
            .and_then(|template| template.render_with(&messages, &arguments, GenerationPrompt::Omit));
        if found.as_deref().ok() != expected {
            wrong += &format!("{source}\n  expected {expected:?}\n  found    {found:?}\n");
        }
        count += 1;
    }
    assert!(count > 900, "{count} idioms");
    assert!(wrong.is_empty(), "{} of {count}:\n{wrong}", wrong.matches("\n  found ").count());
}
