//! `adapter_config.json`, in the formats of old and new versions of PEFT.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use salsa_engine::{Head, LoraSpec, ModelSpec, Target};
use serde_json::{Value, json};

use crate::hub;

/// No matrix has a larger rank, and no sensible scale is larger; larger values mean a damaged or hostile file.
const LARGEST_RANK: usize = 1 << 16;
const LARGEST_ALPHA: f64 = 1e9;

/// The parsed file. The adapted matrices are determined from the weights, as `target_modules` may be a pattern.
pub(super) struct Parsed {
    pub lora: LoraSpec,
    pub base: String,
    /// The revision of the base, if it is a hub id.
    pub revision: Option<String>,
    pub classifier: bool,
}

/// Unsupported options that change what the adapter computes; each may be present if it is off.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("use_dora", "DoRA also learns the norms of weights"),
    ("use_qalora", "QALoRA pools its inputs"),
    ("lora_bias", "the factors have biases"),
    ("alora_invocation_tokens", "the adapter is active for a part of the tokens only"),
    ("arrow_config", "a router chooses among adapters"),
    ("layer_replication", "blocks are used several times"),
    ("layers_to_transform", "some blocks have no adapter"),
    ("layers_pattern", "some blocks have no adapter"),
    ("rank_pattern", "ranks differ between matrices"),
    ("alpha_pattern", "scales differ between matrices"),
    ("target_parameters", "parameters other than matrices of linear layers are adapted"),
    ("trainable_token_indices", "rows of the embedding are trained"),
    ("fan_in_fan_out", "weights are stored transposed"),
];

/// Initialisations that also change the base weights, so that the files alone do not define the adapter.
const CHANGES_BASE: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

pub(super) fn parse(config: &Value) -> Result<Parsed> {
    if !config.is_object() {
        bail!("it is no JSON object");
    }
    match config["peft_type"].as_str() {
        Some("LORA") => {}
        Some(other) => bail!("peft_type {other:?} is not supported: only LORA is; merge the adapter with peft"),
        None => bail!("peft_type is missing: it should be \"LORA\""),
    }
    let classifier = match config["task_type"].as_str() {
        None | Some("CAUSAL_LM") => false,
        Some("SEQ_CLS") => true,
        Some(other) => bail!("task_type {other:?} is not supported; supported are CAUSAL_LM and SEQ_CLS"),
    };
    for (key, why) in UNSUPPORTED {
        if !says_no(&config[*key]) {
            bail!("{key} is {}: not supported ({why}); merge the adapter with peft's merge_and_unload", config[*key]);
        }
    }
    if !matches!(config["bias"].as_str(), None | Some("none")) {
        bail!(
            "bias is {}: trained biases are not supported; merge the adapter with peft's merge_and_unload",
            config["bias"]
        );
    }
    if let Some(start) = config["init_lora_weights"].as_str()
        && CHANGES_BASE.iter().any(|name| start.to_lowercase().starts_with(name))
    {
        bail!(
            "init_lora_weights is {start:?}, which changes the base weights too: convert the adapter to plain LoRA with peft (path_initial_model_for_weight_conversion)"
        );
    }
    let saved: Vec<&str> =
        config["modules_to_save"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if let Some(other) = saved.iter().find(|name| !["score", "classifier"].contains(*name)) {
        bail!(
            "modules_to_save names {other}: only the scalar head, score, can be trained beside an adapter; merge it with peft's merge_and_unload and use the merged model"
        );
    }
    let base = config["base_model_name_or_path"].as_str().filter(|base| !base.is_empty());
    let rank = config["r"].as_u64().and_then(|rank| usize::try_from(rank).ok());
    let rank = rank.filter(|rank| (1..=LARGEST_RANK).contains(rank));
    let alpha = config["lora_alpha"].as_f64().filter(|alpha| alpha.abs() <= LARGEST_ALPHA);
    let lora = LoraSpec {
        rank: rank.ok_or_else(|| anyhow!("r is {}: expected a whole number, 1 to {LARGEST_RANK}", config["r"]))?,
        alpha: alpha.ok_or_else(|| {
            anyhow!("lora_alpha is {}: expected a number, at most {LARGEST_ALPHA:e}", config["lora_alpha"])
        })?,
        rslora: config["use_rslora"].as_bool().unwrap_or(false),
        targets: Default::default(),
    };
    let base = base.ok_or_else(|| anyhow!("base_model_name_or_path is missing: set it to the base model's folder"))?;
    let revision = config["revision"].as_str().filter(|revision| !["", "main"].contains(revision));
    Ok(Parsed { lora, base: base.to_owned(), revision: revision.map(str::to_owned), classifier })
}

/// Whether an option is off: absent, null, false, empty.
fn says_no(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// The file for an adapter, with keys known to every PEFT since 0.9. A base in the hub's cache is referred to by its
/// id, as in PEFT: its path would be meaningless on another machine.
pub(super) fn write(lora: &LoraSpec, base: &Path, spec: &ModelSpec) -> Value {
    let classifier = spec.head == Head::Scalar;
    let whole = lora.alpha.fract() == 0.0 && lora.alpha.abs() < 1e15;
    let alpha = if whole { json!(lora.alpha as i64) } else { json!(lora.alpha) };
    let (name, revision) = match hub::id_of_snapshot(base) {
        Some(id) => (id.name().to_owned(), Some(id.revision().to_owned()).filter(|revision| revision != "main")),
        None => (base.to_string_lossy().into_owned(), None),
    };
    json!({
        "alpha_pattern": {},
        "auto_mapping": null,
        "base_model_name_or_path": name,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "layers_pattern": null,
        "layers_to_transform": null,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": classifier.then_some(["score"]),
        "peft_type": "LORA",
        "r": lora.rank,
        "rank_pattern": {},
        "revision": revision,
        "target_modules": lora.targets_in(spec).into_iter().map(Target::name).collect::<Vec<_>>(),
        "task_type": if classifier { "SEQ_CLS" } else { "CAUSAL_LM" },
        "use_dora": false,
        "use_rslora": lora.rslora,
    })
}
