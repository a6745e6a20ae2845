//! Pre-training from scratch: a tokenizer, random weights, and text.
use std::path::PathBuf;

use anyhow::{Context, ensure};
use salsa_engine::{Activation, Head, ModelSpec, NormWeight, Options, Rope, RopeScaling, Trainable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    arguments::TrainingArguments,
    next_token::NextToken,
    order::Batching,
    trainer::{self, Job, Lengths, Objective},
};
use crate::{
    chat::{self, BUILTIN_SPECIAL_TOKENS, BUILTIN_TEMPLATE, ChatTemplate},
    checkpoint::{self, Companions, Family, SaveOptions, SpecialTokens},
    config::paths::ModelPath,
    data::{Content, Example},
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::{ComputeType, check_most, check_range},
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        memory::{self, MemorySettings, Saving},
        reads::{ExampleUse, ModelUse, Reads},
        supervised::model::write_trainer_state,
        text::{encoder::Encoder, sequence::Sequence, source::DataSource},
    },
    tokenizer::{SpecialTokenNames, Tokenizer},
};

/// Configuration of `salsa pretrain`, in addition to [`TrainingArguments`]. Model keys are named as in Hugging Face's
/// `LlamaConfig`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PretrainConfig {
    /// Texts; records of other layouts are rendered by the chat template and trained on from the first token to the
    /// last.
    #[schemars(extend("x-heading" = "Data"))]
    pub dataset: DataSource,
    /// Held-out texts for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// Directory with a tokenizer to use. None: one is trained on the texts.
    #[schemars(extend("x-heading" = "Tokenizer and shape"))]
    pub tokenizer_name_or_path: Option<ModelPath>,
    /// Maximum vocabulary size of a tokenizer trained here, including special tokens.
    pub vocab_size: usize,
    /// Width of the model: the size of each token's vector.
    pub hidden_size: usize,
    /// Width inside the gated MLP. 0: `hidden_size * 8 / 3`, rounded down to a multiple of 8.
    pub intermediate_size: usize,
    /// Number of blocks, each with attention and MLP.
    pub num_hidden_layers: usize,
    /// Attention heads of each block, at least 1.
    pub num_attention_heads: usize,
    /// Heads of keys and values. 0: the same as `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of an attention head. 0: `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Maximum sequence length of the model, in tokens.
    pub max_position_embeddings: usize,
    /// Base theta of the rotary positions.
    pub rope_theta: f64,
    /// Added to the mean square in every RMSNorm.
    #[serde(serialize_with = "crate::config::shortest")]
    pub rms_norm_eps: f32,
    /// Use the embeddings as output layer, too, instead of a separate matrix.
    pub tie_word_embeddings: bool,
    /// Tokens per training window, from 2 to `max_position_embeddings`; pieces of several documents share a window
    /// without attending to each other.
    #[schemars(extend("x-heading" = "Training"))]
    pub max_length: usize,
    /// Highest learning rate, at least 0.
    pub learning_rate: f64,
    /// Passes over the texts if `max_steps` is -1; fractions are allowed.
    pub num_train_epochs: f64,
    /// The keys that all training stages share.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Default for PretrainConfig {
    fn default() -> PretrainConfig {
        PretrainConfig {
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            tokenizer_name_or_path: None,
            vocab_size: 2048,
            hidden_size: 256,
            intermediate_size: 0,
            num_hidden_layers: 6,
            num_attention_heads: 8,
            num_key_value_heads: 0,
            head_dim: 0,
            max_position_embeddings: 1024,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            max_length: 256,
            learning_rate: 1e-3,
            num_train_epochs: 1.0,
            training: TrainingArguments::default(),
        }
    }
}

impl PretrainConfig {
    /// The model described by these keys, for a vocabulary of the given size.
    pub fn spec(&self, vocab_size: usize) -> ModelSpec {
        let or = |given: usize, otherwise: usize| if given == 0 { otherwise } else { given };
        ModelSpec {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: or(self.intermediate_size, self.hidden_size * 8 / 3 / 8 * 8),
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            kv_heads: or(self.num_key_value_heads, self.num_attention_heads),
            head_dim: or(self.head_dim, self.hidden_size / self.num_attention_heads.max(1)),
            max_positions: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope: Rope { theta: self.rope_theta, scaling: RopeScaling::None },
            activation: Activation::Silu,
            norm: NormWeight::Plain,
            embedding_scale: 1.0,
            qkv_bias: false,
            qk_norm: false,
            sliding_window: None,
            options: Options::default(),
            tied_embeddings: self.tie_word_embeddings,
            head: Head::LanguageModel,
        }
    }
}

impl Stage for PretrainConfig {
    const NAME: &'static str = "pretrain";
    const ABOUT: &'static str = "Train a tokenizer and a small base model on texts.";
    const EXAMPLE: &'static str = "--dataset texts.txt --output_dir base --hidden_size 256 --num_hidden_layers 4";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] =
        &[("fine-tune it", "salsa sft --model OUT --dataset CHATS --output_dir DIR")];

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.max_length >= 2, "max_length is {}; it must be at least 2", self.max_length);
        ensure!(
            self.max_length <= self.max_position_embeddings,
            "max_length {} exceeds max_position_embeddings {}",
            self.max_length,
            self.max_position_embeddings
        );
        // Limits that prevent overflow of their products; the memory plan rejects what is too large for this machine.
        for (key, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 20),
            ("intermediate_size", self.intermediate_size, 1 << 22),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 14),
            ("num_attention_heads", self.num_attention_heads, 1 << 14),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 30),
        ] {
            check_most(key, value as u64, most)?;
        }
        check_range("rope_theta", self.rope_theta, f64::MIN_POSITIVE..=f64::MAX)?;
        check_range("rms_norm_eps", self.rms_norm_eps.into(), 0.0..=f64::from(f32::MAX))?;
        ensure!(self.num_attention_heads > 0, "num_attention_heads is 0; it must be at least 1");
        self.training.validate(self.learning_rate, self.num_train_epochs)
    }

    fn reads(&self) -> Reads {
        Reads { template: self.training.chat_template.clone(), ..Reads::default() }
            .models("tokenizer_name_or_path", ModelUse::Tokenizer)
            .examples("dataset", &self.dataset, ExampleUse::Text)
            .examples_if_any("eval_dataset", self.eval_dataset.as_ref(), ExampleUse::Text)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.training.device, self.training.dtype))
    }

    fn plans_memory(&self) -> bool {
        // A tokenizer must be trained first.
        false
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Trains a tokenizer (or uses a given one) and a new model, and saves both.
///
/// # Errors
/// If the texts cannot be used, the keys are invalid, or training fails or is interrupted.
pub(crate) fn run(config: &PretrainConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let loaded = config.dataset.load()?;
    let vocabulary = Vocabulary::open(config, &loaded.examples)?;
    let encoder = vocabulary.encoder()?.with_chat(&config.training.chat);
    loaded.report_reading(&config.dataset, &encoder, context);
    let spec = config.spec(vocabulary.tokenizer.vocab_size());
    spec.validate().context("the keys of the model")?;

    let data = documents(&loaded.examples, &encoder, config)?;
    let held_out = |source: &DataSource| {
        let loaded = source.load()?;
        loaded.report_reading(source, &encoder, context);
        documents(&loaded.examples, &encoder, config)
    };
    let eval = config.eval_dataset.as_ref().map(held_out).transpose()?;
    let (windows, tokens, parameters) = (data.examples(), data.learned_count(), spec.parameters());
    context.say(&format!("{}: {tokens} tokens in {windows} windows; {parameters} parameters", config.dataset));

    let job = Job {
        title: "pretrain",
        output_dir: &config.output_dir,
        arguments: &config.training,
        learning_rate: config.learning_rate,
        batching: Batching::Examples(config.training.per_device_train_batch_size),
        num_train_epochs: config.num_train_epochs,
        fingerprint: fingerprint("pretrain", config)?,
        context,
        stop: &|_| context.interrupted(),
    };
    let models = |knobs: &MemorySettings| memory::one_model(&spec, false, knobs);
    let eval = eval.as_ref().map(|eval| eval as &dyn Objective);
    // All of them except an adapter.
    let savings = &Saving::TRAINING[1..];
    job.check_memory(&spec, None, None, &models, &Batching::Examples, &Lengths::of(&data, eval), savings, context)?;
    let weights = spec.init(config.training.seed);
    let mut model = Trainable::new(spec, weights, context.device.clone(), config.training.recompute())?;
    let outcome = trainer::train(&job, &mut model, &data, eval)?;
    if context.is_first() {
        write_trainer_state(&config.output_dir, &config.training, &outcome)?;
        vocabulary.save(config, &model)?;
    }
    Ok(json!({"training": outcome.to_json(), "windows": windows, "tokens": tokens, "parameters": parameters}))
}

/// A tokenizer with the names of its special tokens and its chat template.
struct Vocabulary {
    tokenizer: Tokenizer,
    names: SpecialTokenNames,
    template: Option<String>,
}

impl Vocabulary {
    /// Opens the configured tokenizer, or trains one on the texts, for the built-in chat template.
    fn open(config: &PretrainConfig, examples: &[Example]) -> anyhow::Result<Vocabulary> {
        let vocabulary = Vocabulary::with_own_template(config, examples)?;
        match &*config.training.chat_template {
            "" => Ok(vocabulary),
            choice => Ok(Vocabulary { template: Some(chat::source_of(choice)?), ..vocabulary }),
        }
    }

    fn with_own_template(config: &PretrainConfig, examples: &[Example]) -> anyhow::Result<Vocabulary> {
        if let Some(dir) = &config.tokenizer_name_or_path {
            let tokenizer = Tokenizer::from_dir(dir)?;
            let template = ChatTemplate::from_dir(dir)?.map(|template| template.source().to_owned());
            return Ok(Vocabulary { names: tokenizer.names().clone(), tokenizer, template });
        }
        let [pad, end, ..] = BUILTIN_SPECIAL_TOKENS;
        let texts = examples.iter().flat_map(texts);
        Ok(Vocabulary {
            tokenizer: Tokenizer::train_bpe(texts, config.vocab_size, &BUILTIN_SPECIAL_TOKENS)?,
            names: SpecialTokenNames { bos: None, eos: Some(end.to_owned()), pad: Some(pad.to_owned()) },
            template: Some(BUILTIN_TEMPLATE.to_owned()),
        })
    }

    /// Saves the model with this vocabulary.
    fn save(&self, config: &PretrainConfig, model: &Trainable) -> anyhow::Result<()> {
        self.tokenizer.save(&config.output_dir, &self.names, self.template.as_deref())?;
        let dtype = config.training.save_dtype;
        let options = SaveOptions {
            max_shard_bytes: config.training.max_shard_size.0,
            ..SaveOptions::new(Family::for_spec(model.spec()), self.special_tokens(), dtype)
        };
        checkpoint::save(&config.output_dir, model.spec(), &model.weights(), &Companions::none(), &[], &options)
    }

    fn id(&self, name: &Option<String>) -> Option<u32> {
        name.as_deref().and_then(|name| self.tokenizer.token_to_id(name))
    }

    fn encoder(&self) -> anyhow::Result<Encoder> {
        let template = self.template.as_ref().map(|source| ChatTemplate::new(source, &self.names)).transpose()?;
        let end = self.id(&self.names.eos).context("the tokenizer has no eos_token, so no text could ever end")?;
        Ok(Encoder::new(self.tokenizer.clone(), template, vec![end]))
    }

    fn special_tokens(&self) -> SpecialTokens {
        let SpecialTokenNames { bos, eos, pad } = &self.names;
        SpecialTokens { bos: self.id(bos), eos: self.id(eos).into_iter().collect(), pad: self.id(pad) }
    }
}

/// The texts of an example, for training a tokenizer.
fn texts(example: &Example) -> Vec<String> {
    let of = |content: &Content| match content {
        Content::Text(text) => vec![text.clone()],
        Content::Messages(messages) => messages.iter().map(|message| message.content.clone()).collect(),
    };
    match example {
        Example::Text(text) => vec![text.clone()],
        Example::Messages(messages) => messages.iter().map(|message| message.content.clone()).collect(),
        Example::PromptCompletion { prompt, completion } => [of(prompt), of(completion)].concat(),
        Example::Preference(pair) => [of(&pair.prompt), of(&pair.chosen)].concat(),
        Example::Prompt(prompt) => of(prompt),
    }
}

/// Encodes the texts into windows of tokens.
fn documents(examples: &[Example], encoder: &Encoder, config: &PretrainConfig) -> anyhow::Result<NextToken> {
    let documents: Vec<Vec<u32>> =
        examples.iter().map(|example| Ok(encoder.example(example)?.tokens)).collect::<anyhow::Result<_>>()?;
    let examples = windows(&documents, config.max_length);
    ensure!(!examples.is_empty(), "{} holds no text of two tokens", config.dataset);
    Ok(NextToken { examples })
}

/// Cuts documents into windows of `max_length` tokens.
///
/// Documents follow one another; each document's piece in a window is a separate sequence, so documents do not attend
/// to each other. If a document continues in the next window, its piece there starts with the last token of the
/// previous piece, so that every token except a document's first is learned exactly once.
pub(crate) fn windows(documents: &[Vec<u32>], max_length: usize) -> Vec<Vec<Sequence>> {
    assert!(max_length >= 2, "a window of one token teaches nothing");
    let mut windows = Vec::new();
    let (mut window, mut room) = (Vec::new(), max_length);
    for document in documents {
        let mut rest = document.as_slice();
        while rest.len() > 1 {
            let piece = &rest[..rest.len().min(room)];
            window.push(Sequence::whole(piece.to_vec()));
            room -= piece.len();
            rest = &rest[piece.len() - 1..];
            if room < 2 {
                windows.push(std::mem::take(&mut window));
                room = max_length;
            }
        }
    }
    if !window.is_empty() {
        windows.push(window);
    }
    windows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_is_learned_once() {
        let documents = [vec![1, 2, 3, 4, 5, 6, 7], vec![8], vec![9, 10, 11]];
        let pieces: Vec<Vec<Vec<u32>>> = windows(&documents, 5)
            .into_iter()
            .map(|window| window.into_iter().map(|sequence| sequence.tokens).collect())
            .collect();
        // The first window holds five tokens; 5 is repeated as context; a lone 8 gives no training signal.
        assert_eq!(pieces, [vec![vec![1, 2, 3, 4, 5]], vec![vec![5, 6, 7], vec![9, 10]], vec![vec![10, 11]]]);
        let learned: Vec<u32> =
            windows(&documents, 5).iter().flatten().flat_map(|s| s.learned_tokens().collect::<Vec<_>>()).collect();
        assert_eq!(learned, [2, 3, 4, 5, 6, 7, 10, 11]);
    }
}
