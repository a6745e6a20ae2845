//! Decisions that depend on all records of a data set: pairing labelled answers, and answers that repeat the prompt.

use serde_json::{Value, json};

use super::*;

fn set(records: &[Value]) -> Result<Dataset> {
    let lines: Vec<String> = records.iter().map(Value::to_string).collect();
    load_as("x.jsonl", &lines.join("\n"))
}

fn labelled(prompt: &str, completion: &str, label: impl Into<Value>) -> Value {
    json!({"prompt": prompt, "completion": completion, "label": label.into()})
}

#[test]
fn labelled_answers_to_one_prompt_are_pairs() {
    let records = [
        labelled("p", "a", true),
        labelled("q", "alone", false),
        labelled("p", "b", false),
        labelled("p", "c", 1),
        labelled("p", "d", 0),
        labelled("p", "e", false),
    ];
    let set = set(&records).unwrap();
    let expected = [("a", "b"), ("c", "d")]
        .map(|(chosen, rejected)| Example::Preference(pair(text("p"), text(chosen), text(rejected))));
    assert_eq!((&set.examples[..], set.layout), (&expected[..], Layout::Preference));
    assert_eq!(set.notes, ["6 answers with labels make 2 pairs of one prompt; 2 have no counterpart and are left out"]);
    assert_eq!(set.buckets, [bucket("p"); 2]);
    assert!(set.places[1].to_string().ends_with("line 4"), "the place is that of the wanted answer");
}

#[test]
fn labelled_conversations_are_pairs() {
    let talk = |answer: &str, label: bool| json!({"kto_tag": label, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": answer}]});
    let set = set(&[talk("bad", false), talk("good", true)]).unwrap();
    let expected = pair(vec![user("q")].into(), vec![assistant("good")].into(), vec![assistant("bad")].into());
    assert_eq!(set.examples, [Example::Preference(expected)]);
}

#[test]
fn labels_that_make_no_pair_are_refused() {
    let error = set(&[labelled("p", "a", true), labelled("q", "b", false)]).unwrap_err().to_string();
    assert!(error.contains("no prompt has both a wanted and an unwanted answer"), "{error}");
    assert!(error.contains("For sft keep the records whose label is true"), "{error}");
    let unlabelled = json!({"prompt": "p", "completion": "a"});
    let error = format!("{:#}", set(&[labelled("p", "a", true), unlabelled]).unwrap_err());
    assert!(error.contains("line 2: this record is prompt and completion as text, but the first one"), "{error}");
    // In other layouts a number is a class.
    assert!(set(&[json!({"question": "q", "answer": "a", "label": 3})]).is_ok());
}

#[test]
fn answers_that_repeat_their_prompt_lose_it() {
    let record = |chosen: &str| json!({"prompt": "Q: two?", "chosen": chosen, "rejected": "Q: two? Five."});
    let whole = set(&[record("Q: two? Four."), record("Q: two? 4.")]).unwrap();
    let expected = |chosen: &str| Example::Preference(pair(text("Q: two?"), text(chosen), text(" Five.")));
    assert_eq!(whole.examples, [expected(" Four."), expected(" 4.")]);
    assert_eq!(whole.notes, ["every answer begins with its prompt: it is taken off the answers"]);
    let completions = set(&[json!({"prompt": "1 +", "completion": "1 + 1"})]).unwrap();
    let expected = Example::PromptCompletion { prompt: text("1 +"), completion: text(" 1") };
    assert_eq!(completions.examples, [expected]);
    // One that does not repeat it: nothing is removed, and the others are noted.
    let most = set(&[record("Q: two? Four."), record("Q: two? 4."), record("Four.")]).unwrap();
    assert_eq!(
        most.examples[0],
        Example::Preference(pair(text("Q: two?"), text("Q: two? Four."), text("Q: two? Five.")))
    );
    assert!(most.notes[0].starts_with("the answers of 2 of 3 records begin with their prompt"), "{:?}", most.notes);
    // An answer that equals the prompt is kept.
    let echo = json!({"prompt": "say it", "completion": "say it"});
    assert!(set(&[echo]).unwrap().notes.is_empty());
}

#[test]
fn labels_that_are_kept_stay_beside_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("labelled.jsonl");
    let row = |i: usize| {
        let record = json!({"prompt": format!("p{i}"), "completion": format!("c{i}"), "label": i.is_multiple_of(3)});
        record.to_string() + "\n"
    };
    std::fs::write(&path, (0..60).map(row).collect::<String>()).unwrap();
    let set = load_split(&path, Which::TheOnly, Reading { labels: Labels::Kept, ..Reading::default() }).unwrap();
    assert_eq!((set.examples.len(), set.labels.len(), set.layout), (60, 60, Layout::PromptCompletion));
    let agree = |set: &Dataset| {
        assert_eq!(set.labels.len(), set.examples.len());
        for (example, label) in set.examples.iter().zip(&set.labels) {
            let Example::PromptCompletion { completion: Content::Text(said), .. } = example else {
                panic!("{example:?}")
            };
            assert_eq!(said[1..].parse::<usize>().unwrap().is_multiple_of(3), *label, "{said}");
        }
    };
    agree(&set);
    let Split { train, validation, test } = split_by_prompt(&set);
    for mut part in [train, validation, test] {
        assert!(part.examples.len() > 1, "60 prompts reach every part");
        agree(&part);
        part.keep(|index| index % 2 == 1);
        agree(&part);
    }

    let talk =
        r#"{"kto_tag": false, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}"#;
    std::fs::write(&path, talk).unwrap();
    let set = load_split(&path, Which::TheOnly, Reading { labels: Labels::Kept, ..Reading::default() }).unwrap();
    let expected =
        Example::PromptCompletion { prompt: vec![user("q")].into(), completion: vec![assistant("a")].into() };
    assert_eq!((set.examples, set.labels), (vec![expected], vec![false]));
}
