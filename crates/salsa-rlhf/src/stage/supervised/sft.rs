//! Supervised fine-tuning on the responses of a data set.
use std::path::PathBuf;

use anyhow::{bail, ensure};
use salsa_engine::Head;
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
    config::paths::ModelPath,
    stage::{
        StageContext,
        device::Choice as DeviceChoice,
        keys::ComputeType,
        kind::{Produces, Product, Stage},
        lifecycle::fingerprint::fingerprint,
        memory::{self, MemorySettings, Saving},
        models::{bases::Bases, lora::LoraArguments},
        reads::{ExampleUse, Reads},
        supervised::model::{Start, save, within_context},
        text::{
            encoder::{Encoder, TruncationMode},
            sequence::Sequence,
            source::{DataSource, Loaded},
        },
    },
};

/// Configuration of `salsa sft`, in addition to [`TrainingArguments`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SftConfig {
    /// Checkpoint to start from: a Hugging Face or PEFT directory.
    #[schemars(extend("x-heading" = "Model and data"))]
    pub model_name_or_path: ModelPath,
    /// Messages, prompts with completions, preferences (trains on the chosen response) or texts. TRL: `dataset_name`.
    pub dataset: DataSource,
    /// Held-out examples for the evaluation. None: no evaluation.
    pub eval_dataset: Option<DataSource>,
    /// Directory of the trained model, its metrics and its checkpoints.
    pub output_dir: PathBuf,
    /// Highest learning rate, at least 0. TRL: 2e-5.
    #[schemars(extend("x-heading" = "Training"))]
    pub learning_rate: f64,
    /// Passes over the data if `max_steps` is -1; fractions are allowed. TRL: 3.
    pub num_train_epochs: f64,
    /// Maximum length of an example, in tokens, at least 2; capped at the model's context. TRL: 1024.
    pub max_length: usize,
    /// What happens to longer examples. TRL: keep_start.
    pub truncation_mode: TruncationMode,
    /// Fill every pass with as many examples as fit into `per_device_train_batch_size * max_length` tokens, instead of
    /// a fixed number of examples. Either way, examples do not attend to each other and nothing is padded. TRL: false.
    pub packing: bool,
    /// Train on completions and assistant turns only, not on prompts. TRL: true for prompts with completions.
    pub completion_only_loss: bool,
    /// The keys of adapters.
    #[serde(flatten)]
    pub lora: LoraArguments,
    /// The keys that all training stages share.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Default for SftConfig {
    fn default() -> SftConfig {
        SftConfig {
            model_name_or_path: ModelPath::new(),
            dataset: DataSource::default(),
            eval_dataset: None,
            output_dir: PathBuf::new(),
            learning_rate: 2e-5,
            num_train_epochs: 3.0,
            max_length: 1024,
            truncation_mode: TruncationMode::KeepStart,
            packing: false,
            completion_only_loss: true,
            lora: LoraArguments::default(),
            training: TrainingArguments::default(),
        }
    }
}

impl SftConfig {
    fn batching(&self, count: usize) -> Batching {
        if self.packing { Batching::Tokens(count.saturating_mul(self.max_length)) } else { Batching::Examples(count) }
    }
}

impl Stage for SftConfig {
    const NAME: &'static str = "sft";
    const ABOUT: &'static str = "Supervised fine-tuning: learn to give the responses of a data set.";
    const EXAMPLE: &'static str = "--model base --dataset chat.jsonl --output_dir sft-a --seed 1";
    const PRODUCT: Product = Product::Directory;
    const PRODUCES: Produces = Produces::LanguageModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("talk to it", "salsa chat --model OUT"),
        ("a reward model", "salsa reward --model OUT --dataset PAIRS --output_dir DIR"),
        ("a soup with another", "salsa soup OUT OTHER --output DIR"),
    ];

    fn check(&self) -> anyhow::Result<()> {
        ensure!(self.max_length >= 2, "max_length is {}; it must be at least 2", self.max_length);
        self.lora.validate()?;
        self.training.validate(self.learning_rate, self.num_train_epochs)
    }

    fn reads(&self) -> Reads {
        Reads::with_reader(Some(&self.model_name_or_path), &self.training.chat)
            .template(&self.training.chat_template)
            .examples("dataset", &self.dataset, ExampleUse::Demonstration)
            .examples_if_any("eval_dataset", self.eval_dataset.as_ref(), ExampleUse::Demonstration)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        Some((self.training.device, self.training.dtype))
    }

    fn role(&self) -> String {
        format!("fine-tuned, seed {}", self.training.seed)
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Fine-tunes a language model and saves it with its tokenizer and chat template.
///
/// # Errors
/// If the data or the model cannot be used, or training fails or is interrupted.
pub(crate) fn run(config: &SftConfig, context: &StageContext) -> anyhow::Result<Value> {
    config.check()?;
    let start = Start::open(&config.model_name_or_path, Head::LanguageModel, &config.training)?;
    let positions = start.spec.max_positions;
    let max_length = within_context(config.max_length, positions, context);
    let config = &SftConfig { max_length, ..config.clone() };
    let load = |source: &DataSource| -> anyhow::Result<EncodedExamples> {
        let loaded = source.load()?;
        loaded.report_reading(source, &start.encoder, context);
        let lesson = EncodedExamples::new(&loaded, &start.encoder, config)?;
        let used = format!("{source}: {} examples, {} left out", lesson.objective.examples(), lesson.left_out);
        context.say_used(used, lesson.left_out);
        Ok(lesson)
    };
    let data = load(&config.dataset)?;
    let eval = config.eval_dataset.as_ref().map(load).transpose()?;
    check_ends_are_learned(&data.objective, &start.encoder)?;

    let job = Job {
        title: "sft",
        output_dir: &config.output_dir,
        arguments: &config.training,
        learning_rate: config.learning_rate,
        batching: config.batching(config.training.per_device_train_batch_size),
        num_train_epochs: config.num_train_epochs,
        fingerprint: fingerprint("sft", config)?,
        context,
        stop: &|_| context.interrupted(),
    };
    let held_out = eval.as_ref().map(|lesson| &lesson.objective as &dyn Objective);
    let models = |knobs: &MemorySettings| memory::one_model(&start.spec, start.checkpoint.embedding_is_bf16(), knobs);
    let (adapter, batching) = (start.adapter(&config.lora)?, |count| config.batching(count));
    job.check_memory(
        &start.spec,
        adapter,
        None,
        &models,
        &batching,
        &Lengths::of(&data.objective, held_out),
        Saving::TRAINING,
        context,
    )?;
    let mut model = start.load(&config.training, &config.lora, &mut Bases::on(&context.device))?;
    let outcome = trainer::train(&job, &mut model, &data.objective, held_out)?;
    if context.is_first() {
        save(&config.output_dir, &start.checkpoint, &model, &[], &config.training, &outcome)?;
    }
    Ok(json!({
        "training": outcome.to_json(),
        "examples": data.objective.examples(),
        "left_out": data.left_out,
        "learned_tokens_per_epoch": data.objective.learned_count(),
    }))
}

/// Encoded training examples.
struct EncodedExamples {
    objective: NextToken,
    /// The number of examples without learned tokens within `max_length`.
    left_out: usize,
}

impl EncodedExamples {
    fn new(loaded: &Loaded, encoder: &Encoder, config: &SftConfig) -> anyhow::Result<EncodedExamples> {
        let sequences = loaded.try_map(|example| {
            let mut sequence = encoder.example(example)?;
            if !config.completion_only_loss {
                sequence = Sequence::whole(sequence.tokens);
            }
            Ok(sequence.truncated(config.max_length, config.truncation_mode))
        })?;
        let count = sequences.len();
        let kept: Vec<Vec<Sequence>> = sequences.into_iter().flatten().map(|sequence| vec![sequence]).collect();
        if kept.is_empty() {
            bail!(
                "none of the {count} examples has anything to learn within max_length {}; raise it",
                config.max_length
            );
        }
        Ok(EncodedExamples { left_out: count - kept.len(), objective: NextToken { examples: kept } })
    }
}

/// Fails if no example trains an end token: the model would never stop generating.
fn check_ends_are_learned(data: &NextToken, encoder: &Encoder) -> anyhow::Result<()> {
    let mut sequences = data.examples.iter().flatten();
    let ends = sequences.any(|sequence| sequence.learned_tokens().any(|token| encoder.ends().contains(&token)));
    ensure!(
        ends,
        "no example teaches an end token, so the model would never stop: every example is cut off by max_length, or the \
         chat template does not write one of the model's eos_token_id {:?}",
        encoder.ends()
    );
    Ok(())
}
