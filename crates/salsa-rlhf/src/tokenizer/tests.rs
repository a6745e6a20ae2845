//! Training, saving, loading, offsets, and real tokenizers if present.

mod declared;

use std::fs;

use serde_json::Value;

use super::*;

fn corpus(repeat: usize) -> impl Iterator<Item = String> + Send {
    let texts =
        ["the quick brown fox ", "jumps over the lazy dog 1234\n", "naïve café — \"quoted\" ", "aaaa abab baba "];
    (0..repeat).map(move |i| texts.iter().cycle().skip(i % 4).take(4).copied().collect::<String>())
}

fn trained() -> Tokenizer {
    Tokenizer::train_bpe(corpus(8), 300, &["<|pad|>", "<|end|>"]).unwrap()
}

#[test]
fn ids_are_special_tokens_then_bytes_then_merges() {
    let tokenizer = trained();
    assert_eq!(tokenizer.vocab_size(), 300);
    assert_eq!((tokenizer.token_to_id("<|pad|>"), tokenizer.token_to_id("<|end|>")), (Some(0), Some(1)));
    let bytes = (2..258).map(|id| tokenizer.inner.id_to_token(id).unwrap().chars().count());
    assert!(bytes.into_iter().all(|length| length == 1));
    assert!(tokenizer.inner.id_to_token(258).unwrap().chars().count() > 1);
}

#[test]
fn digits_are_single_tokens() {
    assert_eq!(trained().encode("1234").unwrap().len(), 4);
}

#[test]
fn special_tokens_are_recognised_and_not_decoded() {
    let tokenizer = trained();
    let ids = tokenizer.encode("the<|end|>").unwrap();
    assert_eq!(ids.last(), Some(&1));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "the");
    assert_eq!(tokenizer.decode_with_special(&ids).unwrap(), "the<|end|>");
}

#[test]
fn training_is_a_function_of_the_texts() {
    let texts: Vec<String> =
        corpus(40).enumerate().map(|(i, t)| format!("{t}{i} {}", "xyxyx yxyy ".repeat(i % 7))).collect();
    let train = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let tokenizer = pool.install(|| Tokenizer::train_bpe(texts.iter().cloned(), 700, &["<|end|>"])).unwrap();
        tokenizer.inner.json().unwrap()
    };
    let first = train(1);
    for round in 0..8 {
        assert!(train(1 + round % 4) == first, "round {round} differs");
    }
}

#[test]
fn too_small_a_vocabulary_is_refused() {
    let error = Tokenizer::train_bpe(corpus(1), 257, &["a", "b"]).unwrap_err().to_string();
    assert!(error.contains("257 is too small") && error.contains("258"), "{error}");
    assert!(Tokenizer::train_bpe(corpus(1), 300, &["a", "a"]).unwrap_err().to_string().contains("twice"));
}

#[test]
fn a_saved_tokenizer_is_the_same() {
    let (dir, tokenizer) = (tempfile::tempdir().unwrap(), trained());
    let names = SpecialTokenNames { bos: None, eos: Some("<|end|>".into()), pad: Some("<|pad|>".into()) };
    tokenizer.save(dir.path(), &names, Some("{{ messages }}")).unwrap();
    let loaded = Tokenizer::from_dir(dir.path()).unwrap();
    assert_eq!(loaded.names(), &names);
    assert_eq!((loaded.bos(), loaded.eos(), loaded.pad()), (None, Some(1), Some(0)));
    let text = "the lazy café <|end|> \u{1F98A}\n\n  x";
    assert_eq!(loaded.encode(text).unwrap(), tokenizer.encode(text).unwrap());
    assert_eq!(std::fs::read_to_string(dir.path().join("chat_template.jinja")).unwrap(), "{{ messages }}");
    let wrong = SpecialTokenNames { eos: Some("</s>".into()), ..names };
    assert!(tokenizer.save(dir.path(), &wrong, None).unwrap_err().to_string().contains("eos_token \"</s>\""));
}

#[test]
fn names_are_read_in_both_spellings() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    let names =
        |eos: &str| SpecialTokenNames { bos: Some("<s>".into()), eos: Some(eos.into()), pad: Some("<pad>".into()) };
    write("special_tokens_map.json", r#"{"pad_token":"<pad>","eos_token":{"content":"<end>","lstrip":false}}"#);
    let config = r#""bos_token":{"content":"<s>","lstrip":false},"eos_token":"</s>","pad_token":null"#;
    write("tokenizer_config.json", &format!("{{{config}}}"));
    assert_eq!(SpecialTokenNames::from_dir(dir.path()).unwrap(), names("<end>"));
    write("tokenizer_config.json", &format!(r#"{{{config},"added_tokens_decoder":{{}}}}"#));
    assert_eq!(SpecialTokenNames::from_dir(dir.path()).unwrap(), names("</s>"));
}

#[test]
fn refusals() {
    let dir = tempfile::tempdir().unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("has no tokenizer.json"), "{error}");
    std::fs::write(dir.path().join("tokenizer.model"), b"x").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("AutoTokenizer"), "{error}");
    std::fs::write(dir.path().join("tokenizer.json"), b"{}").unwrap();
    let error = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is no valid"), "{error}");
    trained().save(dir.path(), &SpecialTokenNames::default(), None).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), r#"{"eos_token":"</s>"}"#).unwrap();
    let error = format!("{:#}", Tokenizer::from_dir(dir.path()).unwrap_err());
    assert!(error.contains("name the special token \"</s>\", which tokenizer.json does not have"), "{error}");
}

/// Found by mutation: the library panics on these.
#[test]
fn damaged_files_are_errors_and_no_panics() {
    let dir = tempfile::tempdir().unwrap();
    let whole = trained().inner.json().unwrap();
    let with = |section: &str, text: &str| {
        let start = whole.find(&format!("\"{section}\":")).unwrap();
        format!("{}\"{section}\": {text},{}", &whole[..start], &whole[start..].split_once('\n').unwrap().1)
    };
    for (text, part) in [
        (with("decoder", "{x"), "key must be a string at line"),
        (with("decoder", "{\"type\": tru }"), "expected ident at line"),
        (with("decoder", "{\"type\": \"\\ud800\"}"), "at line"),
        (
            with("normalizer", "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"AA==\"}"),
            "damaged or of an unknown kind",
        ),
        (whole.replacen("\"id\": 0", "\"id\": 99999999999999999999", 1), "tokenizer.json is no valid"),
        (whole[..whole.len() / 2].to_owned(), "at line"),
    ] {
        std::fs::write(dir.path().join("tokenizer.json"), text).unwrap();
        let error = format!("{:#}", Tokenizer::from_dir(dir.path()).unwrap_err());
        assert!(error.contains("tokenizer.json is no valid tokenizer.json: ") && error.contains(part), "{error}");
    }
}

/// A tokenizer whose post-processor prepends `<s>`, as Llama's does.
fn with_bos() -> Tokenizer {
    let mut tokenizer = Tokenizer::train_bpe(corpus(4), 300, &["<s>"]).unwrap();
    let template = tokenizers::processors::template::TemplateProcessing::builder()
        .try_single("<s> $A")
        .unwrap()
        .special_tokens(vec![("<s>", 0)])
        .build()
        .unwrap();
    tokenizer.inner.library().with_post_processor(Some(template));
    tokenizer.names.bos = Some("<s>".into());
    tokenizer
}

#[test]
fn bos_is_added_once() {
    let tokenizer = with_bos();
    let plain = tokenizer.encode("the").unwrap();
    assert_ne!(plain[0], 0);
    let expected = [&[0], &plain[..]].concat();
    assert_eq!(tokenizer.encode_with_special("the").unwrap(), expected);
    assert_eq!(tokenizer.encode_with_special("<s>the").unwrap(), expected);
    assert_eq!(tokenizer.encode("<s>the").unwrap(), expected);
    assert_eq!(tokenizer.encode_with_special("").unwrap(), [0]);
}

#[test]
fn spans_become_the_tokens_that_touch_them() {
    // "the", " " reported as empty at its end, "quick", "fox"
    let offsets = [(0, 3), (4, 4), (4, 9), (9, 12)];
    // Whole tokens, a part of one, parts of two, white space, and an empty span.
    for (span, tokens) in [(0..3, 0..1), (5..6, 2..3), (8..10, 2..4), (2..4, 0..2), (3..4, 1..2), (12..12, 0..0)] {
        assert_eq!(tokens_of(&span, &offsets), tokens, "{span:?}");
    }
    let tokenizer = trained();
    let text = "the fox\n café ";
    let (ids, tokens) = tokenizer.encode_with_spans(text, &[0..text.len(), 4..7, 7..8]).unwrap();
    assert_eq!(tokens[0], 0..ids.len());
    assert_eq!(tokenizer.decode(&ids[tokens[1].clone()]).unwrap().trim(), "fox");
    assert_eq!(tokenizer.decode(&ids[tokens[2].clone()]).unwrap(), "\n");
}

#[test]
fn the_real_tokenizers_give_the_documented_ids() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let text = "\n\nHuman: What is 2 + 2?\n\nAssistant: It is 4.";
    let first: &[u32] = &[
        10, 10, 72, 485, 288, 58, 892, 351, 32, 50, 32, 43, 32, 50, 1995, 10, 65, 410, 511, 446, 58, 596, 351, 32, 52,
        46,
    ];
    let second: &[u32] = &[
        94, 94, 39, 253, 124, 25, 1892, 156, 95, 17, 714, 95, 17, 30, 94, 94, 32, 1072, 251, 249, 25, 467, 156, 95, 19,
        13,
    ];
    let table = [("tokenizer.json", 2000, first, 450_857), ("tiny_bpe_tokenizer.json", 2003, second, 489_956)];
    for (name, size, ids, length) in table {
        let path = root.join("tokenizers/torchtune").join(name);
        let play = root.join("text/tinyshakespeare.txt");
        if !path.exists() || !play.exists() {
            println!("skipped: {} is not there", path.display());
            continue;
        }
        let tokenizer = Tokenizer::from_file(&path).unwrap();
        assert_eq!(tokenizer.vocab_size(), size, "{name}");
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}");
        assert_eq!(tokenizer.decode(ids).unwrap(), text, "{name}");
        let play = std::fs::read_to_string(play).unwrap();
        let tokens = tokenizer.encode(&play).unwrap();
        assert_eq!(tokens.len(), length, "{name}");
        assert_eq!(tokenizer.decode(&tokens).unwrap(), play, "{name}");
    }
}

#[test]
fn training_on_real_text_is_a_function_of_the_text() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/text/tinyshakespeare.txt");
    let Ok(play) = std::fs::read_to_string(&path) else {
        println!("skipped: {} is not there", path.display());
        return;
    };
    let train = || {
        let texts = play[..200_000].split("\n\n").map(str::to_string).collect::<Vec<_>>();
        Tokenizer::train_bpe(texts.into_iter(), 2000, &["<|end|>"]).unwrap().inner.json().unwrap()
    };
    let first = train();
    for _ in 0..3 {
        assert!(train() == first);
    }
}

/// Few letters make many ties between pairs, and many ways to the same token, which would expose a random order.
#[test]
fn ties_are_not_broken_by_chance() {
    for seed in 0..40u64 {
        let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut letter = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            ['a', 'b', 'c', ' ', 'a'][(x % 5) as usize]
        };
        let texts: Vec<String> = (0..20).map(|_| (0..40).map(|_| letter()).collect()).collect();
        let train = || Tokenizer::train_bpe(texts.iter().cloned(), 340, &[]).unwrap().inner.json().unwrap();
        let first = train();
        assert!((0..3).all(|_| train() == first), "seed {seed}");
    }
}

mod properties {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Decoding restores any text byte for byte.
        #[test]
        fn decoding_undoes_encoding(text in any::<String>()) {
            static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(trained);
            let ids = TOKENIZER.encode(&text).unwrap();
            prop_assert!(ids.iter().all(|id| (*id as usize) < TOKENIZER.vocab_size()));
            prop_assert_eq!(TOKENIZER.decode_with_special(&ids).unwrap(), text);
        }
    }
}

/// SentencePiece's convention: spaces are letters, and one is prepended to every text.
fn with_a_space_in_front(dir: &Path) -> Tokenizer {
    let pieces = ["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b", "[", "]", "▁["];
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(i, p)| (p.to_string(), json!(i))).collect();
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": true, "byte_fallback": false, "vocab": vocab, "merges": [["▁", "a"], ["▁", "b"], ["▁", "["]]}
    });
    let path = dir.join("tokenizer.json");
    fs::write(&path, file.to_string()).unwrap();
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn no_space_comes_between_a_text_and_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let tokenizer = with_a_space_in_front(dir.path());
    // Llama 2's format of prompt and answer: "[a]" and " b</s>".
    let whole = tokenizer.encode("<s>[a] b</s>").unwrap();
    assert_eq!(whole, [1, 10, 4, 9, 7, 2]);
    assert_eq!(tokenizer.encode("<s>[a]").unwrap(), whole[..4]);
    assert_eq!(tokenizer.encode(" b</s>").unwrap(), [3, 7, 2], "alone it gets a second space");
    assert_eq!(tokenizer.encode_after("<s>[a]", " b</s>").unwrap(), whole[4..]);
    // Where a token would span the boundary, each part is encoded separately: "[ " and "a" are not "[", " a".
    assert_eq!(tokenizer.encode_after("[ ", "a").unwrap(), tokenizer.encode("a").unwrap());
    assert_eq!(tokenizer.encode_after("", "a").unwrap(), tokenizer.encode("a").unwrap());
    assert_eq!(tokenizer.encode_after("a", "").unwrap(), [] as [u32; 0]);
}
