//! A run that is killed at any time and restarted ends with the bytes of an undisturbed one.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    thread,
    time::Duration,
};

mod tiny;

use tiny::{EVALUATE, GROUP, PPO, PREFERENCE, Place, UP_TO_REWARD, assert_same};

/// The time of a kill.
enum Moment {
    /// This file or folder exists.
    Exists(&'static str),
    /// This `metrics.jsonl` has this many lines.
    Lines(&'static str, usize),
}

use Moment::{Exists, Lines};

impl Moment {
    fn has_come(&self, out: &Path) -> bool {
        match self {
            Exists(name) => out.join(name).exists(),
            Lines(stage, count) => {
                let text = fs::read(out.join(stage).join("metrics.jsonl")).unwrap_or_default();
                text.iter().filter(|&&byte| byte == b'\n').count() >= *count
            }
        }
    }

    /// The directory of the stage that is killed.
    fn stage(&self) -> &'static str {
        let (Exists(name) | Lines(name, _)) = self;
        name.split('/').next().expect("a split has a first part")
    }
}

/// Kills a run of the recipe at this time, within its stage.
///
/// On a busy machine the stage may be finished before the check; it is then run again.
fn kill_at(place: &Place, moment: &Moment) {
    let stage = place.path("out").join(moment.stage());
    for _ in 0..10 {
        let mut child = place.command(&["run", "r.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait(&mut child, &place.path("out"), moment);
        child.kill().unwrap();
        child.wait().unwrap();
        if !stage.join("stage.json").exists() {
            assert!(moment.has_come(&place.path("out")), "{} was not reached", stage.display());
            return;
        }
        remove(&stage);
    }
    panic!("{} was always done before it could be killed", stage.display());
}

fn wait(child: &mut Child, out: &Path, moment: &Moment) {
    while !moment.has_come(out) && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_micros(200));
    }
}

fn remove(dir: &PathBuf) {
    fs::remove_dir_all(dir).unwrap();
}

/// Runs the recipe undisturbed, and with a kill at each of the times in turn.
fn assert_kills_leave_no_trace(recipe: &str, moments: &[Moment]) {
    let undisturbed = Place::with(recipe).tree("out");
    let place = Place::new();
    place.write("r.yaml", recipe);
    for moment in moments {
        kill_at(&place, moment);
    }
    place.salsa("run r.yaml");
    assert_same(&undisturbed, &place.tree("out"));
}

#[test]
fn supervised_stages_and_evaluation_go_on_after_a_kill() {
    let recipe = format!("{UP_TO_REWARD}  soup: {{kind: soup, models: [sft-a, sft-b]}}\n  eval:{EVALUATE}");
    let moments = [
        Exists("world/sft.jsonl"),
        Lines("base", 2),
        Exists("base/checkpoints/step-6"),
        Exists("base/tokenizer.json"),
        Exists("sft-a/checkpoints/step-3"),
        Lines("sft-b", 5),
        Exists("reward/checkpoints/step-3"),
        Exists("reward/model.safetensors"),
        Exists("soup/model.safetensors"),
        Exists("eval/answers-sft_a-test.jsonl"),
    ];
    assert_kills_leave_no_trace(&recipe, &moments);
}

#[test]
fn preference_stages_go_on_after_a_kill() {
    let moments = [
        Lines("dpo", 2),
        Exists("dpo/checkpoints/step-6"),
        Exists("kto/checkpoints/step-3"),
        Lines("kto", 5),
        Exists("orpo/checkpoints/step-3"),
        Exists("simpo/checkpoints/step-6"),
    ];
    assert_kills_leave_no_trace(&(UP_TO_REWARD.to_owned() + PREFERENCE), &moments);
}

#[test]
fn group_methods_go_on_after_a_kill() {
    let moments = [
        Lines("grpo", 1),
        Exists("grpo/checkpoints/step-2"),
        Lines("grpo", 3),
        Lines("reinforce", 1),
        Exists("reinforce/checkpoints/step-3"),
        Lines("online", 1),
        Exists("online/checkpoints/step-3"),
    ];
    assert_kills_leave_no_trace(&(UP_TO_REWARD.to_owned() + GROUP), &moments);
}

#[test]
fn ppo_goes_on_after_a_kill_whatever_its_reference_is() {
    let kinds = [
        ("sft", "kl_target: 1.0"),
        ("soup", "reference: {kind: soup, models: [sft-a, sft-b]}"),
        ("ema", "reference: {kind: ema, decay: 0.5}"),
        ("sync", "reference: {kind: sync, every: 2, mixup: 0.6}"),
        ("multi", "reference: {kind: multi, models: [sft-a, sft-b]}"),
        ("geometric", "reference: {kind: geometric, models: [sft-a, sft-b]}"),
        ("shared", "critic: shared"),
    ];
    let stages = kinds.map(|(name, keys)| format!("  {name}:{}    {keys}\n", without(PPO, keys)));
    let recipe = UP_TO_REWARD.to_owned() + &stages.concat();
    let moments = [
        Lines("sft", 1),
        Exists("sft/checkpoints/step-2"),
        Lines("sft", 5),
        Lines("soup", 3),
        Exists("ema/checkpoints/step-2"),
        Exists("sync/checkpoints/step-2"),
        Exists("multi/checkpoints/step-4"),
        Exists("geometric/checkpoints/step-2"),
        Exists("shared/checkpoints/step-2"),
        Exists("shared/model.safetensors"),
    ];
    assert_kills_leave_no_trace(&recipe, &moments);
}

/// The stage without its own reference, if `keys` contain one.
fn without(stage: &str, keys: &str) -> String {
    let is_replaced = |line: &&str| keys.starts_with("reference:") && line.trim_start().starts_with("reference:");
    stage.lines().filter(|line| !is_replaced(line)).flat_map(|line| [line, "\n"]).collect()
}
