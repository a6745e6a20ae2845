//! Group methods: groups of responses, resumption, references, refusals.
use std::{fs, path::Path};

use super::*;
use crate::stage::{
    fixture::{self, quiet},
    models::model_source::ModelSource,
    rewards::RewardSource,
    rl::{
        arguments::{RunArguments, SamplingArguments},
        reference::ReferenceConfig,
    },
    supervised::{
        arguments::TrainingArguments,
        reward::{self, RewardConfig},
    },
    text::source::DataSource,
};

/// A base, a reward model on it and prompts.
fn models(dir: &Path) {
    let base = fixture::base(dir);
    let prompts: Vec<Value> = fixture::SENTENCES.iter().map(|text| json!({"prompt": text})).collect();
    fixture::write_lines(&dir.join("prompts.jsonl"), &prompts);
    let config = RewardConfig {
        model_name_or_path: base.into(),
        dataset: fixture::preferences(&dir.join("pairs.jsonl")),
        output_dir: dir.join("reward"),
        learning_rate: 0.02,
        max_length: 96,
        training: TrainingArguments { max_steps: 4, ..TrainingArguments::default() },
        ..RewardConfig::default()
    };
    reward::run(&config, &quiet()).unwrap();
}

fn config(dir: &Path) -> GrpoConfig {
    GrpoConfig {
        model_name_or_path: ModelSource::Path(dir.join("base").into()),
        reward_model_path: dir.join("reward").into(),
        dataset: DataSource::Path(dir.join("prompts.jsonl").into()),
        output_dir: dir.join("grpo"),
        sampling: SamplingArguments {
            total_episodes: 36,
            batch_size: 12,
            response_length: 6,
            temperature: 1.0,
            ..SamplingArguments::default()
        },
        num_generations: 4,
        num_iterations: 2,
        num_mini_batches: 2,
        learning_rate: 3e-3,
        run: RunArguments { save_steps: 1.into(), ..RunArguments::default() },
        ..GrpoConfig::default()
    }
}

#[test]
fn a_group_is_one_prompt_with_different_responses() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let config = config(dir.path());
    let (run, _) = Run::open(&config, &quiet()).unwrap();
    let (prompts, rollouts) = run.environment.sample(&config.setup(), &run.learner.policy, 0);
    assert_eq!(rollouts.len(), 12);
    for group in 0..3 {
        let of = |i: usize| (prompts[4 * group + i], rollouts.response(4 * group + i));
        assert!((1..4).all(|i| of(i).0 == of(0).0), "{prompts:?}");
        assert!((1..4).any(|i| of(i).1 != of(0).1), "four times the same response");
    }
}

#[test]
fn a_resumed_run_has_the_bytes_of_a_whole_one_with_every_reference() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let both = vec![dir.path().join("base").into(), dir.path().join("base").into()];
    let references = [
        (ReferenceConfig::None, 0.0, KlIn::Loss),
        (ReferenceConfig::Soup { models: both.clone(), weights: Vec::new() }, 0.1, KlIn::Loss),
        (ReferenceConfig::Multi { models: both, weights: vec![0.25, 0.75] }, 0.1, KlIn::Reward),
        (ReferenceConfig::Ema { decay: 0.5 }, 0.1, KlIn::Loss),
    ];
    for (i, (reference, kl_coef, kl_in)) in references.into_iter().enumerate() {
        let of = |name: &str| GrpoConfig {
            reference: reference.clone(),
            kl_coef,
            kl_in,
            output_dir: dir.path().join(format!("{name}-{i}")),
            ..config(dir.path())
        };
        run(&of("whole"), &quiet()).unwrap();
        let interrupted = quiet();
        interrupted.interrupt();
        assert!(run(&of("torn"), &interrupted).is_err());
        assert!(dir.path().join(format!("torn-{i}/checkpoints/step-1")).exists());
        run(&of("torn"), &quiet()).unwrap();
        for name in ["model.safetensors", "metrics.jsonl", "samples.jsonl", "trainer_state.json"] {
            let read = |run: &str| fs::read(dir.path().join(format!("{run}-{i}")).join(name)).unwrap();
            assert!(read("whole") == read("torn"), "{name} differs with {reference:?}");
        }
        let metrics = crate::metrics::read(&dir.path().join(format!("whole-{i}"))).unwrap();
        assert_eq!(metrics.len(), 3);
        assert_eq!(metrics[0].1.get("objective/kl"), Some(0.0), "it starts at its reference");
        let kl = metrics[2].1.get("objective/kl").unwrap();
        assert_eq!(kl > 0.0, kl_coef > 0.0, "{reference:?}: {kl}");
    }
}

#[test]
fn every_kind_of_loss_moves_the_policy_and_passes_of_any_size_agree() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    use salsa_algo::group::{Baseline, ImportanceLevel, LossType, ScaleRewards};
    let kinds = [
        (LossType::Grpo, ImportanceLevel::Token, Baseline::Group, ScaleRewards::Group),
        (LossType::Grpo, ImportanceLevel::Sequence, Baseline::Group, ScaleRewards::Group),
        (LossType::DrGrpo, ImportanceLevel::Token, Baseline::Group, ScaleRewards::None),
        (LossType::Dapo, ImportanceLevel::Token, Baseline::Group, ScaleRewards::Batch),
        (LossType::Grpo, ImportanceLevel::Product, Baseline::LeaveOneOut, ScaleRewards::None),
    ];
    let mut all: Vec<Vec<f32>> = Vec::new();
    for (loss_type, importance_sampling_level, baseline, scale_rewards) in kinds {
        let weights = |pass: usize| {
            let config = GrpoConfig {
                loss_type,
                importance_sampling_level,
                baseline,
                scale_rewards,
                per_device_train_batch_size: pass,
                ..config(dir.path())
            };
            let (mut run, _) = Run::open(&config, &quiet()).unwrap();
            let (metrics, _) = run.step(0).unwrap();
            assert!(metrics.get("policy/grad_norm").unwrap() > 0.0);
            run.learner.policy.weights().to_vec()
        };
        let (whole, parts) = (weights(12), weights(1));
        let apart = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-3, "{loss_type:?} {importance_sampling_level:?}: {apart}");
        assert!(!all.contains(&whole), "{loss_type:?} {importance_sampling_level:?} is the same as another");
        all.push(whole);
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let dir = Path::new("nowhere");
    type Change = fn(&mut GrpoConfig);
    let cases: [(Change, &str); 7] = [
        (|c| c.num_generations = 1, "num_generations is 1"),
        (|c| c.num_generations = 5, "batch_size 12 is no multiple of num_generations 5; say batch_size: 15"),
        (|c| c.num_mini_batches = 13, "every minibatch needs a response"),
        (|c| c.kl_estimator = salsa_algo::kl::KlEstimator::K1, "its derivative has mean 0"),
        (|c| c.reference = ReferenceConfig::None, "kl_coef is 0.04, but reference.kind is none"),
        (|c| c.delta = Some(1.1), "delta is 1.1"),
        (|c| c.epsilon = 1.5, "epsilon is 1.5"),
    ];
    for (change, expected) in cases {
        let mut config = config(dir);
        change(&mut config);
        let error = format!("{:#}", config.validate().unwrap_err());
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
    config(dir).validate().unwrap();
}

/// A program that rewards the length of a response, and fails in the second update as long as a file exists.
fn length_program(dir: &Path) -> RewardSource {
    let (script, fault) = (dir.join("reward.sh"), dir.join("fault"));
    let text = format!(
        "while read -r line; do\n\
           [ -n \"$line\" ] || continue\n\
           id=${{line#*:}}; id=${{id%%,*}}\n\
           [ $id -ge 12 ] && [ -e {} ] && exit 1\n\
           text=${{line#*response}}; text=${{text%columns*}}\n\
           echo \"{{\\\"id\\\": $id, \\\"reward\\\": ${{#text}}}}\"\n\
         done\n",
        fault.display()
    );
    fs::write(&script, text).unwrap();
    let keys = json!({
        "kind": "command", "name": "length", "weight": 0.5, "command": ["sh", script], "files": [script],
        "max_retries": 0,
    });
    serde_json::from_value(keys).unwrap()
}

#[test]
fn rewards_add_up_and_a_run_without_one_stops_where_it_can_go_on() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let rewards = vec![length_program(dir.path())];
    let of = |name: &str| GrpoConfig {
        output_dir: dir.path().join(name),
        rewards: rewards.clone(),
        run: RunArguments { save_steps: 0.into(), ..RunArguments::default() },
        ..config(dir.path())
    };
    run(&of("whole"), &quiet()).unwrap();
    fs::write(dir.path().join("fault"), "").unwrap();
    let error = format!("{:#}", run(&of("torn"), &quiet()).unwrap_err());
    assert!(error.starts_with("update 2 of 3; ") && error.contains("step-1"), "{error}");
    assert!(error.contains("reward length: sh ") && error.contains("exit status 1"), "{error}");
    fs::remove_file(dir.path().join("fault")).unwrap();
    run(&of("torn"), &quiet()).unwrap();
    for name in ["model.safetensors", "metrics.jsonl"] {
        assert!(
            fs::read(dir.path().join("whole").join(name)).unwrap()
                == fs::read(dir.path().join("torn").join(name)).unwrap()
        );
    }
    for (_, metrics) in crate::metrics::read(&dir.path().join("whole")).unwrap() {
        let get = |name: &str| metrics.get(name).unwrap();
        let sum = get("rewards/model/mean") + 0.5 * get("rewards/length/mean");
        assert!((get("objective/scores") - sum).abs() < 1e-9, "{metrics:?}");
    }

    // Without a reward model; a failure may count as a reward, if that is asked for.
    fs::write(dir.path().join("fault"), "").unwrap();
    let alone = |on_failure: &str| {
        let mut reward = serde_json::to_value(&rewards[0]).unwrap();
        reward["on_failure"] = serde_json::from_str(on_failure).unwrap();
        let rewards = vec![serde_json::from_value(reward).unwrap()];
        GrpoConfig { reward_model_path: crate::config::paths::ModelPath::new(), rewards, ..of("alone") }
    };
    assert!(run(&alone(r#""stop""#), &quiet()).is_err());
    fs::remove_dir_all(dir.path().join("alone")).unwrap();
    run(&alone(r#"{"use": -1.0}"#), &quiet()).unwrap();
    let metrics = crate::metrics::read(&dir.path().join("alone")).unwrap();
    let get = |update: usize, name: &str| metrics[update].1.get(name);
    assert_eq!((get(0, "rewards/length/failed"), get(1, "rewards/length/failed")), (None, Some(1.0)));
    assert_eq!(get(1, "rewards/length/mean"), Some(-1.0));
    let none = GrpoConfig { rewards: Vec::new(), ..alone(r#""stop""#) };
    let error = format!("{:#}", run(&none, &quiet()).unwrap_err());
    assert!(error.starts_with("no reward is given; say reward_model_path"), "{error}");
}
