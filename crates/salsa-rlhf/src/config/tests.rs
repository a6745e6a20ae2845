use std::{collections::BTreeMap, fs};

use serde::Deserialize;

use super::*;
use crate::stage::{EvaluateConfig, keys::ComputeType, rl::ppo::PpoConfig, supervised::sft::SftConfig, table::find};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Shared {
    seed: u64,
    max_steps: i64,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared { seed: 42, max_steps: -1 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Reference {
    Sft { model: String },
    Soup { models: Vec<String>, weights: Vec<f64> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Nested {
    temperature: f64,
}

impl Default for Nested {
    fn default() -> Nested {
        Nested { temperature: 1.0 }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    model_name_or_path: PathBuf,
    dataset: String,
    learning_rate: f64,
    kl_coef: f64,
    packing: bool,
    models: Vec<String>,
    eval_dataset: Option<String>,
    anchors: BTreeMap<String, String>,
    reference: Reference,
    sampling: Nested,
    #[serde(flatten)]
    shared: Shared,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            model_name_or_path: PathBuf::new(),
            dataset: String::new(),
            learning_rate: 1e-5,
            kl_coef: 0.05,
            packing: true,
            models: Vec::new(),
            eval_dataset: None,
            anchors: BTreeMap::new(),
            reference: Reference::Sft { model: "a".into() },
            sampling: Nested::default(),
            shared: Shared::default(),
        }
    }
}

fn file(text: &str) -> anyhow::Result<Config> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, text).unwrap();
    load(Some(&path), &[])
}

fn file_error(text: &str) -> String {
    let error = file(text).unwrap_err();
    assert!(error.downcast_ref::<Usage>().is_none());
    let message = format!("{error:#}");
    assert!(!message.contains('\n'), "{message}");
    message.split_once("c.yaml: ").expect("the file is named").1.to_owned()
}

fn flags(pairs: &[(&str, &str)]) -> anyhow::Result<Config> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    load(None, &pairs)
}

fn flag_error(pairs: &[(&str, &str)]) -> String {
    let error = flags(pairs).unwrap_err();
    assert!(error.downcast_ref::<Usage>().is_some(), "{error:#}");
    format!("{error:#}")
}

#[test]
fn no_file_and_no_flags_give_the_defaults() {
    assert_eq!(flags(&[]).unwrap(), Config::default());
    assert_eq!(file("").unwrap(), Config::default());
    assert_eq!(file("# only a comment\n").unwrap(), Config::default());
}

#[test]
fn flags_lie_over_the_file_and_the_file_over_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.yaml");
    fs::write(&path, "learning_rate: 2e-5\nseed: 7\nmax-steps: 1e3\nmodel: base\n").unwrap();
    let config: Config = load(Some(&path), &[("seed".into(), "8".into())]).unwrap();
    assert_eq!(config.learning_rate, 2e-5);
    assert_eq!(config.shared, Shared { seed: 8, max_steps: 1000 });
    assert_eq!(config.model_name_or_path, Path::new("base"));
    assert_eq!(config.kl_coef, 0.05);
}

#[test]
fn json_is_read_too() {
    assert_eq!(file(r#"{"learning_rate": 0.5, "models": ["a", "b"]}"#).unwrap().models, ["a", "b"]);
}

#[test]
fn every_name_of_a_setting_reaches_it() {
    assert_eq!(file("beta: 0.1").unwrap().kl_coef, 0.1);
    assert_eq!(file("dataset_name: d").unwrap().dataset, "d");
    assert_eq!(flags(&[("kl-coef", "0.1")]).unwrap().kl_coef, 0.1);
    assert_eq!(flags(&[("lr", "1")]).unwrap().learning_rate, 1.0);
}

#[test]
fn a_setting_given_under_two_names_is_an_error() {
    assert_eq!(file_error("kl_coef: 1\nbeta: 2"), "beta: the same setting is already given as \"kl_coef\"; keep one");
}

#[test]
fn an_unknown_key_names_the_nearest() {
    assert_eq!(file_error("learning_rat: 1"), "learning_rat: unknown key; did you mean \"learning_rate\"?");
    assert_eq!(file_error("dataset_nam: 1"), "dataset_nam: unknown key; did you mean \"dataset_name\"?");
    assert!(file_error("zzz: 1").starts_with("zzz: unknown key; valid: model_name_or_path, dataset, learning_rate"));
    let both = flag_error(&[("learning_rat", "1"), ("seed", "1"), ("hub_token", "x"), ("hub_token", "y")]);
    let expected = "2 unknown options: --learning_rat (did you mean \"learning_rate\"?), --hub_token (leave it out: ";
    assert!(both.starts_with(expected), "{both}");
    let both = file_error("learning_rat: 1\nseed: 1\nreport_to: wandb");
    assert!(both.starts_with("2 unknown keys: learning_rat (did you mean"), "{both}");
    assert_eq!(flag_error(&[("learning_rat", "1")]), "unknown option --learning_rat; did you mean \"learning_rate\"?");
    assert!(file_error("report_to: wandb").contains("always written"));
}

#[test]
fn an_unknown_nested_key_names_the_nearest() {
    let message = file_error("sampling: {temperatur: 0.5}");
    assert_eq!(message, "sampling.temperatur: unknown key; did you mean \"temperature\"?");
    let message = file_error("reference: {kind: sft, model: a, modle: b}");
    assert_eq!(message, "reference.modle: unknown key; did you mean \"model\"?");
}

#[test]
fn a_wrong_type_names_key_and_type() {
    assert_eq!(file_error("learning_rate: fast"), "learning_rate: expected a number, got string \"fast\"");
    assert_eq!(file_error("seed: -1"), "seed: expected a whole number, 0 or more, got integer -1");
    assert_eq!(file_error("seed: 1.5"), "seed: expected a whole number, 0 or more, got floating point 1.5");
    assert_eq!(file_error("packing: 3"), "packing: expected true or false, got integer 3");
    assert_eq!(file_error("dataset: 3"), "dataset: expected a string, got integer 3");
    assert_eq!(file_error("models: a"), "models: expected a list, got string \"a\"");
    assert_eq!(flag_error(&[("lr", "x")]), "--lr: expected a number, got string \"x\"");
    let message = file_error("reference: {kind: sup, models: []}");
    assert_eq!(message, "reference: \"sup\" is not a choice here (valid: sft, soup); did you mean \"soup\"?");
    assert_eq!(file_error("reference: {kind: soup, models: []}"), "reference: the key \"weights\" is missing");
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    assert!(file_error("learning_rate: .nan").contains("finite"));
}

#[test]
fn syntax_errors_name_the_line() {
    let message = file_error("a: 1\nb: [1, 2\nc: 3\n");
    assert!(message.contains("line"), "{message}");
    assert!(file_error("seed: 1\nseed: 2\n").contains("duplicate"));
    assert!(file_error("- 1\n- 2\n").contains("key: value"));
}

#[test]
fn flags_take_text_lists_switches_and_paths_into_mappings() {
    assert_eq!(flags(&[("dataset", "123")]).unwrap().dataset, "123");
    assert_eq!(flags(&[("dataset", "a: b")]).unwrap().dataset, "a: b");
    assert_eq!(flags(&[("models", "a"), ("models", "b")]).unwrap().models, ["a", "b"]);
    assert_eq!(flags(&[("models", "a")]).unwrap().models, ["a"]);
    assert_eq!(flags(&[("models", "[a, b]")]).unwrap().models, ["a", "b"]);
    assert_eq!(flags(&[("models", "a,b")]).unwrap().models, ["a", "b"]);
    assert_eq!(flags(&[("models", "a,")]).unwrap().models, ["a,"]);
    assert_eq!(flags(&[("dataset", "a,b")]).unwrap().dataset, "a,b", "a text may hold commas");
    assert_eq!(flags(&[("models", "1"), ("models", "2")]).unwrap().models, ["1", "2"]);
    assert!(!flags(&[("no-packing", "true")]).unwrap().packing);
    assert_eq!(flags(&[("sampling.temperature", "0.5")]).unwrap().sampling.temperature, 0.5);
    assert_eq!(flags(&[("anchors.sft-a", "runs/a")]).unwrap().anchors["sft-a"], "runs/a");
    let soup = [("reference.kind", "soup"), ("reference.models", "[a]"), ("reference.weights", "[1]")];
    assert_eq!(flags(&soup).unwrap().reference, Reference::Soup { models: vec!["a".into()], weights: vec![1.0] });
    assert_eq!(flag_error(&[("sampling.temp", "1")]), "unknown option --sampling.temp; valid: temperature");
}

#[test]
fn a_scalar_given_twice_is_an_error() {
    assert_eq!(flag_error(&[("seed", "1"), ("seed", "2")]), "--seed is given 2 times; it takes one value");
    assert_eq!(
        flag_error(&[("lr", "1"), ("learning_rate", "2")]),
        "--learning_rate is another name of --lr; give one of them"
    );
    assert_eq!(flags(&[("lr", "1"), ("learning_rate", "1")]).unwrap().learning_rate, 1.0);
}

#[test]
fn a_missing_file_is_named() {
    let error = load::<Config>(Some(Path::new("/nowhere/c.yaml")), &[]).unwrap_err();
    assert!(format!("{error:#}").starts_with("cannot read /nowhere/c.yaml"), "{error:#}");
}

#[test]
fn a_dotted_key_repeated_makes_a_list() {
    let soup = [
        ("reference.kind", "soup"),
        ("reference.models", "a"),
        ("reference.models", "b"),
        ("reference.weights", "0.5"),
        ("reference.weights", "0.5"),
    ];
    let reference = flags(&soup).unwrap().reference;
    assert_eq!(reference, Reference::Soup { models: vec!["a".into(), "b".into()], weights: vec![0.5; 2] });
    let message = flag_error(&[("sampling.temperature", "0.5"), ("sampling.temperature", "1")]);
    assert_eq!(message, "--sampling: expected a number, got sequence");
}

fn of_stage<T: Serialize + DeserializeOwned + Default>(pairs: &[(&str, &str)]) -> Result<T, String> {
    let pairs: Vec<_> = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    load(None, &pairs).map_err(|error| format!("{error:#}"))
}

#[test]
fn dotted_flags_stand_alone_where_the_default_is_a_string() {
    let sft: SftConfig = of_stage(&[("dataset.path", "ds"), ("dataset.split", "train")]).unwrap();
    assert_eq!(serde_json::to_value(sft.dataset).unwrap(), serde_json::json!({"path": "ds", "split": "train"}));
    let ppo: PpoConfig = of_stage(&[("model.models", "[a, b]")]).unwrap();
    assert_eq!(ppo.model_name_or_path.paths(), [Path::new("a"), Path::new("b")]);
    let message = of_stage::<SftConfig>(&[("dataset", "a"), ("dataset.split", "train")]).unwrap_err();
    assert!(message.starts_with("--dataset: "), "{message}");
    let message = of_stage::<SftConfig>(&[("seed.x", "1")]).unwrap_err();
    assert_eq!(message, "--seed: expected a whole number, 0 or more, got map");
}

#[test]
fn a_mistake_in_the_reference_blames_what_was_written() {
    let refused = |pairs: &[(&str, &str)]| of_stage::<PpoConfig>(pairs).unwrap_err();
    let message = refused(&[("reference.kind", "soup"), ("reference.modls", "[a]")]);
    let hint = "did you mean \"models\"?";
    assert_eq!(message, format!("--reference: \"modls\" is not a key here (valid: models, weights); {hint}"));
    let message = refused(&[("reference.kind", "ema"), ("reference.decay", "fast")]);
    assert_eq!(message, "--reference: expected a number, got string \"fast\"");
    let message = refused(&[("reference.kind", "soup")]);
    assert_eq!(message, "--reference: the key \"models\" is missing");
    let message = refused(&[("reference.modle", "a")]);
    assert_eq!(message, "--reference: \"modle\" is not a key here (valid: model); did you mean \"model\"?");
    assert_eq!(
        refused(&[("reference", "soup")]),
        "--reference: expected a mapping such as {kind: soup, models: [...]}, got string \"soup\""
    );
}

#[test]
fn what_trl_users_type_is_answered_per_stage() {
    fn answer<T: Serialize + DeserializeOwned + Default>(key: &str) -> String {
        let message = of_stage::<T>(&[(key, "1")]).err().unwrap_or_else(|| panic!("{key} is known"));
        message.strip_prefix(&format!("unknown option --{key}; ")).expect("the key is named").to_owned()
    }
    for (key, remedy) in [
        ("max_steps", "total_episodes"),
        ("num_train_epochs", "total_episodes"),
        ("mini_batch_size", "num_mini_batches"),
        ("eval_strategy", "leave it out"),
        ("logging_strategy", "leave it out"),
        ("fp16", "dtype"),
        ("gradient_accumulation_steps", "per_device_train_batch_size"),
        ("overwrite_output_dir", "leave it out"),
        ("optim", "AdamW"),
        ("local_rollout_forward_batch_size", "decode_slots"),
        ("stop_token", "leave it out"),
        ("dataset_train_split", "dataset.split"),
        ("warmup_ratio", "warmup_steps"),
    ] {
        let found = answer::<PpoConfig>(key);
        assert!(found.contains(remedy), "{key}: {found}");
        assert!(!found.contains("eval_steps") && !found.contains("logging_steps"), "{key}: {found}");
    }
    assert!(answer::<SftConfig>("eval_strategy").contains("eval_steps"));
    assert!(answer::<SftConfig>("logging_strategy").contains("logging_steps"));
}

#[test]
fn a_list_is_no_mapping() {
    assert_eq!(
        file_error("reference: [soup, [a, b], [0.5, 0.5]]"),
        "reference: expected a mapping with the keys kind, models, weights, got a list"
    );
    assert!(file_error("sampling: [0.5]").starts_with("sampling: expected a mapping with the keys temperature"));
    let error = of_stage::<EvaluateConfig>(&[("datasets", "[first.jsonl, other.jsonl]")]).unwrap_err();
    assert!(error.starts_with("--datasets[0]: expected a mapping with the keys name, dataset, max_prompts"), "{error}");
}

#[test]
fn flags_that_change_no_result_are_ignored_and_bf16_is_a_dtype() {
    let usual = [
        ("report_to", "none"),
        ("run_name", "x"),
        ("dataset_num_proc", "4"),
        ("attn_implementation", "flash_attention_2"),
        ("save_total_limit", "1"),
        ("trust_remote_code", "true"),
        ("bf16", "true"),
    ];
    let mut config = of_stage::<SftConfig>(&usual).unwrap();
    assert_eq!(config.training.dtype, ComputeType::BFloat16);
    config.training.dtype = ComputeType::Auto;
    assert_eq!(config, SftConfig::default());
    assert_eq!(of_stage::<SftConfig>(&[("bf16", "false")]).unwrap().training.dtype, ComputeType::Float32);
    assert!(of_stage::<SftConfig>(&[("bf16", "perhaps")]).unwrap_err().contains("say dtype: bf16"));
    // What would change the result is still refused.
    for key in ["push_to_hub", "overwrite_output_dir", "optim", "neftune_noise_alpha", "group_by_length"] {
        assert!(of_stage::<SftConfig>(&[(key, "1")]).is_err(), "{key}");
    }
}

#[test]
fn numbers_of_32_bits_are_shown_and_recorded_as_they_are_written() {
    assert_eq!((find("ppo").unwrap().defaults)()["temperature"].to_string(), "0.7");
    assert_eq!((find("pretrain").unwrap().defaults)()["rms_norm_eps"], 1e-5);
    let ppo = (find("ppo").unwrap().load)(None, &[("temperature".into(), "0.9".into())]).unwrap();
    assert_eq!(ppo.config["temperature"].to_string(), "0.9");
}

#[test]
fn a_range_without_an_upper_end_names_none() {
    let refused = |stage: &str, key: &str, value: &str| {
        let planned = (find(stage).unwrap().load)(None, &[(key.into(), value.into())]);
        planned.err().expect("the value is out of range").to_string()
    };
    for stage in ["sft", "ppo"] {
        assert_eq!(refused(stage, "learning_rate", "-1"), "learning_rate is -1; it must be at least 0");
        assert_eq!(refused(stage, "adam_epsilon", "0"), "adam_epsilon is 0; it must be above 0");
    }
    assert_eq!(refused("ppo", "gamma", "2"), "gamma is 2; it must be between 0 and 1");
}
