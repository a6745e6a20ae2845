//! Group methods and online DPO, as the program runs them.

mod tiny;

use tiny::{GROUP, Place, UP_TO_REWARD, assert_same};

#[test]
fn neither_threads_nor_the_size_of_a_decoding_batch_change_anything() {
    let run = |threads: &str, slots: &str| {
        let place = Place::new();
        place.write("r.yaml", (UP_TO_REWARD.to_owned() + GROUP).replace("decode_slots: 3", slots));
        place.done(place.command(&["run", "r.yaml"]).env("RAYON_NUM_THREADS", threads));
        place
    };
    let (one, two) = (run("1", "decode_slots: 3"), run("2", "decode_slots: 3"));
    assert_same(&one.tree("out"), &two.tree("out"));
    let whole = run("2", "decode_slots: 64");
    for stage in ["grpo", "reinforce", "online"] {
        for file in ["model.safetensors", "metrics.jsonl", "samples.jsonl"] {
            let path = format!("out/{stage}/{file}");
            assert!(one.bytes(&path) == whole.bytes(&path), "{path}");
        }
    }
    let metrics = one.metrics("out/grpo");
    for name in ["rewards/model/mean", "rewards/repetition/std", "rewards/short/mean", "frac_reward_zero_std"] {
        assert!(metrics.iter().all(|line| line[name].is_f64()), "{name}: {metrics:?}");
    }
}
