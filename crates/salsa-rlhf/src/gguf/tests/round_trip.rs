//! Checkpoints to files and back.

use std::path::Path;

use salsa_engine::{LoraSpec, ModelSpec, Target};
use serde_json::{Value, json};

use super::super::{
    ConvertOptions, FileType, convert, export, export_adapter,
    reader::Gguf,
    writer::{Pairs, write},
};
use crate::chat::{BUILTIN_SPECIAL_TOKENS, BUILTIN_TEMPLATE};
use crate::checkpoint::{
    self, AdapterToSave, Checkpoint, Companions, Dtype, Family, SaveOptions, SpecialTokens, parse_config,
};
use crate::gguf::dequantize::dequantize;
use crate::tokenizer::{SpecialTokenNames, Tokenizer};

const TEXTS: [&str; 3] = ["the cat sat on the mat, 12 times", "a dog and a cat; 345 dogs", "mats for cats and dogs"];

/// A config of each family; rows of 64 numbers.
fn described(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "sliding_window": null,
        "tie_word_embeddings": model_type == "gemma" || model_type == "qwen3",
    })
}

/// Saves a model with a tokenizer and a template; returns its shape and weights.
fn save(dir: &Path, config: &Value) -> (Family, ModelSpec, Vec<f32>) {
    let names = SpecialTokenNames { bos: None, eos: Some("<|end|>".into()), pad: Some("<|pad|>".into()) };
    let texts = TEXTS.iter().map(|text| (*text).to_owned());
    let tokenizer = Tokenizer::train_bpe(texts, 300, &BUILTIN_SPECIAL_TOKENS).unwrap();
    tokenizer.save(dir, &names, Some(BUILTIN_TEMPLATE)).unwrap();
    let (family, spec) = parse_config(config).unwrap();
    // Numbers that float16 has, and norms that a shift by 1 leaves exact.
    let weights: Vec<f32> = (0..spec.parameters()).map(|i| ((i * 37 + 11) % 253) as f32 / 64.0 - 2.0).collect();
    let tokens = SpecialTokens { bos: None, eos: vec![1], pad: Some(0) };
    let options = SaveOptions::new(family, tokens, Dtype::F32);
    checkpoint::save(dir, &spec, &weights, &Companions::from_dir(dir).unwrap(), &[], &options).unwrap();
    (family, spec, weights)
}

fn back(gguf: &Path, dir: &Path) -> Checkpoint {
    convert(gguf, dir, &ConvertOptions { dtype: None, tokenizer: None, max_shard_bytes: 50_000 }).unwrap();
    Checkpoint::open(dir).unwrap()
}

#[test]
fn every_family_comes_back_the_same() {
    for model_type in ["llama", "mistral", "qwen2", "qwen3", "gemma"] {
        for (kind, dtype) in [(FileType::F32, Dtype::F32), (FileType::F16, Dtype::F16), (FileType::BF16, Dtype::BF16)] {
            let dir = tempfile::tempdir().unwrap();
            let (from, file, to) = (dir.path().join("from"), dir.path().join("m.gguf"), dir.path().join("to"));
            std::fs::create_dir(&from).unwrap();
            let (family, spec, weights) = save(&from, &described(model_type));
            let opened = Checkpoint::open(&from).unwrap();
            export(&opened, &file, kind).unwrap();
            let back = back(&file, &to);
            assert_eq!(back.spec, spec, "{model_type} {kind}");
            assert_eq!(back.read_weights().unwrap(), weights, "{model_type} {kind}");
            // llama.cpp has one architecture for Llama and Mistral.
            assert!(back.family == family || model_type == "mistral" && back.family == Family::Llama);
            assert_eq!((back.dtype, &back.tokens), (dtype, &opened.tokens), "{model_type}");
            let (own, other) = (opened.tokenizer().unwrap(), back.tokenizer().unwrap());
            for text in TEXTS.iter().chain(&["<|user|>\nNew words: 2024!<|end|>\n", "\u{e9}\u{4e2d} \t  x"]) {
                assert_eq!(own.encode(text).unwrap(), other.encode(text).unwrap(), "{text}");
                assert_eq!(own.encode_with_special(text).unwrap(), other.encode_with_special(text).unwrap());
            }
            assert_eq!(own.names(), other.names());
            assert_eq!(std::fs::read_to_string(to.join("chat_template.jinja")).unwrap(), BUILTIN_TEMPLATE);
        }
    }
}

/// Rows of a head are stored so that the two numbers of a rotated pair are neighbours.
#[test]
fn queries_and_keys_of_llama_are_stored_by_pairs_and_others_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for (model_type, second) in [("llama", 8), ("qwen2", 1)] {
        let (from, file) = (dir.path().join(model_type), dir.path().join(format!("{model_type}.gguf")));
        std::fs::create_dir(&from).unwrap();
        save(&from, &described(model_type));
        let opened = Checkpoint::open(&from).unwrap();
        export(&opened, &file, FileType::F32).unwrap();
        let gguf = Gguf::open(&file).unwrap();
        let (part, tensor) = gguf.tensor("blk.1.attn_k.weight").unwrap();
        let (mut bytes, mut numbers) = (vec![0; tensor.bytes as usize], vec![0f32; 32 * 64]);
        part.read(tensor, 0, &mut bytes).unwrap();
        dequantize(tensor.kind, &bytes, &mut numbers);
        let own = opened.read_tensor("model.layers.1.self_attn.k_proj.weight").unwrap();
        // Row 1 of the file, in the first and in the second head.
        for head in [0, 16] {
            let (stored, row) = (head + 1, head + second);
            assert_eq!(numbers[stored * 64..][..64], own[row * 64..][..64], "{model_type}");
        }
    }
}

#[test]
fn scaled_positions_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let llama3 = json!({
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    });
    for (name, scaling) in [("llama3", llama3), ("linear", json!({ "rope_type": "linear", "factor": 4.0 }))] {
        let (from, file) = (dir.path().join(name), dir.path().join(format!("{name}.gguf")));
        std::fs::create_dir(&from).unwrap();
        let mut config = described("llama");
        config["rope_scaling"] = scaling;
        let (_, spec, _) = save(&from, &config);
        export(&Checkpoint::open(&from).unwrap(), &file, FileType::F16).unwrap();
        assert_eq!(back(&file, &dir.path().join(format!("{name}-back"))).spec, spec, "{name}");
    }
}

#[test]
fn quantised_files_come_back_close() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    let (_, _, weights) = save(&from, &described("llama"));
    let opened = Checkpoint::open(&from).unwrap();
    for (kind, most) in [(FileType::Q8_0, 0.02), (FileType::Q4_0, 0.3), (FileType::Q4_K_M, 0.2)] {
        let file = dir.path().join(format!("{kind}.gguf"));
        export(&opened, &file, kind).unwrap();
        let back = back(&file, &dir.path().join(format!("{kind}"))).read_weights().unwrap();
        let error = weights.iter().zip(&back).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(error > 0.0 && error < most, "{kind}: {error}");
    }
}

/// An adapter of rank 2 on some matrices of a model.
fn save_adapter(dir: &Path, base: &Path, spec: &ModelSpec) -> LoraSpec {
    let targets = [Target::Query, Target::Value, Target::Down].into_iter().collect();
    let lora = LoraSpec { rank: 2, alpha: 3.0, rslora: true, targets };
    let factors: Vec<f32> = (0..lora.parameters(spec)).map(|i| ((i * 29 + 5) % 61) as f32 / 256.0 - 0.1).collect();
    let companions = Companions::none();
    let adapter = AdapterToSave {
        base,
        spec,
        lora: &lora,
        weights: &factors,
        dtype: Dtype::F32,
        companions: &companions,
        scores: &[],
    };
    checkpoint::save_adapter(dir, &adapter).unwrap();
    lora
}

#[test]
fn an_adapter_is_merged_or_written_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (base, adapter) = (dir.path().join("base"), dir.path().join("adapter"));
    std::fs::create_dir(&base).unwrap();
    let (_, spec, _) = save(&base, &described("llama"));
    let lora = save_adapter(&adapter, &base, &spec);
    let opened = Checkpoint::open(&adapter).unwrap();
    let merged = dir.path().join("merged.gguf");
    export(&opened, &merged, FileType::F32).unwrap();
    let weights = back(&merged, &dir.path().join("merged")).read_weights().unwrap();
    assert_eq!(weights, opened.read_weights().unwrap());

    let alone = dir.path().join("alone.gguf");
    export_adapter(&opened, &alone, FileType::F32).unwrap();
    let gguf = Gguf::open(&alone).unwrap();
    let metadata = gguf.metadata();
    assert_eq!(metadata.text("general.type").unwrap(), Some("adapter"));
    assert_eq!(metadata.text("adapter.type").unwrap(), Some("lora"));
    // llama.cpp divides by the rank, and the scale is alpha over its root.
    let alpha = metadata.float("adapter.lora.alpha").unwrap().unwrap();
    assert!(
        (alpha - f64::from(lora.scale()) * 2.0).abs() < 1e-6 && (alpha - 3.0 * 2f64.sqrt()).abs() < 1e-6,
        "{alpha}"
    );
    assert_eq!(gguf.names().len(), 2 * 3 * 2);
    let read = |name: &str| {
        let (part, tensor) = gguf.tensor(name).unwrap();
        let (mut bytes, mut numbers) = (vec![0; tensor.bytes as usize], vec![0f32; tensor.shape.iter().product()]);
        part.read(tensor, 0, &mut bytes).unwrap();
        dequantize(tensor.kind, &bytes, &mut numbers);
        (tensor.shape.clone(), numbers)
    };
    // alpha / rank * B A, with rows by pairs, is what the merged file has more than the base's.
    let (a, b) = (read("blk.1.attn_q.weight.lora_a"), read("blk.1.attn_q.weight.lora_b"));
    assert_eq!((&a.0[..], &b.0[..]), (&[2, 64][..], &[64, 2][..]));
    let whole = dir.path().join("base.gguf");
    export(&Checkpoint::open(&base).unwrap(), &whole, FileType::F32).unwrap();
    let stored = |path: &Path| {
        let gguf = Gguf::open(path).unwrap();
        let (part, tensor) = gguf.tensor("blk.1.attn_q.weight").unwrap();
        let (mut bytes, mut numbers) = (vec![0; tensor.bytes as usize], vec![0f32; 64 * 64]);
        part.read(tensor, 0, &mut bytes).unwrap();
        dequantize(tensor.kind, &bytes, &mut numbers);
        numbers
    };
    for (i, (with, without)) in stored(&merged).iter().zip(stored(&whole)).enumerate() {
        let (row, column) = (i / 64, i % 64);
        let product: f32 = (0..2).map(|r| b.1[row * 2 + r] * a.1[r * 64 + column]).sum();
        assert!((with - without - alpha as f32 / 2.0 * product).abs() < 1e-5, "{row} {column}");
    }

    let refused = |result: anyhow::Result<super::super::Exported>| format!("{:#}", result.unwrap_err());
    let error = refused(export_adapter(&Checkpoint::open(&base).unwrap(), &alone, FileType::F32));
    assert!(error.contains("is no adapter but a whole model: export it without --adapter"), "{error}");
    let error = refused(export_adapter(&opened, &alone, FileType::Q8_0));
    assert!(error.contains("adapters are written as f32, f16 or bf16, not as q8_0"), "{error}");
}

#[test]
fn parts_of_a_model_are_found_whichever_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let (mut pairs, mut tensors) = (Pairs::default(), Vec::new());
    super::small(&mut pairs, &mut tensors);
    let name = |number: usize| dir.path().join(format!("m-{number:05}-of-00002.gguf"));
    let keys = |number: usize, pairs: &mut Pairs| {
        pairs.whole("split.no", number);
        pairs.whole("split.count", 2);
        pairs.whole("split.tensors.count", 11);
    };
    keys(0, &mut pairs);
    let mut second = Pairs::default();
    keys(1, &mut second);
    for (number, pairs, tensors) in [(1, &pairs, &tensors[..4]), (2, &second, &tensors[4..])] {
        write(&name(number), pairs, tensors, |i, out| {
            let numbers = tensors[i].bytes() / 4;
            Ok((0..numbers).try_for_each(|i| out.write_all(&(i as f32).to_le_bytes()))?)
        })
        .unwrap();
    }
    let first = back(&name(1), &dir.path().join("first")).read_weights().unwrap();
    assert_eq!(back(&name(2), &dir.path().join("second")).read_weights().unwrap(), first);
    std::fs::remove_file(name(2)).unwrap();
    let error = format!("{:#}", Gguf::open(&name(1)).unwrap_err());
    assert!(error.contains("m-00002-of-00002.gguf is missing: the model has 2 parts"), "{error}");
    std::fs::rename(name(1), dir.path().join("m.gguf")).unwrap();
    let error = format!("{:#}", Gguf::open(&dir.path().join("m.gguf")).unwrap_err());
    assert!(error.contains("so its name must end in -00001-of-00002.gguf"), "{error}");
}

#[test]
fn what_llama_cpp_cannot_run_is_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let (_, spec, _) = save(dir.path(), &described("llama"));
    let file = dir.path().join("m.gguf");
    let weights = vec![1e6; spec.parameters()];
    let options = SaveOptions::new(Family::Llama, SpecialTokens::default(), Dtype::F32);
    let companions = Companions::from_dir(dir.path()).unwrap();
    checkpoint::save(dir.path(), &spec, &weights, &companions, &[], &options).unwrap();
    for kind in [FileType::F16, FileType::Q8_0] {
        let error = format!("{:#}", export(&Checkpoint::open(dir.path()).unwrap(), &file, kind).unwrap_err());
        assert!(error.contains("is 1000000, which is too large for"), "{error}");
        assert!(!file.exists());
    }
    export(&Checkpoint::open(dir.path()).unwrap(), &file, FileType::BF16).unwrap();

    let scalar = spec.with_head(salsa_engine::Head::Scalar);
    let weights = vec![0.5; scalar.parameters()];
    let reward = dir.path().join("reward");
    checkpoint::save(&reward, &scalar, &weights, &companions, &[], &options).unwrap();
    let error = format!("{:#}", export(&Checkpoint::open(&reward).unwrap(), &file, FileType::F16).unwrap_err());
    assert!(error.contains("is a reward model: llama.cpp runs language models; export the policy"), "{error}");

    let mut json: Value = serde_json::from_slice(&std::fs::read(dir.path().join("tokenizer.json")).unwrap()).unwrap();
    json["pre_tokenizer"] = json!({ "type": "Whitespace" });
    std::fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let error = format!("{:#}", export(&Checkpoint::open(dir.path()).unwrap(), &file, FileType::BF16).unwrap_err());
    assert!(error.contains("its pre_tokenizer is none of those that llama.cpp has a name for"), "{error}");
}
