//! Errors of files: cause and location.

use super::*;

#[test]
fn a_record_that_is_no_json_is_told_with_its_cause() {
    const PAIR: &str = "is one half of a surrogate pair";
    let table: &[(&str, &str)] = &[
        (r#"{"text":"a","score":NaN}"#, "NaN at column 21 is no JSON number"),
        (r#"{"text":"a","score": -Infinity}"#, "-Infinity at column 23 is no JSON number"),
        (r#"{"text":"a","score":[Infinity]}"#, "Infinity at column 22 is no JSON number"),
        (r#"{"text":"so \ud83d"}"#, PAIR),
        (r#"{"text":"so \ud83d\u0041"}"#, PAIR),
        (r#"{"text":"so \ude00!"}"#, PAIR),
        (r#"{"text":"so \ud83dx"}"#, "\\ud83d at column"),
        ("{'text': 'a'}", "(Python's way of writing; json.dumps writes JSON)"),
        ("{\"text\":\"a\",}", "trailing comma"),
    ];
    for (json, part) in table {
        let line = refusal("x.jsonl", &format!("{{\"text\":\"first\"}}\n{json}\n"));
        assert!(line.contains("x.jsonl, line 2: ") && line.contains(part), "{json}: {line}");
        let element = refusal("x.json", &format!("[{{\"text\":\"first\"}},\n{json}]"));
        let part = part.split(" at column").next().unwrap();
        assert!(element.contains("x.json, record 2 (line 2): ") && element.contains(part), "{json}: {element}");
    }
    let names = refusal("x.jsonl", r#"{"text":"NaN and \ud83d\ude00","b":nul}"#);
    assert!(names.contains("expected ident"), "what stands elsewhere in the line is no cause: {names}");
    assert!(refusal("x.jsonl", "[\n{\"text\":\"a\"}]").contains("a file that is one list is named .json"));
    assert!(refusal("x.jsonl", "[[1]]").contains("a file that is one list is named .json"));
}

#[test]
fn a_file_of_another_encoding_is_told_with_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let utf16: Vec<u8> = "{\"text\":\"a\"}\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    for name in ["x.jsonl", "x.json", "x.txt", "x.csv"] {
        let path = dir.path().join(name);
        for mark in [&b"\xFF\xFE"[..], b""] {
            std::fs::write(&path, [mark, &utf16].concat()).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{name} is UTF-16")) && error.contains("iconv"), "{error}");
        }
    }
    for (name, bytes) in [
        ("x.jsonl", &b"{\"text\":\"a\"}\n{\"text\":\"na\xEFve\"}\n"[..]),
        ("x.txt", b"a\nna\xEFve\n"),
        ("x.csv", b"text\nna\xEFve\n"),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("{name}, line 2: ")) && error.contains("is no UTF-8"), "{error}");
        assert!(error.contains("iconv -f latin1"), "{error}");
    }
}

#[test]
fn a_null_that_changes_the_layout_is_named() {
    let whole = r#"{"prompt":"p","completion":"a"}"#;
    let first = refusal("x.jsonl", &format!("{}\n{whole}", r#"{"prompt":"p","completion":null}"#));
    assert!(first.contains("line 2") && first.contains("line 1) is prompt as text (null: completion)"), "{first}");
    let pair = r#"{"prompt":"p","chosen":"a","rejected":"b"}"#;
    let later = refusal("x.jsonl", &format!("{pair}\n{}", r#"{"prompt":"p","chosen":null,"rejected":null}"#));
    assert!(later.contains("this record is prompt as text (null: chosen, rejected), but"), "{later}");
}

#[test]
fn tables_are_records() {
    let pairs = "prompt,chosen,rejected,margin\n\"a, b\",\"say \"\"hi\"\"\n\",12,0.5\nq,,1,\n";
    let error = refusal("x.csv", pairs);
    assert!(error.contains("x.csv, line 4: ") && error.contains("chosen is missing or null"), "{error}");
    let kept = pairs.replace("q,,1,", "q,2,1,");
    let set = load_as("x.csv", &kept).unwrap();
    let first = Preference { margin: Some(0.5), ..pair(text("a, b"), text("say \"hi\"\n"), text("12")) };
    let second = pair(text("q"), text("2"), text("1"));
    assert_eq!(set.examples, [first, second].map(Example::Preference));
    assert!(set.places[1].to_string().ends_with("x.csv, line 4"), "{}", set.places[1]);
    let chats = "\u{feff}messages\tid\n\"[{\"\"role\"\":\"\"user\"\",\"\"content\"\":\"\"u\"\"}]\"\t1\n";
    assert_eq!(load_as("x.tsv", chats).unwrap().examples, [Example::Messages(vec![user("u")].into())]);
    for (table, part) in [
        ("prompt,chosen\na\n", "line 2: 1 columns, but the first line names 2"),
        ("prompt;chosen\na;b\n", "line 1: the columns are divided by semicolons"),
        ("prompt\tchosen\na\tb\n", "line 1: the columns are divided by tabs (name it .tsv)"),
        ("text,text\na,b\n", "line 1: two columns are called \"text\""),
        ("text,\na,b\n", "line 1: a column has no name"),
        ("prompt,chosen,rejected,margin\na,b,c,much\n", "line 2: margin is \"much\", which is no number"),
        ("messages\n[{'role': 'user'}]\n", "line 2: messages is no JSON"),
        ("a,b\n1,2\n", "line 2: columns of no known layout: a, b"),
        ("text\n", "holds no records"),
    ] {
        let error = refusal("x.csv", table);
        assert!(error.contains(part), "{table}: {error}");
    }
}
