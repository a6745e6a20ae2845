//! The layouts of published data sets, each recognised by name.

use super::*;

/// The one example of a record, and the name of its layout.
fn recognised(json: &str) -> (Example, &'static str) {
    let set = load_as("x.jsonl", json).unwrap();
    (set.examples[0].clone(), set.recognised)
}

fn said(prompt: Vec<Message>, answer: &str) -> Example {
    Example::PromptCompletion { prompt: prompt.into(), completion: vec![assistant(answer)].into() }
}

fn system(text: &str) -> Message {
    Message::new("system", text)
}

#[test]
fn ultrachat() {
    let json = r#"{"prompt":"u","prompt_id":"0f","messages":[{"content":"u","role":"user"},{"content":"a","role":"assistant"}]}"#;
    assert_eq!(
        recognised(json),
        (Example::Messages(vec![user("u"), assistant("a")].into()), "UltraChat-200k: messages")
    );
    let first = r#"{"id":"0","data":["u","a","v","b"]}"#;
    let turns = vec![user("u"), assistant("a"), user("v"), assistant("b")];
    assert_eq!(recognised(first), (Example::Messages(turns.into()), "UltraChat: data"));
    assert!(refusal("x.jsonl", r#"{"data":["u",1]}"#).contains("column data: expected texts, found a number"));
    assert!(refusal("x.jsonl", r#"{"data":[]}"#).contains("the list of texts is empty"));
}

#[test]
fn ultrafeedback_binarized() {
    let json = r#"{"prompt":"u","prompt_id":"0f","chosen":[{"content":"u","role":"user"},{"content":"good","role":"assistant"}],"rejected":[{"content":"u","role":"user"},{"content":"bad","role":"assistant"}],"messages":[{"content":"u","role":"user"},{"content":"good","role":"assistant"}],"score_chosen":8.5,"score_rejected":4.0}"#;
    let (example, by) = recognised(json);
    assert!(by.starts_with("UltraFeedback, binarized"), "{by}");
    let expected = Preference {
        score_chosen: Some(8.5),
        score_rejected: Some(4.0),
        ..pair(vec![user("u")].into(), vec![assistant("good")].into(), vec![assistant("bad")].into())
    };
    assert_eq!(example, Example::Preference(expected));
}

/// A completion in UltraFeedback's format: two aspects, one of which may be unrated.
fn completion(response: &str, helpful: &str, honest: &str, overall: f64) -> String {
    format!(
        r#"{{"annotations":{{"helpfulness":{{"Rating":"{helpful}","Rationale":"x"}},"honesty":{{"Rating":"{honest}"}}}},"custom_system_prompt":"s","model":"m","overall_score":{overall},"response":"{response}"}}"#
    )
}

#[test]
fn ultrafeedback_raw() {
    let row = |completions: &[String]| {
        format!(r#"{{"source":"evol","instruction":"i","models":["m"],"completions":[{}]}}"#, completions.join(","))
    };
    // The mean of the aspects counts, not the overall score; non-numeric ratings are left out of the mean.
    let json = row(&[completion("bad", "1", "2", 10.0), completion("good", "5", "N/A", 1.0)]);
    let (example, by) = recognised(&json);
    assert_eq!(by, "UltraFeedback, raw: instruction, completions");
    let expected = Preference {
        score_chosen: Some(5.0),
        score_rejected: Some(1.5),
        ..pair(vec![user("i")].into(), vec![assistant("good")].into(), vec![assistant("bad")].into())
    };
    assert_eq!(example, Example::Preference(expected));
    // One of the lower rated is chosen, deterministically.
    let many: Vec<String> = (0..4).map(|i| completion(&format!("r{i}"), &i.to_string(), &i.to_string(), 0.0)).collect();
    let Example::Preference(pair) = recognised(&row(&many)).0 else { panic!("no preference") };
    assert_eq!(pair.chosen, vec![assistant("r3")].into());
    // printf i | sha256sum begins with de7d1b721a1e0632; that number is a multiple of 3.
    assert_eq!(pair.rejected, vec![assistant("r0")].into());
    // Equal ratings are uninformative.
    let equal = row(&[completion("a", "3", "3", 1.0), completion("b", "3", "3", 2.0)]);
    let set = load_as("x.jsonl", &format!("{equal}\n{json}")).unwrap();
    assert_eq!((set.examples.len(), set.dropped_identical), (1, 1));
    let by_score = r#"{"instruction":"i","completions":[{"response":"a","overall_score":3},{"response":"b","overall_score":7.5}]}"#;
    let lists = r#"{"prompt":"i","responses":["a","b"],"ratings":[3,7.5]}"#;
    for json in [by_score, lists] {
        let Example::Preference(pair) = recognised(json).0 else { panic!("no preference") };
        assert_eq!((pair.chosen, pair.score_chosen), (vec![assistant("b")].into(), Some(7.5)), "{json}");
        assert_eq!((pair.rejected, pair.score_rejected), (vec![assistant("a")].into(), Some(3.0)), "{json}");
    }
    let table = [
        (r#"{"instruction":"i","completions":[]}"#, "the list of answers is empty"),
        (r#"{"instruction":"i","completions":[{"response":"a"}]}"#, "no answer has a rating"),
        (r#"{"instruction":"i","completions":[{"rating":1}]}"#, "answer 1: it has no text"),
        (r#"{"instruction":"i","completions":7}"#, "expected a list, found a number"),
        (r#"{"prompt":"i","responses":["a","b"],"ratings":[3]}"#, "2 answers but 1 ratings"),
    ];
    for (json, part) in table {
        let error = refusal("x.jsonl", json);
        assert!(error.contains(part), "{json}: {error}");
    }
}

#[test]
fn tldr() {
    let prompt = "SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: P\n\nTL;DR:";
    let trl = serde_json::json!({ "prompt": prompt, "completion": " C" }).to_string();
    let labelled = serde_json::json!({ "prompt": prompt, "label": " C" }).to_string();
    let filtered = r#"{"id":"x","subreddit":"tifu","title":"T","post":"P ","summary":"C"}"#;
    for (json, by) in [
        (trl.as_str(), "TRL: prompt, completion"),
        (&labelled, "TL;DR: prompt, label"),
        (filtered, "TL;DR: subreddit, title, post, summary"),
    ] {
        let expected = Example::PromptCompletion { prompt: text(prompt), completion: text(" C") };
        assert_eq!(recognised(json), (expected, by), "{json}");
    }
    let comparison = |info: &str, choice: &str| {
        format!(
            r#"{{"info":{info},"summaries":[{{"text":" first","policy":"sup1"}},{{"text":"second","policy":"ref"}}],"choice":{choice},"worker":"w"}}"#
        )
    };
    let info = r#"{"id":"t3","post":"P","title":"T","subreddit":"tifu","article":null}"#;
    let (example, by) = recognised(&comparison(info, "1"));
    assert_eq!(example, Example::Preference(pair(text(prompt), text(" second"), text(" first"))));
    assert_eq!(by, "TL;DR comparisons: info, summaries, choice");
    let (example, _) = recognised(&comparison(r#"{"article":"A","title":"T","post":null}"#, "0"));
    let article = text("Title: T\n\nArticle: A\n\nTL;DR:");
    assert_eq!(example, Example::Preference(pair(article, text(" first"), text(" second"))));
    let error = refusal("x.jsonl", &comparison(info, "2"));
    assert!(error.contains("column choice is 2: expected 0 or 1"), "{error}");
    let error = refusal("x.jsonl", &comparison("{}", "0"));
    assert!(error.contains("column article is missing"), "{error}");
}

#[test]
fn instructions_with_what_stands_beside_them() {
    let table = [
        (r#"{"instruction":"i","input":"x","output":"o"}"#, vec![user("i\n\nx")], "Alpaca: instruction, input, output"),
        (
            r#"{"instruction":"i","context":"x","response":"o","category":"qa"}"#,
            vec![user("i\n\nx")],
            "Dolly: instruction, context, response",
        ),
        (
            r#"{"instruction":"i","output":"o","system":"s","history":[["q","r"]]}"#,
            vec![system("s"), user("q"), assistant("r"), user("i")],
            "Alpaca: instruction, input, output",
        ),
        (r#"{"system_prompt":"s","question":"i","response":"o"}"#, vec![system("s"), user("i")], "question, answer"),
        (r#"{"system_prompt":" ","question":"i","response":"o"}"#, vec![user("i")], "question, answer"),
    ];
    for (json, prompt, by) in table {
        assert_eq!(recognised(json), (said(prompt, "o"), by), "{json}");
    }
    let orca = r#"{"system":"s","question":"q","chosen":"a","rejected":"b"}"#;
    let prompt = vec![system("s"), user("q")];
    let expected = pair(prompt.into(), vec![assistant("a")].into(), vec![assistant("b")].into());
    assert_eq!(recognised(orca), (Example::Preference(expected), "question, chosen, rejected"));
    let error = refusal("x.jsonl", r#"{"instruction":"i","output":"o","history":["q"]}"#);
    assert!(error.contains("column history: expected pairs of texts"), "{error}");
}

#[test]
fn sharegpt() {
    let turns = vec![system("s"), user("u"), assistant("a")];
    let list = r#"[{"from":"human","value":"u"},{"from":"gpt","value":"a"}]"#;
    let columns = r#"{"from":["human","gpt"],"value":["u","a"]}"#;
    for conversation in [list, columns] {
        let json = format!(r#"{{"id":"1","system":"s","conversations":{conversation}}}"#);
        assert_eq!(recognised(&json), (Example::Messages(turns.clone().into()), "ShareGPT: conversations"));
    }
    let uneven = r#"{"conversations":{"from":["human"],"value":[]}}"#;
    assert!(refusal("x.jsonl", uneven).contains("expected a list of messages, found an object"));
}

#[test]
fn what_is_not_recognised_is_listed_with_what_is_known() {
    let error = refusal("x.jsonl", r#"{"info":{},"summary":{"text":"x"},"worker":"w"}"#);
    for part in
        ["line 1", "no known layout: info, summary, worker.", "instruction, completions", "info, summaries, choice"]
    {
        assert!(error.contains(part), "{error:?} lacks {part:?}");
    }
}
