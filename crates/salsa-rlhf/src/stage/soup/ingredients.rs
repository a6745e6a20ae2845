//! The models that go into a soup: opened, and refused if they do not fit together, before any weight is read.
use std::path::Path;

use anyhow::{bail, ensure};
use salsa_engine::ModelSpec;
use serde_json::{Value, json};

use super::{SoupConfig, tokenizers};
use crate::checkpoint::{Checkpoint, Companions, Dtype, NewTensor};

/// Checkpoints of one architecture.
#[derive(Debug)]
pub(super) struct Ingredients {
    pub models: Vec<Checkpoint>,
    pub base: Option<Checkpoint>,
}

impl Ingredients {
    /// Opens the ingredients and the base, and compares each with the first.
    pub fn open(config: &SoupConfig) -> anyhow::Result<Ingredients> {
        let models = config.models.iter().map(|dir| open(dir)).collect::<anyhow::Result<Vec<_>>>()?;
        let base = config.base_model.as_deref().map(open).transpose()?;
        let (first, others) = models.split_first().expect("an empty list is refused by the configuration's check");
        for other in others.iter().chain(&base) {
            let names = format!("{} and {}", first.dir().display(), other.dir().display());
            if let Some(difference) = difference(first, other) {
                bail!("{names} cannot be mixed: {difference}");
            }
            if let Some(difference) = tokenizers::difference(first.dir(), other.dir())? {
                bail!("{names} cannot be mixed: tokenizer.json differs: {difference}");
            }
        }
        Ok(Ingredients { models, base })
    }

    /// The tensors of the soup. `dtype` is their type, if one is asked for.
    pub fn tensors(&self, dtype: Option<Dtype>) -> anyhow::Result<Vec<NewTensor>> {
        let stored = self.models.iter().map(Checkpoint::raw).collect::<anyhow::Result<Vec<_>>>()?;
        let own = |tensor| stored.iter().map(|raw| raw.dtype(tensor)).reduce(wider).expect("at least one model");
        let views = self.models[0].spec.tensors().into_iter().enumerate();
        let tensor = |(i, view): (usize, salsa_engine::TensorView)| NewTensor {
            name: view.name,
            shape: view.shape,
            dtype: dtype.unwrap_or_else(|| own(i)),
        };
        Ok(views.map(tensor).collect())
    }

    pub fn parameters(&self) -> usize {
        self.models[0].spec.parameters()
    }

    /// A checkpoint may carry its tied embedding twice; the copies must agree.
    pub fn check_tied_copies(&self) -> anyhow::Result<()> {
        self.models.iter().chain(&self.base).try_for_each(|model| model.raw()?.check_tied_copy())
    }

    /// Tokenizer, chat template and generation settings of the soup.
    pub fn companions(&self, config: &SoupConfig) -> anyhow::Result<Companions> {
        if let Some(dir) = &config.tokenizer_source {
            let companions = Companions::from_dir(dir)?;
            ensure!(companions.has("tokenizer.json"), "{}: there is no tokenizer.json", dir.display());
            return Ok(companions);
        }
        Companions::from_dir(self.with_tokenizer().dir())
    }

    /// The first ingredient that has a tokenizer; if none has, the first one.
    pub fn with_tokenizer(&self) -> &Checkpoint {
        let with_tokenizer = self.models.iter().find(|model| model.dir().join("tokenizer.json").is_file());
        with_tokenizer.unwrap_or(&self.models[0])
    }

    /// `config.json` of the first ingredient, in the soup's type. Numbers that describe one ingredient (the
    /// normalisation of a reward model's scores) stay only if all have them.
    pub fn config(&self, dtype: Dtype) -> Value {
        let mut config = self.models[0].config.clone();
        if let Value::Object(keys) = &mut config {
            for key in ["score_mean", "score_std", "mean", "std"] {
                if self.models.iter().any(|model| model.config.get(key) != self.models[0].config.get(key)) {
                    keys.shift_remove(key);
                }
            }
            keys.insert("torch_dtype".to_owned(), json!(dtype.config_name()));
            keys.insert("dtype".to_owned(), json!(dtype.config_name()));
        }
        config
    }
}

fn open(dir: &Path) -> anyhow::Result<Checkpoint> {
    if dir.join("adapter_config.json").exists() {
        bail!(
            "{} is a LoRA adapter and cannot be the base of a soup or lie beside whole models; merge it into its base first (salsa merge)",
            dir.display()
        );
    }
    Checkpoint::open(dir)
}

/// The narrowest type that holds the numbers of both.
fn wider(a: Dtype, b: Dtype) -> Dtype {
    if a == b { a } else { Dtype::F32 }
}

/// The first thing in which the architectures differ. How long a text may be is none: it changes no weight.
fn difference(a: &Checkpoint, b: &Checkpoint) -> Option<String> {
    let facts = |model: &Checkpoint| {
        let ModelSpec {
            vocab_size,
            hidden_size,
            intermediate_size,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_positions: _,
            rms_norm_eps,
            rope,
            activation,
            norm,
            embedding_scale,
            qkv_bias,
            qk_norm,
            sliding_window,
            tied_embeddings,
            head,
        } = &model.spec;
        [
            ("model_type", model.family.model_type().to_owned()),
            ("head", format!("{head:?}")),
            ("vocab_size", vocab_size.to_string()),
            ("hidden_size", hidden_size.to_string()),
            ("num_hidden_layers", layers.to_string()),
            ("intermediate_size", intermediate_size.to_string()),
            ("num_attention_heads", heads.to_string()),
            ("num_key_value_heads", kv_heads.to_string()),
            ("head_dim", head_dim.to_string()),
            ("tie_word_embeddings", tied_embeddings.to_string()),
            ("rope", format!("{rope:?}")),
            ("rms_norm_eps", rms_norm_eps.to_string()),
            ("hidden_act", format!("{activation:?}")),
            ("sliding_window", sliding_window.map_or("none".to_owned(), |window| window.to_string())),
            ("norm weights", format!("{norm:?}")),
            ("embedding scale", embedding_scale.to_string()),
            ("attention biases", qkv_bias.to_string()),
            ("query and key norms", qk_norm.to_string()),
        ]
    };
    let differs = facts(a).into_iter().zip(facts(b)).find(|((_, a), (_, b))| a != b)?;
    let ((key, a), (_, b)) = differs;
    Some(format!("{key} is {a} and {b}"))
}
