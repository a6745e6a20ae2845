//! The binary: exit codes, messages, and the use of stdout and stderr.
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Runs the binary in this place.
    fn salsa(&self, line: &str) -> Output {
        run(self.0.path(), line)
    }

    /// The exit code and the single error line of a failing command.
    fn error(&self, line: &str) -> (i32, String) {
        let output = self.salsa(line);
        let stderr = String::from_utf8(output.stderr).unwrap();
        let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{line}: {stderr}");
        assert_eq!(stderr.lines().last(), Some(errors[0]), "{line}");
        assert!(output.stdout.is_empty(), "{line}");
        (output.status.code().unwrap(), errors[0]["error: ".len()..].to_owned())
    }
}

fn run(dir: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_salsa"));
    command
        .current_dir(dir)
        .args(line.split_whitespace())
        .env_remove("SALSA_ISA")
        .env("SALSA_DEVICE", "cpu")
        .env("HF_HUB_OFFLINE", "1");
    command.output().unwrap()
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn help_and_version_are_data() {
    let place = Place::new();
    let version = place.salsa("--version");
    let lines: Vec<&str> = stdout(&version).lines().collect();
    assert!(lines[0].starts_with(concat!("salsa ", env!("CARGO_PKG_VERSION"), " (")), "{lines:?}");
    assert!(lines[1].starts_with("target: ") && lines[2].starts_with("kernels: ") && lines[2].contains("scalar"));
    // The same words in another order, so that scripts may use either.
    assert_eq!(stdout(&place.salsa("-V")), stdout(&version));
    let help = place.salsa("--help");
    assert!(stdout(&help).contains("pretrain") && help.stderr.is_empty());
    for line in ["sft --help", "sft --seed 1 --help", "help sft"] {
        let help = place.salsa(line);
        let text = stdout(&help);
        assert!(text.contains("Example:\n  salsa sft"), "{line}: {text}");
        assert!(
            text.contains("\n  --learning_rate <number> [default: 2e-5] [also: lr]\n      Highest"),
            "{line}: {text}"
        );
    }
}

#[test]
fn completions_know_commands_keys_and_choices() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = place.salsa(&format!("completions {shell}"));
        let text = stdout(&script);
        for part in ["quickstart", "learning_rate", "reference.kind", "config"] {
            assert!(text.contains(part), "{shell}: {part}");
        }
    }
    // Bash loads the script and completes with its definitions.
    std::fs::write(place.path("salsa.bash"), stdout(&place.salsa("completions bash"))).unwrap();
    let ask = "source salsa.bash; COMP_WORDS=(salsa ppo --kl_coe); COMP_CWORD=2; _salsa salsa --kl_coe ppo; echo ${COMPREPLY[@]}";
    match Command::new("bash").args(["-c", ask]).current_dir(place.path(".")).output() {
        Ok(said) => assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "--kl_coef", "{said:?}"),
        Err(error) => eprintln!("no bash, its completion is not tried: {error}"),
    }
    let unknown = place.salsa("completions tcsh");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn manual_pages_are_text_or_files() {
    let place = Place::new();
    let page = place.salsa("man ppo");
    assert!(
        stdout(&page).contains(".TH SALSA\\-PPO 1") || stdout(&page).contains(".TH SALSA-PPO 1"),
        "{}",
        stdout(&page)
    );
    assert!(stdout(&page).contains("kl_coef"));
    stdout(&place.salsa("man --output pages"));
    for name in ["salsa.1", "salsa-sft.1", "salsa-eval-winrate.1", "salsa-completions.1"] {
        let page = std::fs::read_to_string(place.path(&format!("pages/{name}"))).unwrap();
        assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}: {page}");
    }
    let unknown = place.salsa("man spo");
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("ppo"));
}

#[test]
fn schemas_are_data() {
    let place = Place::new();
    for (line, title) in [
        ("schema", "A recipe of salsa"),
        ("schema recipe", "A recipe of salsa"),
        ("schema ppo", "The keys of salsa ppo"),
    ] {
        let schema = place.salsa(line);
        let schema: serde_json::Value = serde_json::from_str(stdout(&schema)).unwrap();
        assert_eq!(schema["title"], title, "{line}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    let place = Place::new();
    assert_eq!(place.salsa("").status.code(), Some(2));
    for (line, expected) in [
        ("sftt", "unrecognized subcommand 'sftt'"),
        ("run", "the following required arguments were not provided"),
        ("run r.yaml --ou x", "unexpected argument '--ou' found"),
        ("sft --learning_rat 1", "unknown option --learning_rat; did you mean \"learning_rate\"?"),
        ("sft --learning-rate fast", "--learning-rate: expected a number, got string \"fast\""),
        ("sft --push_to_hub true", "unknown option --push_to_hub; leave it out: upload"),
        ("eval winrate --answer a", "unknown option --answer; did you mean \"answers\"?"),
        ("schema pppo", "there is no stage \"pppo\"; did you mean \"ppo\"?"),
        ("sft stray", "\"stray\" belongs to no option"),
        ("sft --model m --dataset d", "say where the result goes: --output_dir PATH"),
        ("score --model m --input i", "say where the result goes: --output PATH"),
        ("run r.yaml --set x", "--set x: write it as key.path=value"),
        ("chat --model m --temperature -1", "--temperature is -1; it must be 0 or above"),
    ] {
        let (code, message) = place.error(line);
        assert!(message.starts_with(expected), "{line}: {message}");
        assert_eq!(code, 2, "{line}: {message}");
    }
}

#[test]
fn what_is_missing_is_named_and_ends_with_1() {
    let place = Place::new();
    place.write("bad.yaml", "learning_rat: 1\n");
    place.write("texts.txt", "some text\n");
    place.write("shape.yaml", "dataset: {pth: x}\n");
    place.write("range.yaml", "learning_rate: -1\n");
    for (line, expected) in [
        ("run nowhere.yaml", "cannot read nowhere.yaml: "),
        ("sft --config nowhere.yaml", "cannot read nowhere.yaml: "),
        ("sft --config bad.yaml", "bad.yaml: learning_rat: unknown key; did you mean \"learning_rate\"?"),
        ("sft --model nowhere --dataset texts.txt --output_dir out", "cannot read nowhere: "),
        ("pretrain --dataset nowhere.txt --output_dir out", "cannot read nowhere.txt: "),
        ("pretrain --config range.yaml --dataset texts.txt --output_dir out", "learning_rate is -1"),
        (
            "sft --config shape.yaml --model nowhere --output_dir out",
            "shape.yaml: dataset: \"pth\" is not a key here (valid: path",
        ),
        ("inspect nowhere", ""),
        ("chat --model nowhere", ""),
        ("report nowhere", "nowhere is not a directory that `salsa run` filled: cannot read nowhere/resolved.json"),
        ("eval winrate --answers nowhere --baseline nowhere --judge gold", "cannot read nowhere"),
    ] {
        let (code, message) = place.error(line);
        assert!(message.starts_with(expected), "{line}: {message}");
        assert!(message.contains("nowhere") || !expected.is_empty(), "{line}: {message}");
        assert_eq!(code, 1, "{line}: {message}");
    }
    assert!(!place.path("out").exists());
}

#[test]
fn a_wrong_recipe_stops_before_any_work() {
    let place = Place::new();
    place.write("texts.txt", "some text\n");
    let base = "  base: {kind: pretrain, dataset: texts.txt}\n";
    for (stage, expected) in [
        ("{kind: sft, modle: base}", "r.yaml: stages.x.modle: unknown key; did you mean \"model\"?"),
        ("{kind: stf}", "r.yaml: stages.x: kind: there is no stage \"stf\"; did you mean \"sft\"?"),
        ("{kind: sft, model: bas}", "r.yaml: stages.x: model: no earlier stage is called \"bas\""),
        ("{kind: sft, model: base, dataset: no.jsonl}", "r.yaml: stages.x: dataset: there is no file no.jsonl"),
        ("{kind: sft, model: base, max_length: x}", "r.yaml: stages.x.max_length: expected a whole number"),
    ] {
        place.write("r.yaml", &format!("out: out\nstages:\n{base}  x: {stage}\n"));
        let (code, message) = place.error("run r.yaml");
        assert!(message.starts_with(expected), "{message}");
        assert_eq!(code, 1);
        assert!(!place.path("out").exists());
    }
    place.write("r.yaml", &format!("out: out\nstages:\n{base}"));
    let (code, message) = place.error("run r.yaml --set stages.bse.seed=1");
    assert_eq!(code, 2);
    assert!(message.contains("did you mean \"base\"?"), "{message}");
}

const RECIPE: &str = r#"
name: tiny
out: out
seed: 3
vars: {steps: 4}
stages:
  base:
    kind: pretrain
    dataset: texts.jsonl
    vocab_size: 300
    hidden_size: 32
    intermediate_size: 64
    num_hidden_layers: 1
    num_attention_heads: 2
    num_key_value_heads: 1
    head_dim: 16
    max_position_embeddings: 64
    max_length: 64
    max_steps: "${vars.steps}"
    per_device_train_batch_size: 2
  answers: {kind: generate, model: base, input: prompts.jsonl, max_new_tokens: 4, temperature: 0}
"#;

#[test]
fn a_recipe_runs_once_and_is_skipped_afterwards() {
    let place = Place::new();
    let texts: String = (0..20).map(|i| format!("{{\"text\": \"Line {i} of a short text about soup.\"}}\n")).collect();
    place.write("texts.jsonl", &texts);
    place.write("prompts.jsonl", "{\"prompt\": \"Line\"}\n");
    place.write("r.yaml", RECIPE);
    assert!(place.salsa("run r.yaml --check").status.success());
    assert!(!place.path("out").exists());

    let first = place.salsa("run r.yaml");
    stdout(&first);
    let talk = String::from_utf8(first.stderr).unwrap();
    assert!(talk.contains("base     done in ") && talk.contains("answers  done in "), "{talk}");
    for name in [
        "recipe.yaml",
        "resolved.json",
        "report.html",
        "base/stage.json",
        "base/metrics.jsonl",
        "answers/responses.jsonl",
    ] {
        assert!(place.path("out").join(name).exists(), "{name}");
    }
    for name in ["base/checkpoints", "base/running.json", "base/.lock"] {
        assert!(!place.path("out").join(name).exists(), "{name}");
    }

    let again = place.salsa("run r.yaml");
    stdout(&again);
    let talk = String::from_utf8(again.stderr).unwrap();
    assert_eq!(talk.matches("done before, skipped").count(), 2, "{talk}");

    fs::remove_file(place.path("out/report.html")).unwrap();
    assert_eq!(stdout(&place.salsa("report out")), "out/report.html\n");
    assert!(place.path("out/report.html").exists());

    let (code, message) = place.error("run r.yaml --set vars.steps=5");
    assert_eq!(code, 1);
    assert!(message.starts_with("stage base: out/base holds the result of another configuration: max_steps was 4"));

    let facts = place.salsa("inspect out/base");
    for fact in ["llama", "parameters", "1 layers, hidden 32", "chat template", "ppo (policy"] {
        assert!(stdout(&facts).contains(fact), "{fact}: {}", stdout(&facts));
    }
}

#[test]
fn doctor_names_the_kernels() {
    let place = Place::new();
    let output = place.salsa("doctor");
    for fact in ["cpu features", "kernels", "threads", "memory", "writable"] {
        assert!(stdout(&output).contains(fact), "{fact}: {}", stdout(&output));
    }
}

#[test]
fn an_instruction_set_that_does_not_exist_is_wrong_usage() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_salsa"));
    let output = command.current_dir(place.0.path()).arg("doctor").env("SALSA_ISA", "mmx").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: ") && stderr.contains("mmx") && stderr.lines().count() == 1, "{stderr}");
}

#[test]
fn a_device_that_does_not_exist_is_wrong_usage() {
    let place = Place::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_salsa"));
    let output = command.current_dir(place.0.path()).arg("doctor").env("SALSA_DEVICE", "gpu").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.starts_with("error: SALSA_DEVICE") && stderr.contains("cuda:N"), "{stderr}");
}

/// What `export` writes `convert` reads, and each says in one line what it cannot do.
#[test]
fn a_checkpoint_goes_to_gguf_and_back() {
    let place = Place::new();
    place.write("texts.txt", &"the cat sat on the mat, 12 times\n".repeat(50));
    let shape = "--vocab_size 280 --hidden_size 32 --num_hidden_layers 1 --num_attention_heads 2 --max_steps 1";
    let rest = "--max_position_embeddings 64 --max_length 32 --output base";
    stdout(&place.salsa(&format!("pretrain --dataset texts.txt {shape} {rest}")));
    for kind in ["f32", "q8_0"] {
        let exported = place.salsa(&format!("export base --gguf {kind}.gguf --type {kind}"));
        let line = stdout(&exported);
        assert!(line.contains(r#""architecture":"llama""#) && line.contains(&format!(r#""type":"{kind}""#)), "{line}");
        let converted = place.salsa(&format!("convert {kind}.gguf --output {kind} --dtype float32"));
        assert!(stdout(&converted).contains(r#""dtype":"float32""#));
    }
    let weights = |dir: &str| fs::read(place.path(dir).join("model.safetensors")).unwrap();
    assert_eq!(weights("f32"), weights("base"));
    assert_ne!(weights("q8_0"), weights("base"));
    for (line, what) in [
        ("convert none.gguf --output x", "cannot read none.gguf"),
        ("convert base --output x", "base is not a regular file but a folder"),
        ("convert texts.txt --output x", "texts.txt: it is no GGUF file"),
        ("convert f32.gguf --output base", "base is not empty; choose another output directory"),
        ("export none --gguf x.gguf", "there is no model at none"),
        ("export base --gguf x.gguf --adapter", "base is no adapter but a whole model: export it without --adapter"),
    ] {
        let (code, error) = place.error(line);
        assert!(code == 1 && error.contains(what), "{line}: {error}");
    }
    let (code, error) = place.error("export base --gguf x.gguf --type q3_k_m");
    assert!(code == 2 && error.contains("expected one of f32, f16, bf16, q8_0, q4_0, q4_k_m"), "{error}");
}
