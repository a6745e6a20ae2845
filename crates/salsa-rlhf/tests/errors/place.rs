//! The models and files of these tests.
use std::{fs, path::Path, sync::LazyLock};

use serde_json::Value;

use crate::tiny::{Place, UP_TO_REWARD};

/// Valid models and damaged files, created once.
pub(crate) static PLACE: LazyLock<Place> = LazyLock::new(|| {
    let place = Place::with(UP_TO_REWARD);
    let shape =
        "--hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --max_position_embeddings 512 --max_steps 1";
    let texts = "pretrain --dataset out/world/pretrain.jsonl --max_length 64";
    place.salsa(&format!("{texts} --output_dir other-vocabulary --vocab_size 300 {shape}"));
    place.salsa(&format!("{texts} --output_dir other-shape --vocab_size 320 {shape}"));
    place.salsa(
        "reward --model other-vocabulary --dataset out/world/preferences.jsonl --output_dir other-reward --max_steps 1",
    );
    copy(&place.path("out/sft-a"), &place.path("corrupt"));
    damage(&place.path("corrupt/model.safetensors"), |bytes| bytes[8..12].copy_from_slice(b"oops"));
    copy(&place.path("out/sft-a"), &place.path("nan"));
    damage(&place.path("nan/model.safetensors"), last_number_is_nan);
    copy(&place.path("out/sft-a"), &place.path("cut"));
    let weights = place.bytes("cut/model.safetensors");
    place.write("cut/model.safetensors", &weights[..weights.len() / 2]);
    copy(&place.path("out/reward"), &place.path("other-tokenizer"));
    let mut tokenizer: Value = serde_json::from_slice(&place.bytes("other-tokenizer/tokenizer.json")).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let (a, b) = (vocabulary["a"].clone(), vocabulary["b"].clone());
    vocabulary["a"] = b;
    vocabulary["b"] = a;
    place.write("other-tokenizer/tokenizer.json", tokenizer.to_string());
    place.write("empty.jsonl", "");
    place.write("prompt.jsonl", "{\"prompt\": \"A dip with garlic, please.\"}\n");
    place.write("long.jsonl", format!("{{\"prompt\": \"{}\"}}\n", "garlic ".repeat(500)));
    place.write("text.jsonl", "{\"text\": \"A dip with garlic, please.\"}\n");
    copy(&place.path("out/reward"), &place.path("nan-reward"));
    damage(&place.path("nan-reward/model.safetensors"), last_number_is_nan);
    for name in ["foreign-reward", "padded-reward"] {
        copy(&place.path("out/reward"), &place.path(name));
        let config = format!("{name}/config.json");
        let mut json: Value = serde_json::from_slice(&place.bytes(&config)).unwrap();
        for key in ["score_mean", "score_std"] {
            json.as_object_mut().unwrap().remove(key).unwrap();
        }
        json["pad_token_id"] = json["eos_token_id"].clone();
        place.write(&config, json.to_string());
    }
    copy(&place.path("out/sft-a"), &place.path("padded-base"));
    let mut json: Value = serde_json::from_slice(&place.bytes("padded-base/config.json")).unwrap();
    json["pad_token_id"] = json["eos_token_id"].clone();
    place.write("padded-base/config.json", json.to_string());
    fs::remove_file(place.path("padded-reward/chat_template.jinja")).unwrap();
    place.write("padded-reward/tokenizer_config.json", "{}");
    place.write("answer.jsonl", "{\"prompt\": \"A dip, please.\", \"response\": \"No.\"}\n");
    place.write("evaluate.yaml", EVALUATE);
    place.write("faults.yaml", FAULTS);
    place.write("typo.yaml", "stages:\n  base: {kind: pretrain, dataset: empty.jsonl, learning_rte: 1.0}\n");
    place
});

/// An evaluation of a model with damaged weights.
const EVALUATE: &str = "
arms: {sft_a: out/sft-a, sft_b: nan, soup: {models: [out/sft-a, nan]}}
anchors: {sft_a: out/sft-a}
reward_model_path: out/reward
datasets: [{name: test, dataset: out/world/prompts_test.jsonl}]
landscape: {models: [out/sft-a, nan], alphas: [0.5]}
";

/// A recipe with some valid stages and ten errors in others.
const FAULTS: &str = "
out: faults
stages:
  good: {kind: sft, model: out/sft-a, dataset: out/world/sft.jsonl, max_steps: 1}
  later: {kind: dpo, model: good, dataset: [out/world/preferences.jsonl, out/world/sft.jsonl]}
  broken: {kind: sft, model: corrupt, dataset: out/world/prompts_train.jsonl, eval_dataset: empty.jsonl}
  untold: {kind: sft, model: out/sft-a, dataset: out/world/prompts_train.jsonl}
  absent: {kind: sft, model: no-model, dataset: no-data.jsonl}
  strange: {kind: ppo, model: out/sft-a, reward_model: other-reward, dataset: prompt.jsonl}
  long: {kind: generate, model: out/sft-a, input: long.jsonl}
  wrong: {kind: sft, model: out/sft-a, dataset: out/world/sft.jsonl, max_length: 0}
  hub: {kind: generate, model: nobody/nothing, input: prompt.jsonl}
  after: {kind: sft, model: absent, dataset: out/world/sft.jsonl}
";

pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

pub(crate) fn last_number_is_nan(bytes: &mut [u8]) {
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
}

pub(crate) fn damage(path: &Path, change: impl FnOnce(&mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}
