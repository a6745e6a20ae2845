use std::{collections::BTreeMap, fs, path::Path};

use salsa_engine::{Batch, Device, Head, Query, Target};
use serde_json::json;

use super::*;
use crate::{
    checkpoint::Checkpoint,
    stage::{
        fixture::{self, quiet},
        models::frozen::Found,
        supervised::{
            arguments::TrainingArguments,
            dpo::{self, DpoConfig},
            reward::{self, RewardConfig},
            sft::{self, SftConfig},
        },
        tests::resumes_bytewise,
        text::source::DataSource,
    },
};

#[test]
fn names_make_targets() {
    let spec = |modules| LoraArguments { lora_target_modules: modules, ..LoraArguments::default() }.spec();
    assert_eq!(spec(TargetModules::One("all-linear".to_owned())).unwrap(), LoraSpec::default());
    let two = TargetModules::Several(vec!["v_proj".to_owned(), "q_proj".to_owned(), "v_proj".to_owned()]);
    assert_eq!(spec(two).unwrap().targets, [Target::Query, Target::Value].into());
    let error = spec(TargetModules::One("lm_head".to_owned())).unwrap_err().to_string();
    assert!(error.contains("lm_head") && error.contains("q_proj"), "{error}");
}

#[test]
fn dropout_is_refused() {
    let error = LoraArguments { lora_dropout: 0.05, ..LoraArguments::default() }.validate().unwrap_err().to_string();
    assert!(error.starts_with("lora_dropout is 0.05; only 0"), "{error}");
}

#[test]
fn the_shape_of_an_adapter_that_nobody_trains_is_refused() {
    let refused = |lora: LoraArguments| lora.validate().unwrap_err().to_string();
    let plain = LoraArguments::default;
    assert!(refused(LoraArguments { lora_r: 4, ..plain() }).starts_with("lora_r needs use_peft: true"));
    assert!(refused(LoraArguments { lora_alpha: 8.0, ..plain() }).starts_with("lora_alpha needs use_peft: true"));
    assert!(refused(LoraArguments { use_rslora: true, ..plain() }).starts_with("use_rslora needs use_peft: true"));
    let modules = TargetModules::One("q_proj".to_owned());
    let error = refused(LoraArguments { lora_target_modules: modules, ..plain() });
    assert!(error.starts_with("lora_target_modules needs use_peft: true"), "{error}");
    plain().validate().unwrap();
    adapter().validate().unwrap();
}

fn adapter() -> LoraArguments {
    LoraArguments { use_peft: true, lora_r: 4, lora_alpha: 8.0, ..LoraArguments::default() }
}

fn arguments(max_steps: i64) -> TrainingArguments {
    TrainingArguments {
        max_steps,
        eval_steps: 3.into(),
        logging_steps: 2.into(),
        save_steps: 3.into(),
        ..TrainingArguments::default()
    }
}

/// Every file of a folder.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// A folder with a base, and questions whose answer is always "yes".
fn place() -> (tempfile::TempDir, SftConfig) {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let data = dir.path().join("sft.jsonl");
    let example = |i: usize| {
        let question = fixture::SENTENCES[i % 4];
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]})
    };
    fixture::write_lines(&data, &(0..20).map(example).collect::<Vec<_>>());
    let config = SftConfig {
        model_name_or_path: base.into(),
        dataset: DataSource::Path(data.clone().into()),
        eval_dataset: Some(DataSource::Path(data.into())),
        output_dir: dir.path().join("sft"),
        learning_rate: 0.02,
        max_length: 64,
        lora: adapter(),
        training: arguments(8),
        ..SftConfig::default()
    };
    (dir, config)
}

fn logprobs(dir: &Path) -> Vec<f32> {
    let model = Found::open(dir, Head::LanguageModel).unwrap().load(&Device::default()).unwrap().model;
    let (mut batch, mut query) = (Batch::new(), Query::default());
    let tokens: Vec<u32> = (0..40).map(|i| (i * 13) % 290).collect();
    let rows = batch.push(&tokens);
    query.push_logprobs(rows, &tokens, 1);
    model.forward(&batch, &query).logprobs
}

#[test]
fn fine_tuning_an_adapter_learns_resumes_and_leaves_the_base_alone() {
    let (_dir, config) = place();
    let before = files(&config.model_name_or_path);
    resumes_bytewise(|output_dir, context| {
        sft::run(&SftConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
    });
    let config = SftConfig { training: arguments(60), ..config };
    let results = sft::run(&config, &quiet()).unwrap();
    let loss = results["training"]["eval"]["loss"].as_f64().unwrap();
    let first = fixture::read_lines(&config.output_dir.join("metrics.jsonl"))[0]["loss"].as_f64().unwrap();
    // The base is nearly random, as are its frozen embedding and head.
    assert!(loss < first - 0.2, "from {first} to {loss}");
    assert!(files(&config.model_name_or_path) == before);

    let opened = Checkpoint::open(&config.output_dir).unwrap();
    // All linear layers: those that this model has.
    let mut expected = adapter().spec().unwrap();
    expected.targets.retain(|target| !matches!(target, Target::FusedQkv | Target::FusedGateUp));
    assert_eq!(opened.adapter().unwrap().lora, expected);
    let names: Vec<String> = files(&config.output_dir).into_keys().collect();
    assert!(names.contains(&"tokenizer.json".to_owned()) && !names.contains(&"model.safetensors".to_owned()));
    assert_ne!(logprobs(&config.output_dir), logprobs(&config.model_name_or_path));

    // Training continues with the existing adapter, even if the keys name another rank.
    let more = LoraArguments { lora_r: 2, ..adapter() };
    let again = SftConfig {
        model_name_or_path: config.output_dir.clone().into(),
        output_dir: config.output_dir.with_file_name("more"),
        lora: more,
        learning_rate: 0.0,
        training: arguments(1),
        ..config.clone()
    };
    sft::run(&again, &quiet()).unwrap();
    assert_eq!(logprobs(&again.output_dir), logprobs(&config.output_dir), "a learning rate of 0 changes nothing");
    let adapter = |dir: &Path| Checkpoint::open(dir).unwrap().adapter().unwrap().lora.clone();
    assert_eq!(adapter(&again.output_dir), adapter(&config.output_dir));

    // Without use_peft all weights of the merged model are trained.
    let whole =
        SftConfig { output_dir: config.output_dir.with_file_name("whole"), lora: LoraArguments::default(), ..again };
    sft::run(&whole, &quiet()).unwrap();
    assert!(Checkpoint::open(&whole.output_dir).unwrap().adapter().is_none());
    for (a, b) in logprobs(&whole.output_dir).iter().zip(logprobs(&config.output_dir)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
}

#[test]
fn a_reward_adapter_learns_resumes_and_keeps_its_scale() {
    let (dir, config) = place();
    sft::run(&config, &quiet()).unwrap();
    let data = fixture::preferences(&dir.path().join("pairs.jsonl"));
    for (name, start) in
        [("of-base", config.model_name_or_path.clone()), ("of-adapter", config.output_dir.clone().into())]
    {
        let reward = RewardConfig {
            model_name_or_path: start.clone(),
            dataset: data.clone(),
            eval_dataset: Some(data.clone()),
            output_dir: dir.path().join(name),
            learning_rate: 0.02,
            max_length: 96,
            lora: adapter(),
            training: arguments(6),
            ..RewardConfig::default()
        };
        let results = reward::run(&reward, &quiet()).unwrap();
        assert!(results["eval_accuracy"].as_f64().unwrap() > 0.9, "{results}");
        let opened = Checkpoint::open(&reward.output_dir).unwrap();
        assert_eq!((opened.spec.head, opened.adapter().unwrap().head), (Head::Scalar, Head::Scalar));
        let (mean, std) = opened.score_normalization().unwrap();
        assert_eq!(Some(mean), results["score_mean"].as_f64());
        assert_eq!(Some(std), results["score_std"].as_f64());
        assert_eq!(opened.base_dir(), &*config.model_name_or_path);
        if name == "of-adapter" {
            resumes_bytewise(|output_dir, context| {
                reward::run(&RewardConfig { output_dir: output_dir.to_owned(), ..reward.clone() }, context)
            });
        }
    }
}

#[test]
fn dpo_of_an_adapter_starts_at_its_reference_and_resumes() {
    let (dir, config) = place();
    let data = fixture::preferences(&dir.path().join("pairs.jsonl"));
    let config = DpoConfig {
        model_name_or_path: config.model_name_or_path,
        dataset: data.clone(),
        eval_dataset: Some(data),
        output_dir: dir.path().join("dpo"),
        learning_rate: 0.01,
        max_length: 96,
        lora: adapter(),
        training: TrainingArguments { logging_steps: 1.into(), ..arguments(8) },
        ..DpoConfig::default()
    };
    dpo::run(&config, &quiet()).unwrap();
    let lines = fixture::read_lines(&config.output_dir.join("metrics.jsonl"));
    let loss = |line: &serde_json::Value| line["loss"].as_f64();
    let losses: Vec<f64> = lines.iter().filter_map(loss).collect();
    assert_eq!(losses[0], std::f64::consts::LN_2, "a new adapter is the base itself");
    assert!(losses.last().unwrap() < &0.6, "{losses:?}");
    resumes_bytewise(|output_dir, context| {
        dpo::run(&DpoConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
    });
}
