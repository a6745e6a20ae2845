//! Columns besides the answers have the same meaning in every layout, and unread columns are reported.

use serde_json::{Value, json};

use super::*;

fn system() -> Message {
    Message::new("system", "s")
}

/// The prompt of the example of a record.
fn prompt(record: &Value) -> Content {
    one(&record.to_string()).prompt().unwrap()
}

fn notes(records: &[Value]) -> Vec<String> {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    load_as("x.jsonl", &lines.join("\n")).unwrap().notes
}

/// Records of every layout that has a question q, by name.
fn layouts() -> Vec<(&'static str, Value)> {
    let said = |text: &str| json!([{"role": "assistant", "content": text}]);
    let turns = |text: &str| json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]);
    vec![
        ("prompt", json!({"prompt": "q"})),
        ("prompt as messages", json!({"prompt": [{"role": "user", "content": "q"}]})),
        ("prompt, completion", json!({"prompt": "q", "completion": "a"})),
        ("instruction, output", json!({"instruction": "q", "output": "a"})),
        ("question, answer", json!({"question": "q", "answer": "a"})),
        ("query, response", json!({"query": "q", "response": "a"})),
        ("input, output", json!({"input": "q", "output": "a"})),
        ("messages", json!({"messages": turns("a")})),
        ("conversations", json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]})),
        ("turns", json!({"turns": ["q"]})),
        ("rated", json!({"prompt": "q", "responses": ["a", "b"], "ratings": [1, 2]})),
        ("prompt, chosen, rejected", json!({"prompt": "q", "chosen": "a", "rejected": "b"})),
        ("instruction, chosen, rejected", json!({"instruction": "q", "chosen": "a", "rejected": "b"})),
        ("query, chosen, rejected", json!({"query": "q", "chosen": "a", "rejected": "b"})),
        ("input, chosen, rejected", json!({"input": "q", "chosen": "a", "rejected": "b"})),
        ("chosen, rejected", json!({"chosen": turns("a"), "rejected": turns("b")})),
        ("prompt, chosen, rejected as messages", json!({"prompt": "q", "chosen": said("a"), "rejected": said("b")})),
        (
            "messages, chosen, rejected",
            json!({"messages": [{"role": "user", "content": "q"}], "chosen": said("a")[0], "rejected": said("b")[0]}),
        ),
        (
            "conversations, chosen, rejected",
            json!({"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"}),
        ),
    ]
}

fn with(record: &Value, columns: Value) -> Value {
    let mut record = record.clone();
    record.as_object_mut().unwrap().extend(columns.as_object().unwrap().clone());
    record
}

#[test]
fn system_message_and_earlier_turns_count_beside_every_layout() {
    for (name, record) in layouts() {
        for column in ["system", "system_prompt"] {
            let prompt = prompt(&with(&record, json!({column: "s", "history": [["q0", "a0"]]})));
            let expected = vec![system(), user("q0"), assistant("a0"), user("q")];
            assert_eq!(prompt, expected.into(), "{name}, {column}");
        }
        for empty in [json!({"system": "", "history": []}), json!({"system": null, "history": null})] {
            assert_eq!(prompt(&with(&record, empty)), prompt(&record), "{name}");
        }
    }
}

#[test]
fn template_arguments_and_tools_count_beside_every_layout() {
    let columns = json!({"chat_template_kwargs": {"enable_thinking": false}, "tools": [{"name": "weather"}]});
    for (name, record) in layouts() {
        let prompt = prompt(&with(&record, columns.clone()));
        assert_eq!(Value::Object(prompt.columns()), columns, "{name}");
        assert_eq!(prompt.last_words(), "q", "{name}");
    }
}

#[test]
fn a_context_is_read_beside_every_question_and_named_beside_messages() {
    for (name, record) in layouts() {
        let record = with(&record, json!({"context": "the facts"}));
        let about = prompt(&record).last_words() == "q\n\nthe facts";
        let named = notes(&[record]).iter().any(|note| note == "columns that are not read: context (1 of 1 records)");
        assert!(about != named, "{name}: read {about}, named {named}");
    }
    // A prompt that includes its context is not extended.
    let made = json!({"prompt": "the facts: q?", "context": "the facts", "completion": "a"});
    assert_eq!(prompt(&made), text("the facts: q?"));
}

#[test]
fn pairs_find_their_prompt_under_every_name() {
    let answers = json!({"chosen": "a", "rejected": "b"});
    let answered = |prompt: Vec<Message>| {
        Example::Preference(pair(prompt.into(), vec![assistant("a")].into(), vec![assistant("b")].into()))
    };
    for (name, record) in
        layouts().into_iter().filter(|(name, _)| name.ends_with("rejected") && !name.starts_with("pro"))
    {
        assert_eq!(one(&record.to_string()), answered(vec![user("q")]), "{name}");
    }
    let orca = with(&answers, json!({"system": "s", "input": "q"}));
    assert_eq!(one(&orca.to_string()), answered(vec![system(), user("q")]));
    // The preferred answer may end the conversation.
    let whole = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    assert_eq!(one(&with(&answers, json!({"messages": whole})).to_string()), answered(vec![user("q")]));
    assert_eq!(notes(&[orca]), [] as [&str; 0]);
    let bare = notes(&[answers.clone(), answers]);
    assert!(bare[0].starts_with("no pair has a prompt"), "{bare:?}");
}

#[test]
fn text_becomes_messages_in_all_records_if_it_does_in_one() {
    let plain = json!({"prompt": "q", "chosen": "a", "rejected": " b"});
    let records = [&plain, &with(&plain, json!({"system": "s"})), &plain].map(Value::to_string);
    for order in [[0, 1, 2], [1, 0, 2]] {
        let set = load_as("x.jsonl", &order.map(|i| records[i].as_str()).join("\n")).unwrap();
        let said = |said: &str| Content::from(vec![assistant(said)]);
        for (place, i) in order.into_iter().enumerate() {
            let prompt = if i == 1 { vec![system(), user("q")] } else { vec![user("q")] };
            assert_eq!(set.examples[place], Example::Preference(pair(prompt.into(), said("a"), said("b"))));
        }
        assert!(set.notes[0].starts_with("1 of 3 records have a system message"), "{:?}", set.notes);
        assert!(set.buckets.iter().all(|place| *place == bucket("q")), "a system message moves no record");
    }
    let messages = json!({"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}).to_string();
    let error = refusal("x.jsonl", &[records[1].as_str(), &messages, &records[0]].join("\n"));
    assert!(error.contains("line 3: this record is preference as text"), "{error}");
    let error = refusal("x.jsonl", &[records[0].as_str(), &records[1], &messages].join("\n"));
    assert!(error.contains("line 3: this record is preference as messages"), "{error}");
}

#[test]
fn what_is_not_read_is_named_if_it_says_something() {
    let record = json!({"prompt": "q", "completion": "an answer", "id": "0f3", "source": "open orca", "score": 3});
    assert_eq!(notes(std::slice::from_ref(&record)), [] as [&str; 0]);
    let more = with(&record, json!({"rationale": "because one and one make two", "answer": "2"}));
    assert_eq!(
        notes(&[record.clone(), more]),
        ["columns that are not read: answer (1 of 2 records), rationale (1 of 2 records)"]
    );
    // A column that repeats a part, or all in another form, is not reported.
    let alpaca = json!({"instruction": "say it", "output": "it", "text": "### Instruction: say it ### Response: it"});
    assert_eq!(notes(&[alpaca]), [] as [&str; 0]);
    let own = json!({"system": "other", "messages": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
    assert_eq!(notes(std::slice::from_ref(&own)), ["columns that are not read: system (1 of 1 records)"]);
    assert_eq!(prompt(&own), vec![system(), user("q")].into(), "the conversation's own system message stays");
    let odd = json!({"prompt": "q", "completion": "a", "\u{1b}[31m": "five words of no use"});
    assert_eq!(notes(&[odd]), ["columns that are not read: \\u{1b}[31m (1 of 1 records)"]);
}

#[test]
fn tool_calls_are_refused_whatever_else_a_message_says() {
    let said = |calls: Value| {
        json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "tool_calls": calls}]})
            .to_string()
    };
    let error = refusal("x.jsonl", &said(json!([{"function": {"name": "f"}}])));
    assert!(error.contains("line 1: column messages, message 2: tool calls are not supported"), "{error}");
    for nothing in [json!([]), json!(null), json!("")] {
        assert_eq!(one(&said(nothing)), Example::Messages(vec![user("q"), assistant("a")].into()));
    }
}
