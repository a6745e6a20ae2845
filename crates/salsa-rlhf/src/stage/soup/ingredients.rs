//! Opens the models of a soup and checks their compatibility before any weight is read.
use std::path::Path;

use anyhow::{bail, ensure};
use salsa_engine::ModelSpec;
use serde_json::{Value, json};

use super::{SoupConfig, arithmetic::Method};
use crate::{
    checkpoint::{Checkpoint, Companions, Dtype, NewTensor},
    config::paths::ModelPath,
    stage::{StageContext, models::tokenizers},
};

/// Checkpoints with the same architecture.
#[derive(Debug)]
pub(super) struct Ingredients {
    pub models: Vec<Checkpoint>,
    pub base: Option<Checkpoint>,
    /// The shape of the soup: that of the models, with a separate output layer if one of them has one.
    pub spec: ModelSpec,
}

impl Ingredients {
    /// Opens the ingredients and the base, and compares each with the first.
    pub(super) fn open(config: &SoupConfig) -> anyhow::Result<Ingredients> {
        let adapter = |i: usize| config.adapters.get(i).filter(|dir| !dir.as_os_str().is_empty());
        let model = |(i, dir): (usize, &ModelPath)| match adapter(i) {
            None => open(dir),
            Some(adapter) => adapted(open(dir)?, adapter),
        };
        let models = config.models.iter().enumerate().map(model).collect::<anyhow::Result<Vec<_>>>()?;
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
        let tied_embeddings = models.iter().chain(&base).all(|model| model.spec.tied_embeddings);
        let spec = ModelSpec { tied_embeddings, ..models[0].spec.clone() };
        let twin = models.iter().find(|model| model.spec.tied_embeddings != tied_embeddings);
        if let Some(twin) = twin.filter(|_| matches!(config.method, Method::Greedy | Method::Search)) {
            bail!(
                "method {} needs models that all tie their embeddings or all have an output layer; {} ties them: write it \
                 with an output layer first (salsa soup MODEL UNTIED --weights 1 0)",
                config.method.name(),
                twin.dir().display()
            );
        }
        Ok(Ingredients { models, base, spec })
    }

    /// The index of the model's tensor for each of the soup's tensors; with tied embeddings, the output layer maps to
    /// the embedding.
    pub(super) fn places(&self, model: &Checkpoint) -> Vec<usize> {
        let views = model.spec.tensors();
        let find = |name: &str| views.iter().position(|view| view.name == name);
        let place = |view: salsa_engine::TensorView| {
            let tied = || find("model.embed_tokens.weight").filter(|_| view.name == "lm_head.weight");
            find(&view.name).or_else(tied).expect("models differ in nothing but whether embeddings are tied")
        };
        self.spec.tensors().into_iter().map(place).collect()
    }

    /// Folders that may hold a tokenizer; ingredients first.
    pub(super) fn dirs(&self) -> impl Iterator<Item = &Path> {
        self.models.iter().chain(&self.base).map(Checkpoint::dir)
    }

    /// Reports that the soup has no score normalisation although its ingredients, reward models, have: it would have to
    /// be measured.
    pub(super) fn say_lost_normalization(&self, config: &Value, context: &StageContext) {
        let had = self.models.iter().any(|model| model.score_normalization().is_some());
        if had && (config.get("score_mean").or(config.get("mean"))).is_none_or(Value::is_null) {
            context.say(LOST_NORMALIZATION);
        }
    }

    /// The tensors of the soup, with the type `dtype` if given.
    pub(super) fn tensors(&self, dtype: Option<Dtype>) -> anyhow::Result<Vec<NewTensor>> {
        let stored = |model: &Checkpoint| -> anyhow::Result<Vec<Dtype>> {
            let raw = model.raw()?;
            Ok(self.places(model).into_iter().map(|place| raw.dtype(place)).collect())
        };
        let stored = self.models.iter().map(stored).collect::<anyhow::Result<Vec<_>>>()?;
        let own = |tensor: usize| stored.iter().map(|dtypes| dtypes[tensor]).reduce(wider).expect("at least one model");
        let views = self.spec.tensors().into_iter().enumerate();
        let tensor = |(i, view): (usize, salsa_engine::TensorView)| NewTensor {
            name: view.name,
            shape: view.shape,
            dtype: dtype.unwrap_or_else(|| own(i)),
        };
        Ok(views.map(tensor).collect())
    }

    pub(super) fn parameters(&self) -> usize {
        self.spec.parameters()
    }

    /// Checks the copies of a tied embedding that a checkpoint stores twice: they must be equal.
    pub(super) fn check_tied_copies(&self) -> anyhow::Result<()> {
        self.models.iter().chain(&self.base).try_for_each(|model| model.raw()?.check_tied_copy())
    }

    /// Tokenizer, chat template and generation settings of the soup.
    pub(super) fn companions(&self, config: &SoupConfig) -> anyhow::Result<Companions> {
        if let Some(dir) = &config.tokenizer_source {
            let companions = Companions::from_dir(dir)?;
            ensure!(companions.has("tokenizer.json"), "{}: there is no tokenizer.json", dir.display());
            return Ok(companions);
        }
        Companions::from_dir(self.with_tokenizer().dir())
    }

    /// The first ingredient that has a tokenizer; otherwise the first one.
    pub(super) fn with_tokenizer(&self) -> &Checkpoint {
        let with_tokenizer = self.models.iter().find(|model| model.dir().join("tokenizer.json").exists());
        with_tokenizer.unwrap_or(&self.models[0])
    }

    /// `config.json` of the first ingredient, in the soup's type. Score normalisation, which describes one reward
    /// model, is kept only if all ingredients have the same.
    pub(super) fn config(&self, dtype: Dtype) -> Value {
        let mut config = self.models[0].config.clone();
        if let Value::Object(keys) = &mut config {
            let pairs = [["score_mean", "score_std"], ["mean", "std"]];
            for pair in pairs {
                let of = |model: &Checkpoint| pair.map(|key| model.config.get(key).cloned());
                if self.models.iter().any(|model| of(model) != of(&self.models[0])) {
                    pair.iter().for_each(|key| drop(keys.shift_remove(*key)));
                }
            }
            if self.spec.tied_embeddings != self.models[0].spec.tied_embeddings {
                keys.insert("tie_word_embeddings".to_owned(), json!(self.spec.tied_embeddings));
            }
            keys.insert("torch_dtype".to_owned(), json!(dtype.config_name()));
            keys.insert("dtype".to_owned(), json!(dtype.config_name()));
        }
        config
    }
}

/// Note on a soup of reward models with normalised scores.
pub(super) const LOST_NORMALIZATION: &str = "the soup of reward models has no score_mean and score_std, although \
     ingredients have: they would have to be measured anew, and the mean of theirs would be wrong. ppo takes its scores \
     as they are, so kl_coef weighs otherwise; to normalise them, score held-out answers (salsa score) and put the mean \
     and the standard deviation into its config.json as score_mean and score_std";

/// Attaches an adapter to a whole model.
fn adapted(model: Checkpoint, adapter: &Path) -> anyhow::Result<Checkpoint> {
    let (head, dir) = (model.spec.head, model.dir().to_owned());
    ensure!(
        adapter.join("adapter_config.json").exists(),
        "{}: there is no adapter_config.json: give a PEFT directory as the adapter of {}",
        adapter.display(),
        dir.display()
    );
    let adapted = model.with_adapter(adapter)?;
    ensure!(
        adapted.spec.head == head,
        "{} makes a reward model of {}, which is a language model; merge it first (salsa merge)",
        adapter.display(),
        dir.display()
    );
    Ok(adapted)
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

/// The narrowest type that represents the values of both.
fn wider(a: Dtype, b: Dtype) -> Dtype {
    if a == b { a } else { Dtype::F32 }
}

/// The first difference between the architectures. The context length is ignored: it changes no weight.
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
            options,
            // A soup of tied and untied models has a separate output layer.
            tied_embeddings: _,
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
            ("rope", format!("{rope:?}")),
            ("rms_norm_eps", rms_norm_eps.to_string()),
            ("hidden_act", format!("{activation:?}")),
            ("sliding_window", sliding_window.map_or("none".to_owned(), |window| window.to_string())),
            ("norm weights", format!("{norm:?}")),
            ("embedding scale", embedding_scale.to_string()),
            ("attention biases", qkv_bias.to_string()),
            ("query and key norms", qk_norm.to_string()),
            ("options", format!("{options:?}")),
        ]
    };
    let differs = facts(a).into_iter().zip(facts(b)).find(|((_, a), (_, b))| a != b)?;
    let ((key, a), (_, b)) = differs;
    Some(format!("{key} is {a} and {b}"))
}
