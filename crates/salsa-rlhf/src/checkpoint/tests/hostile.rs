//! Directories that are damaged, incomplete, or malicious.

use super::*;

fn saved() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    dir
}

#[test]
fn damaged_files() {
    let dir = saved();
    let path = dir.path().join(MODEL);
    let whole = fs::read(&path).unwrap();
    let entry = |offsets: &str| format!(r#"{{"a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}}}"#);
    let overlap = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    let table: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["is empty"]),
        (b"12345".to_vec(), &["ends within its header"]),
        (whole[..20].to_vec(), &["ends within its header"]),
        (whole[..whole.len() - 1].to_vec(), &["shorter or longer", "cut off"]),
        ([&whole[..], b"x"].concat(), &["shorter or longer"]),
        (u64::MAX.to_le_bytes().to_vec(), &["over 100 MB"]),
        ((200u64 << 20).to_le_bytes().to_vec(), &["over 100 MB"]),
        (raw("{\"a\":", 0), &["no readable header"]),
        ([&2u64.to_le_bytes()[..], b"\xff\xfe"].concat(), &["no readable header", "UTF-8"]),
        (raw(&entry("[8,16]"), 16), &["bytes of a", "overlap others or leave a gap"]),
        (raw(&entry("[8,0]"), 16), &["damaged"]),
        (raw(&entry("[0,4]"), 4), &["damaged"]),
        (raw(&entry("[0,18446744073709551615]"), 8), &["damaged"]),
        (raw(overlap, 12), &["bytes of b", "overlap"]),
        (raw(huge, 8), &["damaged"]),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(), &["Git LFS pointer", "git lfs pull"]),
        (b"PK\x03\x04 a zip file of pickles and more bytes".to_vec(), &["no safetensors file"]),
    ];
    for (bytes, parts) in table {
        fs::write(&path, &bytes).unwrap();
        let error = refusal(dir.path());
        assert_has(&error, &[MODEL]);
        assert_has(&error, parts);
    }
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    assert_has(&refusal(dir.path()), &[MODEL, "is not a regular file"]);
}

#[test]
fn wrong_tensors() {
    let embed = "model.embed_tokens.weight";
    let rename = |from: &'static str, to: &'static str| move |header: &mut Value| rename(header, from, to);
    type Edit = Box<dyn Fn(&mut Value)>;
    let table: Vec<(Edit, &[&str])> = vec![
        (Box::new(rename(embed, "embed.weight")), &["model.embed_tokens.weight is missing", "embed.weight"]),
        (Box::new(rename("lm_head.weight", "head.weight")), &["lm_head.weight is missing", "tie_word_embeddings"]),
        (
            Box::new(move |h| h[embed]["shape"] = json!([12, 11])),
            &[MODEL, "embed_tokens.weight has shape [12, 11]", "describes [11, 12]"],
        ),
        (
            Box::new(move |h| h[embed]["dtype"] = json!("I32")),
            &[MODEL, "embed_tokens.weight is stored as I32", "F32, BF16 and F16"],
        ),
    ];
    for (edit, parts) in table {
        let dir = saved();
        edit_header(&dir.path().join(MODEL), edit);
        assert_has(&refusal(dir.path()), parts);
    }
}

#[test]
fn extra_tensors_are_refused_unless_harmless() {
    let dir = saved();
    add_tensor(dir.path(), "model.layers.0.self_attn.rotary_emb.inv_freq", &[3]);
    let opened = Checkpoint::open(dir.path()).unwrap();
    opened.read_weights().unwrap();
    assert_has(&opened.stored.ignored.join("\n"), &["rotary_emb.inv_freq ignored"]);
    add_tensor(dir.path(), "model.layers.0.self_attn.o_proj.bias", &[12]);
    assert_has(&refusal(dir.path()), &[MODEL, "model.layers.0.self_attn.o_proj.bias", "does not have"]);
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::Scalar);
    add_tensor(dir.path(), "lm_head.weight", &[11, 12]);
    let opened = Checkpoint::open(dir.path()).unwrap();
    opened.read_weights().unwrap();
    assert_has(&opened.stored.ignored.join("\n"), &["lm_head.weight ignored", "reward model"]);
}

#[test]
fn a_tied_copy_must_be_one() {
    let dir = tempfile::tempdir().unwrap();
    let untied = tiny(Family::Llama);
    let mut weights = weights(&untied);
    let (embed, head) = (untied.tensors()[0].range.clone(), untied.tensors().pop().unwrap().range);
    weights.copy_within(embed, head.start);
    let save = |weights: &[f32]| {
        save(dir.path(), &untied, weights, &Companions::none(), &[], &options(Family::Llama, Dtype::F32)).unwrap();
        edit_json(&dir.path().join("config.json"), |config| config["tie_word_embeddings"] = json!(true));
    };
    save(&weights);
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert!(opened.spec.tied_embeddings);
    assert_eq!(opened.read_weights().unwrap(), weights[..opened.spec.parameters()]);
    weights[head.start + 5] += 1.0;
    save(&weights);
    assert_has(&refusal(dir.path()), &[MODEL, "lm_head.weight differs", "\"tie_word_embeddings\": false"]);
}

#[test]
fn a_reward_model_without_head_is_refused() {
    let dir = saved();
    edit_json(&dir.path().join("config.json"), |c| c["architectures"] = json!(["LlamaForSequenceClassification"]));
    assert_has(
        &refusal(dir.path()),
        &["reward model without its head", "score.weight [1, 12] is missing", "lm_head.weight"],
    );
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    for (dtype, inf) in
        [(Dtype::F32, vec![0, 0, 0x80, 0x7f]), (Dtype::BF16, vec![0xc0, 0x7f]), (Dtype::F16, vec![0, 0xfc])]
    {
        let dir = tempfile::tempdir().unwrap();
        let spec = tiny(Family::Llama);
        save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options(Family::Llama, dtype)).unwrap();
        let path = dir.path().join(MODEL);
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len() - dtype.size();
        bytes[at..].copy_from_slice(&inf);
        fs::write(&path, bytes).unwrap();
        assert_has(&refusal(dir.path()), &[MODEL, "number 131 of lm_head.weight"]);
    }
}

#[test]
fn a_bad_index_is_refused() {
    let sharded = || {
        let dir = tempfile::tempdir().unwrap();
        let spec = tiny(Family::Llama);
        let options = SaveOptions { max_shard_bytes: 2000, ..options(Family::Llama, Dtype::F32) };
        save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
        dir
    };
    type Edit = fn(&mut Value);
    let table: [(Edit, &[&str]); 7] = [
        (
            |i| i["weight_map"]["model.norm.weight"] = json!("../../etc/passwd"),
            &["../../etc/passwd", "not inside the folder"],
        ),
        (|i| i["weight_map"]["model.norm.weight"] = json!("/etc/passwd"), &["/etc/passwd", "not inside the folder"]),
        (
            |i| i["weight_map"]["model.norm.weight"] = json!("model-9.safetensors"),
            &["model-9.safetensors", "not there"],
        ),
        (|i| i["weight_map"]["model.norm.weight"] = json!(3), &["model.norm.weight", "no file name"]),
        (
            |i| i["weight_map"]["model.norm.weight"] = i["weight_map"]["model.embed_tokens.weight"].clone(),
            &["model.norm.weight", "but it is not"],
        ),
        (|i| i["weight_map"] = json!({}), &["empty weight_map"]),
        (|i| *i = json!([]), &["no weight_map"]),
    ];
    for (edit, parts) in table {
        let dir = sharded();
        edit_json(&dir.path().join("model.safetensors.index.json"), edit);
        let error = refusal(dir.path());
        assert_has(&error, &["model.safetensors.index.json"]);
        assert_has(&error, parts);
    }
    let dir = sharded();
    let map = read_json(&dir.path().join("model.safetensors.index.json")).unwrap()["weight_map"].clone();
    let shard = |tensor: &str| dir.path().join(map[tensor].as_str().unwrap());
    fs::copy(shard("model.embed_tokens.weight"), shard("lm_head.weight")).unwrap();
    assert_has(&refusal(dir.path()), &["model.embed_tokens.weight", "and again in"]);
    let dir = sharded();
    fs::write(dir.path().join("model.safetensors.index.json"), "{").unwrap();
    assert_has(&refusal(dir.path()), &["index.json is no valid JSON"]);
}

#[test]
fn folders_that_are_no_checkpoints() {
    assert_has(&refusal(Path::new("/no/such/model")), &["no model at /no/such/model"]);
    let dir = tempfile::tempdir().unwrap();
    assert_has(&refusal(dir.path()), &["has no config.json"]);
    let run = tempfile::tempdir().unwrap();
    for (name, file) in [("sft-a", "config.json"), ("lora", "adapter_config.json"), ("logs", "metrics.jsonl")] {
        fs::create_dir(run.path().join(name)).unwrap();
        fs::write(run.path().join(name).join(file), "{}").unwrap();
    }
    assert_has(&refusal(run.path()), &["it is no model, but holds some: ", "/lora, ", "/sft-a"]);
    assert!(!refusal(run.path()).contains("logs"), "{}", refusal(run.path()));
    fs::write(dir.path().join("adapter_config.json"), "{}").unwrap();
    assert_has(&refusal(dir.path()), &["adapter_config.json", "peft_type is missing"]);
    assert_has(&refusal(&dir.path().join("adapter_config.json")), &["is a file"]);
    fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    let config = dir.path().join("config.json");
    fs::write(&config, "{").unwrap();
    assert_has(&refusal(dir.path()), &["config.json is no valid JSON"]);
    fs::write(&config, r#"{"model_type":"gpt2"}"#).unwrap();
    assert_has(&refusal(dir.path()), &["config.json", "gpt2"]);
    fs::write(&config, r#"{"model_type":"llama","architectures":["LlamaForSequenceClassification"],"num_labels":1}"#)
        .unwrap();
    assert_has(&refusal(dir.path()), &["no model.safetensors"]);
    fs::write(dir.path().join("pytorch_model.bin"), "PK").unwrap();
    assert_has(
        &refusal(dir.path()),
        &["pytorch_model.bin", "pickle", "AutoModelForSequenceClassification", "save_pretrained"],
    );
    let dir = saved();
    edit_json(&dir.path().join("config.json"), |c| c["num_key_value_heads"] = json!(3));
    assert_has(&refusal(dir.path()), &["config.json"]);
}

#[test]
fn a_file_cut_off_after_opening_is_noticed() {
    let dir = saved();
    let opened = Checkpoint::open(dir.path()).unwrap();
    let file = fs::OpenOptions::new().write(true).open(dir.path().join(MODEL)).unwrap();
    file.set_len(3000).unwrap();
    assert_has(&format!("{:#}", opened.read_weights().unwrap_err()), &[MODEL, "shorter since it was opened"]);
}

mod properties {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Changing any byte gives an error or another number, never a panic.
        #[test]
        fn a_changed_byte_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>(), name in 0..2usize) {
            static SAVED: LazyLock<tempfile::TempDir> = LazyLock::new(saved);
            let path = SAVED.path().join([MODEL, "config.json"][name]);
            let whole = fs::read(&path).unwrap();
            let mut bytes = whole.clone();
            let at = at.index(bytes.len().min(3000));
            bytes[at] = byte;
            fs::write(&path, bytes).unwrap();
            let _ = Checkpoint::open(SAVED.path()).and_then(|c| c.read_weights());
            fs::write(&path, whole).unwrap();
        }
    }
}
