use super::*;
use crate::{config, stage::supervised::sft::SftConfig};

/// The prompts of a part.
fn prompts(path: &Path, split: &str) -> anyhow::Result<Vec<String>> {
    let part = DataPart {
        path: path.to_owned().into(),
        split: Some(Part::from(split.to_owned())),
        max_samples: None,
        seed: None,
    };
    let prompt = |example: &Example| match example {
        Example::Prompt(Content::Text(text)) => Ok(text.clone()),
        other => bail!("{other:?}"),
    };
    DataSource::Part(part).load()?.try_map(prompt)
}

#[test]
fn a_split_called_eval_is_the_published_one_or_the_validation_part() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let names: Vec<String> = (0..26).map(|i| char::from(b'a' + i).to_string()).collect();
    let lines: String = names.iter().map(|name| format!("{{\"prompt\":\"{name}\"}}\n")).collect();
    file("x.jsonl", &lines);
    let alone = dir.path().join("x.jsonl");
    let validation: Vec<String> = names.into_iter().filter(|name| (80..90).contains(&data::bucket(name))).collect();
    assert!(!validation.is_empty());
    assert_eq!(prompts(&alone, "eval").unwrap(), validation);
    assert_eq!(prompts(&alone, "validation").unwrap(), validation);
    std::fs::remove_file(alone).unwrap();
    file("train-00000-of-00001.jsonl", "{\"prompt\":\"t\"}\n");
    file("eval-00000-of-00001.jsonl", "{\"prompt\":\"e\"}\n");
    assert_eq!(prompts(dir.path(), "eval").unwrap(), ["e"]);
    let error = prompts(dir.path(), "validation").unwrap_err().to_string();
    assert!(error.contains("has no split \"validation\": it has eval, train"), "{error}");
}

/// The prompts of a source given as JSON.
fn sampled(source: &str) -> anyhow::Result<Vec<String>> {
    let source: DataSource = serde_json::from_str(source)?;
    assert_eq!(serde_json::from_value::<DataSource>(serde_json::to_value(&source)?)?, source);
    source.load()?.try_map(|example| match example {
        Example::Prompt(Content::Text(text)) => Ok(text.clone()),
        other => bail!("{other:?}"),
    })
}

#[test]
fn a_slice_and_a_sample_keep_the_order_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    let names: Vec<String> = (0..40).map(|i| format!("p{i:02}")).collect();
    let lines: String = names.iter().map(|name| format!("{{\"prompt\":\"{name}\"}}\n")).collect();
    std::fs::write(&path, lines).unwrap();
    let sampled = |keys: &str| sampled(&format!("{{\"path\":{path:?}{keys}}}"));
    assert_eq!(sampled("").unwrap(), names);
    assert_eq!(sampled(r#", "split": "all[3:6]""#).unwrap(), names[3..6]);
    assert_eq!(sampled(r#", "split": "all[-25%:]", "max_samples": 2"#).unwrap(), names[30..32]);
    let train = sampled(r#", "split": "train""#).unwrap();
    assert_eq!(sampled(r#", "split": "train[-5:]""#).unwrap(), train[train.len() - 5..]);
    let one = sampled(r#", "max_samples": 10, "seed": 1"#).unwrap();
    let two = sampled(r#", "max_samples": 10, "seed": 2"#).unwrap();
    for drawn in [&one, &two] {
        assert!(drawn.len() == 10 && drawn.is_sorted() && *drawn != names[..10], "{drawn:?}");
    }
    assert_ne!(one, two);
    assert_eq!(sampled(r#", "max_samples": 100, "seed": 1"#).unwrap(), names);
    for (keys, part) in [
        (r#", "seed": 1"#, "give max_samples too"),
        (r#", "split": "train[5]""#, "is no slice of a split: write train[:500]"),
        (r#", "split": "all[50:]""#, "holds no examples"),
    ] {
        let error = sampled(keys).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    let source: DataSource = serde_json::from_str(r#"{"path":"x","split":"train[:10%]","max_samples":3}"#).unwrap();
    assert_eq!(source.to_string(), "x (train[:10%], first 3)");
    assert_eq!(serde_json::to_value(&source).unwrap()["split"], "train[:10%]");
    let bare: DataSource = serde_json::from_str(r#"{"path":"x","split":"train"}"#).unwrap();
    let kept = serde_json::json!({"path": "x", "split": "train"});
    assert_eq!(serde_json::to_value(&bare).unwrap(), kept, "records of versions that had no other keys agree");
}

#[test]
fn a_data_set_on_the_command_line_has_the_forms_of_a_file_and_its_mistakes_are_named() {
    let read = |text: &str| {
        let config = config::load::<SftConfig>(None, &[("dataset".to_owned(), text.to_owned())]);
        config.map(|config| config.dataset.to_string()).map_err(|error| format!("{error:#}"))
    };
    for (text, shown) in [
        ("a.jsonl", "a.jsonl"),
        ("{path: a.jsonl}", "a.jsonl"),
        ("{path: a.jsonl, split: \"train[:5%]\"}", "a.jsonl (train[:5%])"),
        ("[{path: a, max_samples: 3, seed: 1}, b]", "a (any 3) + b"),
        ("[a, b]", "a + b"),
    ] {
        assert_eq!(read(text).as_deref(), Ok(shown), "{text}");
    }
    for (text, complaint) in [
        (
            "{path: a, max_sample: 3}",
            "\"max_sample\" is not a key here (valid: path, split, max_samples, seed); did you",
        ),
        ("[{path: a, slit: train}, b]", "\"slit\" is not a key here"),
        ("{path: a, max_samples: 0}", "expected a whole number, 1 or more, got integer 0"),
        ("{path: a, split: train[:5]}", "is neither a mapping nor a list in YAML; put values that hold brackets in"),
        ("{split: train}", "the key \"path\" is missing"),
        ("{path: a, split: 5}", "expected a string, got integer 5"),
    ] {
        let error = read(text).unwrap_err();
        assert!(error.starts_with("--dataset: ") && error.contains(complaint), "{text}: {error}");
    }
}

#[test]
fn an_error_names_the_record() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.jsonl");
    std::fs::write(&path, "{\"prompt\":\"a\"}\n\n{\"prompt\":\"b\"}\n").unwrap();
    let refuse = |example: &Example| match example {
        Example::Prompt(Content::Text(text)) if text == "b" => bail!("no b"),
        _ => Ok(()),
    };
    let error = DataSource::Path(path.into()).load().unwrap().try_map(refuse).unwrap_err();
    assert!(format!("{error:#}").ends_with("x.jsonl, line 3: no b"), "{error:#}");
}

#[test]
fn two_paths_are_two_sources_and_no_path_with_its_split() {
    let source: DataSource = serde_json::from_str(r#"["a.jsonl", {"path": "b.jsonl", "split": "train"}]"#).unwrap();
    let DataSource::Mixture(sources) = source else { panic!("a list is a mixture") };
    assert_eq!(sources[0], DataSource::Path("a.jsonl".into()));
    assert!(matches!(&sources[1], DataSource::Part(part) if part.path == Path::new("b.jsonl").into()));
    let two: DataSource = serde_json::from_str(r#"["a.jsonl", "b.jsonl"]"#).unwrap();
    assert_eq!(two, DataSource::Mixture(vec![DataSource::Path("a.jsonl".into()), DataSource::Path("b.jsonl".into())]));
}
