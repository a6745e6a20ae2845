//! PPO through the binary: a soup with all weight on one model equals plain PPO, and irrelevant settings have no
//! effect.
use std::sync::LazyLock;

mod tiny;

use tiny::{EVALUATE, PPO, Place, UP_TO_REWARD, assert_same};

/// SFT models and reward model, trained once.
static MODELS: LazyLock<Place> = LazyLock::new(|| Place::with(UP_TO_REWARD));

const TWO_STEPS_TWICE: &str = "num_ppo_epochs: 2\nnum_mini_batches: 2\n";
const ONE_STEP: &str = "num_ppo_epochs: 1\nnum_mini_batches: 1\n";

/// A PPO run from SFT A into the directory `name`; `keys` are added to its configuration.
fn ppo(name: &str, keys: &str) {
    let common = "model_name_or_path: out/sft-a\nreward_model_path: out/reward\ndataset: out/world/prompts_train.jsonl\n\
                  total_episodes: 32\nbatch_size: 8\nresponse_length: 10\ntemperature: 1.0\nlearning_rate: 3.0e-3\n";
    MODELS.write(&format!("{name}.yaml"), format!("{common}output_dir: {name}\n{keys}"));
    MODELS.salsa(&format!("ppo --config {name}.yaml"));
}

fn metrics(name: &str) -> String {
    String::from_utf8(MODELS.bytes(format!("{name}/metrics.jsonl"))).unwrap()
}

/// Asserts bitwise equal weights of policy and critic, equal metrics and equal samples.
fn assert_equal_runs(a: &str, b: &str) {
    assert_eq!(metrics(a), metrics(b), "{a} and {b}");
    for file in ["model.safetensors", "critic/model.safetensors", "samples.jsonl"] {
        let (a, b) = (format!("{a}/{file}"), format!("{b}/{file}"));
        assert!(MODELS.bytes(&a) == MODELS.bytes(&b), "{a} and {b} differ");
    }
}

/// The largest difference between the weights of two models.
fn distance(a: &str, b: &str) -> f32 {
    let (a, b) = (MODELS.weights(a), MODELS.weights(b));
    assert_eq!(a.len(), b.len());
    a.into_iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn alpha_0_is_plain_ppo_bit_for_bit() {
    let run = |name: &str, reference: &str| ppo(name, &format!("{TWO_STEPS_TWICE}reference: {reference}\n"));
    run("plain", "{kind: sft, model: out/sft-a}");
    run("alpha-0", "{kind: soup, models: [out/sft-a, out/sft-b], weights: [1, 0]}");
    run("alpha-half", "{kind: soup, models: [out/sft-a, out/sft-b], weights: [0.5, 0.5]}");
    assert_equal_runs("plain", "alpha-0");
    assert!(metrics("plain").contains("\"objective/kl\":"));
    assert_ne!(metrics("plain"), metrics("alpha-half"), "the reference must matter");
    assert!(distance("plain", "alpha-half") > 0.0);
}

#[test]
fn several_references_of_one_model_are_that_model() {
    let run = |name: &str, reference: &str| ppo(name, &format!("{ONE_STEP}reference: {reference}\n"));
    run("one-sft", "{kind: sft, model: out/sft-b}");
    run("one-multi", "{kind: multi, models: [out/sft-b]}");
    run("one-geometric", "{kind: geometric, models: [out/sft-b]}");
    assert_equal_runs("one-sft", "one-multi");
    assert_equal_runs("one-sft", "one-geometric");
}

#[test]
fn the_first_step_on_fresh_responses_has_ratio_1_exactly() {
    ppo("on-policy", ONE_STEP);
    let lines = MODELS.metrics("on-policy");
    assert_eq!(lines.len(), 4);
    for line in &lines {
        assert_eq!(line["val/ratio"].as_f64(), Some(1.0), "{line}");
        assert_eq!(line["val/ratio_var"].as_f64(), Some(0.0), "{line}");
        assert_eq!(line["policy/approxkl_avg"].as_f64(), Some(0.0), "{line}");
        assert_eq!(line["policy/clipfrac_avg"].as_f64(), Some(0.0), "{line}");
    }
    // The reference is the initial policy, so the first KL is 0 and later ones are not.
    assert_eq!(lines[0]["objective/kl"].as_f64(), Some(0.0));
    assert_ne!(lines[3]["objective/kl"].as_f64(), Some(0.0));
}

#[test]
fn passes_of_another_size_change_rounding_only() {
    for size in [8, 3] {
        ppo(&format!("pass-{size}"), &format!("{TWO_STEPS_TWICE}dtype: f32\nper_device_train_batch_size: {size}\n"));
    }
    let (moved, apart) = (distance("out/sft-a", "pass-8"), distance("pass-8", "pass-3"));
    assert!(moved > 1e-2 && apart < 1e-2 * moved, "training moved weights by {moved}, the size of a pass by {apart}");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let recipe = format!("{UP_TO_REWARD}  ppo:{PPO}  eval:{EVALUATE}");
    let run = |threads: &str| {
        let place = Place::new();
        place.write("r.yaml", &recipe);
        place.done(place.command(&["run", "r.yaml"]).env("RAYON_NUM_THREADS", threads));
        place.tree("out")
    };
    let (one, two) = (run("1"), run("2"));
    assert!(one.len() > 60, "{:?}", one.keys());
    assert_same(&one, &two);
}
