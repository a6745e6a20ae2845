//! Checkpoints of other trainers: names of classes, heads and tensors that transformers does not write.

use super::*;

/// A saved reward model whose config and header are edited.
fn reward_model(config: impl FnOnce(&mut Value), header: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let (_, weights) = save_tiny(dir.path(), Family::Llama, Head::Scalar);
    edit_json(&dir.path().join("config.json"), config);
    edit_header(&dir.path().join(MODEL), header);
    (dir, weights)
}

fn same(_: &mut Value) {}

fn without(config: &mut Value, keys: &[&str]) {
    let config = config.as_object_mut().unwrap();
    keys.iter().for_each(|key| drop(config.shift_remove(*key)));
}

#[test]
fn reward_models_of_openrlhf_are_read() {
    for (class, head, prefix) in [
        ("RewardModel", "score", None),
        ("LLMForSequenceRegression", "value_head", None),
        ("LLMForSequenceRegression", "value_head", Some("value_head")),
        ("RewardModel", "my_head", Some("my_head")),
    ] {
        let config = |config: &mut Value| {
            without(config, &["id2label", "label2id", "num_labels"]);
            config["architectures"] = json!([class]);
            (config["mean"], config["std"]) = (json!(0.3), json!(2.0));
            config["value_head_prefix"] = json!(prefix);
        };
        let (dir, weights) = reward_model(config, |h| rename(h, "score.weight", &format!("{head}.weight")));
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(opened.spec.head, Head::Scalar, "{class} {head}");
        assert_eq!(opened.score_normalization(), Some((0.3, 2.0)));
        assert_eq!(opened.read_weights().unwrap(), weights, "{class} {head}");
        assert!(opened.is_foreign_reward_model());
    }
    let (dir, _) = reward_model(|c| c["architectures"] = json!(["CriticModel"]), same);
    assert_has(&refusal(dir.path()), &["CriticModel", "RewardModel and LLMForSequenceRegression"]);
}

#[test]
fn a_head_makes_a_reward_model_whatever_the_config_names() {
    for (architectures, said) in
        [(Value::Null, "names no architectures"), (json!(["LlamaForCausalLM"]), "names a language model")]
    {
        let (dir, weights) = reward_model(|c| c["architectures"] = architectures.clone(), same);
        let opened = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(opened.spec.head, Head::Scalar, "{architectures}");
        assert_eq!(opened.read_weights().unwrap(), weights);
        assert_has(&opened.stored.ignored.join("\n"), &[said, "score.weight", "read as a reward model"]);
    }
    let labels = json!({ "0": "bad", "1": "good" });
    let (dir, _) = reward_model(
        |config| {
            without(config, &["architectures"]);
            config["id2label"] = labels;
        },
        same,
    );
    assert_has(&refusal(dir.path()), &["config.json", "2 labels"]);
    // Tied embeddings need no lm_head.weight: with a class name this is a language model with a value head.
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Gemma, Head::LanguageModelWithValue);
    assert_eq!(Checkpoint::open(dir.path()).unwrap().spec.head, Head::LanguageModelWithValue);
    edit_json(&dir.path().join("config.json"), |config| without(config, &["architectures"]));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().spec.head, Head::Scalar);
}

#[test]
fn the_value_head_of_a_policy_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, weights) = save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    add_tensor(dir.path(), "v_head.summary.weight", &[1, 12]);
    add_tensor(dir.path(), "v_head.summary.bias", &[1]);
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((&opened.spec, opened.read_weights().unwrap()), (&spec, weights));
    assert_has(
        &opened.stored.ignored.join("\n"),
        &["v_head.summary.bias, v_head.summary.weight ignored", "value head"],
    );
    // In a reward model it would contribute to the score.
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::Scalar);
    add_tensor(dir.path(), "v_head.summary.weight", &[1, 12]);
    assert_has(&refusal(dir.path()), &["v_head.summary.weight", "does not have"]);
}

#[test]
fn names_of_wrapped_models_are_read() {
    for prefix in ["_orig_mod.", "module.", "module._orig_mod."] {
        for max_shard_bytes in [u64::MAX, 2000] {
            let dir = tempfile::tempdir().unwrap();
            let spec = tiny(Family::Llama);
            let options = SaveOptions { max_shard_bytes, ..options(Family::Llama, Dtype::F32) };
            save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
            let wrap = |table: &mut Value| {
                let old = std::mem::take(table.as_object_mut().unwrap());
                let wrapped = old.into_iter().map(|(name, value)| match name.as_str() {
                    "__metadata__" => (name, value),
                    _ => (format!("{prefix}{name}"), value),
                });
                *table = Value::Object(wrapped.collect());
            };
            for entry in fs::read_dir(dir.path()).unwrap() {
                let path = entry.unwrap().path();
                match path.file_name().unwrap().to_str().unwrap() {
                    "model.safetensors.index.json" => edit_json(&path, |index| wrap(&mut index["weight_map"])),
                    name if name.ends_with(".safetensors") => edit_header(&path, wrap),
                    _ => {}
                }
            }
            assert_eq!(Checkpoint::open(dir.path()).unwrap().read_weights().unwrap(), weights(&spec), "{prefix}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    add_tensor(dir.path(), "_orig_mod.model.norm.weight", &[12]);
    assert_has(&refusal(dir.path()), &["model.norm.weight is in", "and again in"]);
}

#[test]
fn tied_embeddings_may_be_stored_under_either_name() {
    let dir = tempfile::tempdir().unwrap();
    let (spec, weights) = save_tiny(dir.path(), Family::Gemma, Head::LanguageModel);
    assert!(spec.tied_embeddings);
    let path = dir.path().join(MODEL);
    edit_header(&path, |header| rename(header, "model.embed_tokens.weight", "lm_head.weight"));
    let opened = Checkpoint::open(dir.path()).unwrap();
    assert_eq!((&opened.spec, opened.read_weights().unwrap()), (&spec, weights));
    let dir = tempfile::tempdir().unwrap();
    save_tiny(dir.path(), Family::Llama, Head::LanguageModel);
    edit_header(&dir.path().join(MODEL), |header| rename(header, "model.embed_tokens.weight", "embed"));
    assert_has(&refusal(dir.path()), &["model.embed_tokens.weight is missing"]);
}

#[test]
fn an_index_may_list_what_no_file_has_if_nothing_needs_it() {
    let dir = tempfile::tempdir().unwrap();
    let spec = tiny(Family::Llama);
    let options = SaveOptions { max_shard_bytes: 2000, ..options(Family::Llama, Dtype::F32) };
    save(dir.path(), &spec, &weights(&spec), &Companions::none(), &[], &options).unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let shard = read_json(&index).unwrap()["weight_map"]["model.norm.weight"].as_str().unwrap().to_owned();
    edit_json(&index, |index| index["weight_map"]["model.layers.0.self_attn.rotary_emb.inv_freq"] = json!(shard));
    assert_eq!(Checkpoint::open(dir.path()).unwrap().read_weights().unwrap(), weights(&spec));
    edit_header(&dir.path().join(&shard), |header| rename(header, "model.norm.weight", "gone"));
    assert_has(&refusal(dir.path()), &["index.json says that model.norm.weight is in", &shard, "but it is not"]);
}
