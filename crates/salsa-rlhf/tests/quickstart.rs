//! The embedded recipe at a tiny size that takes seconds: each of its stages runs.
use serde_json::Value;

mod tiny;

use tiny::Place;

/// The recipe's own keys with small values.
const SMALL: &[&str] = &[
    "stages.world.pretrain=120",
    "stages.world.sft=60",
    "stages.world.preferences=80",
    "stages.world.prompts_train=8",
    "stages.world.prompts_test=6",
    "stages.world.prompts_ood=6",
    "stages.base.vocab_size=400",
    "stages.base.hidden_size=32",
    "stages.base.num_hidden_layers=1",
    "stages.base.num_attention_heads=2",
    "stages.base.max_steps=2",
    "stages.sft-a.max_steps=1",
    "stages.sft-b.max_steps=1",
    "stages.reward.max_steps=1",
    "stages.ppo.total_episodes=4",
    "stages.ppo.batch_size=4",
    "stages.ppo.response_length=8",
    "stages.salsa.total_episodes=4",
    "stages.salsa.batch_size=4",
    "stages.salsa.response_length=8",
    "stages.eval.max_new_tokens=8",
];

#[test]
fn the_recipe_of_the_quickstart_runs_from_end_to_end() {
    let place = Place::new();
    let sets = SMALL.iter().flat_map(|set| ["--set", set]);
    let words: Vec<&str> = ["quickstart", "--out", "out", "--seed", "3"].into_iter().chain(sets).collect();
    place.done(&mut place.command(&words));
    for stage in ["world", "base", "sft-a", "sft-b", "soup", "reward", "ppo", "salsa", "eval"] {
        assert!(place.path(format!("out/{stage}/stage.json")).exists(), "{stage} is not done");
    }
    let summary: Value = serde_json::from_slice(&place.bytes("out/summary.json")).unwrap();
    assert!(summary["seconds"]["salsa"].as_f64().is_some_and(|seconds| seconds > 0.0), "{summary}");
    assert!(String::from_utf8(place.bytes("out/report.html")).unwrap().contains("SALSA quickstart"));
    let base: Value = serde_json::from_slice(&place.bytes("out/base/stage.json")).unwrap();
    assert_eq!(base["inputs"].as_array().map(Vec::len), Some(2), "the base learns from two data sets: {base}");
}
