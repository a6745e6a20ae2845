//! Foreign data and templates through the binary: recognition, display, and tokens with loss.
use std::fs;

mod tiny;

use tiny::Place;

const CHATS: &str = r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"},{"role":"user","content":"so"},{"role":"assistant","content":"no"}]}
{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"no"}]}
{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"no"}]}
"#;

/// A base model trained for a few steps, and chat data.
fn place() -> Place {
    let place = Place::new();
    place.write("texts.txt", "hi yes so no the quick brown fox ".repeat(40));
    place.write("chats.jsonl", CHATS);
    place.salsa(
        "pretrain --dataset texts.txt --output_dir base --vocab_size 300 --hidden_size 32 --num_hidden_layers 1 \
         --num_attention_heads 2 --max_position_embeddings 128 --max_length 64 --max_steps 2",
    );
    place
}

/// The exit code and the message of a failing command.
fn error(place: &Place, line: &str) -> (i32, String) {
    let output = place.command(&line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let message = stderr.lines().last().and_then(|line| line.strip_prefix("error: "));
    (output.status.code().unwrap(), message.unwrap_or_else(|| panic!("{line}: {stderr}")).to_owned())
}

fn stdout(place: &Place, line: &str) -> String {
    String::from_utf8(place.salsa(line).stdout).unwrap()
}

#[test]
fn data_are_shown_with_and_without_a_model() {
    let place = place();
    let plain = stdout(&place, "inspect chats.jsonl");
    for part in [
        "layout         messages\n",
        "recognised     TRL: messages\n",
        "examples       3\n",
        "duplicates     1 exact, 1 by prompt (2 prompts)\n",
        "lengths in characters (--model DIR counts tokens)",
        "\nexample 0\n[user] hi\n[assistant] ⟦yes⟧\n[user] so\n[assistant] ⟦no⟧\n",
    ] {
        assert!(plain.contains(part), "{part:?} is not in {plain}");
    }
    let with_model = stdout(&place, "inspect chats.jsonl --model base --example 1");
    for part in [
        "lengths in tokens",
        "bos            the tokenizer has none\n",
        "\nexample 1\n<|user|>\nhi<|end|>\n<|assistant|>\n⟦no<|end|>⟧\n",
    ] {
        assert!(with_model.contains(part), "{part:?} is not in {with_model}");
    }
    let chatml = stdout(&place, "inspect chats.jsonl --model base --chat_template chatml --example 1");
    assert!(
        chatml.contains("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n⟦no<|im_end|><|end|>⟧"),
        "{chatml}"
    );
    let (code, message) = error(&place, "inspect chats.jsonl --example 3");
    assert!(code == 1 && message.contains("the data set has 3 examples, counted from 0"), "{message}");
    let (_, message) = error(&place, "inspect chats.jsonl --split test");
    assert_eq!(message, "chats.jsonl (test) holds no examples");
}

#[test]
fn conversations_are_rendered_for_comparison() {
    let place = place();
    place.write("ask.jsonl", r#"{"messages":[{"role":"user","content":"hi"}],"add_generation_prompt":true}"#);
    let shown = stdout(&place, "inspect --render ask.jsonl --model base --json");
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["text"], "<|user|>\nhi<|end|>\n<|assistant|>\n");
    assert!(shown["tokens"].as_array().unwrap().len() > 4 && shown.get("learned").is_none(), "{shown}");
    let whole = stdout(&place, "inspect --render chats.jsonl --model base --json");
    let first: serde_json::Value = serde_json::from_str(whole.lines().next().unwrap()).unwrap();
    assert_eq!(first["learned"].as_array().unwrap().len(), 2, "{first}");
}

#[test]
fn a_template_that_is_named_is_learned_and_taken_along() {
    let place = place();
    fs::remove_file(place.path("base/chat_template.jinja")).unwrap();
    let config = place.path("base/tokenizer_config.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().remove("chat_template");
    place.write("base/tokenizer_config.json", json.to_string());
    let sft = "sft --model base --dataset chats.jsonl --output_dir out --max_steps 1 --max_shard_size 20KB";
    let (code, message) = error(&place, sft);
    assert!(code == 1 && message.contains("no chat template; say which one"), "{message}");
    assert!(message.contains("--chat_template FILE") && message.contains("--chat_template chatml"), "{message}");
    let (_, message) = error(&place, &format!("{sft} --chat_template nowhere.jinja"));
    assert!(message.contains("nowhere.jinja"), "{message}");
    place.salsa(&format!("{sft} --chat_template chatml"));
    let template = fs::read_to_string(place.path("out/chat_template.jinja")).unwrap();
    assert!(template.contains("<|im_start|>"), "{template}");
    // The weights are sharded, and `inspect` reports the chat template.
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(place.path("out/model.safetensors.index.json")).unwrap()).unwrap();
    assert!(index["weight_map"].as_object().unwrap().len() > 3);
    let shown = stdout(&place, "inspect out");
    assert!(shown.contains("chat template  yes"), "{shown}");
    let (code, message) = error(&place, "inspect nobody/nothing");
    assert!(code == 1 && message.contains("no file or folder nobody/nothing here"), "{message}");
    assert!(message.contains("HF_HUB_OFFLINE is set"), "{message}");
    place.write("mine.jinja", "{% for m in messages %}{{ m.role + ':' + m.content + '\\n' }}{% endfor %}");
    let mine = stdout(&place, "inspect chats.jsonl --model base --chat_template mine.jinja --example 1");
    assert!(mine.contains("user:hi\n⟦assistant:no\n<|end|>⟧"), "{mine}");
}

#[test]
fn a_published_split_is_trained_on_by_its_name() {
    let place = place();
    fs::create_dir_all(place.path("set/data")).unwrap();
    place.write("set/data/train_sft-00000-of-00001.jsonl", CHATS);
    place.write("set/data/test_sft-00000-of-00001.jsonl", CHATS.lines().next().unwrap());
    let (_, message) = error(&place, "sft --model base --dataset set --output_dir out --max_steps 1");
    assert!(message.contains("has the splits test_sft, train_sft. Say which one"), "{message}");
    place.write("sft.yaml", "dataset: {path: set, split: train_sft}\nmax_steps: 1\n");
    let output = place.salsa("sft --config sft.yaml --model base --output_dir out");
    let talk = String::from_utf8(output.stderr).unwrap();
    assert!(talk.contains("set (train_sft): 3 examples"), "{talk}");
    let shown = stdout(&place, "inspect set");
    assert!(shown.starts_with("splits         test_sft, train_sft\nsplit          train_sft\n"), "{shown}");
}

#[test]
fn a_part_is_shown_as_stages_take_it() {
    let place = Place::new();
    let names: Vec<String> = (0..26).map(|i| char::from(b'a' + i).to_string()).collect();
    place.write("prompts.jsonl", names.iter().map(|name| format!("{{\"prompt\":\"{name}\"}}\n")).collect::<String>());
    let count = |split: &str| {
        let shown = stdout(&place, &format!("inspect prompts.jsonl --split {split}"));
        assert!(shown.starts_with(&format!("split          {split}\n")), "{shown}");
        let line = shown.lines().find_map(|line| line.strip_prefix("examples       ")).unwrap();
        line.parse::<usize>().unwrap()
    };
    let parts = ["train", "validation", "test"].map(count);
    assert!(parts.iter().all(|&part| part > 0) && parts.iter().sum::<usize>() == 26, "{parts:?}");
    assert_eq!((count("eval"), count("all")), (parts[1], 26));
    let (_, message) = error(&place, "inspect prompts.jsonl --split sft");
    assert!(message.contains("has no split \"sft\": by prompt it can be divided"), "{message}");
}

#[test]
fn a_record_that_cannot_be_used_is_named() {
    let place = place();
    place.write("chats.jsonl", format!("{CHATS}{}\n", r#"{"messages":[{"role":"user","content":"hi"}]}"#));
    let (_, message) = error(&place, "sft --model base --dataset chats.jsonl --output_dir out");
    assert_eq!(message, "chats.jsonl, line 4: no message is the assistant's, so there is nothing to learn");
    assert_eq!(error(&place, "inspect chats.jsonl --model base").1, message);
    let (_, message) = error(&place, "reward --model base --dataset chats.jsonl --output_dir out");
    assert_eq!(message, "chats.jsonl, line 1: this is messages; preferences (chosen and rejected) are needed");
}

/// The text of the tokens before a response.
#[test]
fn every_layout_with_a_prompt_can_be_answered() {
    let place = place();
    let rows = [
        r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"yes"}]}"#,
        r#"{"messages":[{"role":"user","content":"hi"}]}"#,
        r#"{"conversations":[{"from":"human","value":"hi"},{"from":"gpt","value":"yes"}]}"#,
        r#"{"instruction":"hi","output":"yes"}"#,
        r#"{"turns":["hi","so"]}"#,
        r#"{"prompt":[{"role":"user","content":"hi"}]}"#,
    ];
    place.write("in.jsonl", rows.join("\n"));
    place.salsa("generate --model base --input in.jsonl --output out.jsonl --max_new_tokens 2 --temperature 0");
    let lines = String::from_utf8(place.bytes("out.jsonl")).unwrap();
    let tokens = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["tokens"].clone();
    let made: Vec<_> = lines.lines().map(tokens).collect();
    assert_eq!(made.len(), rows.len());
    for (row, tokens) in rows.iter().zip(&made) {
        assert_eq!(tokens, &made[1], "{row}");
    }
    place.write("in.jsonl", r#"{"text":"hi"}"#);
    let (_, message) = error(&place, "generate --model base --input in.jsonl --output out.jsonl");
    assert_eq!(message, "in.jsonl: line 1: this record has no prompt");
}

/// Every stage interprets text prompts in the same way and reports it; one key changes it.
#[test]
fn how_prompts_of_text_are_taken_is_told_by_every_stage() {
    let place = place();
    let pair = r#"{"prompt":"hi","chosen":" yes","rejected":" no"}"#;
    place.write("pairs.jsonl", format!("{pair}\n{pair}"));
    place.write("asked.jsonl", r#"{"prompt":"hi","response":" yes"}"#);
    place.write("question.jsonl", r#"{"question":"hi","chosen":" yes","rejected":" no"}"#);
    let stages = [
        "sft --model base --dataset pairs.jsonl --output_dir out --max_steps 1",
        "dpo --model base --dataset pairs.jsonl --eval_dataset pairs.jsonl --output_dir out --max_steps 1",
        "generate --model base --input asked.jsonl --output out.jsonl --max_new_tokens 2",
        "logprobs --model base --input asked.jsonl --output out.jsonl",
        "inspect pairs.jsonl --model base",
    ];
    let told = |line: &str| {
        let _ = fs::remove_dir_all(place.path("out"));
        let talk = String::from_utf8(place.salsa(line).stderr).unwrap();
        let lines: Vec<String> = talk.lines().filter(|line| line.contains("plain text")).map(str::to_owned).collect();
        lines
    };
    for line in stages {
        let (plain, chat) = (told(line), told(&format!("{line} --text-prompts chat")));
        assert!(matches!(&plain[..], [one] if one.contains("the model's chat template is not applied")), "{plain:?}");
        assert!(matches!(&chat[..], [one] if one.contains("each is the user's message")), "{chat:?}");
    }
    let messages = stages[1].replace("pairs.jsonl", "question.jsonl");
    assert_eq!(told(&messages), [] as [&str; 0]);
    // A text prompt used as the user's message equals a message prompt.
    let tokens = |input: &str, more: &str| {
        place.write("in.jsonl", input);
        place.salsa(&format!(
            "generate --model base --input in.jsonl --output out.jsonl --max_new_tokens 2 --temperature 0 {more}"
        ));
        let lines = String::from_utf8(place.bytes("out.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(&lines).unwrap()["tokens"].clone()
    };
    let asked = tokens(r#"{"prompt":[{"role":"user","content":"hi"}]}"#, "");
    assert_eq!(tokens(r#"{"prompt":"hi"}"#, "--text_prompts chat"), asked);
    assert_ne!(tokens(r#"{"prompt":"hi"}"#, ""), asked);
}

/// Unused columns are reported by `inspect`, by stages (once, however often a set is read) and for rows.
#[test]
fn columns_that_are_not_read_are_named() {
    let place = place();
    let pair = r#"{"question":"hi","chosen":"yes","rejected":"no","rationale":"it is short and it is right"}"#;
    place.write("pairs.jsonl", format!("{pair}\n{pair}"));
    let row = r#"{"prompt":"hi","response":"yes","system":"s","rationale":"it is short and it is right"}"#;
    place.write("rows.jsonl", row);
    let told = |line: &str| {
        let talk = String::from_utf8(place.salsa(line).stderr).unwrap();
        talk.matches("columns that are not read: rationale (").count()
    };
    assert_eq!(told("inspect pairs.jsonl"), 1);
    assert_eq!(
        told("dpo --model base --dataset pairs.jsonl --eval_dataset pairs.jsonl --output_dir out --max_steps 1"),
        1
    );
    assert_eq!(told("logprobs --model base --input rows.jsonl --output out.jsonl"), 1);
    place.write("bare.jsonl", r#"{"chosen":"yes","rejected":"no"}"#);
    let talk = String::from_utf8(place.salsa("inspect bare.jsonl").stderr).unwrap();
    assert!(talk.contains("bare.jsonl: no pair has a prompt"), "{talk}");
}

/// Template arguments of a run and of a record, in display and in computation.
#[test]
fn template_arguments_are_keys_and_columns() {
    let place = place();
    place.write(
        "base/chat_template.jinja",
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.role + (mark or ':') + m.content + '<|end|>' }}{% endfor %}\
         {% if add_generation_prompt %}{{ 'assistant' + (mark or ':') }}{% endif %}",
    );
    let arguments = "--chat_template_kwargs.mark =";
    let shown = stdout(&place, "inspect chats.jsonl --model base --example 1 --chat-template-kwargs {\"mark\":\"=\"}");
    assert!(shown.contains("user=hi<|end|>assistant=⟦no<|end|>⟧"), "{shown}");
    place.write("in.jsonl", r#"{"messages":[{"role":"user","content":"hi"}]}"#);
    place.write("own.jsonl", r#"{"messages":[{"role":"user","content":"hi"}],"chat_template_kwargs":{"mark":"="}}"#);
    let tokens = |input: &str, more: &str| {
        place.salsa(&format!(
            "generate --model base --input {input} --output out.jsonl --max_new_tokens 2 --temperature 0 {more}"
        ));
        let lines = String::from_utf8(place.bytes("out.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(&lines).unwrap()["tokens"].clone()
    };
    assert_eq!(tokens("in.jsonl", arguments), tokens("own.jsonl", ""));
    assert_ne!(tokens("in.jsonl", arguments), tokens("in.jsonl", ""));
    let (code, message) =
        error(&place, "generate --model base --input in.jsonl --output o --chat_template_kwargs.tools 1");
    assert!(code == 2 && message.contains("tools is no argument of a chat template"), "{code} {message}");
}
