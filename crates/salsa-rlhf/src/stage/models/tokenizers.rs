//! Whether two tokenizers map the same text to the same ids.
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::{input, tokenizer::Tokenizer};

/// The first difference between the tokenizers of two directories; `None` if one of them has no `tokenizer.json`.
///
/// Compares what affects ids. File formatting is ignored, and so are the padding and truncation settings that trainers
/// write.
pub(in crate::stage) fn difference(a: &Path, b: &Path) -> anyhow::Result<Option<String>> {
    let dirs = [a, b];
    let (a, b) = (a.join("tokenizer.json"), b.join("tokenizer.json"));
    if !a.exists() || !b.exists() {
        return Ok(None);
    }
    let (bytes_a, bytes_b) = (input::read(&a)?, input::read(&b)?);
    if bytes_a == bytes_b {
        return declared(dirs);
    }
    let parse = |path: &Path, bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).with_context(|| format!("{} is no valid JSON", path.display()))
    };
    match compare(&parse(&a, &bytes_a)?, &parse(&b, &bytes_b)?) {
        None => declared(dirs),
        difference => Ok(difference),
    }
}

/// The first token that the files next to `tokenizer.json` declare differently in the two directories.
fn declared([a, b]: [&Path; 2]) -> anyhow::Result<Option<String>> {
    let (a, b) = (Tokenizer::declared_beside(a)?, Tokenizer::declared_beside(b)?);
    let id = a.keys().chain(b.keys()).find(|id| a.get(id) != b.get(id));
    let token = id.and_then(|id| a.get(id).or_else(|| b.get(id)));
    Ok(token.map(|token| format!("the token {:?} beside tokenizer.json is not the same", token.content)))
}

fn compare(a: &Value, b: &Value) -> Option<String> {
    tokens(a, b).or_else(|| {
        let parts = ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"];
        let part = parts.into_iter().find(|part| a[part] != b[part]);
        part.map(|part| format!("{part} is not the same"))
    })
}

fn tokens(a: &Value, b: &Value) -> Option<String> {
    let (a, b) = (&a["model"], &b["model"]);
    if a["type"] != b["type"] {
        return Some(format!("its model is {} and {}", a["type"], b["type"]));
    }
    match (&a["vocab"], &b["vocab"]) {
        (Value::Object(a), Value::Object(b)) => ids(a, b),
        (a, b) => (a != b).then(|| "their vocabularies are not the same".to_owned()),
    }
    .or_else(|| merges(&a["merges"], &b["merges"]))
    .or_else(|| {
        let rest = |model: &Value| {
            let mut rest = model.as_object().cloned().unwrap_or_default();
            rest.retain(|key, value| key != "vocab" && key != "merges" && !value.is_null());
            rest
        };
        let (a, b) = (rest(a), rest(b));
        let key = a.keys().chain(b.keys()).find(|key| a.get(*key) != b.get(*key))?;
        Some(format!("their models differ in {key}"))
    })
}

fn ids(a: &Map<String, Value>, b: &Map<String, Value>) -> Option<String> {
    let id = |vocab: &Map<String, Value>, token: &str| vocab.get(token).map_or("absent".to_owned(), Value::to_string);
    let token = a.keys().chain(b.keys()).find(|token| a.get(*token) != b.get(*token))?;
    Some(format!("the token {token:?} is {} and {}", id(a, token), id(b, token)))
}

/// Merges are `"a b"` or `["a", "b"]`, depending on the version that saved them.
fn merges(a: &Value, b: &Value) -> Option<String> {
    let pair = |merge: &Value| match merge {
        Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    let list = |merges: &Value| merges.as_array().map(Vec::as_slice).unwrap_or_default().iter().map(pair).collect();
    let (a, b): (Vec<String>, Vec<String>) = (list(a), list(b));
    if let Some(i) = (0..a.len().min(b.len())).find(|i| a[*i] != b[*i]) {
        return Some(format!("merge {i} is {:?} and {:?}", a[i], b[i]));
    }
    (a.len() != b.len()).then(|| format!("they have {} and {} merges", a.len(), b.len()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use serde_json::json;

    fn tokenizer() -> Value {
        json!({
            "truncation": null, "added_tokens": [{"id": 3, "content": "<s>"}], "normalizer": null,
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "dropout": null},
        })
    }

    #[test]
    fn spelling_and_batching_do_not_count() {
        let mut other = tokenizer();
        other["truncation"] = json!({"max_length": 5});
        other["model"]["merges"] = json!(["a b"]);
        other["model"].as_object_mut().unwrap().shift_remove("dropout");
        assert_eq!(compare(&tokenizer(), &other), None);
    }

    #[test]
    fn tokens_that_only_other_files_declare_count() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let texts = ["the cat sat".to_owned()].into_iter();
        let tokenizer = Tokenizer::train_bpe(texts, 262, &["</s>"]).unwrap();
        for dir in [&a, &b] {
            tokenizer.save(dir.path(), &Default::default(), None).unwrap();
        }
        let of_both = || difference(a.path(), b.path()).unwrap();
        let first = u32::try_from(tokenizer.vocab_size()).unwrap();
        let add = |dir: &tempfile::TempDir, tokens: [&str; 2]| {
            let ids = json!({ tokens[0]: first, tokens[1]: first + 1 });
            fs::write(dir.path().join("added_tokens.json"), ids.to_string()).unwrap();
        };
        assert_eq!(of_both(), None);
        add(&a, ["<x>", "<y>"]);
        assert_eq!(of_both().unwrap(), "the token \"<x>\" beside tokenizer.json is not the same");
        add(&b, ["<x>", "<y>"]);
        assert_eq!(of_both(), None);
        add(&b, ["<x>", "<z>"]);
        assert!(of_both().unwrap().contains("\"<y>\""));
    }

    #[test]
    fn the_first_difference_is_named() {
        let differs = |change: fn(&mut Value)| {
            let mut other = tokenizer();
            change(&mut other);
            compare(&tokenizer(), &other).unwrap()
        };
        assert_eq!(differs(|t| t["model"]["vocab"]["b"] = json!(7)), "the token \"b\" is 1 and 7");
        assert_eq!(differs(|t| t["model"]["vocab"]["c"] = json!(7)), "the token \"c\" is absent and 7");
        assert_eq!(differs(|t| t["model"]["merges"] = json!(["b a"])), "merge 0 is \"a b\" and \"b a\"");
        assert_eq!(differs(|t| t["model"]["merges"] = json!([])), "they have 1 and 0 merges");
        assert_eq!(differs(|t| t["model"]["dropout"] = json!(0.1)), "their models differ in dropout");
        assert_eq!(differs(|t| t["normalizer"] = json!({"type": "NFC"})), "normalizer is not the same");
        assert_eq!(differs(|t| t["model"]["type"] = json!("Unigram")), "its model is \"BPE\" and \"Unigram\"");
    }
}
