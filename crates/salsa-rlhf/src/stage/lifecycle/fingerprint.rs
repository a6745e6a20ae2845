//! Everything that a stage's result depends on apart from its inputs.
use std::collections::BTreeSet;

use anyhow::Context;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::resume::Fingerprint;
use crate::config::paths::{Places, below};

/// Everything that the result of a stage depends on apart from its inputs: its configuration without paths, whose
/// contents [`crate::stage::run_stage`] compares.
///
/// # Errors
/// If the configuration has no JSON form.
pub(crate) fn fingerprint<C: Serialize + DeserializeOwned>(stage: &str, config: &C) -> anyhow::Result<Fingerprint> {
    let places = Places::of(config)?;
    let mut config = serde_json::to_value(config).context("configuration")?;
    places.visit(&mut config, &mut |_, _, _| Ok(Some(Value::Null)))?;
    if let Value::Object(keys) = &mut config {
        keys.shift_remove("output_dir");
    }
    let within = |places: &BTreeSet<String>| places.iter().map(|place| below("config", place)).collect();
    let (no_effect, at_default) = (within(&places.no_effect), within(&places.at_default));
    Ok(Fingerprint { value: json!({"stage": stage, "config": config}), no_effect, at_default })
}
