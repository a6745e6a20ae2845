//! Tokens declared only in files other than `tokenizer.json`.

use super::*;

/// A directory with a tokenizer of 300 tokens, including `<s>` (0) and `</s>` (1), and these further files.
fn directory(files: &[(&str, Value)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = Tokenizer::train_bpe(corpus(8), 300, &["<s>", "</s>"]).unwrap();
    tokenizer.save(dir.path(), &SpecialTokenNames::default(), None).unwrap();
    for (name, value) in files {
        fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    dir
}

fn opened(files: &[(&str, Value)]) -> Result<Tokenizer> {
    Tokenizer::from_dir(directory(files).path())
}

fn refusal(files: &[(&str, Value)]) -> String {
    format!("{:#}", opened(files).unwrap_err())
}

fn special(content: &str) -> Value {
    json!({ "content": content, "lstrip": false, "normalized": false, "rstrip": false, "single_word": false, "special": true })
}

const CONFIG: &str = "tokenizer_config.json";
const MAP: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";

#[test]
fn every_way_to_declare_a_token_makes_it_one_token() {
    let names = json!({ "bos_token": "<s>", "eos_token": "</s>" });
    let with = |key: &str, value: Value| {
        let mut config = names.clone();
        config[key] = value;
        config
    };
    let numbers = json!({ "<|im_start|>": 300, "<|im_end|>": 301 });
    let list = json!(["<|im_start|>", "<|im_end|>"]);
    let ways: [&[(&str, Value)]; 7] = [
        &[(
            CONFIG,
            with("added_tokens_decoder", json!({ "301": special("<|im_end|>"), "300": special("<|im_start|>") })),
        )],
        &[(CONFIG, names.clone()), (ADDED, numbers)],
        &[(CONFIG, with("additional_special_tokens", list.clone()))],
        &[(CONFIG, with("extra_special_tokens", json!([special("<|im_start|>"), "<|im_end|>"])))],
        &[(CONFIG, with("extra_special_tokens", json!({ "start": "<|im_start|>", "end": "<|im_end|>" })))],
        &[(CONFIG, names.clone()), (MAP, json!({ "additional_special_tokens": list }))],
        &[
            (CONFIG, json!({ "start_token": "<|im_start|>" })),
            (MAP, json!({ "end_token": { "content": "<|im_end|>" } })),
        ],
    ];
    for files in ways {
        let tokenizer = opened(files).unwrap();
        let bare = opened(&[]).unwrap().encode("user\n").unwrap();
        let ids = tokenizer.encode("<|im_start|>user\n<|im_end|>").unwrap();
        assert_eq!(ids, [&[300], &bare[..], &[301]].concat(), "{files:?}");
        assert_eq!(tokenizer.vocab_size(), 302, "{files:?}");
    }
}

#[test]
fn a_word_of_the_vocabulary_that_is_named_special_is_one_token() {
    // It is in the vocabulary of the model, but no merges produce it and it is not an added token.
    let dir = directory(&[]);
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["<|im_end|>"] = json!(300);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let plain = Tokenizer::from_dir(dir.path()).unwrap();
    assert!(plain.encode("fox<|im_end|>").unwrap().len() > 3);
    fs::write(dir.path().join(CONFIG), json!({ "eos_token": "<|im_end|>" }).to_string()).unwrap();
    let named = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(named.encode("fox<|im_end|>").unwrap(), [&plain.encode("fox").unwrap()[..], &[300]].concat());
    assert_eq!((named.eos(), named.vocab_size()), (Some(300), 301));
    assert_eq!(named.decode(&[300]).unwrap(), "", "it is special");
}

#[test]
fn flags_are_those_of_the_declaration() {
    let mut strips = special("</s>");
    strips["lstrip"] = json!(true);
    let files = [(CONFIG, json!({ "added_tokens_decoder": { "1": strips } }))];
    let (with, without) = (opened(&files).unwrap(), opened(&[]).unwrap());
    assert_eq!(with.encode("fox  </s>").unwrap(), without.encode("fox</s>").unwrap());
    assert_ne!(without.encode("fox  </s>").unwrap(), without.encode("fox</s>").unwrap());
    // A token that is listed in added_tokens.json but not named is not special.
    let listed = opened(&[(ADDED, json!({ "<think>": 300 }))]).unwrap();
    assert_eq!(listed.encode("<think>").unwrap(), [300]);
    assert_eq!(listed.decode(&[300]).unwrap(), "<think>");
}

#[test]
fn the_other_files_say_nothing_beside_an_added_tokens_decoder() {
    let decoder = json!({ "added_tokens_decoder": { "300": special("<|im_end|>") } });
    let tokenizer = opened(&[(CONFIG, decoder), (ADDED, json!({ "<think>": 301 }))]).unwrap();
    assert_eq!((tokenizer.vocab_size(), tokenizer.token_to_id("<think>")), (301, None));
}

/// The ids are those of transformers 5.23.
#[test]
fn ids_follow_the_order_in_which_transformers_adds_tokens() {
    let config = |keys: Value| (CONFIG, keys);
    let ids = |files: &[(&str, Value)]| {
        let tokenizer = opened(files).unwrap();
        ["[PAD]", "[UNK]", "[MASK]", "<a>", "<b>"].map(|token| tokenizer.token_to_id(token))
    };
    let extra = json!({ "additional_special_tokens": ["<b>", "<a>"], "pad_token": "[PAD]" });
    assert_eq!(ids(&[config(extra)]), [Some(300), None, None, Some(302), Some(301)]);
    let named = json!({ "mask_token": "[MASK]", "unk_token": "[UNK]", "pad_token": "[PAD]", "x_token": "<a>" });
    assert_eq!(ids(&[config(named)]), [Some(301), Some(300), Some(302), Some(303), None]);
    // Of two lists under the older key, that of tokenizer_config.json counts.
    let list = |token: &str| json!({ "additional_special_tokens": [token] });
    assert_eq!(ids(&[config(list("<a>")), (MAP, list("<b>"))]), [None, None, None, Some(300), None]);
    assert_eq!(
        ids(&[config(json!({ "additional_special_tokens": [] })), (MAP, list("<b>"))])[4],
        None,
        "an empty list is one"
    );
    assert_eq!(ids(&[config(json!({})), (MAP, list("<b>"))])[4], Some(300));
    let newer = json!({ "extra_special_tokens": ["<b>"] });
    assert_eq!(ids(&[config(list("<a>")), (MAP, newer)])[3..], [Some(300), Some(301)]);
}

#[test]
fn declarations_that_contradict_tokenizer_json_are_refused() {
    let decoder = |id: &str, content: &str| (CONFIG, json!({ "added_tokens_decoder": { id: special(content) } }));
    let table = [
        (
            decoder("305", "<|im_end|>"),
            "\"<|im_end|>\" the id 305, but tokenizer.json lacks it and its next free id is 300",
        ),
        (decoder("7", "</s>"), "\"</s>\" the id 7, tokenizer.json 1"),
        (decoder("-1", "</s>"), "has the id \"-1\""),
        (decoder("300", ""), "no token with a content"),
        ((CONFIG, json!({ "added_tokens_decoder": { "300": "x" } })), "gives the id 300 no token"),
        ((CONFIG, json!({ "added_tokens_decoder": 3 })), "no table of tokens"),
        ((CONFIG, json!([])), "no JSON object"),
        ((CONFIG, json!({ "pad_token": { "content": "x", "lstrip": "no" } })), "lstrip of \"x\" is \"no\""),
        ((CONFIG, json!({ "additional_special_tokens": [3] })), "additional_special_tokens has 3"),
        ((CONFIG, json!({ "split_special_tokens": true })), "split_special_tokens is true"),
        ((ADDED, json!({ "<think>": 4294967296u64 })), "\"<think>\" the id 4294967296"),
        ((ADDED, json!({ "<think>": 300, "<answer>": 300 })), "the id 300 to"),
        ((ADDED, json!({ "<think>": 12 })), "\"<think>\" the id 12, but"),
        (
            (CONFIG, json!({ "eos_token": "<|im_end|>" })),
            "the special token \"<|im_end|>\", which tokenizer.json does not",
        ),
    ];
    for (file, expected) in table {
        let error = refusal(std::slice::from_ref(&file));
        assert!(error.contains(expected), "{file:?}: {error}");
    }
}

#[test]
fn ids_beyond_any_vocabulary_are_refused() {
    let dir = directory(&[(CONFIG, json!({ "eos_token": "a", "pad_token": "[PAD]" }))]);
    let path = dir.path().join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    tokenizer["model"]["vocab"]["a"] = json!(u32::MAX);
    fs::write(&path, tokenizer.to_string()).unwrap();
    let error = format!("{:#}", Tokenizer::from_dir(dir.path()).unwrap_err());
    assert!(error.contains("tokenizer.json") && error.contains("the id 4294967295"), "{error}");
}

#[test]
fn a_token_without_an_embedding_is_refused_where_a_text_has_it() {
    let files = [(CONFIG, json!({ "eos_token": "</s>", "pad_token": "[PAD]" }))];
    // transformers gives padding the next free id; most models have spare rows.
    let roomy = opened(&files).unwrap().for_embeddings(320).unwrap();
    assert_eq!((roomy.pad(), roomy.encode("[PAD]").unwrap()), (Some(300), vec![300]));
    let full = opened(&files).unwrap().for_embeddings(300).unwrap();
    assert_eq!((full.pad(), full.eos()), (None, Some(1)));
    assert_eq!(full.encode("PAD").unwrap(), opened(&[]).unwrap().encode("PAD").unwrap());
    let error = full.encode("a [PAD]").unwrap_err().to_string();
    assert!(error.contains("\"a [PAD]\" has the token \"[PAD]\"") && error.contains("no embedding"), "{error}");
    let error = opened(&files).unwrap().for_embeddings(299).unwrap_err().to_string();
    assert!(error.contains("ids up to 299 but the model has embeddings for 299"), "{error}");
    let end = json!({ "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_end|>"] });
    let error = opened(&[(CONFIG, end)]).unwrap().for_embeddings(300).unwrap_err().to_string();
    assert!(error.contains("\"<|im_end|>\" is not in tokenizer.json"), "{error}");
}

#[test]
fn what_is_declared_beside_tokenizer_json_is_known() {
    let beside = |files: &[(&str, Value)]| Tokenizer::declared_beside(directory(files).path()).unwrap();
    assert!(beside(&[]).is_empty());
    assert!(beside(&[(CONFIG, json!({ "eos_token": "</s>" }))]).is_empty());
    let tokens = beside(&[(ADDED, json!({ "<think>": 300 }))]);
    assert_eq!(
        tokens.into_iter().map(|(id, token)| (id, token.content)).collect::<Vec<_>>(),
        [(300, "<think>".into())]
    );
}
