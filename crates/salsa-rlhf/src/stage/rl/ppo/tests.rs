//! Bases shared by the models of a run: what is shared, and that sharing changes no result.
use std::{fs, path::Path};

use salsa_engine::{Head, Model};

use super::*;
use crate::stage::{
    fixture::{self, quiet},
    models::{
        lora::LoraArguments,
        model_source::{ModelSource, SoupSource},
    },
    rl::{arguments::SamplingArguments, ppo::config::CriticKind, reference::ReferenceConfig},
    supervised::{
        arguments::TrainingArguments,
        reward::{self, RewardConfig},
        sft::{self, SftConfig},
    },
    text::source::DataSource,
};

fn adapter() -> LoraArguments {
    LoraArguments { use_peft: true, lora_r: 3, lora_alpha: 6.0, ..LoraArguments::default() }
}

/// A base, two SFT adapters and a reward adapter on it.
fn models(dir: &Path) {
    let base = fixture::base(dir);
    let data = dir.join("sft.jsonl");
    let example = |i: usize| {
        let (question, answer) = (fixture::SENTENCES[i % 4], fixture::SENTENCES[(i + 1) % 4]);
        json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    };
    fixture::write_lines(&data, &(0..20).map(example).collect::<Vec<_>>());
    for (name, seed) in [("sft-a", 1), ("sft-b", 2)] {
        let config = SftConfig {
            model_name_or_path: base.clone().into(),
            dataset: DataSource::Path(data.clone().into()),
            output_dir: dir.join(name),
            learning_rate: 0.02,
            max_length: 64,
            lora: adapter(),
            training: TrainingArguments { max_steps: 6, seed, ..TrainingArguments::default() },
            ..SftConfig::default()
        };
        sft::run(&config, &quiet()).unwrap();
    }
    let config = RewardConfig {
        model_name_or_path: dir.join("sft-a").into(),
        dataset: fixture::preferences(&dir.join("pairs.jsonl")),
        output_dir: dir.join("reward"),
        learning_rate: 0.02,
        max_length: 96,
        lora: adapter(),
        training: TrainingArguments { max_steps: 6, ..TrainingArguments::default() },
        ..RewardConfig::default()
    };
    reward::run(&config, &quiet()).unwrap();
}

fn config(dir: &Path, reference: ReferenceConfig) -> PpoConfig {
    PpoConfig {
        model_name_or_path: ModelSource::Path(dir.join("sft-a").into()),
        reward_model_path: dir.join("reward").into(),
        reference,
        dataset: DataSource::Path(dir.join("sft.jsonl").into()),
        output_dir: dir.join("ppo"),
        sampling: SamplingArguments {
            total_episodes: 16,
            batch_size: 8,
            response_length: 6,
            temperature: 1.0,
            ..SamplingArguments::default()
        },
        num_ppo_epochs: 2,
        num_mini_batches: 2,
        learning_rate: 3e-3,
        lora: adapter(),
        ..PpoConfig::default()
    }
}

fn soup(dir: &Path) -> ReferenceConfig {
    ReferenceConfig::Soup { models: vec![dir.join("sft-a").into(), dir.join("sft-b").into()], weights: Vec::new() }
}

/// Moves an adapter to a copy of its base.
fn move_to_own_base(dir: &Path, name: &str) {
    let copy = dir.join(format!("base-of-{name}"));
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(dir.join("base")).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file()) {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let path = dir.join(name).join("adapter_config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["base_model_name_or_path"] = json!(copy);
    fs::write(path, config.to_string()).unwrap();
}

/// Weights of policy and critic after two updates, and all metrics.
fn learned(config: &PpoConfig) -> (Vec<f32>, Vec<f32>, Vec<Metrics>) {
    let (mut run, _) = Run::open(config, &quiet()).unwrap();
    let metrics = (0..2).map(|update| run.step(update).unwrap().0).collect();
    let critic = run.learner.critic.separate().map_or(Vec::new(), |critic| critic.weights().to_vec());
    (run.learner.policy.weights().to_vec(), critic, metrics)
}

#[test]
fn all_roles_share_one_base() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let mut config = config(dir.path(), soup(dir.path()));
    config.anchors.insert("sft_b".to_owned(), ModelSource::Path(dir.path().join("sft-b").into()));
    config.anchors.insert("base".to_owned(), ModelSource::Path(dir.path().join("base").into()));
    let (run, _) = Run::open(&config, &quiet()).unwrap();
    let policy: &Model = &run.learner.policy;
    assert!(policy.shares_base(run.learner.critic.separate().unwrap()), "the critic");
    assert!(policy.shares_base(run.environment.rewards.first_model()), "the reward model");
    assert_eq!(run.environment.frozen.models().count(), 3, "the soup and two anchors");
    for model in run.environment.frozen.models() {
        assert!(policy.shares_base(model));
        assert_eq!(model.spec().head, Head::LanguageModel);
    }
    assert_eq!(run.environment.frozen.models().next().unwrap().lora().unwrap().rank, 6, "ranks add up in a soup");
}

#[test]
fn a_step_on_a_shared_base_is_that_on_separate_models_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    for critic in [CriticKind::Separate, CriticKind::Shared] {
        let reference = ReferenceConfig::Multi {
            models: vec![dir.path().join("sft-a").into(), dir.path().join("sft-b").into()],
            weights: Vec::new(),
        };
        let config = PpoConfig { critic, ..config(dir.path(), reference) };
        let shared = learned(&config);
        if critic == CriticKind::Separate {
            ["sft-b", "reward"].into_iter().for_each(|name| move_to_own_base(dir.path(), name));
        }
        let (run, _) = Run::open(&config, &quiet()).unwrap();
        assert!(!run.learner.policy.shares_base(run.environment.rewards.first_model()), "nothing is compared");
        assert!(shared == learned(&config), "sharing the base changes bits");
        assert!(shared.2[0].get("objective/kl").is_some_and(|kl| kl != 0.0));
    }
}

#[test]
fn a_run_is_saved_as_adapters_and_resumed_from_adapters() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let whole = PpoConfig { output_dir: dir.path().join("whole"), ..config(dir.path(), soup(dir.path())) };
    run(&whole, &quiet()).unwrap();
    for (name, head) in [("whole", Head::LanguageModel), ("whole/critic", Head::Scalar)] {
        let opened = Checkpoint::open(&dir.path().join(name)).unwrap();
        assert_eq!(opened.adapter().unwrap().head, head);
        assert_eq!(opened.base_dir(), dir.path().join("base"));
    }
    let torn = PpoConfig { output_dir: dir.path().join("torn"), ..whole.clone() };
    let interrupted = quiet();
    interrupted.interrupt();
    assert!(run(&torn, &interrupted).is_err());
    let buffers = fs::metadata(dir.path().join("torn/checkpoints/step-1/buffers.safetensors")).unwrap().len();
    let base = fs::metadata(dir.path().join("base/model.safetensors")).unwrap().len();
    let adapters = ["whole", "whole/critic"]
        .map(|name| fs::metadata(dir.path().join(name).join("adapter_model.safetensors")).unwrap().len());
    assert!(buffers < 3 * adapters.iter().sum::<u64>() + 2000, "{buffers} bytes of buffers beside {base} of the base");
    run(&torn, &quiet()).unwrap();
    for name in ["adapter_model.safetensors", "critic/adapter_model.safetensors", "metrics.jsonl", "samples.jsonl"] {
        let read = |run: &str| fs::read(dir.path().join(run).join(name)).unwrap();
        assert!(read("whole") == read("torn"), "{name} differs");
    }
}

#[test]
fn policies_start_from_soups_of_adapters_and_references_follow_them() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let models = [dir.path().join("sft-a"), dir.path().join("sft-b")];
    let start =
        ModelSource::Soup(SoupSource { models: models.iter().map(Into::into).collect(), weights: vec![0.25, 0.75] });
    for reference in [ReferenceConfig::Ema { decay: 0.5 }, ReferenceConfig::Sync { every: 1, mixup: 1.0 }] {
        let config = PpoConfig { model_name_or_path: start.clone(), ..config(dir.path(), reference.clone()) };
        let (_, _, metrics) = learned(&config);
        assert_eq!(metrics[0].get("objective/kl"), Some(0.0), "the reference is where the policy starts");
        let kl = metrics[1].get("objective/kl").unwrap();
        assert!((kl == 0.0) == matches!(reference, ReferenceConfig::Sync { .. }), "{reference:?}: {kl}");
    }
    let whole = ModelSource::Soup(SoupSource {
        models: vec![dir.path().join("base").into(), models[0].clone().into()],
        weights: Vec::new(),
    });
    let config = PpoConfig { model_name_or_path: whole, ..config(dir.path(), soup(dir.path())) };
    let error = format!("{:#}", Run::open(&config, &quiet()).err().unwrap());
    assert!(error.contains("a soup of whole models"), "{error}");
}

/// Recomputing log-probs changes nothing where decoding and training give the same numbers.
#[test]
fn logprobs_of_a_forward_pass_are_those_that_were_sampled() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let mut config = config(dir.path(), soup(dir.path()));
    config.sampling.temperature = 0.7;
    let (run, _) = Run::open(&config, &quiet()).unwrap();
    let (_, mut rollouts) = run.environment.sample(&config.setup(), &run.learner.policy, 0).unwrap();
    let sampled = std::mem::take(&mut rollouts.logprobs);
    assert_eq!(sampled.len(), rollouts.lengths().iter().sum::<usize>());
    assert!(sampled.iter().any(|logprob| *logprob < -0.1), "{sampled:?}");
    rollouts.recompute_logprobs(&run.learner.policy).unwrap();
    assert_eq!(rollouts.logprobs, sampled);
}
