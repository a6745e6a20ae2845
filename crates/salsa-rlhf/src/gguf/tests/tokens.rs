//! Vocabularies of both kinds.

use serde_json::{Value, json};

use super::super::{
    architecture::Pieces,
    pre_tokenizer::{self, PreTokenizer},
    value::{Kind, Metadata, Value as Stored},
    vocabulary::Vocabulary,
};
use crate::tokenizer::Tokenizer;

#[test]
fn a_pre_tokenizer_is_recognised_in_what_it_writes() {
    for name in pre_tokenizer::names().split(", ") {
        let own = PreTokenizer::named(name).unwrap();
        let json = json!({ "pre_tokenizer": own.json(), "model": { "ignore_merges": own.ignore_merges } });
        assert_eq!(PreTokenizer::of_json(&json).unwrap().names, own.names, "{name}");
    }
    for other in
        [json!({ "type": "Whitespace" }), json!({ "type": "ByteLevel", "add_prefix_space": true }), json!(null)]
    {
        assert!(PreTokenizer::of_json(&json!({ "pre_tokenizer": other })).is_none(), "{other}");
    }
}

/// A SentencePiece vocabulary: specials, a byte, pieces with scores.
fn pieces(tokens: &[(&str, f32, i32)]) -> Metadata {
    let mut metadata = Metadata::default();
    let mut set = |key: &str, value| drop(metadata.0.insert(format!("tokenizer.ggml.{key}"), value));
    set("model", Stored::Text("llama".into()));
    set("tokens", Stored::Texts(tokens.iter().map(|token| token.0.to_owned()).collect()));
    set("scores", Stored::Numbers(Kind::F32, tokens.iter().flat_map(|token| token.1.to_le_bytes()).collect()));
    set("token_type", Stored::Numbers(Kind::I32, tokens.iter().flat_map(|token| token.2.to_le_bytes()).collect()));
    set("unknown_token_id", Stored::Whole(0));
    set("bos_token_id", Stored::Whole(1));
    metadata
}

fn tokenizer(metadata: &Metadata, kind: Pieces) -> (Value, Tokenizer) {
    let files = Vocabulary::read(metadata, 64).unwrap().files(kind, 64).unwrap();
    let json = files.into_iter().find(|(name, _)| *name == "tokenizer.json").unwrap().1;
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    (json, tokenizer)
}

const LLAMA: [(&str, f32, i32); 12] = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("<0x21>", 0.0, 6),
    ("▁a", -1.0, 1),
    ("ab", -2.0, 1),
    ("▁ab", -3.0, 1),
    ("▁", -100.0, 1),
    ("a", -101.0, 1),
    ("b", -102.0, 1),
    ("c", -103.0, 1),
    ("<|x|>", 0.0, 4),
    ("bc", -0.5, 1),
];

/// SentencePiece joins the pair with the best score first: `▁ab` is made of `▁a` and `b`, and `bc` before either.
#[test]
fn pieces_are_joined_by_score() {
    let (json, tokenizer) = tokenizer(&pieces(&LLAMA), Pieces::Llama);
    let merges = [["b", "c"], ["▁", "a"], ["a", "b"], ["▁a", "b"], ["▁", "ab"]];
    assert_eq!(json["model"]["merges"], json!(merges));
    assert_eq!(tokenizer.encode("ab").unwrap(), [5]);
    assert_eq!(tokenizer.encode("abc").unwrap(), [3, 11]);
    assert_eq!(tokenizer.encode("c<|x|>c!").unwrap(), [6, 9, 10, 6, 9, 2]);
    assert_eq!(tokenizer.encode_with_special("ab").unwrap(), [1, 5]);
    // A space is prefixed to a space too, as SentencePiece does.
    assert_eq!(tokenizer.encode(" ab").unwrap(), [6, 5]);
    assert_eq!(tokenizer.decode(&[3, 11, 2]).unwrap(), "abc!");
}

#[test]
fn pieces_of_gemma_are_joined_by_place_and_spaces_are_tokens() {
    let tokens = [
        ("<unk>", 0.0, 2),
        ("<bos>", 0.0, 3),
        ("  ", -1000.0, 4),
        ("▁a", -9.0, 1),
        ("ab", -1.0, 1),
        ("▁", -1.0, 1),
        ("a", -1.0, 1),
        ("b", -1.0, 1),
    ];
    let (json, tokenizer) = tokenizer(&pieces(&tokens), Pieces::Gemma);
    assert_eq!(json["model"]["merges"], json!([["▁", "▁"], ["▁", "a"], ["a", "b"]]));
    assert_eq!(tokenizer.encode("ab a").unwrap(), [4, 3]);
    assert_eq!(tokenizer.encode("a ab").unwrap(), [6, 3, 7]);
    assert_eq!(tokenizer.decode(&[4, 3]).unwrap(), "ab a");
}

#[test]
fn no_space_is_prefixed_where_the_file_says_so() {
    let mut metadata = pieces(&LLAMA);
    metadata.0.insert("tokenizer.ggml.add_space_prefix".into(), Stored::Bool(false));
    metadata.0.insert("tokenizer.ggml.add_bos_token".into(), Stored::Bool(false));
    let (_, tokenizer) = tokenizer(&metadata, Pieces::Llama);
    assert_eq!(tokenizer.encode_with_special("ab ab").unwrap(), [4, 5]);
}
