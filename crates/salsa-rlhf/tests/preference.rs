//! The stages that learn from preferences, as the program runs them.

mod tiny;

use serde_json::Value;
use tiny::{PREFERENCE, Place, UP_TO_REWARD, assert_same};

#[test]
fn the_number_of_threads_changes_nothing() {
    let recipe = UP_TO_REWARD.to_owned() + PREFERENCE;
    let run = |threads: &str| {
        let place = Place::new();
        place.write("r.yaml", &recipe);
        place.done(place.command(&["run", "r.yaml"]).env("RAYON_NUM_THREADS", threads));
        place
    };
    let (one, two) = (run("1"), run("2"));
    assert_same(&one.tree("out"), &two.tree("out"));
    let checked = String::from_utf8(one.salsa("run r.yaml --check").stdout).unwrap();
    assert!(checked.contains("kto"), "{checked}");
    metrics_have_trl_s_names(&one);
    memory_counts_a_reference_where_there_is_one(&one);
}

fn metrics_have_trl_s_names(place: &Place) {
    let common = ["loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"];
    for (stage, own) in [
        ("dpo", &["rewards/accuracies"][..]),
        ("kto", &["kl"]),
        ("orpo", &["rewards/accuracies", "nll_loss", "log_odds_ratio", "log_odds_chosen"]),
        ("simpo", &["rewards/accuracies", "nll_loss"]),
    ] {
        let lines = place.metrics(&format!("out/{stage}"));
        for name in common.iter().chain(own) {
            assert!(lines.iter().any(|line| line[*name].is_f64()), "{stage}: {name}");
            // A small evaluation of KTO may lack one label in no pass, but not in all.
            assert!(lines.iter().any(|line| line[format!("eval_{name}")].is_f64()), "{stage}: eval_{name}");
        }
        let margin = |line: &Value| {
            let number = |name: &str| line[name].as_f64();
            Some(number("rewards/chosen")? - number("rewards/rejected")? - number("rewards/margins")?)
        };
        let margins: Vec<f64> = lines.iter().filter_map(margin).collect();
        assert!(margins.len() > 5 && margins.iter().all(|rest| rest.abs() < 1e-9), "{stage}: {margins:?}");
    }
}

fn memory_counts_a_reference_where_there_is_one(place: &Place) {
    for (name, has_one) in [("dpo", true), ("kto", true), ("orpo", false), ("cpo", false)] {
        let data = "--dataset out/world/preferences.jsonl --max_steps 1";
        let output = place.salsa(&format!("{name} --model out/sft-a {data} --output_dir again-{name}"));
        let said = String::from_utf8(output.stderr).unwrap();
        let plan = said.lines().find(|line| line.contains("memory: ")).unwrap();
        assert_eq!(plan.contains("frozen weights"), has_one, "{name}: {plan}");
    }
}

#[test]
fn a_reference_is_refused_where_the_loss_has_none() {
    let place = Place::new();
    for stage in ["orpo", "cpo"] {
        let line = format!("{stage} --model m --dataset d.jsonl --output_dir o --ref_model_name_or_path r");
        let output = place.command(&line.split_whitespace().collect::<Vec<_>>()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("ref_model_name_or_path") && said.contains("this stage has no reference"), "{said}");
    }
}
