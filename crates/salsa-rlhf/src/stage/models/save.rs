//! Saves a trained model: a whole model, or an adapter as a PEFT directory.
use std::{borrow::Cow, path::Path};

use salsa_engine::{ModelSpec, Trainable};
use serde_json::Value;

use crate::checkpoint::{self, AdapterToSave, Checkpoint, Companions, SaveOptions, save_adapter};

/// Saves the trained weights under the heads of `spec`, which may omit a head of the model.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn save_model(
    output_dir: &Path,
    source: &Checkpoint,
    model: &Trainable,
    spec: &ModelSpec,
    companions: &Companions,
    extra_config: &[(&str, Value)],
    options: &SaveOptions,
) -> anyhow::Result<()> {
    let Some(lora) = model.lora() else {
        let converted = (spec != model.spec()).then(|| model.spec().convert(&model.weights(), spec, 0));
        let weights = converted.map_or_else(|| model.weights(), Cow::Owned);
        return checkpoint::save(output_dir, spec, &weights, companions, extra_config, options);
    };
    let adapter = AdapterToSave {
        base: source.base_dir(),
        spec,
        lora,
        // The head is last: a model without one has the same factors.
        weights: &model.weights()[..lora.parameters(spec)],
        dtype: options.dtype,
        companions,
        scores: extra_config,
    };
    save_adapter(output_dir, &adapter)
}
