//! Group methods: groups of responses, resumption, references, refusals.
use std::{fs, path::Path};

use salsa_algo::group::Baseline;

use super::*;
use crate::stage::{
    fixture::{self, quiet},
    models::model_source::ModelSource,
    rewards::RewardSource,
    rl::{
        arguments::{RunArguments, SamplingArguments},
        fixture::models,
        reference::ReferenceConfig,
    },
    text::source::DataSource,
};

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
    let (prompts, rollouts) = run.environment.sample(&config.setup(), &run.learner.policy, 0).unwrap();
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
    use salsa_algo::group::{ImportanceLevel, LossType};
    let kinds = [
        (LossType::Bnpo, ImportanceLevel::Token, Baseline::None, ScaleRewards::Tokens),
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
    let cases: [(Change, &str); 11] = [
        (|c| c.num_generations = 1, "num_generations is 1"),
        (|c| (c.num_generations, c.baseline) = (1, Baseline::None), "say 2 or more, or scale_rewards: tokens"),
        (
            |c| {
                (c.num_generations, c.baseline, c.scale_rewards) = (1, Baseline::None, ScaleRewards::Tokens);
                c.max_sampling_rounds = 2;
            },
            "say 2 or more, or max_sampling_rounds: 1",
        ),
        (|c| c.max_sampling_rounds = 0, "max_sampling_rounds is 0"),
        (
            |c| c.rewards = vec![serde_json::from_value(json!({"kind": "model", "models": []})).unwrap()],
            "rewards[0]: no",
        ),
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

/// A program that rewards a response by this expression of its `length`, in the shell, and fails in the second update as
/// long as a file exists.
fn length_program(dir: &Path, expression: &str) -> RewardSource {
    let (script, fault) = (dir.join("reward.sh"), dir.join("fault"));
    let text = format!(
        "while read -r line; do\n\
           [ -n \"$line\" ] || continue\n\
           id=${{line#*:}}; id=${{id%%,*}}\n\
           [ $id -ge 12 ] && [ -e {} ] && exit 1\n\
           text=${{line#*response}}; text=${{text%columns*}}\n\
           length=${{#text}}\n\
           echo \"{{\\\"id\\\": $id, \\\"reward\\\": $(({expression}))}}\"\n\
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
    let rewards = vec![length_program(dir.path(), "length")];
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
    let alone = |fallback: Option<f64>| {
        let mut reward = serde_json::to_value(&rewards[0]).unwrap();
        reward["fallback"] = json!(fallback);
        let rewards = vec![serde_json::from_value(reward).unwrap()];
        GrpoConfig { reward_model_path: crate::config::paths::ModelPath::new(), rewards, ..of("alone") }
    };
    assert!(run(&alone(None), &quiet()).is_err());
    fs::remove_dir_all(dir.path().join("alone")).unwrap();
    run(&alone(Some(-1.0)), &quiet()).unwrap();
    let metrics = crate::metrics::read(&dir.path().join("alone")).unwrap();
    let get = |update: usize, name: &str| metrics[update].1.get(name);
    assert_eq!((get(0, "rewards/length/failed"), get(1, "rewards/length/failed")), (None, Some(1.0)));
    assert_eq!(get(1, "rewards/length/mean"), Some(-1.0));
    let none = GrpoConfig { rewards: Vec::new(), ..alone(None) };
    let error = format!("{:#}", run(&none, &quiet()).unwrap_err());
    assert!(error.starts_with("no reward is given; say reward_model_path"), "{error}");
}

#[test]
fn groups_without_a_signal_are_replaced_and_a_run_resumes_at_its_prompt() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    // One response in three is right, whichever they are: groups of two are often equal.
    let rewards = vec![length_program(dir.path(), "length % 3 == 0")];
    let of = |name: &str, rounds: usize| GrpoConfig {
        output_dir: dir.path().join(name),
        reward_model_path: crate::config::paths::ModelPath::new(),
        rewards: rewards.clone(),
        num_generations: 2,
        max_sampling_rounds: rounds,
        ..config(dir.path())
    };
    run(&of("plain", 1), &quiet()).unwrap();
    run(&of("whole", 20), &quiet()).unwrap();
    let interrupted = quiet();
    interrupted.interrupt();
    assert!(run(&of("torn", 20), &interrupted).is_err());
    run(&of("torn", 20), &quiet()).unwrap();
    for name in ["model.safetensors", "metrics.jsonl"] {
        let read = |run: &str| fs::read(dir.path().join(run).join(name)).unwrap();
        assert!(read("whole") == read("torn"), "{name}");
    }
    let samples = fixture::read_lines(&dir.path().join("plain/samples.jsonl"));
    let prompts = |step: u64| -> Vec<&Value> {
        samples.iter().filter(|line| line["step"] == step).map(|line| &line["prompt"]).collect()
    };
    assert!(!prompts(1).is_empty() && prompts(1) != prompts(2), "every update goes on to the next prompts");
    let metric = |run: &str, name: &str| -> Vec<Option<f64>> {
        let metrics = crate::metrics::read(&dir.path().join(run)).unwrap();
        metrics.iter().map(|(_, metrics)| metrics.get(name)).collect()
    };
    assert!(metric("plain", "frac_reward_zero_std").iter().any(|share| *share > Some(0.0)));
    assert_eq!(metric("whole", "frac_reward_zero_std"), [Some(0.0); 3]);
    assert!(metric("whole", "sampling/replaced_groups").iter().any(|groups| *groups >= Some(1.0)));
}

#[test]
fn reinforce_plus_plus_needs_no_groups_and_normalises_over_tokens() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let config = GrpoConfig {
        num_generations: 1,
        baseline: Baseline::None,
        scale_rewards: ScaleRewards::Tokens,
        kl_in: KlIn::RewardToGo,
        kl_estimator: salsa_algo::kl::KlEstimator::K1,
        kl_coef: 0.1,
        ..config(dir.path())
    };
    config.validate().unwrap();
    let (run, _) = Run::open(&config, &quiet()).unwrap();
    let (_, rollouts) = run.environment.sample(&config.setup(), &run.learner.policy, 0).unwrap();
    let rewards: Vec<f64> = (0..12).map(|i| f64::from(i % 5)).collect();
    let kls: Vec<f64> = (0..rollouts.logprobs.len()).map(|t| (t % 3) as f64).collect();
    let mut counted = vec![true; 12];
    counted[3] = false;
    let advantages = token_advantages(&config, &rollouts, &rewards, &kls, &counted);
    let lengths = rollouts.lengths();
    let parts = split(&advantages, &lengths);
    let learned: Vec<f64> = (0..12).filter(|&i| counted[i]).flat_map(|i| parts[i]).copied().collect();
    let count = learned.len() as f64;
    let mean = learned.iter().sum::<f64>() / count;
    let variance = learned.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / count;
    assert!(mean.abs() < 1e-12 && (variance - 1.0).abs() < 1e-12, "{mean} {variance}");
    // Within a response, advantages differ by the KL between them, in units of the deviation.
    let (kls, long) = (split(&kls, &lengths), parts.iter().position(|part| part.len() > 3).unwrap());
    let step = |t: usize| (parts[long][t + 1] - parts[long][t]) / kls[long][t];
    let steps: Vec<f64> = (0..parts[long].len() - 1).filter(|&t| kls[long][t] > 0.0).map(step).collect();
    assert!(steps.iter().all(|step| *step > 0.0 && (step - steps[0]).abs() < 1e-9), "{steps:?}");
}
