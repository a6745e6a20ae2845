//! Writing a PEFT directory.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use safetensors::tensor::TensorView;
use salsa_engine::{LoraSpec, ModelSpec};
use serde_json::{Map, Value};

use super::super::{Companions, Dtype};
use super::{CONFIG, SCORES, WEIGHTS, config};
use crate::atomic;

/// An adapter and its metadata.
pub struct AdapterToSave<'a> {
    /// The folder of the base model, as it is recorded for PEFT.
    pub base: &'a Path,
    /// The shape of the adapted model: the base's with the adapter's head.
    pub spec: &'a ModelSpec,
    /// Rank, scale and targets.
    pub lora: &'a LoraSpec,
    /// Factors and head, in the layout of [`LoraSpec::tensors`].
    pub weights: &'a [f32],
    /// Their type on disk.
    pub dtype: Dtype,
    /// Tokenizer and chat template, which are also written; generation settings remain with the base.
    pub companions: &'a Companions,
    /// `score_mean` and `score_std` of a reward model.
    pub scores: &'a [(&'a str, Value)],
}

/// Writes a PEFT directory that `peft` loads. Each file is replaced atomically, `adapter_config.json` last, and the
/// same input gives the same bytes.
///
/// # Errors
/// When a number is not finite or overflows the type, or a file cannot be written.
pub fn save_adapter(dir: &Path, adapter: &AdapterToSave<'_>) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    for name in [CONFIG, SCORES] {
        match fs::remove_file(dir.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                bail!("cannot remove the earlier {}: {error}", dir.join(name).display())
            }
            _ => {}
        }
    }
    atomic::write(&dir.join(WEIGHTS), &weights(adapter)?)?;
    adapter.companions.write(dir, &["generation_config.json"])?;
    let write = |name: &str, value: &Value| atomic::write(&dir.join(name), format!("{value:#}\n").as_bytes());
    if !adapter.scores.is_empty() {
        let scores = adapter.scores.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        write(SCORES, &Value::Object(Map::from_iter(scores)))?;
    }
    write(CONFIG, &config::write(adapter.lora, adapter.base, adapter.spec))
}

fn weights(adapter: &AdapterToSave<'_>) -> Result<Vec<u8>> {
    let tensors = adapter.lora.tensors(adapter.spec);
    let mut encoded = Vec::with_capacity(tensors.len());
    for tensor in &tensors {
        let (numbers, mut bytes) = (&adapter.weights[tensor.range.clone()], Vec::new());
        adapter.dtype.encode(numbers, &mut bytes).map_err(|at| {
            anyhow!("number {at} of {} is {}: it cannot be saved as {}", tensor.name, numbers[at], adapter.dtype)
        })?;
        encoded.push(bytes);
    }
    let dtype = match adapter.dtype {
        Dtype::F32 => safetensors::Dtype::F32,
        Dtype::BF16 => safetensors::Dtype::BF16,
        Dtype::F16 => safetensors::Dtype::F16,
    };
    let views = tensors.iter().zip(&encoded).map(|(tensor, bytes)| {
        let view = TensorView::new(dtype, tensor.shape.clone(), bytes).context("a tensor's bytes fit its shape")?;
        Ok((format!("base_model.model.{}", tensor.name), view))
    });
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views.collect::<Result<Vec<_>>>()?, Some(metadata))?)
}
