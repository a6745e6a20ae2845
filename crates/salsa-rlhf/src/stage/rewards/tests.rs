//! Programs and servers that misbehave: no wrong reward is used, and what cannot be had is said by name.
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    path::Path,
    thread,
};

use serde_json::{Map, Value, json};

use super::{program::Program, remote::Remote, *};
use crate::config::paths::ModelPath;
use crate::stage::{fixture::quiet, text::prompts::TextPrompt};

fn prompts(count: usize) -> Vec<TextPrompt> {
    let prompt = |i: usize| TextPrompt {
        content: Content::Text(format!("question {i}")),
        tokens: vec![1],
        columns: Map::from_iter([("answer".to_owned(), json!(i))]),
    };
    (0..count).map(prompt).collect()
}

fn answered(prompts: &[TextPrompt]) -> Vec<Answered<'_>> {
    fn one(prompt: &TextPrompt) -> Answered<'_> {
        Answered {
            prompt: &prompt.content,
            columns: &prompt.columns,
            text: "yes, \"so\"\nit is".to_owned(),
            tokens: &[5, 6, 2],
            rendered: "<s>q</s>yes".to_owned(),
            rendered_prompt: "<s>q</s>".to_owned(),
        }
    }
    prompts.iter().map(one).collect()
}

/// A program that rewards a response with its id plus a half. `before` is run once at the start, `each` instead of a
/// line's reward; `$id` is its id, `once` succeeds the first time it is called in a directory.
fn program(dir: &Path, before: &str, each: &str, timeout: f64, retries: u32) -> Program {
    let script = format!(
        "once() {{ mkdir {}/once 2>/dev/null; }}\n\
         good() {{ echo \"{{\\\"id\\\": $id, \\\"reward\\\": $id.5}}\"; }}\n\
         {before}\n\
         while read -r line; do\n\
           [ -n \"$line\" ] || continue\n\
           id=${{line#*:}}; id=${{id%%,*}}\n\
           {each}\n\
         done\n",
        dir.display()
    );
    let path = dir.join("reward.sh");
    fs::write(&path, script).unwrap();
    Program::new("p", vec!["sh".to_owned(), path.display().to_string()], timeout, retries)
}

#[test]
fn a_program_gets_every_response_and_its_rewards_are_matched_by_id() {
    let (dir, prompts) = (tempfile::tempdir().unwrap(), prompts(40));
    let mut good = program(dir.path(), "", "good", 20.0, 0);
    let expected = |first: u64| (0..40).map(|i| (first + i) as f64 + 0.5).collect::<Vec<_>>();
    for first in [0, 40, 1000] {
        assert_eq!(good.rewards(&answered(&prompts), first, &quiet()).unwrap(), expected(first));
    }
    // In any order, and only when the batch is complete.
    let backwards = "if [ -n \"$id\" ]; then all=\"$id $all\"; fi";
    let mut late = program(dir.path(), "", backwards, 20.0, 0);
    let script = fs::read_to_string(dir.path().join("reward.sh")).unwrap();
    let flush = "[ -n \"$line\" ] || { for id in $all; do good; done; all=; continue; }";
    fs::write(dir.path().join("reward.sh"), script.replace("[ -n \"$line\" ] || continue", flush)).unwrap();
    for first in [0, 40] {
        assert_eq!(late.rewards(&answered(&prompts), first, &quiet()).unwrap(), expected(first));
    }
    // More text than a pipe holds, answered before it was read.
    let many = prompts.iter().cycle().take(4000).map(|prompt| TextPrompt {
        content: Content::Text("long ".repeat(40)),
        tokens: vec![1],
        columns: prompt.columns.clone(),
    });
    let many: Vec<TextPrompt> = many.collect();
    assert_eq!(good.rewards(&answered(&many), 0, &quiet()).unwrap().len(), 4000);
}

#[test]
fn a_program_that_misbehaves_once_is_started_anew_and_gets_the_batch_again() {
    let faults = [
        ("once && exit 3", "good"),
        ("", "if [ $id = 7 ] && once; then kill -9 $$; fi; good"),
        ("", "if [ $id = 7 ] && once; then sleep 60; fi; good"),
        ("once && echo hello", "good"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 7, \"reward\": NaN}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 7, \"reward\": 1e999}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 7, \"reward\": null}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 8, \"reward\": 9}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 700, \"reward\": 9}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"reward\": 9}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then echo '{\"id\": 7, \"error\": \"no\"}'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then good; good; else good; fi"),
        ("", "if [ $id = 7 ] && once; then printf '\\377\\n'; else good; fi"),
        ("", "if [ $id = 7 ] && once; then head -c 3000000 /dev/zero | tr '\\0' x; echo; else good; fi"),
        ("", "if [ $id = 7 ] && once; then :; else good; fi"),
    ];
    let prompts = prompts(20);
    let expected: Vec<f64> = (0..20).map(|id| f64::from(id) + 0.5).collect();
    for (before, each) in faults {
        let dir = tempfile::tempdir().unwrap();
        let mut rewarding = program(dir.path(), before, each, 1.0, 1);
        let rewards = rewarding.rewards(&answered(&prompts), 0, &quiet());
        assert_eq!(rewards.unwrap_or_else(|error| panic!("{before} {each}: {error}")), expected, "{before} {each}");
        assert!(dir.path().join("once").exists(), "{before} {each}: it did not misbehave");
    }
    // A line after the last reward is noticed with the next batch, whose rewards are right again.
    let dir = tempfile::tempdir().unwrap();
    let mut talkative = program(dir.path(), "", "good; if [ $id = 19 ] && once; then echo more; fi", 5.0, 1);
    for _ in 0..3 {
        assert_eq!(talkative.rewards(&answered(&prompts), 0, &quiet()).unwrap(), expected);
    }
}

#[test]
fn a_program_that_stays_bad_is_named_with_what_it_did_and_the_prompt() {
    let prompts = prompts(3);
    for (before, each, expected) in [
        (
            "echo 'no such module' >&2; exit 3",
            "",
            "ended with exit status 3 after 0 of 3 rewards; it said: no such module (prompt \"question 0\")",
        ),
        ("", "[ $id = 1 ] || good", "gave 2 of 3 rewards within the time limit (prompt \"question 1\")"),
        ("", "echo \"$id is fine\"", "wrote a line that is not {\"id\": N, \"reward\": X}: \"0 is fine\" ("),
        (
            "",
            "echo \"{\\\"id\\\": $id, \\\"error\\\": \\\"no answer\\\"}\"",
            "reports an error: \"no answer\" (prompt \"question 0\")",
        ),
        ("", "kill -9 $$", "was ended by signal 9 after 0 of 3 rewards (prompt \"question 0\")"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut bad = program(dir.path(), before, each, 0.5, 1);
        let error = bad.rewards(&answered(&prompts), 0, &quiet()).unwrap_err();
        assert!(error.is::<Unavailable>());
        assert!(error.to_string().contains(expected), "{expected}\n{error}");
        assert!(error.to_string().starts_with("reward p: sh "), "{error}");
    }
    let missing =
        Program::new("p", vec!["/no/such/program".to_owned()], 1.0, 1).rewards(&answered(&prompts), 0, &quiet());
    assert!(missing.unwrap_err().to_string().contains("/no/such/program cannot be started: "));
}

/// A server that replies to its n-th request with the n-th of these texts; returns its address and the bodies.
fn server(replies: Vec<String>) -> (String, thread::JoinHandle<Vec<Value>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/score", listener.local_addr().unwrap());
    let serve = move || {
        let mut bodies = Vec::new();
        for reply in replies {
            let (stream, _) = listener.accept().unwrap();
            let (mut reader, mut length) = (BufReader::new(&stream), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                    length = value.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            bodies.push(serde_json::from_slice(&body).unwrap());
            let text = match reply.strip_prefix("raw ") {
                Some(raw) => raw.to_owned(),
                None => {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{reply}", reply.len())
                }
            };
            (&stream).write_all(text.as_bytes()).unwrap();
        }
        bodies
    };
    (url, thread::spawn(serve))
}

#[test]
fn a_server_is_asked_in_openrlhfs_form_and_every_wrong_reply_is_refused() {
    let prompts = prompts(3);
    let good = r#"{"rewards": [1, 2.5, -3]}"#.to_owned();
    let replies = [
        "raw HTTP/1.1 500 Oops\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "raw ",
        "<html>",
        r#"{"scores": [1, 2, 3]}"#,
        r#"{"rewards": [1, 2]}"#,
        r#"{"rewards": [1, 2, NaN]}"#,
        r#"{"rewards": [1, null, 3]}"#,
        r#"{"rewards": "1, 2, 3"}"#,
    ];
    for reply in replies {
        let (url, served) = server(vec![reply.to_owned(), good.clone()]);
        let remote = Remote::new("r", url, Some("answer".to_owned()), "").unwrap().with_limits(64, 5.0, 1);
        assert_eq!(remote.rewards(&answered(&prompts), &quiet()).unwrap(), [1.0, 2.5, -3.0], "{reply}");
        let expected = json!({
            "query": vec!["<s>q</s>yes"; 3], "prompts": vec!["<s>q</s>"; 3], "labels": [0, 1, 2]
        });
        assert_eq!(served.join().unwrap(), [expected.clone(), expected], "the same is asked again");
    }
    let (url, _served) = server(vec![r#"{"rewards": [1, "x", 3]}"#.to_owned()]);
    let remote = Remote::new("r", url.clone(), None, "").unwrap().with_limits(64, 5.0, 0);
    let error = remote.rewards(&answered(&prompts), &quiet()).unwrap_err();
    assert_eq!(error.to_string(), format!("reward r: {url} replied with \"x\" as a reward (prompt \"question 1\")"));
    let remote = Remote::new("r", "http://localhost:1/x".to_owned(), Some("solution".to_owned()), "").unwrap();
    let error = remote.rewards(&answered(&prompts), &quiet()).unwrap_err();
    assert!(error.to_string().contains("no column \"solution\""), "{error}");
}

#[test]
fn an_ensemble_is_its_mean_its_minimum_or_the_mean_less_deviations() {
    let scores = [1.0, 2.0, 6.0];
    assert_eq!(Combine::Mean.of(1.0, &scores), 3.0);
    assert_eq!(Combine::Min.of(1.0, &scores), 1.0);
    // Variance (4 + 1 + 9) / 3 = 14 / 3.
    let expected = 3.0 - 0.5 * (14.0f64 / 3.0).sqrt();
    assert!((Combine::MeanMinusDeviations.of(0.5, &scores) - expected).abs() < 1e-12);
    assert!(Combine::Min.of(1.0, &[1.0, f64::NAN, 2.0]).is_nan() && Combine::Mean.of(1.0, &[f64::NAN]).is_nan());
    assert_eq!(Combine::Mean.of(1.0, &[0.1]), 0.1);
}

#[test]
fn a_list_of_rewards_is_checked_by_place() {
    let parse = |text: &str| -> Vec<RewardSource> { serde_json::from_value(text_to_json(text)).unwrap() };
    for (text, expected) in [
        (r#"[{"kind": "model", "models": []}]"#, "rewards[0]: no reward model is given"),
        (r#"[{"kind": "command", "command": []}]"#, "rewards[0]: command is empty"),
        (r#"[{"kind": "http", "url": "localhost:8"}]"#, "rewards[0]: url is \"localhost:8\""),
        (r#"[{"kind": "http", "url": "http://me:key@host/"}]"#, "rewards[0]: url must hold no user"),
        (
            r#"[{"kind": "gold", "world": "kitchen"}, {"kind": "gold", "world": "kitchen"}]"#,
            "rewards[1]: an earlier reward is called \"gold\", too",
        ),
        (r#"[{"kind": "model", "models": ["a"], "deviations": -1}]"#, "rewards[0]: deviations is -1"),
        (r#"[{"kind": "command", "command": ["x"], "timeout": 0}]"#, "rewards[0]: timeout is 0"),
        (r#"[{"kind": "regex", "pattern": "("}]"#, "rewards[0]: pattern \"(\" is no regular expression"),
        (r#"[{"kind": "regex", "pattern": "(a{1000}){1000}"}]"#, "rewards[0]: pattern"),
        (r#"[{"kind": "json", "schema": {"type": "objekt"}}]"#, "rewards[0]: schema is no JSON schema"),
        (r#"[{"kind": "mathematics", "column": ""}]"#, "rewards[0]: column is empty"),
        (r#"[{"kind": "tags", "tags": []}]"#, "rewards[0]: tags is empty"),
        (r#"[{"kind": "length", "target": 0}]"#, "rewards[0]: target is 0"),
        (r#"[{"kind": "overlong", "max_length": 4, "cache": 5}]"#, "rewards[0]: cache is 5"),
        (r#"[{"kind": "repetition", "max_penalty": 1}]"#, "rewards[0]: max_penalty is 1"),
        (r#"[{"kind": "alphabet", "alphabets": []}]"#, "rewards[0]: alphabets is empty"),
    ] {
        let error = format!("{:#}", config::check(&ModelPath::from("reward"), &parse(text)).unwrap_err());
        assert!(error.starts_with(expected), "{expected}\n{error}");
    }
    let fine = r#"[{"kind": "gold", "world": "kitchen"}, {"kind": "gold", "world": "kitchen", "name": "again"}]"#;
    config::check(&ModelPath::new(), &parse(fine)).unwrap();
    let two = parse(r#"[{"kind": "model", "models": ["b"]}]"#);
    config::check(&ModelPath::new(), &two).unwrap();
    assert!(config::check(&ModelPath::from("a"), &two).unwrap_err().to_string().contains("is called \"model\", too"));
}

fn text_to_json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The reward of a text by one rule; `None` if it cannot be read.
fn ruled(rule: &str, text: &str, columns: Value) -> Option<f64> {
    let source: RewardSource = serde_json::from_str(rule).unwrap_or_else(|error| panic!("{rule}: {error}"));
    let Value::Object(columns) = columns else { panic!("columns are a mapping") };
    let prompt = Content::Text("q".to_owned());
    let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
    let one = Answered {
        prompt: &prompt,
        columns: &columns,
        text: text.to_owned(),
        tokens: &tokens,
        rendered: String::new(),
        rendered_prompt: String::new(),
    };
    match Rule::of(&source).unwrap().expect("this is a rule").reward(&one) {
        Ruled::Reward(reward) => Some(reward),
        Ruled::Unreadable => None,
    }
}

#[test]
fn rules_give_what_their_documentation_says() {
    let number = r#"{"kind": "mathematics"}"#;
    assert_eq!(ruled(number, r"so \boxed{\frac{1}{2}}", json!({"answer": "0.5"})), Some(1.0));
    assert_eq!(ruled(number, "so 12", json!({"answer": 13})), Some(0.0));
    assert_eq!(ruled(number, "so many", json!({"answer": 13})), None);
    let gsm8k = r#"{"kind": "mathematics", "column": "solution", "place": "hashes"}"#;
    assert_eq!(ruled(gsm8k, "12 + 1 = 13\n#### 13", json!({"solution": "so\n#### 13"})), Some(1.0));
    let whole = r#"{"kind": "regex", "pattern": "a+|b", "match": "whole"}"#;
    for (text, expected) in [("aaa", 1.0), ("b", 1.0), ("ab", 0.0), ("", 0.0)] {
        assert_eq!(ruled(whole, text, json!({})), Some(expected), "{text:?}");
    }
    assert_eq!(ruled(r#"{"kind": "regex", "pattern": "a+"}"#, "bab", json!({})), Some(1.0));
    let schema = r#"{"kind": "json", "schema": {"type": "object", "required": ["name"]}}"#;
    for (text, expected) in [(r#"{"name": 1}"#, 1.0), ("{}", 0.0), ("no", 0.0), (r#"{"name": 1} x"#, 0.0)] {
        assert_eq!(ruled(schema, text, json!({})), Some(expected), "{text:?}");
    }
    assert_eq!(ruled(r#"{"kind": "json"}"#, "[1]", json!({})), Some(1.0));
    assert_eq!(ruled(r#"{"kind": "format", "format": "think"}"#, "<think>a</think>b", json!({})), Some(1.0));
    assert_eq!(ruled(r#"{"kind": "tags", "tags": ["<a>", "</a>"]}"#, "<a>x", json!({})), Some(0.5));
    assert_eq!(ruled(r#"{"kind": "length", "target": 4}"#, "abc", json!({})), Some(-0.25));
    assert_eq!(ruled(r#"{"kind": "overlong", "max_length": 4, "cache": 2}"#, "abc", json!({})), Some(-0.5));
    assert_eq!(ruled(r#"{"kind": "repetition", "ngram_size": 2}"#, "aaaaa", json!({})), Some(-0.75));
    assert_eq!(ruled(r#"{"kind": "alphabet", "alphabets": ["latin"]}"#, "ab\u{436}", json!({})), Some(2.0 / 3.0));
    assert_eq!(ruled(r#"{"kind": "alphabet", "alphabets": ["latin"]}"#, "42", json!({})), Some(1.0));
    let question = Content::Text("Mia has 7 shells. She finds 2 more.".to_owned());
    assert_eq!(crate::stage::gold::Gold::Arithmetic.reward(question.last_words(), "#### 9"), 1.0);
}

#[test]
fn references_that_cannot_be_compared_are_found_before_anything_starts() {
    let found = |rewards: &str, records: &[Value]| {
        let sources: Vec<RewardSource> = serde_json::from_str(rewards).unwrap();
        let models = sources.iter().map(|_| Vec::new()).collect();
        let found = FoundRewards { models, sources, dir: std::path::PathBuf::new(), context: quiet() };
        let records: Vec<(Content, Map<String, Value>)> = records
            .iter()
            .enumerate()
            .map(|(i, record)| (Content::Text(format!("question {i}")), record.as_object().unwrap().clone()))
            .collect();
        found.check_columns(records.iter().map(|(prompt, columns)| (prompt, columns)))
    };
    let rule = r#"[{"kind": "mathematics", "name": "right"}]"#;
    found(rule, &[json!({"answer": "1/2"}), json!({"answer": 3})]).unwrap();
    for (second, expected) in [
        (
            json!({}),
            "reward right reads the column \"answer\", which a record of the data lacks (prompt \"question 1\")",
        ),
        (json!({"answer": null}), "reward right: answer is null, neither text nor a number (prompt \"question 1\")"),
        (json!({"answer": " "}), "reward right: answer is empty (prompt \"question 1\")"),
        (json!({"answer": "9^{9^{9}}"}), "answer cannot be compared: reference: a number beyond 128 bits"),
    ] {
        let error = found(rule, &[json!({"answer": "1"}), second]).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}\n{error}");
    }
}

#[test]
fn the_last_grade_behind_the_thoughts_counts_if_it_is_in_range() {
    let source: RewardSource = serde_json::from_value(json!({"kind": "judge", "judge_model": "m"})).unwrap();
    let grades = judge::Grades::of(&source).unwrap();
    for (reply, expected) in [
        ("[[7]]", Some(7.0)),
        ("first [[2]], then [[ 8.5 ]]", Some(8.5)),
        ("<think>[[9]]</think> So [[4]].", Some(4.0)),
        ("<think>[[9]]</think> So nothing.", None),
        ("[[11]]", None),
        ("[[0]]", None),
        ("[[5]] or rather [[50]]", None),
        ("[[-3]]", None),
        ("[5]", None),
        ("[[NaN]]", None),
        ("", None),
    ] {
        assert_eq!(grades.read(reply), expected, "{reply}");
    }
    let own = json!({"kind": "judge", "judge_model": "m", "pattern": "(?i)score: *(\\S+)", "lowest": -1, "highest": 1});
    let own = judge::Grades::of(&serde_json::from_value(own).unwrap()).unwrap();
    assert_eq!((own.read("SCORE: -0.25"), own.read("score: nan"), own.read("score: inf")), (Some(-0.25), None, None));
}

#[test]
fn a_judge_reads_prompt_response_and_columns_and_other_braces_stay() {
    use crate::chat::Message;
    let template = "{prompt}|{response}|{answer}|{\"grade\": 1}|{ prompt }";
    let source = json!({"kind": "judge", "judge_model": "m", "template": template});
    let source: RewardSource = serde_json::from_value(source).unwrap();
    assert_eq!(source.columns(), ["answer"]);
    let filled = |prompt: &Content, text: &str| {
        let columns = Map::from_iter([("answer".to_owned(), json!(4))]);
        let one = Answered {
            prompt,
            columns: &columns,
            text: text.to_owned(),
            tokens: &[],
            rendered: String::new(),
            rendered_prompt: String::new(),
        };
        judge::Template::of(&source).unwrap().fill(&one)
    };
    // What a response says about the template is not filled in again.
    let text = filled(&Content::Text("2+2".to_owned()), "{answer} {prompt}");
    assert_eq!(text, "2+2|{answer} {prompt}|4|{\"grade\": 1}|{ prompt }");
    let said = vec![Message::new("user", "hi"), Message::new("assistant", "yes?"), Message::new("user", "2+2")];
    let text = filled(&Content::Messages(said.into()), "4");
    assert!(text.starts_with("[user]\nhi\n\n[assistant]\nyes?\n\n[user]\n2+2|4|4|"), "{text}");
    let error = serde_json::from_value::<RewardSource>(json!({"kind": "judge"})).unwrap_err().to_string();
    assert!(error.contains("judge_model"), "{error}");
}
