//! Shared fixtures of the stage tests: a tiny model and tiny data.
use std::{
    fs,
    path::{Path, PathBuf},
};

use salsa_engine::{Activation, Device, Head, ModelSpec, NormWeight, Options, Recompute, Rope, RopeScaling, Trainable};
use serde_json::{Value, json};

use super::{
    StageContext, Verbosity,
    supervised::{
        arguments::TrainingArguments,
        next_token::NextToken,
        pretrain::{self, PretrainConfig},
    },
    text::{sequence::Sequence, source::DataSource},
};
use crate::checkpoint::{Checkpoint, Companions, SaveOptions, save};

/// A model of a few thousand weights.
pub(crate) fn spec(vocab_size: usize, head: Head) -> ModelSpec {
    ModelSpec {
        vocab_size,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        max_positions: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: Activation::Silu,
        norm: NormWeight::Plain,
        embedding_scale: 1.0,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: None,
        options: Options::default(),
        tied_embeddings: false,
        head,
    }
}

/// A freshly initialised tiny model for training.
pub(crate) fn trainable(vocab_size: usize, head: Head) -> Trainable {
    let spec = spec(vocab_size, head);
    let weights = spec.init(1);
    Trainable::new(spec, weights, Device::default(), Recompute::KeepActivations).unwrap()
}

/// `count` sequences of consecutive tokens, of lengths 3 to 9: easy to learn.
pub(crate) fn counting(count: u32) -> NextToken {
    let sequence = |i: u32| (i % 5..i % 5 + 3 + i % 7).collect();
    NextToken { examples: (0..count).map(|i| vec![Sequence::whole(sequence(i))]).collect() }
}

/// Trains a tokenizer and a barely trained language model with a template by `pretrain` on a few texts, in `dir/base`.
pub(crate) fn base(dir: &Path) -> PathBuf {
    let texts = dir.join("texts.jsonl");
    let lines: Vec<Value> = SENTENCES.iter().cycle().take(24).map(|text| json!({"text": text})).collect();
    write_lines(&texts, &lines);
    let output_dir = dir.join("base");
    let config = PretrainConfig {
        dataset: DataSource::Path(texts.into()),
        output_dir: output_dir.clone(),
        vocab_size: 300,
        hidden_size: 16,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 96,
        max_length: 48,
        learning_rate: 0.01,
        training: TrainingArguments { max_steps: 6, ..TrainingArguments::default() },
        ..PretrainConfig::default()
    };
    pretrain::run(&config, &quiet()).unwrap();
    output_dir
}

/// Saves a reward model of this base, with a random head, next to the base.
pub(crate) fn reward_model(base: &Path) -> PathBuf {
    let (checkpoint, companions) = (Checkpoint::open(base).unwrap(), Companions::from_dir(base).unwrap());
    let spec = checkpoint.spec.with_head(Head::Scalar);
    let weights = checkpoint.spec.convert(&checkpoint.read_weights().unwrap(), &spec, 3);
    let dir = base.with_file_name("reward");
    save(&dir, &spec, &weights, &companions, &[], &SaveOptions::like(&checkpoint)).unwrap();
    dir
}

/// Name, seed of the weight perturbation, and shape edit of a model next to a base.
pub(crate) type Variant<'a> = (&'a str, u64, fn(&mut ModelSpec));

/// Saves perturbed variants of a base next to it: shape changed by `edit`, weights perturbed by the seed.
pub(crate) fn variants(base: &Path, variants: &[Variant<'_>]) {
    let checkpoint = Checkpoint::open(base).unwrap();
    let weights = checkpoint.read_weights().unwrap();
    let (companions, options) = (Companions::from_dir(base).unwrap(), SaveOptions::like(&checkpoint));
    for &(name, seed, edit) in variants {
        let noise = |i: usize| (salsa_algo::random::uniform(seed, 9, i as u64) - 0.5) as f32 * 0.4;
        let moved: Vec<f32> = weights.iter().enumerate().map(|(i, w)| w + noise(i)).collect();
        let mut spec = checkpoint.spec.clone();
        edit(&mut spec);
        save(&base.with_file_name(name), &spec, &moved, &companions, &[], &options).unwrap();
    }
}

/// A context that prints nothing.
pub(crate) fn quiet() -> StageContext {
    StageContext { verbosity: Verbosity::Quiet, ..StageContext::default() }
}

/// Writes JSON lines.
pub(crate) fn write_lines(path: &Path, lines: &[Value]) {
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    fs::write(path, text).unwrap();
}

/// Reads JSON lines.
pub(crate) fn read_lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Preference pairs in which the chosen answer is always "yes" and the rejected one a longer "no".
pub(crate) fn preferences(path: &Path) -> DataSource {
    let pair = |i: usize| {
        let prompt = json!([{"role": "user", "content": SENTENCES[i % SENTENCES.len()]}]);
        let answer = |text: &str| json!([{"role": "assistant", "content": text}]);
        json!({"prompt": prompt, "chosen": answer("yes"), "rejected": answer("no, never")})
    };
    write_lines(path, &(0..24).map(pair).collect::<Vec<_>>());
    DataSource::Path(path.to_owned().into())
}

/// The texts of the tiny models.
pub(crate) const SENTENCES: [&str; 4] =
    ["the cat sat", "a dog ran home", "the cat ran to the dog", "one day it rained"];
