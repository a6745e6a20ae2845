//! `salsa soup` through the binary: its streams, mergekit's files, and being killed.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::Duration,
};

use salsa_engine::{Activation, Head, ModelSpec, NormWeight, Options, Rope, RopeScaling};
use salsa_rlhf::{
    checkpoint::{Checkpoint, Companions, Dtype, Family, SaveOptions, SpecialTokens, save},
    stage::Record,
};

fn spec(vocab_size: usize) -> ModelSpec {
    ModelSpec {
        vocab_size,
        hidden_size: 64,
        intermediate_size: 96,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 32,
        max_positions: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: Activation::Silu,
        norm: NormWeight::Plain,
        embedding_scale: 1.0,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: None,
        options: Options::default(),
        tied_embeddings: false,
        head: Head::LanguageModel,
    }
}

fn checkpoint(dir: &Path, vocab_size: usize, seed: u64) -> PathBuf {
    let spec = spec(vocab_size);
    let mut options = SaveOptions::new(Family::Llama, SpecialTokens::default(), Dtype::BF16);
    options.max_shard_bytes = 8_000_000;
    save(dir, &spec, &spec.init(seed), &Companions::none(), &[], &options).unwrap();
    dir.to_owned()
}

fn soup(dir: &Path, line: &str) -> Output {
    let words = line.split_whitespace();
    Command::new(env!("CARGO_BIN_EXE_salsa")).current_dir(dir).arg("soup").args(words).output().unwrap()
}

fn weights(dir: &Path) -> Vec<f32> {
    Checkpoint::open(dir).unwrap().read_weights().unwrap()
}

#[test]
fn models_flags_and_files_make_the_same_soup() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    checkpoint(&dir.join("a"), 100, 1);
    checkpoint(&dir.join("b"), 100, 2);
    let output = soup(dir, "a b --weights 0.25 0.75 --output one");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&results["ingredients"], &results["parameters"]), (&2.into(), &spec(100).parameters().into()));

    let yaml = "merge_method: linear\nmodels:\n  - model: a\n    parameters: {weight: 1}\n  - model: b\n    parameters: {weight: 3}\n\
                dtype: float32\nout_dtype: bfloat16\n";
    fs::write(dir.join("mergekit.yml"), yaml).unwrap();
    fs::write(dir.join("ours.yml"), "models: [a, b]\nweights: [0.25, 0.75]\n").unwrap();
    assert!(soup(dir, "--config mergekit.yml --output two").status.success());
    assert!(soup(dir, "--config ours.yml --output three --no_digests").status.success());
    assert!(soup(dir, "mergekit.yml five").status.success(), "as mergekit-yaml takes them");
    let one = weights(&dir.join("one"));
    assert!(["two", "three", "five"].iter().all(|name| weights(&dir.join(name)) == one));

    // The record is that of a stage, but without digests of its inputs: no recipe accepts it as its own result.
    let record = Record::read(&dir.join("one/stage.json")).unwrap().unwrap();
    assert_eq!((record.stage.as_str(), &record.results["ingredients"]), ("soup", &2.into()));
    assert!(record.inputs.is_empty() && dir.join("one/timings.json").exists());
    let stages = "stages:\n  one: {kind: soup, models: [a, b], weights: [0.25, 0.75]}\n";
    fs::write(dir.join("r.yaml"), stages).unwrap();
    let mut run = Command::new(env!("CARGO_BIN_EXE_salsa"));
    let output = run.current_dir(dir).args(["run", "r.yaml", "--out", "."]).output().unwrap();
    let talk = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && talk.contains("whether a has changed since is not recorded"), "{talk}");

    let output = soup(dir, "a b --base a --report --output four");
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("cos(A,B)") && table.contains("layer 1"), "{table}");
    assert!(dir.join("four/geometry.json").exists());
}

#[test]
fn mistakes_are_one_line_with_the_right_code() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    checkpoint(&dir.join("a"), 100, 1);
    checkpoint(&dir.join("b"), 101, 2);
    fs::write(dir.join("m.yml"), "slices: []\nmerge_method: linear\n").unwrap();
    for (line, code, message) in [
        ("a b --output o", 1, "a and b cannot be mixed: vocab_size is 100 and 101"),
        ("a b", 2, "say where the result goes"),
        ("a b --wieghts 1 2 --output o", 2, "did you mean \"weights\""),
        ("a a --method ties --output o", 1, "base_model (--base DIR)"),
        ("--config m.yml --output o", 1, "m.yml: slices: mergekit's slices is not supported"),
        ("a --output a", 1, "a is not empty"),
    ] {
        let output = soup(dir, line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.starts_with("error: ") && last.contains(message), "{line}: {stderr}");
        assert!(!dir.join("o").exists() && !dir.join("o.tmp").exists());
    }
}

#[test]
fn killed_at_any_moment_there_is_a_whole_soup_or_none() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    checkpoint(&dir.join("a"), 100_000, 1);
    checkpoint(&dir.join("b"), 100_000, 2);
    assert!(soup(dir, "a b --output whole").status.success());
    let whole = weights(&dir.join("whole"));
    let (mut killed, mut finished) = (0, 0);
    // From before the first write to after the end.
    for milliseconds in [0, 1, 2, 3, 4, 6, 8, 10, 13, 16, 20, 25, 30, 40, 60, 90, 150, 5000] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_salsa"))
            .current_dir(dir)
            .args(["soup", "a", "b", "--output", "o", "--max_shard_size", "4MB"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        if dir.join("o").exists() {
            finished += 1;
            assert!(weights(&dir.join("o")) == whole, "{milliseconds}");
            fs::remove_dir_all(dir.join("o")).unwrap();
        } else {
            killed += 1;
            let model = dir.join("o.tmp/config.json");
            assert!(!model.exists() || weights(&dir.join("o.tmp")) == whole, "{milliseconds}");
        }
    }
    assert!(killed > 0 && finished > 0, "{killed} {finished}");
}

/// The mean of normalised reward models has scores on another, unmeasured scale.
#[test]
fn reward_models_that_lose_their_normalisation_say_so() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    let spec = ModelSpec { head: Head::Scalar, ..spec(100) };
    let options = SaveOptions::new(Family::Llama, SpecialTokens::default(), Dtype::F32);
    for (seed, (name, mean)) in (1..).zip([("a", 0.5), ("b", 0.7)]) {
        let scores = [("score_mean", mean.into()), ("score_std", 2.0.into())];
        save(&dir.join(name), &spec, &spec.init(seed), &Companions::none(), &scores, &options).unwrap();
    }
    let stderr = |line: &str| {
        let output = soup(dir, line);
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stderr).unwrap()
    };
    let lost = "the soup of reward models has no score_mean and score_std";
    assert!(stderr("a b --output mean").contains(lost));
    assert!(!fs::read_to_string(dir.join("mean/config.json")).unwrap().contains("score_"));
    // An identical normalisation is kept.
    assert!(!stderr("a --output copy").contains(lost));
    assert!(fs::read_to_string(dir.join("copy/config.json")).unwrap().contains("score_mean"));
}

#[test]
fn keys_that_mergekit_passes_over_are_told() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    checkpoint(&dir.join("a"), 100, 1);
    let yaml =
        "half: &half {weight: 1}\nnormalize: true\nmodels: [{model: a, parameters: *half}]\nmerge_method: linear\n";
    fs::write(dir.join("m.yml"), yaml).unwrap();
    let output = soup(dir, "--config m.yml --output o");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(
        stderr.contains("m.yml: half has no effect") && stderr.contains("normalize has no effect on top"),
        "{stderr}"
    );
}
