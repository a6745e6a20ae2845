//! A study that is killed at any time, or extended later, ends with the numbers of an undisturbed one; `--check`
//! reports errors in one line.
use std::{fs, path::Path, process::Stdio, thread, time::Duration};

use serde_json::Value;

mod tiny;

use tiny::{PPO, Place, UP_TO_REWARD};

const EVALUATE: &str = r#"
    kind: evaluate
    arms: {sft_a: sft-a, sft_b: sft-b, soup: soup, ppo: ppo, salsa: salsa}
    baseline: sft_a
    anchors: {sft_a: sft-a, soup: soup}
    comparisons: [[salsa, ppo]]
    datasets:
      - {name: validation, dataset: "${stages.world}/prompts_validation.jsonl"}
      - {name: test, dataset: "${stages.world}/prompts_test.jsonl"}
    reward_model: reward
    gold: kitchen
    runs: {ppo: ppo, salsa: salsa}
    landscape: {models: [sft-a, sft-b], alphas: [0, 0.5, 1]}
    max_new_tokens: 10
"#;

/// A recipe with two arms of RL.
fn recipe() -> String {
    let salsa = PPO.replace("reference: {kind: sft, model: sft-a}", "reference: {kind: soup, models: [sft-a, sft-b]}");
    let soup = "  soup: {kind: soup, models: [sft-a, sft-b], report: true}\n";
    format!("{UP_TO_REWARD}{soup}  ppo:{PPO}  salsa:{salsa}  eval:{EVALUATE}")
}

/// A study of two arms at two values of beta.
fn study(seeds: &str) -> String {
    format!(
        "recipe: r.yaml\nout: out\nset: {{stages.ppo.total_episodes: 16, stages.salsa.total_episodes: 16}}\n\
         factors:\n  world_seed: {{values: {seeds}, set: {{seed: \"${{world_seed}}\", stages.sft-a.seed: \"${{world_seed}}1\"}}}}\n  \
         kl_coef: [0.05, 0.2]\n\
         arms: {{ppo: {{}}, salsa: {{}}}}\n\
         select: {{key: kl_coef, by: gold_reward, on: validation}}\ncompare: [[salsa, ppo]]\n"
    )
}

/// A folder with the recipe and a study.
fn place(study: &str) -> Place {
    let place = Place::new();
    place.write("r.yaml", recipe());
    place.write("s.yaml", study);
    place
}

/// The number of finished stages.
fn done(place: &Place) -> usize {
    let stages = fs::read_dir(place.path("out/stages")).into_iter().flatten().filter_map(Result::ok);
    stages.filter(|stage| stage.path().join("stage.json").exists()).count()
}

/// Starts the study and kills only its process, after this many finished stages and a delay.
fn kill_after(place: &Place, words: &[&str], stages: usize, later: Duration) {
    let mut child = place.command(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while done(place) < stages && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(2));
    }
    thread::sleep(later);
    // On a slow machine it may have ended already; then nothing is disturbed.
    let _ = child.kill();
    child.wait().unwrap();
}

#[test]
fn a_killed_and_extended_study_ends_with_the_numbers_of_an_undisturbed_one() {
    let undisturbed = place(&study("[1, 2]"));
    undisturbed.salsa("study s.yaml");
    assert_eq!(done(&undisturbed), 30, "what a factor does not touch is made once");

    let disturbed = place(&study("[1]"));
    kill_after(&disturbed, &["study", "s.yaml"], 2, Duration::from_millis(30));
    kill_after(&disturbed, &["study", "s.yaml", "--jobs", "2"], 6, Duration::from_millis(70));
    disturbed.salsa("study s.yaml --only arm=salsa");
    let part: Value = serde_json::from_slice(&disturbed.bytes("out/study.json")).unwrap();
    let missing = part["missing"].as_array().unwrap();
    assert!(missing.iter().all(|cell| cell.as_str().unwrap().starts_with("ppo/")), "{part:#}");
    assert!(part["cells"].as_array().unwrap().iter().filter(|cell| cell["arm"] == "salsa").count() == 2, "{part:#}");
    disturbed.write("s.yaml", study("[1, 2]"));
    kill_after(&disturbed, &["study", "s.yaml", "--jobs", "2"], 19, Duration::from_millis(10));
    kill_after(&disturbed, &["study", "s.yaml"], 24, Duration::from_millis(50));
    disturbed.salsa("study s.yaml --jobs 2");

    let [a, b] = [&undisturbed, &disturbed].map(|place| String::from_utf8(place.bytes("out/study.json")).unwrap());
    assert_eq!(a, b);
    let checked = String::from_utf8(disturbed.salsa("study s.yaml --check").stdout).unwrap();
    assert!(checked.contains("8 cells, 30 stages, 30 of them done"), "{checked}");
    let report: Value = serde_json::from_str(&a).unwrap();
    let count = |key: &str| report[key].as_array().map(Vec::len);
    assert_eq!((count("cells"), count("missing"), count("arms")), (Some(8), Some(0), Some(2)), "{report:#}");
    assert_eq!(count("claims"), Some(3), "reward, reward at equal KL, soup before RL; on test alone");
    assert!(report["claims"].as_array().unwrap().iter().all(|claim| claim["verdict"] == "cannot tell"), "two seeds");
    assert_eq!(count("distances"), Some(2), "one for each seed");
    for cell in report["cells"].as_array().unwrap() {
        let run = Path::new("out").join(cell["run"].as_str().unwrap());
        assert!(disturbed.path(run.join("report.html")).exists(), "{cell}");
        let arm = cell["arm"].as_str().unwrap();
        let other = if arm == "ppo" { "salsa" } else { "ppo" };
        assert!(disturbed.path(run.join(arm)).exists() && !disturbed.path(run.join(other)).exists(), "{cell}");
    }
    let page = String::from_utf8(disturbed.bytes("out/study.html")).unwrap();
    assert!(page.contains("SALSA earns more gold reward than PPO at equal KL (test)"), "{page}");
}

/// The lines on stderr of a check that fails.
fn told(study: &str) -> Vec<String> {
    let output = place(study).command(&["study", "s.yaml", "--check"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{study}");
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn check_counts_stages_and_tells_each_mistake_in_one_line() {
    let fine = study("[1, 2]");
    let checked = place(&fine).salsa("study s.yaml --check");
    let lines = String::from_utf8(checked.stdout).unwrap();
    assert!(lines.contains("sft-b (sft): 2 stages\n"), "{lines}");
    assert!(
        lines
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("8 cells, 30 stages; 30 to make; time: not known yet; disk: ")),
        "{lines}"
    );

    let cases = [
        (
            fine.replace("salsa: {}}", "salsa: {kl_coeff: 0.1}}"),
            "error: s.yaml: arms.salsa: kl_coeff: unknown key of ppo; did you mean \"kl_coef\"?",
        ),
        (
            fine.replace("[[salsa, ppo]]", "[[salsa, pppo]]"),
            "error: s.yaml: compare: there is no arm \"pppo\"; did you mean \"ppo\"?",
        ),
        (
            fine.replace("salsa: {}}", "slasa: {}}"),
            "error: s.yaml: arms.slasa: there is no stage \"slasa\" in r.yaml; did you mean \"salsa\"? or say `stage: NAME`",
        ),
        (
            fine.replace(
                "kl_coef: [0.05, 0.2]",
                "kl_coef: [0.05, 0.2]\n  data: {values: [1, 2], set: {vars.unread: \"${data}\"}}",
            ),
            "error: s.yaml: factors.data changes nothing: with 1 and with 2 every arm's stages are the same; it sets \
             vars.unread, which no stage of a cell reads",
        ),
        (format!("{fine}max_disk: 1KB\n"), "error: s.yaml: max_disk: the study takes about "),
        (
            fine.replace("on: validation", "on: test"),
            "error: s.yaml: select.on: settings are never chosen on the test set; choose them on a set of their own",
        ),
        (
            fine.replace("key: kl_coef", "key: kl_cof"),
            "error: s.yaml: select.key: there is no factor \"kl_cof\"; did you mean \"kl_coef\"?",
        ),
        (fine.replace("factors:", "factor:"), "error: s.yaml: factor: unknown key; did you mean \"factors\"?"),
    ];
    for (study, expected) in cases {
        let told = told(&study);
        assert!(told.len() == 1 && told[0].starts_with(expected), "{told:?}\n{expected}");
    }
}
