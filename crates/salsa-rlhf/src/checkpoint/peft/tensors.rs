//! `adapter_model.safetensors`: names, shapes and numbers of the factors.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, anyhow, bail};
use salsa_engine::{LoraSpec, ModelSpec, Target};

use super::{
    super::{
        Checkpoint,
        files::{Entry, Files, map},
        ignored,
    },
    WEIGHTS,
};

/// Numbers compared at a time.
const BLOCK: usize = 1 << 16;
/// Remedy for an adapter with more than factors.
const MERGE: &str = "merge the adapter with peft's merge_and_unload and use the merged model";
const EMBEDDING: &str = "model.embed_tokens.weight";
const LANGUAGE_HEAD: &str = "lm_head.weight";

/// The tensors by their names in [`LoraSpec::tensors`].
#[derive(Debug)]
pub(super) struct Factors {
    files: Files,
    entries: BTreeMap<String, Entry>,
    /// Embedding and language-model head, which PEFT saves too if the vocabulary was resized or the base is
    /// unavailable.
    copies: BTreeMap<&'static str, Entry>,
}

impl Factors {
    /// Reads the header and refuses tensors that are not factors of block matrices.
    pub(super) fn open(dir: &Path) -> Result<Factors> {
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
        let (mut entries, mut copies) = (BTreeMap::new(), BTreeMap::new());
        let twice = |name: &str| anyhow!("{}: {name} is there twice", dir.join(WEIGHTS).display());
        for (name, entry) in files.entries() {
            if let Some(layer) = whole_layer(name) {
                if copies.insert(layer, entry.clone()).is_some() {
                    return Err(twice(layer));
                }
                continue;
            }
            let plain = plain(name).ok_or_else(|| {
                anyhow!(
                    "{}: the tensor {name} is not supported; supported are lora_A and lora_B of {} and score.weight; {MERGE}",
                    dir.join(WEIGHTS).display(),
                    Target::ALL.map(Target::name).join(", ")
                )
            })?;
            if entries.insert(plain.clone(), entry.clone()).is_some() {
                return Err(twice(&plain));
            }
        }
        Ok(Factors { files, entries, copies })
    }

    pub(super) fn has_score(&self) -> bool {
        self.entries.contains_key("score.weight")
    }

    /// The matrices that have factors.
    pub(super) fn targets(&self, dir: &Path) -> Result<BTreeSet<Target>> {
        let has = |target: &Target| self.entries.keys().any(|name| name.contains(&format!(".{}.lora_", target.name())));
        let targets: BTreeSet<Target> = Target::ALL.into_iter().filter(has).collect();
        if targets.is_empty() {
            bail!("{} holds no factors: the adapter is empty", dir.join(WEIGHTS).display());
        }
        Ok(targets)
    }

    /// Checks that all factors of all blocks exist, in their shapes, and no others.
    pub(super) fn check(&self, lora: &LoraSpec, spec: &ModelSpec) -> Result<()> {
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

    /// Compares the embedding and the language-model head, if present, with those of the base.
    ///
    /// # Errors
    /// When they differ: the adapter is then more than its factors.
    pub(super) fn check_copies(&self, base: &Checkpoint) -> Result<()> {
        let path = self.files.first_path();
        for (name, entry) in &self.copies {
            let of_base = if *name == LANGUAGE_HEAD && base.spec.tied_embeddings { EMBEDDING } else { name };
            let Some(tensor) = base.stored.names.iter().position(|known| known == of_base) else { continue };
            let shape = [base.spec.vocab_size, base.spec.hidden_size];
            if *entry.shape() != shape {
                bail!(
                    "{}: {name} has shape {:?}, that of the base {shape:?}: the vocabulary was resized; {MERGE}",
                    path.display(),
                    entry.shape()
                );
            }
            if !self.is_copy(name, entry, base, tensor)? {
                bail!("{}: {name} differs from that of the base, so it was trained too; {MERGE}", path.display());
            }
        }
        if !self.copies.is_empty() {
            let names: Vec<&str> = self.copies.keys().copied().collect();
            ignored::say(&format!("{}: {} ignored: those of the base", path.display(), names.join(", ")));
        }
        Ok(())
    }

    /// Whether a tensor equals one of the base's, rounded to the adapter's type.
    fn is_copy(&self, name: &str, entry: &Entry, base: &Checkpoint, tensor: usize) -> Result<bool> {
        let (raw, stored) = (base.raw()?, map(self.files.first_path())?);
        let placed = self.files.place(name, entry.shape(), entry)?;
        let copy = stored
            .get(placed.bytes.clone())
            .with_context(|| format!("{} has become shorter since it was opened", self.files.first_path().display()))?;
        let (mut numbers, mut bytes) = (vec![0f32; BLOCK], Vec::new());
        for (block, copy) in copy.chunks(BLOCK * placed.dtype.size()).enumerate() {
            let numbers = &mut numbers[..copy.len() / placed.dtype.size()];
            raw.read_f32(tensor, block * BLOCK, numbers)?;
            if placed.dtype.encode(numbers, &mut bytes).is_err() || bytes != copy {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn read(&self, lora: &LoraSpec, spec: &ModelSpec) -> Result<Vec<f32>> {
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

/// The base's layer that a tensor replaces as a whole, if any.
fn whole_layer(name: &str) -> Option<&'static str> {
    let name = name.strip_prefix("base_model.model.").unwrap_or(name);
    [EMBEDDING, LANGUAGE_HEAD].into_iter().find(|layer| *layer == name)
}

/// Converts PEFT's name to ours: without its prefix, and without the adapter's name that old versions include.
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
