//! `adapter_model.safetensors`: names, shapes and numbers of the factors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use salsa_engine::{LoraSpec, ModelSpec, Target};

use super::super::files::{Entry, Files, map};
use super::WEIGHTS;

/// The tensors by the names that [`LoraSpec::tensors`] gives them.
#[derive(Debug)]
pub(super) struct Factors {
    files: Files,
    entries: BTreeMap<String, Entry>,
}

impl Factors {
    /// Reads the header and refuses tensors that are no factors of matrices of blocks.
    pub fn open(dir: &Path) -> Result<Factors> {
        let path = dir.join(WEIGHTS);
        if !path.exists() {
            let shown = dir.display();
            if dir.join("adapter_model.bin").is_file() {
                bail!(
                    "{shown} has its weights in adapter_model.bin, a pickle file, which can run code when it is read. Convert it: python -c \"import torch; from safetensors.torch import save_file; save_file(torch.load('{shown}/adapter_model.bin', weights_only=True), '{shown}/{WEIGHTS}')\""
                );
            }
            bail!("{shown} has an adapter_config.json but no {WEIGHTS}: download or write the adapter again");
        }
        let files = Files::of(dir, path)?;
        let mut entries = BTreeMap::new();
        for (name, entry) in files.entries() {
            let plain = plain(name).ok_or_else(|| {
                anyhow!(
                    "{}: the tensor {name} is not supported; supported are lora_A and lora_B of {} and score.weight",
                    dir.join(WEIGHTS).display(),
                    Target::ALL.map(Target::name).join(", ")
                )
            })?;
            if entries.insert(plain.clone(), entry.clone()).is_some() {
                bail!("{}: {plain} is there twice", dir.join(WEIGHTS).display());
            }
        }
        Ok(Factors { files, entries })
    }

    pub fn has_score(&self) -> bool {
        self.entries.contains_key("score.weight")
    }

    /// The matrices that have factors.
    pub fn targets(&self, dir: &Path) -> Result<BTreeSet<Target>> {
        let has = |target: &Target| self.entries.keys().any(|name| name.contains(&format!(".{}.lora_", target.name())));
        let targets: BTreeSet<Target> = Target::ALL.into_iter().filter(has).collect();
        if targets.is_empty() {
            bail!("{} holds no factors: the adapter is empty", dir.join(WEIGHTS).display());
        }
        Ok(targets)
    }

    /// Whether all factors of all blocks are there, in their shapes, and no others.
    pub fn check(&self, lora: &LoraSpec, spec: &ModelSpec) -> Result<()> {
        let tensors = lora.tensors(spec);
        for tensor in &tensors {
            let entry = self.entries.get(&tensor.name).ok_or_else(|| {
                anyhow!(
                    "the tensor {} is missing: adapters must be on the same matrices of all {} blocks",
                    tensor.name,
                    spec.layers
                )
            })?;
            self.files.place(&tensor.name, &tensor.shape, entry)?;
        }
        let known = |name: &String| tensors.iter().any(|tensor| tensor.name == *name);
        if let Some(name) = self.entries.keys().find(|name| !known(name)) {
            bail!("the tensor {name} belongs to no part of a model of {} blocks", spec.layers);
        }
        Ok(())
    }

    pub fn read(&self, lora: &LoraSpec, spec: &ModelSpec) -> Result<Vec<f32>> {
        let path = self.files.first_path();
        let bytes = map(path)?;
        let mut weights = vec![0f32; lora.parameters(spec)];
        for tensor in lora.tensors(spec) {
            let entry = self.entries.get(&tensor.name).ok_or_else(|| anyhow!("{} is missing", tensor.name))?;
            let placed = self.files.place(&tensor.name, &tensor.shape, entry)?;
            let stored = bytes.get(placed.bytes).ok_or_else(|| {
                anyhow!("{} has become shorter since it was opened: something else is writing it", path.display())
            })?;
            let out = &mut weights[tensor.range.clone()];
            placed.dtype.decode(stored, out).map_err(|at| {
                anyhow!("{}: number {at} of {} is {}: the adapter is broken", path.display(), tensor.name, out[at])
            })?;
        }
        Ok(weights)
    }
}

/// PEFT's name to ours: without its prefix, and without the adapter's name that old versions wrote.
fn plain(name: &str) -> Option<String> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    let name =
        name.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".").replace(".default.", ".");
    if name == "score.weight" {
        return Some(name);
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (path, factor) = rest.rsplit_once(".lora_")?;
    let known = Target::ALL.iter().any(|target| target.path() == path) && ["A.weight", "B.weight"].contains(&factor);
    (known && layer.parse::<usize>().is_ok_and(|number| number.to_string() == layer)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_all_versions_are_understood_and_others_are_not() {
        let ours = |name| plain(name);
        let expected = Some("model.layers.3.self_attn.q_proj.lora_A.weight".to_owned());
        assert_eq!(ours("base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"), expected);
        assert_eq!(ours("base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight"), expected);
        assert_eq!(ours("model.layers.3.self_attn.q_proj.lora_A.weight"), expected);
        let score = Some("score.weight".to_owned());
        assert_eq!(ours("base_model.model.score.weight"), score);
        assert_eq!(ours("base_model.model.score.modules_to_save.weight"), score);
        assert_eq!(ours("base_model.model.score.modules_to_save.default.weight"), score);
        for name in [
            "base_model.model.lm_head.lora_A.weight",
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.model.layers.3.self_attn.q_proj.lora_magnitude_vector",
            "base_model.model.model.layers.03.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.3.mlp.q_proj.lora_A.weight",
            "base_model.model.score.original_module.weight",
        ] {
            assert_eq!(ours(name), None, "{name}");
        }
    }
}
