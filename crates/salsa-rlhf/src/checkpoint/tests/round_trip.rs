//! Saved models are read back bit for bit, and saving is reproducible byte for byte.

use std::collections::BTreeMap;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

const HEADS: [Head; 3] = [Head::LanguageModel, Head::Scalar, Head::LanguageModelWithValue];

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

#[test]
fn every_family_head_and_type_comes_back() {
    for family in Family::ALL {
        for head in HEADS {
            for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
                for max_shard_bytes in [u64::MAX, 900] {
                    let dir = tempfile::tempdir().unwrap();
                    let spec = tiny(family).with_head(head);
                    let weights = weights(&spec);
                    let options = SaveOptions { max_shard_bytes, ..options(family, dtype) };
                    save(dir.path(), &spec, &weights, &Companions::none(), &[], &options).unwrap();
                    let opened = Checkpoint::open(dir.path()).unwrap();
                    assert_eq!(opened.spec, spec, "{family} {head:?}");
                    assert_eq!((opened.family, opened.dtype, &opened.tokens), (family, dtype, &tokens()));
                    assert_eq!(opened.read_weights().unwrap(), weights, "{family} {head:?} {dtype}");
                    let shards = files(dir.path()).keys().filter(|name| name.ends_with(".safetensors")).count();
                    match max_shard_bytes {
                        u64::MAX => assert_eq!(shards, 1),
                        _ => assert!(shards > 1 && shards < spec.tensors().len()),
                    }
                }
            }
        }
    }
}

#[test]
fn saving_again_gives_the_same_bytes_and_leaves_nothing_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny(Family::Qwen2);
    let weights = weights(&spec);
    let save = |max_shard_bytes| {
        let options = SaveOptions { max_shard_bytes, ..options(Family::Qwen2, Dtype::BF16) };
        save(dir.path(), &spec, &weights, &Companions::none(), &[], &options).unwrap();
        files(dir.path())
    };
    let sharded = save(500);
    let single = save(u64::MAX);
    let names: Vec<&str> = single.keys().map(String::as_str).collect();
    assert_eq!(names, ["config.json", "generation_config.json", "model.safetensors"]);
    fs::write(dir.path().join("model_notes.safetensors"), b"not ours").unwrap();
    fs::write(dir.path().join("model-00001-of-00009.safetensors.tmp"), b"left by a killed process").unwrap();
    save(500);
    assert!(dir.path().join("model_notes.safetensors").exists());
    fs::remove_file(dir.path().join("model_notes.safetensors")).unwrap();
    assert!(files(dir.path()) == sharded);
}

#[test]
fn half_weights_survive_a_save_in_float32() {
    let (half, wide, again) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let spec = tiny(Family::Qwen2);
    for dtype in [Dtype::BF16, Dtype::F16] {
        save(half.path(), &spec, &weights(&spec), &Companions::none(), &[], &options(Family::Qwen2, dtype)).unwrap();
        for (from, to, dtype, max_shard_bytes) in
            [(half.path(), wide.path(), Dtype::F32, 700), (wide.path(), again.path(), dtype, 5_000_000_000)]
        {
            let opened = Checkpoint::open(from).unwrap();
            let companions = Companions::from_dir(from).unwrap();
            let options = SaveOptions { dtype, max_shard_bytes, ..SaveOptions::like(&opened) };
            save(to, &opened.spec, &opened.read_weights().unwrap(), &companions, &[], &options).unwrap();
        }
        assert!(wide.path().join("model-00002-of-00002.safetensors").exists() || files(wide.path()).len() > 4);
        assert!(files(half.path()) == files(again.path()), "{dtype}");
    }
}

#[test]
fn the_index_and_the_headers_are_those_of_transformers() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny(Family::Llama);
    let options = SaveOptions { max_shard_bytes: 500, ..options(Family::Llama, Dtype::F16) };
    save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
    let index = read_json(&dir.path().join("model.safetensors.index.json")).unwrap();
    assert_eq!(
        index["metadata"],
        json!({ "total_parameters": spec.parameters(), "total_size": 2 * spec.parameters() })
    );
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), spec.tensors().len());
    let first = map["model.embed_tokens.weight"].as_str().unwrap();
    assert!(first.starts_with("model-00001-of-000"), "{first}");
    let bytes = fs::read(dir.path().join(first)).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert_eq!(length % 8, 0);
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    assert_eq!(header["__metadata__"], json!({ "format": "pt" }));
    assert_eq!(
        header["model.embed_tokens.weight"],
        json!({ "dtype": "F16", "shape": [11, 12], "data_offsets": [0, 264] })
    );
}

#[test]
fn a_reward_model_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny(Family::Mistral).with_head(Head::Scalar);
    let extra = [("score_mean", json!(0.5)), ("score_std", json!(2.0))];
    let options = options(Family::Mistral, Dtype::BF16);
    save(dir.path(), &spec, &weights(&spec), &Companions::none(), &extra, &options).unwrap();
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(opened.score_normalization(), Some((0.5, 2.0)));
    let expected = json!({
        "architectures": ["MistralForSequenceClassification"], "id2label": { "0": "LABEL_0" },
        "label2id": { "LABEL_0": 0 }, "num_labels": 1, "pad_token_id": 0, "eos_token_id": [2, 3],
        "torch_dtype": "bfloat16", "dtype": "bfloat16", "rms_norm_eps": 1e-6, "sliding_window": 8,
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&opened.config[key], value, "{key}");
    }
    assert!(!dir.path().join("generation_config.json").exists());
    edit_json(&dir.path().join("config.json"), |config| {
        (config["score_mean"], config["score_std"]) = (Value::Null, Value::Null);
        config["mean"] = json!(1.0);
        config["std"] = json!(3.0);
    });
    assert_eq!(Checkpoint::open(dir.path()).unwrap().score_normalization(), Some((1.0, 3.0)));
}

#[test]
fn a_scale_of_scores_that_cannot_be_used_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::Scalar);
    let with = |mean_key: &str, std_key: &str, mean: Value, std: Value| {
        edit_json(&dir.path().join("config.json"), |config| {
            for key in ["score_mean", "score_std", "mean", "std"] {
                config.as_object_mut().unwrap().shift_remove(key);
            }
            (config[mean_key], config[std_key]) = (mean, std);
        });
        Checkpoint::open(dir.path()).map(|opened| opened.score_normalization()).map_err(|error| format!("{error:#}"))
    };
    for (mean, std) in [
        (json!(0.5), json!(0.0)),
        (json!(0.5), json!(-1.0)),
        (json!(0.5), Value::Null),
        (Value::Null, json!(2)),
        (json!("0.5"), json!(2)),
    ] {
        let error = with("score_mean", "score_std", mean.clone(), std.clone()).unwrap_err();
        assert_has(&error, &["config.json", &format!("score_mean is {mean} and score_std {std}"), "remove both"]);
    }
    assert_has(&with("mean", "std", json!(0.5), json!(0.0)).unwrap_err(), &["mean is 0.5 and std 0.0"]);
    // Non-numeric keys of these names are unrelated.
    assert_eq!(with("mean", "std", json!([0.5]), json!([1.0])), Ok(None));
    assert_eq!(with("mean", "std", json!(1), json!(3)), Ok(Some((1.0, 3.0))));
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    assert_eq!(with("mean", "std", json!(1), json!(0)), Ok(None), "a language model has no scores");
}

#[test]
fn a_reward_model_never_pads_with_an_end_token() {
    let written = |head, pad| {
        let dir = tempfile::tempdir().unwrap();
        let spec = tiny(Family::Llama).with_head(head);
        let options = SaveOptions { tokens: SpecialTokens { pad, ..tokens() }, ..options(Family::Llama, Dtype::F32) };
        save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
        Checkpoint::open(dir.path()).unwrap().config["pad_token_id"].clone()
    };
    for (pad, expected) in [(None, Value::Null), (Some(2), Value::Null), (Some(3), Value::Null), (Some(0), json!(0))] {
        assert_eq!(written(Head::Scalar, pad), expected, "{pad:?}");
    }
    assert_eq!(written(Head::LanguageModel, Some(2)), 2, "what a language model pads with changes nothing");
}

#[test]
fn a_reward_model_of_others_that_pads_with_an_end_token_is_known() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::Scalar);
    let opened = || Checkpoint::open(dir.path()).unwrap();
    let edit = |key: &str, value: Value| edit_json(&dir.path().join("config.json"), |config| config[key] = value);
    assert!(opened().is_foreign_reward_model());
    assert_eq!(opened().end_token_that_pads(), None);
    // Responses may end with end token 2 or 3.
    for end in [2, 3] {
        edit("pad_token_id", json!(end));
        assert_eq!(opened().end_token_that_pads(), Some(end));
    }
    edit("mean", json!(0.0));
    edit("std", json!(1.0));
    assert_eq!(opened().end_token_that_pads(), None, "OpenRLHF goes by the attention mask");
    edit("score_mean", json!(0.0));
    edit("score_std", json!(1.0));
    assert!(opened().is_own_reward_model() && !opened().is_foreign_reward_model());
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    edit("pad_token_id", json!(2));
    assert_eq!(opened().end_token_that_pads(), None, "a language model has no scores");
    assert_eq!(opened().padding_end_token(), Some(2));
    assert!(!opened().is_foreign_reward_model());
}

#[test]
fn companions_are_carried_byte_for_byte() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let carried = ["tokenizer_config.json", "chat_template.jinja", "generation_config.json", "tokenizer.model"];
    for name in carried {
        fs::write(from.path().join(name), format!(" {{ \"from\": \"{name}\" }} ")).unwrap();
    }
    fs::write(from.path().join("README.md"), "not carried").unwrap();
    let companions = Companions::from_dir(from.path()).unwrap();
    let spec = tiny(Family::Llama);
    save(to.path(), &spec, &weights(&spec), &companions, &[], &options(Family::Llama, Dtype::F32)).unwrap();
    let (before, after) = (files(from.path()), files(to.path()));
    assert!(carried.iter().all(|name| before[*name] == after[*name]));
    assert!(!after.contains_key("README.md"));
}

#[test]
fn special_tokens_come_from_the_first_file_that_has_them() {
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    let tokens = || Checkpoint::open(dir.path()).unwrap().tokens;
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id":[5,6],"pad_token_id":-1}"#).unwrap();
    assert_eq!(tokens(), SpecialTokens { bos: Some(1), eos: vec![5, 6], pad: Some(0) });
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    let edit = |key: &str, value: Value| edit_json(&dir.path().join("config.json"), |config| config[key] = value);
    edit("eos_token_id", json!(4));
    assert_eq!(tokens(), SpecialTokens { bos: Some(1), eos: vec![4], pad: Some(0) });
    edit("eos_token_id", json!([4, null, -1]));
    edit("bos_token_id", json!(null));
    assert_eq!(tokens(), SpecialTokens { bos: None, eos: vec![4], pad: Some(0) });
}

#[test]
fn what_is_no_id_of_a_token_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, part) in [
        ("eos_token_id", json!("2"), "eos_token_id is \"2\""),
        ("eos_token_id", json!(2.5), "eos_token_id is 2.5"),
        ("eos_token_id", json!([2, "3"]), "eos_token_id is [2,\"3\"]"),
        ("pad_token_id", json!(1u64 << 32), "pad_token_id is 4294967296"),
        ("bos_token_id", json!(u64::MAX), "bos_token_id is 18446744073709551615"),
        ("bos_token_id", json!({}), "bos_token_id is {}"),
    ] {
        for file in ["config.json", "generation_config.json"] {
            save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
            edit_json(&dir.path().join(file), |config| config[key] = value.clone());
            assert_has(&refusal(dir.path()), &[file, part]);
        }
    }
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    edit_json(&dir.path().join("generation_config.json"), |config| config["eos_token_id"] = json!([2, 11]));
    assert_has(&refusal(dir.path()), &["the end token 11 (eos_token_id) is none of the model's 11 tokens"]);
}

#[test]
fn a_tokenizer_may_be_smaller_than_the_embedding_and_not_larger() {
    let dir = tempfile::tempdir().unwrap();
    let spec = ModelSpec { vocab_size: 260, ..tiny(Family::Llama) };
    let none = SpecialTokens::default();
    let options = SaveOptions { tokens: none, ..options(Family::Llama, Dtype::F32) };
    save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
    let train = |size, specials: &[&str]| {
        let names = crate::tokenizer::SpecialTokenNames { eos: Some("</s>".into()), ..Default::default() };
        let texts = ["ab ab ab abc abc".to_string()].into_iter();
        Tokenizer::train_bpe(texts, size, specials).unwrap().save(dir.path(), &names, None).unwrap();
    };
    train(258, &["<s>", "</s>"]);
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(opened.tokenizer().unwrap().vocab_size(), 258);
    assert_eq!(opened.tokens, SpecialTokens { bos: None, eos: vec![1], pad: None });
    train(261, &["<s>", "</s>"]);
    let error = format!("{:#}", Checkpoint::open(dir.path()).unwrap().tokenizer().unwrap_err());
    assert_has(&error, &["ids up to 260", "260 tokens"]);
}

#[test]
fn what_cannot_be_saved_is_refused_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny(Family::Llama);
    let refusal = |spec: &ModelSpec, weights: &[f32], family, dtype| {
        let error = save(dir.path(), spec, weights, &Companions::none(), &[], &options(family, dtype)).unwrap_err();
        assert!(!dir.path().join("config.json").exists());
        format!("{error:#}")
    };
    let mut broken = weights(&spec);
    assert_has(&refusal(&spec, &broken[1..], Family::Llama, Dtype::F32), &["weights for a model of"]);
    let at = spec.tensors()[3].range.start + 2;
    broken[at] = f32::NAN;
    let name = &spec.tensors()[3].name;
    assert_has(&refusal(&spec, &broken, Family::Llama, Dtype::F32), &[name, "number 2", "NaN", "learning rate"]);
    broken[at] = 70_000.0;
    assert_has(&refusal(&spec, &broken, Family::Llama, Dtype::F16), &[name, "too large for float16", "bfloat16"]);
    broken[at] = f32::MAX;
    assert_has(&refusal(&spec, &broken, Family::Llama, Dtype::BF16), &[name, "too large for bfloat16"]);
    let weights = weights(&tiny(Family::Qwen3));
    assert_has(&refusal(&tiny(Family::Qwen3), &weights, Family::Llama, Dtype::F32), &["llama", "query and key norms"]);
}

#[test]
fn families_are_recognised_by_what_they_have() {
    for family in Family::ALL {
        assert_eq!(Family::for_spec(&tiny(family)), family);
        assert_eq!(Family::of_model_type(family.model_type()), Some(family));
    }
}

#[test]
fn rounding_is_to_nearest_with_ties_to_even() {
    // 1 + 2^-8 lies between 1 and 1 + 2^-7 of bfloat16, 1 + 3 * 2^-8 between 1 + 2^-7 and 1 + 2^-6.
    let table = [(1.0 + 1.0 / 256.0, 1.0), (1.0 + 3.0 / 256.0, 1.0 + 1.0 / 64.0), (1.003_906_4, 1.0 + 1.0 / 128.0)];
    for (number, rounded) in table {
        let (mut bytes, mut back) = (Vec::new(), [0.0]);
        Dtype::BF16.encode(&[number], &mut bytes).unwrap();
        Dtype::BF16.decode(&bytes, &mut back).unwrap();
        assert_eq!(back, [rounded]);
    }
    let (mut bytes, mut back) = (Vec::new(), [0.0]);
    Dtype::F16.encode(&[1.0 + 1.0 / 2048.0], &mut bytes).unwrap();
    Dtype::F16.decode(&bytes, &mut back).unwrap();
    assert_eq!(back, [1.0]);
    assert_eq!(Dtype::F16.encode(&[0.0, 65_520.0], &mut bytes), Err(1));
    assert_eq!(Dtype::F16.encode(&[65_519.0], &mut bytes), Ok(()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Every 16-bit number survives reading and saving; saving a loaded checkpoint gives the same bytes.
    #[test]
    fn load_and_save_is_the_identity(seed in any::<u64>(), kind in 0..3usize, family in 0..5usize, max_shard_bytes in 500..9000u64) {
        let (family, dtype) = (Family::ALL[family], [Dtype::F32, Dtype::BF16, Dtype::F16][kind]);
        let spec = tiny(family);
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state >> 16
        };
        let mut number = || loop {
            let bits = next();
            let x = match dtype {
                Dtype::F32 => f32::from_bits(bits as u32),
                Dtype::BF16 => bf16::from_bits(bits as u16).to_f32(),
                Dtype::F16 => f16::from_bits(bits as u16).to_f32(),
            };
            if x.is_finite() {
                return x;
            }
        };
        let weights: Vec<f32> = (0..spec.parameters()).map(|_| number()).collect();
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = SaveOptions { max_shard_bytes, ..options(family, dtype) };
        save(first.path(), &spec, &weights, &Companions::none(), &[], &options).unwrap();
        let opened = Checkpoint::open(first.path()).unwrap();
        let read = opened.read_weights().unwrap();
        prop_assert!(read.iter().zip(&weights).all(|(a, b)| a.to_bits() == b.to_bits()));
        let again = SaveOptions { max_shard_bytes, ..SaveOptions::like(&opened) };
        let companions = Companions::from_dir(first.path()).unwrap();
        save(second.path(), &opened.spec, &read, &companions, &[], &again).unwrap();
        prop_assert!(files(first.path()) == files(second.path()));
    }
}
