//! Each layout, each error, the golden splits, and the real files if present.

use std::io::Write;

use super::*;

mod beside;
mod causes;
mod layouts;
mod parquet;
mod splits;
mod too_large;
mod whole;

fn user(text: &str) -> Message {
    Message::new("user", text)
}

fn assistant(text: &str) -> Message {
    Message::new("assistant", text)
}

/// Loads `text` as a file of this name.
fn load_as(name: &str, text: &str) -> Result<Dataset> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    load(&path)
}

fn one(json: &str) -> Example {
    let set = load_as("x.jsonl", json).unwrap();
    assert_eq!((set.examples.len(), set.buckets.len()), (1, 1));
    assert_eq!(set.layout, set.examples[0].layout());
    set.examples[0].clone()
}

fn refusal(name: &str, text: &str) -> String {
    format!("{:#}", load_as(name, text).unwrap_err())
}

fn pair(prompt: Content, chosen: Content, rejected: Content) -> Preference {
    Preference { prompt, chosen, rejected, margin: None, score_chosen: None, score_rejected: None }
}

fn text(text: &str) -> Content {
    Content::Text(text.into())
}

#[test]
fn plain_layouts() {
    assert_eq!(one(r#"{"text":" a\n","id":1,"prompt":null}"#), Example::Text(" a\n".into()));
    assert_eq!(one(r#"{"prompt":"p "}"#), Example::Prompt(text("p ")));
    assert_eq!(
        one(r#"{"prompt":"p","completion":" c"}"#),
        Example::PromptCompletion { prompt: text("p"), completion: text(" c") }
    );
    assert_eq!(
        one(r#"{"prompt":"p","response":"r"}"#),
        Example::PromptCompletion { prompt: text("p"), completion: text("r") }
    );
    assert_eq!(
        one(r#"{"prompt":"p","chosen":"c","rejected":"r","margin":0.5,"score_chosen":8,"score_rejected":7.5}"#),
        Example::Preference(Preference {
            margin: Some(0.5),
            score_chosen: Some(8.0),
            score_rejected: Some(7.5),
            ..pair(text("p"), text("c"), text("r"))
        })
    );
}

#[test]
fn conversations() {
    let turns = vec![Message::new("system", "s"), user("u"), assistant("a")];
    let json = r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"u"}]},{"role":"assistant","content":"a"}]}"#;
    assert_eq!(one(json), Example::Messages(turns.clone().into()));
    let json =
        r#"{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"u"},{"from":"gpt","value":"a"}]}"#;
    assert_eq!(one(json), Example::Messages(turns.clone().into()));
    assert_eq!(one(json).prompt(), Some(Content::Messages(turns[..2].to_vec().into())));
    assert_eq!(
        one(r#"{"prompt":[{"role":"user","content":"u"}],"completion":"a"}"#),
        Example::PromptCompletion { prompt: vec![user("u")].into(), completion: vec![assistant("a")].into() }
    );
    assert_eq!(
        one(r#"{"prompt":"u","completion":[{"role":"assistant","content":"a"}]}"#),
        Example::PromptCompletion { prompt: vec![user("u")].into(), completion: vec![assistant("a")].into() }
    );
    assert_eq!(
        one(r#"{"question_id":81,"category":"writing","turns":["first","second"]}"#),
        Example::Prompt(vec![user("first")].into())
    );
    assert_eq!(one(r#"{"turns":[{"content":"first"}]}"#), Example::Prompt(vec![user("first")].into()));
}

#[test]
fn instructions() {
    let said = |asked: &str| Example::PromptCompletion {
        prompt: vec![user(asked)].into(),
        completion: vec![assistant("o")].into(),
    };
    assert_eq!(one(r#"{"instruction":"i","input":"","output":"o"}"#), said("i"));
    assert_eq!(one(r#"{"instruction":"i","input":"x","response":"o"}"#), said("i\n\nx"));
    assert_eq!(one(r#"{"question":"q","answer":"o"}"#), said("q"));
    assert_eq!(
        one(r#"{"instruction":"i","input":"","output":"o","rejected":"r","chosen":"o"}"#),
        Example::Preference(pair(vec![user("i")].into(), vec![assistant("o")].into(), vec![assistant("r")].into()))
    );
}

#[test]
fn preferences_among_messages() {
    let expected = Example::Preference(pair(
        vec![user("u")].into(),
        vec![assistant("good")].into(),
        vec![assistant("bad")].into(),
    ));
    let u = r#"{"role":"user","content":"u"}"#;
    let good = r#"{"role":"assistant","content":"good"}"#;
    let bad = r#"{"role":"assistant","content":"bad"}"#;
    for json in [
        format!(r#"{{"prompt":[{u}],"chosen":[{good}],"rejected":[{bad}]}}"#),
        format!(r#"{{"prompt":[{u}],"chosen":[{u},{good}],"rejected":[{u},{bad}]}}"#),
        format!(r#"{{"prompt":[{u}],"chosen":"good","rejected":"bad"}}"#),
        format!(r#"{{"prompt":"u","chosen":[{u},{good}],"rejected":[{u},{bad}],"messages":[{u},{good}]}}"#),
        format!(r#"{{"prompt":"u","chosen":[{good}],"rejected":[{bad}]}}"#),
        format!(r#"{{"chosen":[{u},{good}],"rejected":[{u},{bad}]}}"#),
    ] {
        assert_eq!(one(&json), expected, "{json}");
    }
    let json = format!(r#"{{"chosen":[{u},{good}],"rejected":[{{"role":"user","content":"other"}},{bad}]}}"#);
    let error = refusal("x.jsonl", &json);
    assert!(error.contains("line 1") && error.contains("must continue the same conversation"), "{error}");
}

#[test]
fn a_shared_beginning_is_the_prompt_and_cuts_no_word() {
    assert_eq!(
        one(r#"{"chosen":"Q: one two A: forty","rejected":"Q: one two A: four"}"#),
        Example::Preference(pair(text("Q: one two A:"), text(" forty"), text(" four")))
    );
    assert_eq!(one(r#"{"chosen":"ab","rejected":"ac"}"#), Example::Preference(pair(text(""), text("ab"), text("ac"))));
    // é and è share their first byte.
    assert_eq!(one(r#"{"chosen":"é","rejected":"è"}"#), Example::Preference(pair(text(""), text("é"), text("è"))));
}

#[test]
fn hh_transcripts() {
    let two = r#"{"chosen":"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: Because.","rejected":"\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: "}"#;
    assert_eq!(
        one(two),
        Example::Preference(pair(
            vec![user("Hi"), assistant("Hello"), user("Why?")].into(),
            vec![assistant("Because.")].into(),
            vec![assistant("")].into(),
        ))
    );
    // A marker inside a reply stays text, and consecutive turns of one speaker are one message.
    let odd = r#"{"chosen":"\n\nHuman: a\n\nHuman: b\n\nAssistant: x\n\nAssistant: y","rejected":"\n\nHuman: a\n\nHuman: b\n\nAssistant: z"}"#;
    assert_eq!(
        one(odd),
        Example::Preference(pair(
            vec![user("a\n\nb")].into(),
            vec![assistant("x\n\nAssistant: y")].into(),
            vec![assistant("z")].into(),
        ))
    );
    let prompt = r#"{"prompt":"\n\nHuman: Hi\n\nAssistant:","chosen":" yes","rejected":" no"}"#;
    assert_eq!(
        one(prompt),
        Example::Preference(pair(vec![user("Hi")].into(), vec![assistant("yes")].into(), vec![assistant("no")].into()))
    );
    for end in [" ", "\n", " \n\n"] {
        let open = serde_json::json!({ "prompt": format!("\n\nHuman: Hi\n\nAssistant:{end}") });
        assert_eq!(one(&open.to_string()), Example::Prompt(vec![user("Hi")].into()), "{end:?} is no turn");
    }
    let strangers = r#"{"chosen":"\n\nHuman: a\n\nAssistant: x","rejected":"\n\nHuman: b\n\nAssistant: x"}"#;
    assert!(refusal("x.jsonl", strangers).contains("different prompts"));
}

#[test]
fn a_conversation_asks_for_its_last_answer_or_for_the_next() {
    let asked = |turns: &[Message]| Example::Messages(turns.to_vec().into()).prompt();
    let turns = [user("a"), assistant("b"), user("c"), assistant("d")];
    assert_eq!(asked(&turns), Some(Content::Messages(turns[..3].to_vec().into())));
    assert_eq!(asked(&turns[..3]), Some(Content::Messages(turns[..3].to_vec().into())), "nobody has answered c");
    assert_eq!(asked(&turns[1..2]), None);
}

#[test]
fn records_keep_their_places() {
    let kept = "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}";
    let lines = format!("{}\n\n{kept}\n", kept.replace('b', "a"));
    let lines = load_as("x.jsonl", &lines).unwrap();
    assert!(lines.places[0].to_string().ends_with("x.jsonl, line 3"), "{}", lines.places[0]);
    let array = load_as("x.json", &format!("[{kept},\n{kept}]")).unwrap();
    assert!(array.places[1].to_string().ends_with("x.json, record 2"), "{}", array.places[1]);
}

#[test]
fn identical_pairs_are_dropped_and_counted() {
    let set = load_as(
        "x.jsonl",
        "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"a\"}\n{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\"}\n",
    )
    .unwrap();
    assert_eq!((set.examples.len(), set.dropped_identical), (1, 1));
    let error = refusal("x.jsonl", r#"{"prompt":"p","chosen":"a","rejected":"a"}"#);
    assert!(error.contains("identical or equally rated answers"), "{error}");
}

#[test]
fn files_of_every_kind_hold_the_same_records() {
    let lines = "{\"text\":\"a\u{2028}b\"}\r\n\n{\"text\":\"c\"}";
    let array = "\n [\n {\"text\":\n\"a\u{2028}b\"},\n {\"text\":\"c\"}\n]\n";
    let expected = vec![Example::Text("a\u{2028}b".into()), Example::Text("c".into())];
    for (name, text) in
        [("x.jsonl", lines), ("x.json", lines), ("x.json", array), ("X.JSONL", &format!("\u{feff}{lines}"))]
    {
        assert_eq!(load_as(name, text).unwrap().examples, expected, "{name}");
    }
    let dir = tempfile::tempdir().unwrap();
    // Two members, as from `cat a.gz b.gz`.
    let mut bytes = Vec::new();
    for part in ["{\"text\":\"a\u{2028}b\"}\n{\"te", "xt\":\"c\"}\n"] {
        let mut member = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        member.write_all(part.as_bytes()).unwrap();
        bytes.extend(member.finish().unwrap());
    }
    let path = dir.path().join("x.jsonl.gz");
    std::fs::write(&path, &bytes).unwrap();
    assert_eq!(load(&path).unwrap().examples, expected);
    std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
    let error = format!("{:#}", load(&path).unwrap_err());
    assert!(error.contains("x.jsonl.gz is no complete gzip file"), "{error}");
    assert_eq!(load_as("x.txt", "all\nof it\n").unwrap().examples, [Example::Text("all\nof it\n".into())]);
}

#[test]
fn a_folder_is_its_files_in_name_order() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("b.jsonl", "B"), ("a.json", "A"), ("README.md", "no data"), ("c.jsonl", "C")] {
        std::fs::write(dir.path().join(name), format!("{{\"text\":\"{text}\"}}\n")).unwrap();
    }
    let set = load(dir.path()).unwrap();
    assert_eq!(set.examples, ["A", "B", "C"].map(|t| Example::Text(t.into())));
    std::fs::write(dir.path().join("c.jsonl"), "{\"text\":\"D\"}").unwrap();
    assert_ne!(load(dir.path()).unwrap().sha256, set.sha256);
    std::fs::write(dir.path().join("d.jsonl"), "{\"prompt\":\"D\"}").unwrap();
    let error = format!("{:#}", load(dir.path()).unwrap_err());
    assert!(error.contains("d.jsonl, line 1") && error.contains("a.json, line 1"), "{error}");
}

#[test]
fn the_hash_is_of_the_file_on_disk() {
    let set = load_as("x.jsonl", "{\"text\":\"a\"}\n").unwrap();
    // printf '{"text":"a"}\n' | sha256sum
    assert_eq!(set.sha256, "314d3a971f6f7c623e7dceb546ddde0687e41e9df02b0edc52ddb4a7a77f57e3");
}

#[test]
fn refusals_name_the_place_and_the_remedy() {
    let table: &[(&str, &str, &[&str])] = &[
        ("x.jsonl", "", &["holds no records"]),
        ("x.json", "[]", &["holds no records"]),
        ("x.txt", "", &["holds no records"]),
        (
            "x.jsonl",
            "{\"text\":\"a\"}\n{\"tex",
            &["x.jsonl, line 2", "no valid JSON at column", "one whole object on each line"],
        ),
        ("x.json", "{\n \"text\": \"a\"\n}", &["line 1", "one whole object on each line"]),
        ("x.json", "[{\"text\":\"a\"},", &["x.json, record 2 (line 1): no valid JSON"]),
        ("x.jsonl", "{\"text\":\"\u{1}\"}", &["line 1", "control character"]),
        ("x.jsonl", "[1]", &["line 1", "expected an object", "a list"]),
        ("x.json", "[1]", &["record 1", "expected an object", "a number"]),
        ("x.jsonl", "{\"b\":1,\"a\":2}", &["line 1", "no known layout: a, b.", "Expected one of: text | messages"]),
        ("x.jsonl", "{}", &["no known layout: none"]),
        ("x.jsonl", "{\"text\":null}", &["no known layout: none"]),
        ("x.jsonl", "{\"text\":1}", &["column text: expected text, found a number"]),
        (
            "x.jsonl",
            "{\"text\":\"a\"}\n\n{\"prompt\":\"b\"}",
            &["line 3", "this record is prompt as text", "line 1) is text"],
        ),
        (
            "x.jsonl",
            "{\"prompt\":\"a\"}\n{\"prompt\":[{\"role\":\"user\",\"content\":\"b\"}]}",
            &["line 2", "prompt as messages", "prompt as text"],
        ),
        ("x.jsonl", "{\"messages\":[]}", &["column messages: the list of messages is empty"]),
        ("x.jsonl", "{\"chosen\":[],\"rejected\":[]}", &["column chosen: the list of messages is empty"]),
        ("x.jsonl", "{\"messages\":[{\"role\":\"user\"}]}", &["message 1", "has no content"]),
        ("x.jsonl", "{\"messages\":[{\"content\":\"a\"}]}", &["message 1", "has no role"]),
        ("x.jsonl", "{\"messages\":[{\"role\":\"a\",\"content\":null,\"tool_calls\":null}]}", &["content is null"]),
        ("x.jsonl", "{\"messages\":[{\"role\":\"a\",\"content\":null,\"tool_calls\":[{}]}]}", &["tool calls"]),
        (
            "x.jsonl",
            "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":null}",
            &["column chosen is there but rejected is missing or null"],
        ),
        ("x.jsonl", "{\"messages\":[{\"role\":\"a\",\"content\":[{\"type\":\"image\"}]}]}", &["only text can be read"]),
        ("x.jsonl", "{\"messages\":\"a\"}", &["expected a list of messages, found a string"]),
        (
            "x.jsonl",
            "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":[{\"role\":\"a\",\"content\":\"b\"}]}",
            &["both be text or both"],
        ),
        (
            "x.jsonl",
            "{\"prompt\":\"p\",\"chosen\":\"a\",\"rejected\":\"b\",\"margin\":\"x\"}",
            &["column margin: expected a number"],
        ),
        (
            "x.jsonl",
            "{\"prompt\":\"p\",\"completion\":\"a\",\"label\":true}",
            &["unpaired preferences", "no prompt has both a wanted and an unwanted answer"],
        ),
        ("x.jsonl", "{\"prompt\":\"p\",\"label\":true}", &["a label needs the answer that it is about"]),
        (
            "x.jsonl",
            "{\"prompt\":\"p\",\"completion\":\"a\",\"label\":2}",
            &["column label is 2: expected true or false"],
        ),
        ("x.jsonl", "{\"turns\":[]}", &["column turns"]),
        ("x.parquet", "PAR1", &["x.parquet is no readable Parquet file", "only 4 bytes"]),
        ("x.jsonl.zst", "a", &["compressed in a way that is not read; unpack it"]),
        ("x.xlsx", "a,b", &["no data set by its name", ".jsonl, .json, .csv"]),
    ];
    for (name, text, parts) in table {
        let error = refusal(name, text);
        for part in *parts {
            assert!(error.contains(part), "{name} {text:?}: {error:?} lacks {part:?}");
        }
    }
    let error = format!("{:#}", load(Path::new("/no/such/set.jsonl")).unwrap_err());
    assert!(error.contains("there is no data set at /no/such/set.jsonl"), "{error}");
    let bad = tempfile::tempdir().unwrap();
    std::fs::write(bad.path().join("x.jsonl"), b"{\"text\":\"\xff\"}").unwrap();
    assert!(format!("{:#}", load(&bad.path().join("x.jsonl")).unwrap_err()).contains("line 1"));
    let empty = tempfile::tempdir().unwrap();
    assert!(format!("{:#}", load(empty.path()).unwrap_err()).contains("has no data files"));
}

#[test]
fn buckets_are_the_published_ones() {
    let table = [
        ("hello", 42),
        ("What is the most popular dip flavor?", 48),
        ("How can I find out what types of butterflies are in my area?", 90),
        ("é", 51),
    ];
    for (key, n) in table {
        assert_eq!(bucket(key), n, "{key}");
    }
    let keyed = [
        r#"{"prompt":" hello\n"}"#,
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"hello "}]}"#,
        r#"{"chosen":"\n\nHuman: hello\n\nAssistant: a","rejected":"\n\nHuman: hello\n\nAssistant: b"}"#,
        r#"{"question":"hello","answer":"a"}"#,
        r#"{"instruction":"hello","input":" ","output":"a"}"#,
        r#"{"turns":["hello"]}"#,
    ];
    for json in keyed {
        assert_eq!(load_as("x.jsonl", json).unwrap().buckets, [42], "{json}");
    }
    let joined = load_as("x.jsonl", r#"{"instruction":"a ","input":"\tb","output":"c"}"#).unwrap();
    assert_eq!(joined.buckets, [bucket("a\nb")]);
}

#[test]
fn the_real_files_load_and_split_as_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    // file, records, dropped as identical, train, validation, test
    let table = [
        ("hh-rlhf/helpful-base-test.jsonl.gz", 2352, 2, 1951, 186, 215),
        ("hh-rlhf/helpful-rejection-sampled-test.jsonl.gz", 2717, 32, 2143, 293, 281),
        ("hh-rlhf", 5069, 34, 4094, 479, 496),
        ("instructions/instruction-data.json", 1100, 0, 865, 113, 122),
        ("instructions/instruction-data-with-preference.json", 1094, 6, 860, 113, 121),
        ("instructions/gpteacher_roleplay.json", 3146, 0, 2543, 311, 292),
        ("instructions/gsm8k_train.jsonl.gz", 7473, 0, 6009, 714, 750),
        ("mt_bench/question.jsonl", 80, 0, 0, 0, 0),
        ("arena_hard/v0.1/question.jsonl", 500, 0, 0, 0, 0),
        ("arena_hard/v2.0/question.jsonl", 750, 0, 0, 0, 0),
    ];
    for (name, records, dropped, train, validation, test) in table {
        let path = root.join(name);
        if !path.exists() {
            println!("skipped: {} is not there", path.display());
            continue;
        }
        let set = load(&path).unwrap();
        assert_eq!((set.examples.len(), set.dropped_identical), (records, dropped), "{name}");
        let split = split_by_prompt(&set);
        let sizes = [&split.train, &split.validation, &split.test].map(|part| part.examples.len());
        assert_eq!(sizes.iter().sum::<usize>(), records, "{name}");
        if train > 0 {
            assert_eq!(sizes, [train, validation, test], "{name}");
        }
    }
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn reply() -> impl Strategy<Value = String> {
        "[a-zA-Z é.\\n]{0,30}"
    }

    proptest! {
        /// Turns written as a transcript are read back, trimmed.
        #[test]
        fn transcripts_round_trip(turns in proptest::collection::vec(reply(), 1..6), a in "[a-m]{1,9}", b in "[n-z]{1,9}") {
            let mut shared = String::new();
            let mut expected = Vec::new();
            for (i, turn) in turns.iter().enumerate() {
                let (marker, role) = if i % 2 == 0 { ("Human", "user") } else { ("Assistant", "assistant") };
                shared.push_str(&format!("\n\n{marker}: {turn}"));
                expected.push(Message::new(role, hh::trim(turn)));
            }
            if turns.len() % 2 == 0 {
                shared.push_str("\n\nHuman: go on");
                expected.push(user("go on"));
            }
            let transcript = |reply: &str| format!("{shared}\n\nAssistant: {reply}");
            let json = serde_json::json!({ "chosen": transcript(&a), "rejected": transcript(&b) });
            let Example::Preference(found) = one(&json.to_string()) else { panic!("no preference") };
            prop_assert_eq!(found.prompt, Content::Messages(expected.into()));
            prop_assert_eq!(found.chosen, vec![assistant(&a)].into());
            prop_assert_eq!(found.rejected, vec![assistant(&b)].into());
        }

        /// No bytes make the reader panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(if json { "x.json" } else { "x.jsonl.gz" });
            std::fs::write(&path, bytes).unwrap();
            let _ = load(&path);
        }

        /// The parts of a split together are the whole, in order.
        #[test]
        fn a_split_loses_nothing(prompts in proptest::collection::vec("[a-z]{1,5}", 1..40)) {
            let lines: String = prompts.iter().map(|p| format!("{{\"prompt\":\"{p}\"}}\n")).collect();
            let set = load_as("x.jsonl", &lines).unwrap();
            let split = split_by_prompt(&set);
            let parts = [split.train, split.validation, split.test];
            prop_assert_eq!(parts.iter().map(|p| p.examples.len()).sum::<usize>(), prompts.len());
            for (part, range) in parts.iter().zip([0..80u8, 80..90, 90..100]) {
                let lines = (1..).zip(&prompts).filter(|(_, p)| range.contains(&bucket(p))).map(|(n, _)| format!("line {n}"));
                let places = part.places.iter().map(|p| p.to_string().rsplit_once(", ").unwrap().1.to_owned());
                prop_assert!(places.eq(lines));
                let expected: Vec<Example> =
                    prompts.iter().filter(|p| range.contains(&bucket(p))).map(|p| Example::Prompt(text(p))).collect();
                prop_assert_eq!(&part.examples, &expected);
            }
        }
    }
}
