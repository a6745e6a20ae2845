//! Online DPO: pairs, losses, learning, resumption, refusals.
use std::{fs, path::Path};

use salsa_algo::preference::{dpo::LossType, online::Pairing};

use super::{config::Ties, *};
use crate::stage::{
    fixture::quiet,
    models::model_source::ModelSource,
    rewards::RewardSource,
    rl::{
        arguments::{RunArguments, SamplingArguments},
        fixture::models,
        reference::ReferenceConfig,
    },
    text::source::DataSource,
};

fn config(dir: &Path) -> OnlineDpoConfig {
    OnlineDpoConfig {
        model_name_or_path: ModelSource::Path(dir.join("base").into()),
        reward_model_path: dir.join("reward").into(),
        dataset: DataSource::Path(dir.join("prompts.jsonl").into()),
        output_dir: dir.join("online"),
        sampling: SamplingArguments {
            total_episodes: 36,
            batch_size: 12,
            response_length: 6,
            temperature: 1.0,
            ..SamplingArguments::default()
        },
        num_iterations: 2,
        num_mini_batches: 2,
        learning_rate: 3e-3,
        run: RunArguments { save_steps: 1.into(), ..RunArguments::default() },
        ..OnlineDpoConfig::default()
    }
}

/// The same run with one reward, by a rule.
fn ruled(config: OnlineDpoConfig, rule: Value) -> OnlineDpoConfig {
    let rewards: Vec<RewardSource> = vec![serde_json::from_value(rule).unwrap()];
    OnlineDpoConfig { reward_model_path: crate::config::paths::ModelPath::new(), rewards, ..config }
}

#[test]
fn it_starts_at_the_loss_of_equal_models() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let config = OnlineDpoConfig { num_iterations: 1, num_mini_batches: 1, ..config(dir.path()) };
    let (mut run, _) = Run::open(&config, &quiet()).unwrap();
    let (metrics, _) = run.step(0).unwrap();
    let get = |name: &str| metrics.get(name).unwrap();
    assert!((get("loss/policy_avg") - 2f64.ln()).abs() < 1e-12, "{metrics:?}");
    assert_eq!((get("objective/kl"), get("rewards/accuracies"), get("rewards/margins")), (0.0, 0.0, 0.0));
    assert!(get("objective/scores_margin") > 0.0 && get("policy/entropy_avg") > 0.0, "{metrics:?}");
}

#[test]
fn a_step_raises_the_response_with_the_higher_reward_above_the_other() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let config = OnlineDpoConfig { num_generations: 4, num_mini_batches: 1, ..config(dir.path()) };
    for pairing in [Pairing::BestWorst, Pairing::Neighbours] {
        let config = OnlineDpoConfig { pairing, ..config.clone() };
        let (mut run, _) = Run::open(&config, &quiet()).unwrap();
        let (prompts, rollouts) = run.environment.sample(&config.setup(), &run.learner.policy, 0).unwrap();
        let scores = run.environment.score(&prompts, &rollouts, 0).unwrap().total;
        let pairs = online::pairs(&scores, 4, pairing);
        assert!(pairs.iter().all(|pair| scores[pair.chosen] > scores[pair.rejected]));
        assert!(pairs.iter().all(|pair| prompts[pair.chosen] == prompts[pair.rejected]));
        let gap = |run: &Run<'_>| -> f64 {
            let logprobs = rollouts.logprobs_of(&run.learner.policy).unwrap();
            let of = of_responses(LossType::Sigmoid, &logprobs, &rollouts.lengths());
            pairs.iter().map(|pair| of[pair.chosen] - of[pair.rejected]).sum()
        };
        let before = gap(&run);
        run.step(0).unwrap();
        assert!(gap(&run) > before + 0.01, "{pairing:?}: from {before} to {}", gap(&run));
    }
}

#[test]
fn it_learns_what_is_rewarded() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let sampling = SamplingArguments { total_episodes: 40 * 24, batch_size: 24, ..config(dir.path()).sampling };
    for loss_type in [LossType::Sigmoid, LossType::Ipo] {
        let config = OnlineDpoConfig { sampling: sampling.clone(), loss_type, ..config(dir.path()) };
        let config = ruled(config, json!({"kind": "regex", "pattern": "a"}));
        let config = OnlineDpoConfig { output_dir: dir.path().join(format!("{loss_type:?}")), ..config };
        run(&config, &quiet()).unwrap();
        let metrics = crate::metrics::read(&config.output_dir).unwrap();
        let rewards: Vec<f64> = metrics.iter().map(|(_, metrics)| metrics.get("reward").unwrap()).collect();
        let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
        let (early, late) = (mean(&rewards[..5]), mean(&rewards[35..]));
        assert!(late > early + 0.2, "{loss_type:?}: {rewards:?}");
    }
}

#[test]
fn a_resumed_run_has_the_bytes_of_a_whole_one_with_every_reference() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let both = vec![dir.path().join("base").into(), dir.path().join("base").into()];
    let weights = vec![0.25, 0.75];
    let references = [
        ReferenceConfig::default(),
        ReferenceConfig::Soup { models: both.clone(), weights: Vec::new() },
        ReferenceConfig::Multi { models: both.clone(), weights: weights.clone() },
        ReferenceConfig::Geometric { models: both, weights },
        ReferenceConfig::Ema { decay: 0.5 },
        ReferenceConfig::Sync { every: 2, mixup: 0.6 },
    ];
    for reference in references {
        let of = |name: &str| OnlineDpoConfig {
            reference: reference.clone(),
            output_dir: dir.path().join(format!("{name}-{}", reference.kind())),
            ..config(dir.path())
        };
        run(&of("whole"), &quiet()).unwrap();
        let interrupted = quiet();
        interrupted.interrupt();
        assert!(run(&of("torn"), &interrupted).is_err());
        assert!(of("torn").output_dir.join("checkpoints/step-1").exists());
        run(&of("torn"), &quiet()).unwrap();
        for name in ["model.safetensors", "metrics.jsonl", "samples.jsonl", "trainer_state.json"] {
            let read = |run: &str| fs::read(of(run).output_dir.join(name)).unwrap();
            assert!(read("whole") == read("torn"), "{name} differs with {reference:?}");
        }
        let metrics = crate::metrics::read(&of("whole").output_dir).unwrap();
        let kl = |at: usize| metrics[at].1.get("objective/kl").unwrap();
        assert!(metrics.len() == 3 && kl(0).abs() < 1e-6 && kl(2) != 0.0, "it starts at its reference: {metrics:?}");
    }
}

/// The weights of two models side by side are those of their soup where both are the same model.
#[test]
fn several_references_count_with_their_weights() {
    let references = [(0.25, Cow::Borrowed(&[-1.0, -2.0][..])), (0.75, Cow::Borrowed(&[-3.0, -2.0][..]))];
    assert_eq!(mean_of(&references), [-2.5, -2.0]);
    assert_eq!(mean_of(&references[..1]), [-1.0, -2.0]);
}

#[test]
fn every_loss_moves_the_policy_and_passes_of_any_size_agree() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let of = |loss_type| OnlineDpoConfig { loss_type, label_smoothing: 0.1, ..config(dir.path()) };
    use LossType::*;
    let losses =
        [Sigmoid, Hinge, Ipo, ExoPair, NcaPair, Robust, BcoPair, SppoHard, ApoZero, ApoDown, Discopop, SigmoidNorm];
    for loss_type in losses {
        let weights = |pass: usize| {
            let config = OnlineDpoConfig { per_device_train_batch_size: pass, ..of(loss_type) };
            let (mut run, _) = Run::open(&config, &quiet()).unwrap();
            let (metrics, _) = run.step(0).unwrap();
            assert!(metrics.get("policy/grad_norm").unwrap() > 0.0, "{loss_type:?}");
            run.learner.policy.weights().to_vec()
        };
        let (whole, parts) = (weights(6), weights(1));
        let apart = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(apart < 2e-3, "{loss_type:?}: {apart}");
    }
}

#[test]
fn equal_rewards_teach_nothing_unless_ties_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    models(dir.path());
    let moved = |ties: Ties| {
        let config = ruled(config(dir.path()), json!({"kind": "regex", "pattern": "^\u{1}$"}));
        let config = OnlineDpoConfig { ties, ..config };
        let (mut run, _) = Run::open(&config, &quiet()).unwrap();
        let before = run.learner.policy.weights().to_vec();
        let (metrics, _) = run.step(0).unwrap();
        assert_eq!(metrics.get("frac_pairs_tied"), Some(1.0));
        before != run.learner.policy.weights().to_vec()
    };
    assert_eq!((moved(Ties::Drop), moved(Ties::Keep)), (false, true));
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let dir = Path::new("nowhere");
    type Change = fn(&mut OnlineDpoConfig);
    let cases: [(Change, &str); 12] = [
        (|c| c.num_generations = 1, "num_generations is 1: a pair needs two responses"),
        (|c| c.num_generations = 5, "batch_size 12 is no multiple of num_generations 5; say batch_size: 15"),
        (|c| (c.num_generations, c.pairing) = (3, Pairing::Neighbours), "num_generations is 3, so with pairing"),
        (|c| c.num_mini_batches = 7, "num_mini_batches is 7, but an update has 6 pairs"),
        (|c| (c.num_generations, c.num_mini_batches) = (4, 4), "num_mini_batches is 4, but an update has 3 pairs"),
        (|c| c.num_iterations = 0, "num_iterations is 0"),
        (|c| c.beta = 0.0, "beta is 0"),
        (|c| c.label_smoothing = 0.5, "label_smoothing is 0.5"),
        (|c| c.loss_type = LossType::ExoPair, "loss_type exo_pair needs a label_smoothing above 0"),
        (|c| c.reference = ReferenceConfig::None, "reference.kind is none, but the loss compares"),
        (|c| c.reference = ReferenceConfig::Ema { decay: 1.5 }, "reference.decay is 1.5"),
        (
            |c| c.rewards = vec![serde_json::from_value(json!({"kind": "model", "models": []})).unwrap()],
            "rewards[0]: no",
        ),
    ];
    for (change, expected) in cases {
        let mut config = config(dir);
        change(&mut config);
        let error = format!("{:#}", config.validate().unwrap_err());
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
    config(dir).validate().unwrap();
    let none = OnlineDpoConfig { reward_model_path: crate::config::paths::ModelPath::new(), ..config(dir) };
    assert!(none.validate().is_ok(), "the rewards are counted when the models are known");
}
