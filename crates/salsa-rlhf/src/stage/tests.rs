//! The stages end to end, on models of a few thousand weights.
use std::{fs, path::Path};

use anyhow::Result;
use salsa_algo::preference::{cpo::LossType as CpoLoss, dpo::LossType, kto::LossType as KtoLoss};
use serde_json::{Value, json};

use super::{
    Interrupted, StageContext,
    fixture::{self, quiet},
    lines::{
        generate::{self, GenerateConfig},
        logprobs::{self, LogprobsConfig},
        score::{self, ScoreConfig},
    },
    models::{
        model_source::{ModelSource, SoupSource},
        reading::ReadingArguments,
    },
    supervised::{
        arguments::TrainingArguments,
        cpo::{self, CpoConfig},
        dpo::{self, DpoConfig},
        kto::{self, KtoConfig},
        orpo::{self, OrpoConfig},
        pretrain::{self, PretrainConfig},
        reward::{self, RewardConfig},
        sft::{self, SftConfig},
    },
    table,
    text::source::DataSource,
};
use crate::checkpoint::Checkpoint;

mod together;

fn arguments(max_steps: i64) -> TrainingArguments {
    TrainingArguments {
        max_steps,
        eval_steps: 3.into(),
        logging_steps: 2.into(),
        save_steps: 3.into(),
        ..TrainingArguments::default()
    }
}

fn sft_config(dir: &Path, base: &Path) -> SftConfig {
    let data = dir.join("sft.jsonl");
    let example = |i: usize| {
        let question = fixture::SENTENCES[i % 4];
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "yes"}]})
    };
    fixture::write_lines(&data, &(0..20).map(example).collect::<Vec<_>>());
    SftConfig {
        model_name_or_path: base.to_owned().into(),
        dataset: DataSource::Path(data.clone().into()),
        eval_dataset: Some(DataSource::Path(data.into())),
        output_dir: dir.join("sft"),
        learning_rate: 0.01,
        max_length: 64,
        training: arguments(8),
        ..SftConfig::default()
    }
}

fn reward_config(dir: &Path, base: &Path) -> RewardConfig {
    let data = fixture::preferences(&dir.join("pairs.jsonl"));
    RewardConfig {
        model_name_or_path: base.to_owned().into(),
        dataset: data.clone(),
        eval_dataset: Some(data),
        output_dir: dir.join("reward"),
        learning_rate: 0.01,
        max_length: 96,
        center_rewards_coefficient: 0.01,
        training: arguments(8),
        ..RewardConfig::default()
    }
}

fn dpo_config(dir: &Path, base: &Path, loss_type: LossType) -> DpoConfig {
    let data = fixture::preferences(&dir.join("pairs.jsonl"));
    DpoConfig {
        model_name_or_path: base.to_owned().into(),
        dataset: data.clone(),
        eval_dataset: Some(data),
        output_dir: dir.join("dpo"),
        learning_rate: 0.003,
        loss_type,
        max_length: 96,
        training: arguments(8),
        ..DpoConfig::default()
    }
}

/// Runs a stage once without interruption and once interrupted after every step; both must give the same bytes.
pub(super) fn resumes_bytewise(run: impl Fn(&Path, &StageContext) -> Result<Value>) {
    let dir = tempfile::tempdir().unwrap();
    let (whole, torn) = (dir.path().join("whole"), dir.path().join("torn"));
    let results = run(&whole, &quiet()).unwrap();
    let mut stops = 0;
    let resumed = loop {
        let context = quiet();
        context.interrupt();
        match run(&torn, &context) {
            Ok(results) => break results,
            Err(error) => assert_eq!(error.downcast::<Interrupted>().unwrap().step, stops + 1),
        }
        stops += 1;
    };
    assert!(stops >= 3, "it was interrupted {stops} times");
    assert_eq!(resumed, results);
    let model = match whole.join("adapter_config.json").exists() {
        true => ["adapter_model.safetensors", "adapter_config.json"],
        false => ["model.safetensors", "config.json"],
    };
    for name in model.iter().chain(&["metrics.jsonl", "trainer_state.json"]) {
        let read = |dir: &Path| fs::read(dir.join(name)).unwrap();
        assert!(read(&whole) == read(&torn), "{name} differs");
    }
}

#[test]
fn pretraining_learns_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let checkpoint = Checkpoint::open(&base).unwrap();
    assert_eq!(checkpoint.spec.hidden_size, 16);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(checkpoint.tokens.eos, vec![tokenizer.eos().unwrap()]);
    let losses = fixture::read_lines(&base.join("metrics.jsonl"));
    assert!(losses[0]["loss"].as_f64().unwrap() < 5.7, "uniform over 290 tokens is 5.67: {losses:?}");

    resumes_bytewise(|output_dir, context| {
        let config = PretrainConfig {
            dataset: DataSource::Path(dir.path().join("texts.jsonl").into()),
            tokenizer_name_or_path: Some(base.clone().into()),
            output_dir: output_dir.to_owned(),
            hidden_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            max_position_embeddings: 64,
            max_length: 32,
            training: TrainingArguments { per_device_train_batch_size: 2, ..arguments(5) },
            ..PretrainConfig::default()
        };
        pretrain::run(&config, context)
    });
}

#[test]
fn fine_tuning_learns_the_answer_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    for packing in [false, true] {
        let config = SftConfig { packing, ..sft_config(dir.path(), &base) };
        resumes_bytewise(|output_dir, context| {
            sft::run(&SftConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
        });
    }
    let config = SftConfig { training: arguments(50), learning_rate: 0.02, ..sft_config(dir.path(), &base) };
    let results = sft::run(&config, &quiet()).unwrap();
    assert_eq!(results["examples"], 20);
    assert!(results["training"]["eval"]["loss"].as_f64().unwrap() < 0.5, "{results}");

    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    fixture::write_lines(&input, &[json!({"messages": [{"role": "user", "content": "the cat sat"}], "id": 7})]);
    let config = GenerateConfig {
        model: config.output_dir.into(),
        input: input.into(),
        output: output.clone(),
        temperature: 0.0,
        max_new_tokens: 8,
        ..GenerateConfig::default()
    };
    generate::run(&config, &quiet()).unwrap();
    let answer = &fixture::read_lines(&output)[0];
    assert_eq!((&answer["response"], &answer["finish_reason"]), (&json!("yes"), &json!("stop")));
    assert_eq!(answer["id"], 7, "what the line said stays");
}

#[test]
fn the_reward_model_learns_the_preference_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let config = reward_config(dir.path(), &base);
    resumes_bytewise(|output_dir, context| {
        reward::run(&RewardConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
    });
    let results = reward::run(&RewardConfig { training: arguments(20), ..config.clone() }, &quiet()).unwrap();
    assert_eq!(results["eval_accuracy"], 1.0);
    assert_eq!(results["eval_longer_wins_accuracy"], 0.0, "the rejected answer is always the longer one");
    let first: Vec<&String> = results.as_object().unwrap().keys().take(2).collect();
    assert_eq!(first, ["eval_accuracy", "eval_longer_wins_accuracy"], "terminal and report show the first results");

    // The saved score normalisation matches the scores that `salsa score` gives to the same pairs.
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let rows: Vec<Value> = fixture::read_lines(&dir.path().join("pairs.jsonl"))
        .iter()
        .flat_map(|pair| ["chosen", "rejected"].map(|side| json!({"prompt": pair["prompt"], "response": pair[side]})))
        .collect();
    fixture::write_lines(&input, &rows);
    let config = ScoreConfig {
        model: config.output_dir.into(),
        input: input.into(),
        output: output.clone(),
        ..ScoreConfig::default()
    };
    score::run(&config, &quiet()).unwrap();
    let scores: Vec<f64> = fixture::read_lines(&output).iter().map(|row| row["score"].as_f64().unwrap()).collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    let (stored, std) = Checkpoint::open(&config.model).unwrap().score_normalization().unwrap();
    assert!((mean - stored).abs() < 1e-6, "{mean} {stored}");
    let normalized = fixture::read_lines(&output)[0]["score_normalized"].as_f64().unwrap();
    assert!((normalized - (scores[0] - stored) / std).abs() < 1e-9);
}

#[test]
fn dpo_raises_the_margin_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    for loss_type in [LossType::Sigmoid, LossType::Ipo, LossType::ApoDown, LossType::SigmoidNorm] {
        let config = dpo_config(dir.path(), &base, loss_type);
        resumes_bytewise(|output_dir, context| {
            dpo::run(&DpoConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
        });
    }
    let config = dpo_config(dir.path(), &base, LossType::Sigmoid);
    let results = dpo::run(&config, &quiet()).unwrap();
    let log = fixture::read_lines(&config.output_dir.join("metrics.jsonl"));
    assert!((log[0]["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 0.05, "it starts at the reference: {}", log[0]);
    let eval = &results["training"]["eval"];
    assert_eq!(eval["rewards/accuracies"], 1.0);
    assert!(eval["rewards/margins"].as_f64().unwrap() > 0.1, "{eval}");
}

/// The losses of the log, first to last.
fn losses(dir: &Path) -> Vec<f64> {
    fixture::read_lines(&dir.join("metrics.jsonl")).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

#[test]
fn every_loss_of_dpo_falls() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    for name in [
        "sigmoid",
        "hinge",
        "ipo",
        "exo_pair",
        "nca_pair",
        "robust",
        "bco_pair",
        "sppo_hard",
        "apo_zero",
        "apo_down",
        "discopop",
        "sigmoid_norm",
    ] {
        let loss_type: LossType = serde_json::from_value(json!(name)).unwrap();
        let smoothed = if loss_type == LossType::ExoPair { 0.001 } else { 0.0 };
        let config = DpoConfig { label_smoothing: smoothed, ..dpo_config(dir.path(), &base, loss_type) };
        let config = DpoConfig { output_dir: dir.path().join(name), ..config };
        dpo::run(&config, &quiet()).unwrap();
        let losses = losses(&config.output_dir);
        assert!(losses.last().unwrap() < &losses[0], "{name}: {losses:?}");
    }
}

#[test]
fn the_reference_of_dpo_may_be_a_soup_made_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let first = dpo_config(dir.path(), &base, LossType::Sigmoid);
    dpo::run(&first, &quiet()).unwrap();
    let soup = |weights: [f64; 2]| {
        let models = vec![base.clone().into(), first.output_dir.clone().into()];
        Some(ModelSource::Soup(SoupSource { models, weights: weights.to_vec() }))
    };
    let run = |name: &str, reference| {
        let output_dir = dir.path().join(name);
        let config = DpoConfig { ref_model_name_or_path: reference, output_dir: output_dir.clone(), ..first.clone() };
        dpo::run(&config, &quiet()).unwrap();
        fs::read(output_dir.join("metrics.jsonl")).unwrap()
    };
    let alone = run("alone", None);
    assert!(run("one", soup([1.0, 0.0])) == alone, "all of one ingredient is that ingredient");
    assert!(run("soup", soup([0.5, 0.5])) != alone);
    let wrong = DpoConfig { ref_model_name_or_path: soup([0.5, 0.6]), ..first.clone() };
    let error = format!("{:#}", dpo::run(&wrong, &quiet()).unwrap_err());
    assert!(error.starts_with("ref_model_name_or_path: the weights"), "{error}");
    let config = DpoConfig { ref_model_name_or_path: soup([0.5, 0.5]), ..first.clone() };
    resumes_bytewise(|output_dir, context| {
        dpo::run(&DpoConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
    });
}

fn kto_config(dir: &Path, base: &Path) -> KtoConfig {
    let data = dir.join("labelled.jsonl");
    let example = |i: usize| {
        let (answer, label) = if i.is_multiple_of(2) { ("yes", true) } else { ("no, never", false) };
        let prompt = json!([{"role": "user", "content": fixture::SENTENCES[i / 2 % 4]}]);
        json!({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}], "label": label})
    };
    fixture::write_lines(&data, &(0..48).map(example).collect::<Vec<_>>());
    KtoConfig {
        model_name_or_path: base.to_owned().into(),
        dataset: DataSource::Path(data.clone().into()),
        eval_dataset: Some(DataSource::Path(data.into())),
        output_dir: dir.join("kto"),
        learning_rate: 0.003,
        max_length: 96,
        training: arguments(8),
        ..KtoConfig::default()
    }
}

#[test]
fn kto_learns_the_labels_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    for loss_type in [KtoLoss::Kto, KtoLoss::ApoZeroUnpaired] {
        let config = KtoConfig { loss_type, ..kto_config(dir.path(), &base) };
        resumes_bytewise(|output_dir, context| {
            kto::run(&KtoConfig { output_dir: output_dir.to_owned(), ..config.clone() }, context)
        });
        let results = kto::run(&config, &quiet()).unwrap();
        let losses = losses(&config.output_dir);
        assert!((losses[0] - 0.5).abs() < 0.05, "it starts at the reference: {losses:?}");
        assert!(losses.last().unwrap() < &losses[0], "{losses:?}");
        let eval = &results["training"]["eval"];
        let reward = |side: &str| eval[format!("rewards/{side}")].as_f64().unwrap();
        assert!(reward("chosen") > reward("rejected") + 0.1, "{eval}");
        assert_eq!(eval["kl"].is_null(), loss_type != KtoLoss::Kto, "{eval}");
        fs::remove_dir_all(&config.output_dir).unwrap();
    }
}

#[test]
fn kto_takes_pairs_and_refuses_answers_without_a_label() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let config = KtoConfig { eval_dataset: None, ..kto_config(dir.path(), &base) };
    let pairs = KtoConfig { dataset: fixture::preferences(&dir.path().join("pairs.jsonl")), ..config.clone() };
    kto::run(&pairs, &quiet()).unwrap();
    let bytes = |dir: &Path| fs::read(dir.join("metrics.jsonl")).unwrap();
    let of_pairs = bytes(&config.output_dir);
    fs::remove_dir_all(&config.output_dir).unwrap();
    kto::run(&config, &quiet()).unwrap();
    assert!(bytes(&config.output_dir) == of_pairs, "a pair is a desirable response and then an undesirable one");

    let sft = sft_config(dir.path(), &base).dataset;
    let error = format!("{:#}", kto::run(&KtoConfig { dataset: sft, ..config.clone() }, &quiet()).unwrap_err());
    assert!(error.contains("without a label"), "{error}");
    let one = TrainingArguments { per_device_train_batch_size: 1, ..arguments(8) };
    let error = kto::run(&KtoConfig { training: one, ..config }, &quiet()).unwrap_err().to_string();
    assert!(error.starts_with("per_device_train_batch_size is 1"), "{error}");
}

#[test]
fn orpo_and_cpo_learn_without_a_reference_and_resume() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let DpoConfig { model_name_or_path, dataset, eval_dataset, learning_rate, max_length, training, .. } =
        dpo_config(dir.path(), &base, LossType::Sigmoid);
    let orpo = OrpoConfig {
        model_name_or_path: model_name_or_path.clone(),
        dataset: dataset.clone(),
        eval_dataset: eval_dataset.clone(),
        output_dir: dir.path().join("orpo"),
        learning_rate,
        max_length,
        training: training.clone(),
        ..OrpoConfig::default()
    };
    resumes_bytewise(|output_dir, context| {
        orpo::run(&OrpoConfig { output_dir: output_dir.to_owned(), ..orpo.clone() }, context)
    });
    let results = orpo::run(&orpo, &quiet()).unwrap();
    let (losses_of_orpo, eval) = (losses(&orpo.output_dir), &results["training"]["eval"]);
    assert!(losses_of_orpo.last().unwrap() < &losses_of_orpo[0], "{losses_of_orpo:?}");
    let number = |name: &str| eval[name].as_f64().unwrap();
    assert!((number("nll_loss") - orpo.beta * number("log_odds_ratio") - number("loss")).abs() < 1e-9, "{eval}");
    for (loss_type, cpo_alpha) in [(CpoLoss::Sigmoid, 1.0), (CpoLoss::Simpo, 0.0)] {
        let cpo = CpoConfig {
            model_name_or_path: model_name_or_path.clone(),
            dataset: dataset.clone(),
            eval_dataset: eval_dataset.clone(),
            output_dir: dir.path().join(format!("{loss_type:?}")),
            loss_type,
            cpo_alpha,
            learning_rate,
            max_length,
            training: training.clone(),
            ..CpoConfig::default()
        };
        resumes_bytewise(|output_dir, context| {
            cpo::run(&CpoConfig { output_dir: output_dir.to_owned(), ..cpo.clone() }, context)
        });
        cpo::run(&cpo, &quiet()).unwrap();
        let losses = losses(&cpo.output_dir);
        assert!(losses.last().unwrap() < &losses[0], "{losses:?}");
    }
}

#[test]
fn log_probabilities_while_sampling_are_those_of_the_forward_pass() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let (input, output, again) =
        (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"), dir.path().join("again.jsonl"));
    let prompts = ["the cat", "a", "one day it rained and the dog ran home"];
    fixture::write_lines(&input, &prompts.map(|prompt| json!({"prompt": prompt})));
    let config = GenerateConfig {
        model: base.clone().into(),
        input: input.into(),
        output: output.clone(),
        max_new_tokens: 12,
        num_return_sequences: 2,
        ..GenerateConfig::default()
    };
    generate::run(&config, &quiet()).unwrap();
    let sampled = fixture::read_lines(&output);
    assert_eq!(
        sampled.iter().map(|row| row["prompt"].as_str().unwrap()).collect::<Vec<_>>(),
        [prompts[0], prompts[0], prompts[1], prompts[1], prompts[2], prompts[2]]
    );
    assert_ne!(sampled[0]["tokens"], sampled[1]["tokens"], "two samples of one prompt differ");

    let rows: Vec<Value> = sampled.iter().map(|row| json!({"tokens": row["tokens"]})).collect();
    fixture::write_lines(&config.input, &rows);
    let reading = |most: usize| ReadingArguments { max_tokens_per_batch: most.into(), ..ReadingArguments::default() };
    for max_tokens_per_batch in [1, 8192] {
        let (model, input, output) = (base.clone(), config.input.clone(), again.clone());
        let config = LogprobsConfig { model: model.into(), input, output, reading: reading(max_tokens_per_batch) };
        logprobs::run(&config, &quiet()).unwrap();
        for (sampled, scored) in sampled.iter().zip(fixture::read_lines(&again)) {
            let (own, all) = (sampled["logprobs"].as_array().unwrap(), scored["logprobs"].as_array().unwrap());
            assert_eq!(all.len() + 1, sampled["tokens"].as_array().unwrap().len());
            assert_eq!(&all[all.len() - own.len()..], own);
        }
    }
}

#[test]
fn rows_of_tokens_need_no_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    fs::remove_file(base.join("tokenizer.json")).unwrap();
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let config =
        LogprobsConfig { model: base.into(), input: input.into(), output: output.clone(), ..LogprobsConfig::default() };
    fixture::write_lines(&config.input, &[json!({"tokens": [5]}), json!({"tokens": [1, 2, 3]})]);
    logprobs::run(&config, &quiet()).unwrap();
    let rows = fixture::read_lines(&output);
    assert_eq!((&rows[0], rows[1]["logprobs"].as_array().unwrap().len()), (&json!({"tokens": [5], "logprobs": []}), 2));

    fs::remove_file(&output).unwrap();
    for (row, complaint) in [
        (json!({"tokens": [1, 300]}), "line 2: token 300 is not in the model's vocabulary"),
        (json!({"tokens": []}), "line 2: there is no token"),
        (json!({"tokens": [-1]}), "line 2: \"tokens\" holds -1, which is no token number"),
        (json!({"prompt": "a", "response": "b"}), "line 2: the model directory has no tokenizer.json"),
        (json!({"question": "a"}), "line 2: no \"tokens\""),
    ] {
        fixture::write_lines(&config.input, &[json!({"tokens": [5]}), row]);
        let error = format!("{:#}", logprobs::run(&config, &quiet()).unwrap_err());
        assert!(error.contains(complaint), "{error}");
        assert!(!output.exists(), "nothing half-written");
    }
}

/// As TRL's SFT and reward trainers, which append the end token to text without one.
#[test]
fn texts_end_with_an_end_token_unless_they_were_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let (input, output) = (dir.path().join("in.jsonl"), dir.path().join("out.jsonl"));
    let rows = [
        json!({"text": "the cat"}),
        json!({"text": "the cat<|end|>"}),
        json!({"text": "the cat", "finish_reason": "length"}),
    ];
    fixture::write_lines(&input, &rows);
    let config = LogprobsConfig {
        model: base.clone().into(),
        input: input.into(),
        output: output.clone(),
        ..LogprobsConfig::default()
    };
    logprobs::run(&config, &quiet()).unwrap();
    let tokens: Vec<Vec<u64>> =
        fixture::read_lines(&output).iter().map(|row| serde_json::from_value(row["tokens"].clone()).unwrap()).collect();
    let end = u64::from(crate::checkpoint::Checkpoint::open(&base).unwrap().tokens.eos[0]);
    assert_eq!(tokens[0], tokens[1], "an end that is there is not doubled");
    assert_eq!(tokens[0], [&tokens[2][..], &[end]].concat());
    assert_ne!(tokens[2].last(), Some(&end));
}

#[test]
fn models_of_the_wrong_kind_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let input = dir.path().join("in.jsonl");
    fixture::write_lines(&input, &[json!({"tokens": [5]})]);
    let config = ScoreConfig {
        model: base.clone().into(),
        input: input.into(),
        output: dir.path().join("out"),
        ..ScoreConfig::default()
    };
    let error = score::run(&config, &quiet()).unwrap_err().to_string();
    assert!(error.contains("is a language model without score.weight"), "{error}");

    let config = RewardConfig { training: arguments(1), ..reward_config(dir.path(), &base) };
    reward::run(&config, &quiet()).unwrap();
    let config = SftConfig { model_name_or_path: config.output_dir.into(), ..sft_config(dir.path(), &base) };
    let error = sft::run(&config, &quiet()).unwrap_err().to_string();
    assert!(error.contains("is a reward model; a language model is needed"), "{error}");
    let config = SftConfig { model_name_or_path: base.into(), dataset: DataSource::default(), ..config };
    assert!(sft::run(&config, &quiet()).unwrap_err().to_string().contains("no data set is given"));
}

#[test]
fn no_example_is_longer_than_the_context() {
    let dir = tempfile::tempdir().unwrap();
    let base = fixture::base(dir.path());
    let long = "the cat ran to the dog ".repeat(60);
    let chat = |answer: &str| json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]});
    let config = sft_config(dir.path(), &base);
    fixture::write_lines(&dir.path().join("sft.jsonl"), &[chat("yes"), chat(&long)]);
    let learned = |max_length| {
        let config = SftConfig { max_length, training: arguments(1), ..config.clone() };
        sft::run(&config, &quiet()).unwrap()["learned_tokens_per_epoch"].as_u64().unwrap()
    };
    assert_eq!(learned(1024), learned(96), "the context is of 96 tokens");

    let pair = |chosen: &str| json!({"prompt": "a", "chosen": chosen, "rejected": "no"});
    let config = reward_config(dir.path(), &base);
    fixture::write_lines(&dir.path().join("pairs.jsonl"), &[pair("yes"), pair(&long)]);
    let pairs = |max_length| {
        let config = RewardConfig { max_length, training: arguments(1), ..config.clone() };
        reward::run(&config, &quiet()).unwrap()["eval_pairs"].as_u64().unwrap()
    };
    assert_eq!((pairs(96), pairs(1024)), (1, 1), "longer pairs are left out");
}

/// The device and number type depend neither on the thread nor on what other threads compute.
#[test]
fn a_stage_on_a_spawned_thread_computes_as_its_keys_say() {
    let dir = tempfile::tempdir().unwrap();
    let (base, input) = (fixture::base(dir.path()), dir.path().join("in.jsonl"));
    fixture::write_lines(&input, &[json!({"tokens": [5, 6, 7, 8]})]);
    let run = |name: &str, dtype: &str| {
        let output = dir.path().join(name);
        let flags = [("model", base.as_path()), ("input", &input), ("output", &output)];
        let flags = flags.map(|(key, path)| (key.to_owned(), path.display().to_string()));
        let dtype = [("dtype".to_owned(), dtype.to_owned()), ("device".to_owned(), "cpu".to_owned())];
        let planned = (table::find("logprobs").unwrap().load)(None, &[&flags[..], &dtype].concat()).unwrap();
        (planned.work)(&quiet()).unwrap();
        fixture::read_lines(&output)
    };
    let [f32, bf16] = ["f32", "bf16"].map(|dtype| run(dtype, dtype));
    assert_ne!(f32, bf16, "the number type shows");
    let spawned = std::thread::scope(|scope| {
        let threads = ["f32", "bf16"].map(|dtype| scope.spawn(move || run(&format!("spawned-{dtype}"), dtype)));
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(spawned, [f32, bf16]);
}
