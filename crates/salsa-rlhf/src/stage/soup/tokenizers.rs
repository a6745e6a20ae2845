//! Whether two tokenizers turn the same text into the same numbers.
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value};

use crate::input;

/// The first difference between the `tokenizer.json` of two directories; none if one of them has none.
///
/// Compared is what decides about ids. How the file is laid out does not count, nor how batches are padded and cut off,
/// which trainers write into it.
pub(in crate::stage) fn difference(a: &Path, b: &Path) -> anyhow::Result<Option<String>> {
    let (a, b) = (a.join("tokenizer.json"), b.join("tokenizer.json"));
    if !a.exists() || !b.exists() {
        return Ok(None);
    }
    let (bytes_a, bytes_b) = (input::read(&a)?, input::read(&b)?);
    if bytes_a == bytes_b {
        return Ok(None);
    }
    let parse = |path: &Path, bytes: &[u8]| {
        serde_json::from_slice::<Value>(bytes).with_context(|| format!("{} is no valid JSON", path.display()))
    };
    Ok(compare(&parse(&a, &bytes_a)?, &parse(&b, &bytes_b)?))
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

/// Written as `"a b"` or as `["a", "b"]`, depending on the version that saved them.
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
