use std::{fs, path::Path};

use super::{Cell, Study};
use crate::hub::Network;

const RECIPE: &str = r#"
seed: 1
vars: {episodes: 64, unread: 1}
stages:
  world: {kind: kitchen}
  base: {kind: pretrain, dataset: "${stages.world}/pretrain.jsonl", vocab_size: 400, hidden_size: 32}
  sft-a: {kind: sft, model: base, dataset: "${stages.world}/sft.jsonl", seed: 11}
  sft-b: {kind: sft, model: base, dataset: "${stages.world}/sft.jsonl", seed: 12}
  soup: {kind: soup, models: [sft-a, sft-b]}
  reward: {kind: reward, model: sft-a, dataset: "${stages.world}/preferences.jsonl"}
  ppo: &ppo
    kind: ppo
    model: sft-a
    reward_model: reward
    reference: {kind: sft, model: sft-a}
    anchors: {sft_a: sft-a}
    dataset: "${stages.world}/prompts_train.jsonl"
    beta: 0.1
    total_episodes: "${vars.episodes}"
  salsa: {<<: *ppo, reference: {kind: soup, models: [sft-a, sft-b]}}
  eval:
    kind: evaluate
    arms: {sft_a: sft-a, ppo: ppo, salsa: salsa}
    baseline: sft_a
    anchors: {sft_a: sft-a}
    datasets:
      - {name: validation, dataset: "${stages.world}/prompts_validation.jsonl"}
      - {name: test, dataset: "${stages.world}/prompts_test.jsonl"}
    reward_model: reward
    gold: kitchen
    runs: {ppo: ppo, salsa: salsa}
"#;

fn plan(study: &str) -> anyhow::Result<Study> {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.yaml"), RECIPE).unwrap();
    fs::write(dir.path().join("s.yaml"), format!("recipe: r.yaml\n{study}")).unwrap();
    Study::read(&dir.path().join("s.yaml"), Some(Path::new("out")), Network::Offline)
}

fn told(study: &str) -> String {
    let error = format!("{:#}", plan(study).err().expect("this is refused"));
    error.split_once("s.yaml: ").map_or(error.clone(), |(_, told)| told.to_owned())
}

/// The number of stages of this kind.
fn count(study: &Study, kind: &str) -> usize {
    study.nodes.iter().filter(|node| node.kind.name == kind).count()
}

fn stages(cell: &Cell) -> Vec<&str> {
    cell.stages.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn a_cell_has_what_its_arm_needs_and_what_a_factor_does_not_touch_is_made_once() {
    let study = plan("factors: {kl_coef: [0.05, 0.2]}\narms: {ppo: {}, salsa: {}}\n").unwrap();
    let shared = ["world", "base", "sft-a", "reward"];
    assert_eq!(stages(&study.cells[0]), [&shared[..], &["ppo", "eval-before", "eval"]].concat());
    let with_sft_b = ["world", "base", "sft-a", "sft-b", "reward", "salsa", "eval-before", "eval"];
    assert_eq!(stages(&study.cells[1]), with_sft_b, "nothing needs the soup, which salsa makes itself");
    let counts = ["kitchen", "pretrain", "sft", "reward", "ppo", "evaluate"].map(|kind| count(&study, kind));
    assert_eq!(counts, [1, 1, 2, 1, 4, 5]);
    let config = |cell: &Cell| study.node_of(cell, "ppo").unwrap().planned.config["kl_coef"].clone();
    assert_eq!(config(&study.cells[0]), 0.05, "in the place of `beta`, its other name");
    assert_eq!(study.measured.anchor.as_deref(), Some("sft_a"));
}

#[test]
fn an_arm_may_name_a_factor_and_others_do_not_notice() {
    let salsa = "salsa: {reference: {kind: soup, models: [sft-a, sft-b], weights: \"${alpha}\"}}";
    let study =
        plan(&format!("factors: {{alpha: [[0.5, 0.5], [0.25, 0.75]]}}\narms: {{ppo: {{}}, {salsa}}}\n")).unwrap();
    assert_eq!((study.cells.len(), count(&study, "ppo")), (4, 3));
    let arm =
        plan("factors: {ppo_seed: [1, 2]}\narms: {mkl: {stage: ppo, model: sft-b, seed: \"${ppo_seed}\"}}\n").unwrap();
    let config = &arm.node_of(&arm.cells[1], "mkl").unwrap().planned.config;
    assert_eq!((&config["seed"], arm.nodes.len()), (&2.into(), 10), "{config:#}");
    assert!(arm.measured.chosen.is_empty(), "a seed is not chosen");
}

#[test]
fn a_study_may_add_stages_that_an_arm_reads() {
    let third = "stages: {sft-c: {stage: sft-a, seed: \"${world_seed}3\"}}\n";
    let factors = "factors: {world_seed: {values: [1, 2], set: {seed: \"${world_seed}\"}}}\n";
    let arms = "arms: {salsa: {}, soup3: {stage: salsa, reference: {kind: soup, models: [sft-a, sft-b, sft-c]}}}\n";
    let study = plan(&format!("{third}{factors}{arms}")).unwrap();
    let cell = |arm: &str, seed: usize| {
        let at = study.arms.iter().position(|known| known.name == arm).unwrap();
        study.cells.iter().filter(|cell| cell.arm == at).nth(seed).unwrap()
    };
    assert!(!stages(cell("salsa", 0)).contains(&"sft-c"), "only the arm that reads it has it");
    for (seed, expected) in [(0, 13), (1, 23)] {
        let config = &study.node_of(cell("soup3", seed), "sft-c").unwrap().planned.config;
        assert_eq!(config["seed"], expected);
    }
    let told = |stages: &str| self::told(&format!("stages: {stages}\n{factors}{arms}"));
    assert!(told("{sft-b: {stage: sft-a}}").starts_with("stages.sft-b: the recipe has a stage of this name"));
    assert!(told("{sft-c: {stage: sft-x}}").starts_with("stages.sft-c: there is no stage \"sft-x\" in "));
    assert!(told("{sft-c: {stage: sft-a, sed: 1}}").starts_with("stages.sft-c: sed: unknown key of sft; did you mean"));
}

#[test]
fn a_value_of_no_effect_makes_no_other_stage() {
    let told = told("factors: {save_steps: [1, 2]}\narms: {ppo: {}}\n");
    let expected = "factors.save_steps changes nothing: with 1 and with 2 every arm's stages are the same; it sets \
                    arm.save_steps, which no stage of a cell reads";
    assert_eq!(told, expected);
    assert!(self::told("factors: {unread: [1, 2]}\narms: {ppo: {}}\n").contains("it sets vars.unread"));
    assert!(plan("factors: {episodes: [64, 128]}\narms: {ppo: {}}\n").is_ok(), "a variable that is read");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_place() {
    let arms = "arms: {ppo: {}, salsa: {}}\n";
    for (study, expected) in [
        ("arms: {ppo: {stage: pppo}}\n".to_owned(), "arms.ppo: there is no stage \"pppo\" in "),
        ("arms: {soup: {stage: ppo}}\n".to_owned(), "arms.soup: the recipe has another stage of this name"),
        ("arms: {eval: {}}\n".to_owned(), "arms.eval: stage \"eval\" evaluates"),
        ("arms: {../x: {stage: ppo}}\n".to_owned(), "arms.../x: arms: the name \"../x\""),
        (format!("{arms}factors: {{a/b: [1]}}\n"), "factors: the name \"a/b\""),
        (
            format!("{arms}factors: {{kl: [1]}}\n"),
            "factors.kl: it is neither a variable of the recipe nor a key of every arm's",
        ),
        (
            "arms: {ppo: {beta: 0.1}}\nfactors: {kl_coef: [0.1, 0.2]}\n".to_owned(),
            "arms.ppo.kl_coef: the factor kl_coef sets this too; leave one of them out",
        ),
        (
            format!("{arms}factors: {{x: {{values: [1], set: {{stages.sft-c.seed: 1}}}}}}\n"),
            "factors.x.set.stages.sft-c.seed: there is no \"sft-c\" in stages",
        ),
        (
            format!("{arms}factors: {{kl_coef: [0.1, 0.2]}}\nselect: {{on: validatoin}}\n"),
            "select.on: the evaluation has no set \"validatoin\"",
        ),
        (
            format!("{arms}factors: {{kl_coef: [0.1, 0.2]}}\nselect: {{key: seed}}\n"),
            "select.key: there is no factor \"seed\"",
        ),
        (format!("{arms}anchor: sft_b\n"), "anchor: the evaluation has no anchor \"sft_b\""),
        (format!("{arms}margin: -1\n"), "margin is -1"),
        (format!("{arms}evaluate: evl\n"), "evaluate: no stage \"evl\" of kind evaluate"),
        (format!("{arms}set: {{stages.wrld.sft: 1}}\n"), "set.stages.wrld.sft: there is no \"wrld\" in stages"),
    ] {
        let told = told(&study);
        assert!(told.starts_with(expected), "{study}\n{told}");
    }
}
