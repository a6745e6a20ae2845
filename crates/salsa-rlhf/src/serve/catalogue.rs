//! The served models by name, with everything but the weights.
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use salsa_engine::{Head, Model, ModelSpec};

use super::error::ApiError;
use crate::{
    checkpoint::Checkpoint,
    hub,
    stage::{
        StageContext,
        memory::{self, MemorySettings, Need, Passed, Passes, Saving, part},
        models::{
            bases::Bases,
            frozen::{Found, Frozen},
            roles::Roles,
            score_token::say_where_scores_are_read,
        },
        text::encoder::Encoder,
    },
};

/// A checkpoint to serve, and its name in requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    /// Its name in requests.
    pub name: String,
    /// A directory, or an id of the Hugging Face hub.
    pub path: String,
}

/// Sizes of the computation; they affect memory and speed, never a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// Sequences of one model decoded at once.
    pub sequences: usize,
    /// Maximum number of prompt tokens per prefill pass.
    pub batched_tokens: usize,
    /// Maximum number of tokens of a prompt plus reply; none: the model's context.
    pub longest: Option<usize>,
}

/// A served model without its weights.
pub(crate) struct Served {
    /// Its name in requests.
    pub name: String,
    /// Its directory.
    pub dir: PathBuf,
    /// Its opened checkpoint.
    pub checkpoint: Checkpoint,
    /// Its encoder, if it has a tokenizer.
    pub encoder: Option<Encoder>,
    /// The head in use.
    pub head: Head,
    /// Maximum number of tokens of a prompt plus reply.
    pub context: usize,
}

impl Served {
    /// The model's shape.
    pub(crate) fn spec(&self) -> ModelSpec {
        self.checkpoint.spec.with_head(self.head)
    }

    /// Whether it generates replies; otherwise it is a reward model.
    pub(crate) fn is_language_model(&self) -> bool {
        self.head.has_language_model()
    }

    /// Its encoder.
    ///
    /// # Errors
    /// If it has no tokenizer.
    pub(crate) fn encoder(&self) -> Result<&Encoder, ApiError> {
        let missing = || ApiError::invalid("model", format!("{} has no tokenizer.json; send token numbers", self.name));
        self.encoder.as_ref().ok_or_else(missing)
    }
}

/// All served models.
pub(crate) struct Catalogue {
    /// The models, in the order given.
    pub models: Vec<Served>,
}

impl Catalogue {
    /// Opens the checkpoints, checks that memory suffices, and loads the weights. The models are in the order of the
    /// names; adapters of one base share it in memory.
    ///
    /// # Errors
    /// The checkpoint that cannot be used, or options that would reduce the memory.
    pub(crate) fn open(
        named: &[Named],
        size: &Size,
        context: &StageContext,
    ) -> anyhow::Result<(Catalogue, Vec<Model>)> {
        for (at, one) in named.iter().enumerate() {
            let is_new = named[..at].iter().all(|other| other.name != one.name);
            ensure!(is_new, "two models are called {:?}; name one otherwise: NAME=PATH", one.name);
        }
        let opened: Vec<Opened> =
            named.iter().map(|named| Opened::new(named, size, context)).collect::<Result<_, _>>()?;
        check_memory(&opened, size, context)?;
        let mut bases = Bases::on(&context.device);
        let (mut catalogue, mut models) = (Catalogue { models: Vec::new() }, Vec::new());
        for Opened { name, dir, context, found } in opened {
            let head = found.head;
            let Frozen { checkpoint, encoder, model } =
                Frozen::load(found, &mut bases).with_context(|| name.clone())?;
            catalogue.models.push(Served { name, dir, checkpoint, encoder, head, context });
            models.push(model);
        }
        Ok((catalogue, models))
    }

    /// Finds the model of this name; without a name, the only one of its kind.
    ///
    /// # Errors
    /// If there is none, or it is of the other kind.
    pub(crate) fn find(&self, name: Option<&str>, kind: Kind) -> Result<usize, ApiError> {
        let fits = |served: &Served| served.is_language_model() == (kind == Kind::Language);
        let Some(name) = name else {
            let mut fitting = self.models.iter().enumerate().filter(|(_, served)| fits(served)).map(|(at, _)| at);
            return match (fitting.next(), fitting.next()) {
                (Some(only), None) => Ok(only),
                (Some(_), Some(_)) => {
                    Err(ApiError::invalid("model", format!("model is missing; served are {}", self.names())))
                }
                (None, _) => Err(ApiError::no_model(format!("no {} is served", kind.name()))),
            };
        };
        let Some(at) = self.models.iter().position(|served| served.name == name) else {
            return Err(ApiError::no_model(format!("there is no model {name:?}; served are {}", self.names())));
        };
        match fits(&self.models[at]) {
            true => Ok(at),
            false => Err(ApiError::invalid("model", format!("{name:?} is no {}", kind.name()))),
        }
    }

    fn names(&self) -> String {
        self.models.iter().map(|served| served.name.as_str()).collect::<Vec<_>>().join(", ")
    }
}

/// The kind of model that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A model that generates text or log-probs.
    Language,
    /// A model that computes scores.
    Reward,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Language => "language model",
            Kind::Reward => "reward model",
        }
    }
}

/// Default maximum of prompt plus reply in tokens: a longer context takes memory for every sequence.
const DEFAULT_CONTEXT: usize = 4096;

/// A model whose weights are not loaded yet.
struct Opened {
    name: String,
    dir: PathBuf,
    context: usize,
    found: Found,
}

impl Opened {
    /// Opens a checkpoint with the head it has.
    fn new(named: &Named, size: &Size, context: &StageContext) -> anyhow::Result<Opened> {
        let (name, dir) = (named.name.clone(), hub::resolve(&named.path, hub::Kind::Model)?);
        let checkpoint = Checkpoint::open(&dir)?;
        let head = if checkpoint.spec.head == Head::Scalar { Head::Scalar } else { Head::LanguageModel };
        let encoder = Encoder::open_if_any(&checkpoint)?;
        if head == Head::Scalar {
            say_where_scores_are_read(&checkpoint, encoder.as_ref(), context);
        }
        let most = checkpoint.spec.max_positions;
        if let Some(longest) = size.longest.filter(|longest| *longest > most) {
            bail!("--max-model-len is {longest}, but {name} has a context of {most}");
        }
        if size.longest.is_none() && most > DEFAULT_CONTEXT {
            context.say(&format!(
                "{name}: prompts with their replies of at most {DEFAULT_CONTEXT} tokens; --max-model-len takes up to {most}"
            ));
        }
        let context = size.longest.unwrap_or(most.min(DEFAULT_CONTEXT));
        Ok(Opened { name, dir, context, found: Found { checkpoint, encoder, head } })
    }
}

/// Plans the memory of all models together, reports it, and fails if it is too much.
fn check_memory(opened: &[Opened], size: &Size, context: &StageContext) -> anyhow::Result<()> {
    let longest = opened.iter().map(|opened| opened.context).max().unwrap_or(1);
    let need = |knobs: &MemorySettings| {
        let mut roles = Roles::new(knobs.dtype);
        opened.iter().for_each(|opened| roles.frozen(&opened.found.checkpoint, opened.found.head));
        let mut need: Need = roles.need();
        for Opened { found, context, .. } in opened {
            need.add(part::GENERATION, passes(found, (*context).min(knobs.pass), size.batched_tokens, knobs));
        }
        need
    };
    let knobs = MemorySettings { slots: size.sequences, pass: longest, ..MemorySettings::on(&context.device) };
    let savings = [Saving::Slots("--max-num-seqs"), Saving::Pass("--max-model-len", 1024), Saving::Dtype];
    memory::check("serve", &knobs, &savings, &need, context)
}

/// Memory of the passes of one model: prefill beside running sequences, and passes over whole sequences.
fn passes(found: &Found, context: usize, batched: usize, knobs: &MemorySettings) -> u64 {
    let (spec, passes) = (found.spec(), Passes::new(knobs));
    let passed = Passed::new(&spec, found.lora());
    let longest = context.saturating_sub(1).max(1) as u64;
    let together = (batched as u64).max(longest);
    let whole = (together / longest) as usize;
    let lengths: Vec<u64> = std::iter::repeat_n(longest, whole).chain([together % longest]).collect();
    if !found.head.has_language_model() {
        passes.forward(passed, &lengths);
        return passes.bytes();
    }
    passes.rank(passed, &lengths);
    let (steps, slots) = (vec![1; knobs.slots.saturating_sub(lengths.len())], knobs.slots);
    let beginning: Vec<u64> = lengths.iter().take(slots).copied().chain(steps).collect();
    passes.generate(passed, &beginning, slots, context as u64);
    passes.bytes()
}
