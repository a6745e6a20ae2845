//! `salsa soup`: the weights of several models made into one model.
//!
//! Tensors are read, combined in float32 and written piece by piece: the memory of the process does not grow with the
//! model. What the methods compute is in [`salsa_algo::soup`].
use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    StageContext,
    lifecycle::{record::Record, runner::mark_done},
};
use crate::{
    checkpoint::{Dtype, Durability, NewTensor, Writer, write_file},
    config::paths::{ModelPath, Places, TemplateChoice},
    stage::{
        device::Choice as DeviceChoice,
        keys::{ByteSize, ComputeType},
        kind::{Leaves, Product, Stage},
        reads::{ExampleUse, ModelUse, Reads},
    },
};

mod adapters;
mod arithmetic;
mod bf16;
mod chat_template;
mod digest;
mod geometry;
pub(super) mod greedy;
mod ingredients;
mod merge;
pub(crate) mod mergekit;
mod provenance;
mod rule;
mod setting;
#[cfg(test)]
mod tests;

use arithmetic::{Arithmetic, Method};
use geometry::Geometry;
use greedy::{GreedyConfig, Selection};
use ingredients::Ingredients;
use merge::Merge;
use provenance::Digests;
use setting::Setting;

/// What `salsa soup` can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SoupConfig {
    /// The ingredients: checkpoints of one architecture, vocabulary and tokenizer.
    #[schemars(extend("x-heading" = "Ingredients"))]
    pub models: Vec<ModelPath>,
    /// One for each model: a LoRA adapter (a PEFT directory) that is merged into it while it is read, or an empty text.
    /// Empty: no adapters. On the command line and in mergekit's files `MODEL+ADAPTER` under `models` is the same.
    pub adapters: Vec<ModelPath>,
    /// One number for each ingredient. Empty: all the same, with sum 1. The paper's `alpha` is the second of two. Each
    /// may differ from tensor to tensor: a list of numbers over the layers, or filters by name.
    pub weights: Vec<Setting>,
    /// How they are combined. The paper: linear.
    #[schemars(extend("x-heading" = "Method"))]
    pub method: Method,
    /// What the ingredients were fine-tuned from. Needed by `ties`, `dare_linear`, `dare_ties`, `task_arithmetic` and
    /// `model_stock`; makes `slerp` and `nuslerp` follow the arc between task vectors; otherwise only the report looks at
    /// it.
    pub base_model: Option<ModelPath>,
    /// Share of the entries of a task vector that `ties` and the `dare` methods keep, between 0 and 1; 0 leaves a model
    /// out, and not all may be 0. May differ from tensor to tensor.
    pub density: Setting,
    /// The same, one for each ingredient, in place of `density`. Empty: `density` is that of all.
    pub densities: Vec<Setting>,
    /// Factor of the merged task vector, lambda in the papers, or of the model of a `passthrough`; may differ from tensor
    /// to tensor.
    pub scale: Setting,
    /// Place of a `slerp` between the first model (0) and the second (1); may differ from tensor to tensor.
    pub t: Setting,
    /// What `greedy` measures ingredients and soups by; that method cannot be without it. None: nothing is measured.
    pub greedy: Option<GreedyConfig>,
    /// Whether `model_stock` measures angles row by row in place of tensor by tensor.
    pub filter_wise: bool,
    /// Whether `nuslerp` takes a tensor as one vector; if not, each row or column is one.
    pub nuslerp_flatten: bool,
    /// Whether `nuslerp` without `nuslerp_flatten` takes columns in place of rows (mergekit's name for it).
    pub nuslerp_row_wise: bool,
    /// Most steps in the search for a `karcher` mean.
    pub max_iter: usize,
    /// A step of `karcher` shorter than this, in radians, is the last one; a tensor not longer than this counts as zero;
    /// above 0.
    pub tol: f64,
    /// Seed of what the `dare` methods drop.
    pub seed: u64,
    /// Whether weights are divided by their sum. None: as the method has it, which is yes for `linear` and `ties`.
    pub normalize: Option<bool>,
    /// Number type of the soup. None: that of the ingredients, tensor by tensor; where they differ, the wider one.
    #[schemars(extend("x-heading" = "Output"))]
    pub dtype: Option<Dtype>,
    /// Of adapters: rank of the soup, at least 1, by the nearest adapter of that rank. None: the sum of the
    /// ingredients' ranks, exact.
    pub svd_rank: Option<usize>,
    /// Most bytes of weights in one file: a number, or such as 5GB (powers of ten).
    pub max_shard_size: ByteSize,
    /// Where tokenizer and chat template come from. None: the first ingredient that has a tokenizer.
    pub tokenizer_source: Option<ModelPath>,
    /// The soup's chat template: `chatml`, `llama3`, `alpaca` or `mistral`, a Jinja file, a Jinja text, or `auto` for the
    /// one that most of the models have. None: that of the tokenizer.
    pub chat_template: Option<TemplateChoice>,
    /// Whether norms, angles and distances go to `geometry.json` and, as a picture, to `geometry.html`.
    pub report: bool,
    /// Whether `soup.json` gets the BLAKE3 digest of every weight file, as `b3sum` prints it.
    pub digests: bool,
    /// Directory of the soup; must be empty or absent.
    pub output_dir: PathBuf,
}

impl Default for SoupConfig {
    fn default() -> SoupConfig {
        SoupConfig {
            models: Vec::new(),
            adapters: Vec::new(),
            weights: Vec::new(),
            method: Method::Linear,
            base_model: None,
            density: Setting::number(1.0),
            densities: Vec::new(),
            scale: Setting::number(1.0),
            t: Setting::number(0.5),
            greedy: None,
            filter_wise: false,
            nuslerp_flatten: true,
            nuslerp_row_wise: false,
            max_iter: 10,
            tol: 1e-5,
            seed: 0,
            normalize: None,
            dtype: None,
            svd_rank: None,
            max_shard_size: ByteSize(5_000_000_000),
            tokenizer_source: None,
            chat_template: None,
            report: false,
            digests: true,
            output_dir: PathBuf::new(),
        }
    }
}

impl SoupConfig {
    /// The same with `MODEL+ADAPTER` among the models written as a model and an adapter. What is there under such a name
    /// as a whole stays.
    ///
    /// # Errors
    /// If there is more than one adapter to a model, or adapters are given otherwise too; if the base has one.
    pub fn with_adapters_apart(mut self) -> anyhow::Result<SoupConfig> {
        let apart = |path: &Path| -> Option<(PathBuf, PathBuf)> {
            let (model, adapter) = path.to_str()?.split_once('+').filter(|_| !path.exists())?;
            Some((model.into(), adapter.into()))
        };
        if let Some((model, adapter)) = self.base_model.as_deref().and_then(apart) {
            bail!(
                "base_model: {}+{} is a model with an adapter; merge it first (salsa merge {} --output DIR) and name DIR",
                model.display(),
                adapter.display(),
                adapter.display()
            );
        }
        let found: Vec<Option<(PathBuf, PathBuf)>> = self.models.iter().map(|model| apart(model)).collect();
        if found.iter().all(Option::is_none) {
            return Ok(self);
        }
        ensure!(self.adapters.is_empty(), "adapters are given both as MODEL+ADAPTER and under adapters; take one way");
        let (mut models, mut adapters) = (Vec::new(), Vec::new());
        for (given, apart) in self.models.into_iter().zip(found) {
            let (model, adapter) = apart.unwrap_or_else(|| (given.to_path_buf(), PathBuf::new()));
            let shown = adapter.display();
            ensure!(
                adapter.exists() || !shown.to_string().contains('+'),
                "{}+{shown}: a model takes one adapter; merge the first one first (salsa merge)",
                model.display()
            );
            models.push(ModelPath::from(model));
            adapters.push(ModelPath::from(adapter));
        }
        (self.models, self.adapters) = (models, adapters);
        Ok(self)
    }
}

impl Stage for SoupConfig {
    const NAME: &'static str = "soup";
    const ABOUT: &'static str = "Average the weights of models (or combine them otherwise) into one.";
    const EXAMPLE: &'static str = "sft-a sft-b --weights 0.5 0.5 --output soup";
    const PRODUCT: Product = Product::Directory;
    const LEAVES: Leaves = Leaves::SameModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("what it is", "salsa inspect OUT"),
        ("PPO held to it", "salsa ppo --config FILE --reference.kind sft --reference.model OUT"),
    ];

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.models.is_empty(), "models is empty; name the checkpoints to combine");
        let (adapters, models) = (self.adapters.len(), self.models.len());
        ensure!(
            adapters == 0 || adapters == models,
            "{adapters} adapters for {models} models; give one for each, an empty text for none"
        );
        ensure!(self.svd_rank != Some(0), "svd_rank is 0; it must be at least 1");
        ensure!(self.max_shard_size.0 > 0, "max_shard_size is 0; give bytes, or such as 5GB");
        if self.method == Method::Greedy {
            let greedy = self.greedy.as_ref();
            greedy
                .context("method greedy needs something to measure by; say greedy.dataset (--greedy.dataset FILE)")?
                .validate()?;
        }
        Arithmetic::new(self).map(drop)
    }

    fn reads(&self) -> Reads {
        let chat = self.greedy.as_ref().map(|greedy| greedy.chat.clone()).unwrap_or_default();
        let reads = Reads::with_reader(self.models.first().map(AsRef::as_ref), &chat);
        let reads = [("models", ModelUse::Any), ("adapters", ModelUse::Any), ("base_model", ModelUse::Any)]
            .into_iter()
            .chain([("reward_model_path", ModelUse::Reward), ("tokenizer_source", ModelUse::Tokenizer)])
            .fold(reads.tokenizer_if_any(), |reads, (place, used)| reads.models(place, used));
        let Some(greedy) = &self.greedy else { return reads };
        let used = match greedy.reward_model_path {
            None => ExampleUse::Demonstration,
            Some(_) => ExampleUse::Prompt,
        };
        reads.examples("greedy.dataset", &greedy.dataset, used)
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn plans_memory(&self) -> bool {
        self.method == Method::Greedy
    }

    fn check_inputs(&self) -> anyhow::Result<()> {
        check_fit(self)
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes the soup into `output_dir`, which may hold what the stage runner put there: weights, companions, `soup.json`,
/// `geometry.json` and `geometry.html` if asked for and, last, `config.json`. Everything is on the disk when it returns.
/// A soup of adapters of one base is an adapter: `output_dir` becomes a PEFT directory.
///
/// # Errors
/// If the ingredients do not fit together (nothing is read or written then), a weight is not finite, or a file cannot be
/// written.
pub(crate) fn run(config: &SoupConfig, context: &StageContext) -> anyhow::Result<Value> {
    Ok(cook(config, &config.output_dir, Durability::Synced, context)?.summary)
}

/// What a soup came to.
#[derive(Debug)]
pub(crate) struct Cooked {
    /// Numbers about it.
    pub summary: Value,
    /// The report, if asked for.
    pub geometry: Option<Geometry>,
}

/// Writes the soup to `output_dir`, which must be empty or absent: into `OUTPUT_DIR.tmp`, which gets its name when all is
/// done. So there is either a whole soup or none. Syncing is left to the operating system. It has the `stage.json` and
/// `timings.json` of a stage, but for the SHA-256 of what was read: that would be as much work as the soup.
///
/// # Errors
/// As [`run`], and if `output_dir` holds anything.
pub(crate) fn write_new_directory(config: &SoupConfig, context: &StageContext) -> anyhow::Result<Cooked> {
    let dir = &config.output_dir;
    let shown = dir.display();
    if dir.exists() && fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))?.next().is_some() {
        bail!("{shown} is not empty; remove it to make the soup anew, or choose another output directory");
    }
    let tmp = temporary(dir)?;
    if tmp.exists() {
        fs::remove_dir_all(&tmp)
            .with_context(|| format!("cannot remove {}, left by an interrupted run", tmp.display()))?;
    }
    let start = Instant::now();
    let done = cook(config, &tmp, Durability::Cached, context).and_then(|cooked| {
        let value = serde_json::to_value(config).context("configuration")?;
        let record =
            Record { results: cooked.summary.clone(), ..Record::new("soup", value, Places::of(config)?, Vec::new()) };
        mark_done(&tmp, &record, start.elapsed().as_secs_f64())?;
        fs::rename(&tmp, dir).with_context(|| format!("cannot rename {} to {shown}", tmp.display()))?;
        Ok(cooked)
    });
    if done.is_err() {
        // The error is what matters; the next attempt removes what is left.
        let _ = fs::remove_dir_all(&tmp);
    }
    done
}

fn temporary(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut name =
        dir.file_name().with_context(|| format!("{} names no directory to write", dir.display()))?.to_owned();
    name.push(".tmp");
    Ok(dir.with_file_name(name))
}

/// Opens what goes into a soup, and holds the ingredients against each other. Nothing is read or written.
///
/// # Errors
/// If one cannot be opened, or they do not fit together.
pub(crate) fn check_fit(config: &SoupConfig) -> anyhow::Result<()> {
    if adapters::any(&config.models) {
        // They are compared as they are read.
        return Ok(());
    }
    Ingredients::open(config)?.tensors(config.dtype).map(drop)
}

/// The order is the promise: checks, weights, the rest, `config.json`.
fn cook(config: &SoupConfig, dir: &Path, durability: Durability, context: &StageContext) -> anyhow::Result<Cooked> {
    let arithmetic = Arithmetic::new(config)?;
    if adapters::any(&config.models) {
        return adapters::cook(config, &arithmetic, dir, context);
    }
    ensure!(
        config.svd_rank.is_none(),
        "svd_rank is for soups of adapters; {} is a whole model",
        config.models[0].display()
    );
    let ingredients = Ingredients::open(config)?;
    let tensors = ingredients.tensors(config.dtype)?;
    ingredients.check_tied_copies()?;
    let companions = chat_template::put(config, ingredients.companions(config)?, ingredients.dirs())?;
    let (config, selection) = &chosen(config, &ingredients, &tensors, context)?;
    let arithmetic = Arithmetic::new(config)?;

    let writer = Writer::create(dir, tensors.clone(), config.max_shard_size.0, durability)?;
    let (bytes, files) = (writer.bytes(), writer.files());
    let digests = Digests::new(config, &ingredients, &writer)?;
    let geometry = Merge::new(&ingredients, &arithmetic, &tensors, &digests, config.report)?.run(&writer, context)?;
    writer.finish()?;

    for (name, bytes) in companions.files() {
        write_file(&dir.join(name), bytes, durability)?;
    }
    let write = |name: &str, value: &Value| write_file(&dir.join(name), format!("{value:#}\n").as_bytes(), durability);
    if let Some(geometry) = &geometry {
        write("geometry.json", &geometry.to_json())?;
        write_file(&dir.join("geometry.html"), geometry.html().as_bytes(), durability)?;
    }
    let record = provenance::record(config, &arithmetic, &ingredients, &digests, &files, selection.as_ref())?;
    write("soup.json", &record)?;
    let model = ingredients.config(main_dtype(&tensors));
    ingredients.say_lost_normalization(&model, context);
    write("config.json", &model)?;
    let mut summary = json!({
        "ingredients": config.models.len(),
        "method": if selection.is_some() { Method::Greedy } else { config.method },
        "parameters": ingredients.parameters(),
        "bytes": bytes,
    });
    if let Some(selection) = selection {
        summary["kept"] = json!(selection.kept);
    }
    Ok(Cooked { summary, geometry })
}

/// A greedy soup is, once its ingredients are chosen, a mean of which some have the weight 0.
fn chosen(
    config: &SoupConfig,
    ingredients: &Ingredients,
    tensors: &[NewTensor],
    context: &StageContext,
) -> anyhow::Result<(SoupConfig, Option<Selection>)> {
    if config.method != Method::Greedy {
        return Ok((config.clone(), None));
    }
    let selection = greedy::choose(config, ingredients, tensors, context)?;
    let weights = selection.weights(config.models.len()).into_iter().map(Setting::number).collect();
    Ok((SoupConfig { method: Method::Linear, greedy: None, weights, ..config.clone() }, Some(selection)))
}

/// The type that holds most numbers.
fn main_dtype(tensors: &[NewTensor]) -> Dtype {
    let held = |dtype: Dtype| -> usize {
        tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.shape.iter().product::<usize>()).sum()
    };
    [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().max_by_key(|dtype| held(*dtype)).unwrap_or(Dtype::F32)
}
