//! `salsa soup`: merges the weights of several models into one model.
//!
//! Tensors are read, combined in float32 and written piece by piece, so memory use does not grow with the model. The
//! arithmetic of the methods is in [`salsa_algo::soup`].
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
        kind::{Processes, Produces, Product, Stage},
        reads::{ExampleUse, ModelUse, Reads},
    },
};

mod adapters;
mod arithmetic;
mod bf16;
mod chat_template;
pub(super) mod criterion;
mod digest;
mod geometry;
mod greedy;
mod ingredients;
mod merge;
pub(crate) mod mergekit;
mod provenance;
mod rule;
pub(super) mod search;
mod setting;
#[cfg(test)]
mod tests;

use arithmetic::{Arithmetic, Method};
use criterion::MeasureConfig;
use geometry::Geometry;
use ingredients::Ingredients;
use merge::Merge;
use provenance::{Choice, Digests};
use search::SearchConfig;
use setting::Setting;

/// Configuration of `salsa soup`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SoupConfig {
    /// The ingredients: checkpoints with the same architecture, vocabulary and tokenizer.
    #[schemars(extend("x-heading" = "Ingredients"))]
    pub models: Vec<ModelPath>,
    /// One for each model: a LoRA adapter (a PEFT directory) to merge into it while reading, or an empty text. Empty:
    /// no adapters. On the command line and in mergekit files, `MODEL+ADAPTER` under `models` is equivalent.
    pub adapters: Vec<ModelPath>,
    /// One number for each ingredient. Empty: equal weights with sum 1. The paper's `alpha` is the second of two. Each
    /// may vary by tensor: a list of numbers over the layers, or filters by name.
    pub weights: Vec<Setting>,
    /// How the ingredients are combined. The paper: linear.
    #[schemars(extend("x-heading" = "Method"))]
    pub method: Method,
    /// The model that the ingredients were fine-tuned from. Required by `ties`, `dare_linear`, `dare_ties`,
    /// `task_arithmetic` and `model_stock`; makes `slerp` and `nuslerp` interpolate between task vectors; otherwise
    /// used only by the report.
    pub base_model: Option<ModelPath>,
    /// Share of the entries of a task vector that `ties` and the `dare` methods keep, between 0 and 1; 0 omits a model,
    /// and not all may be 0. May vary by tensor.
    pub density: Setting,
    /// Densities, one for each ingredient, instead of `density`. Empty: `density` applies to all.
    pub densities: Vec<Setting>,
    /// Factor of the merged task vector, lambda in the papers, or of the model of a `passthrough`; may vary by tensor.
    pub scale: Setting,
    /// Position of a `slerp` between the first model (0) and the second (1); may vary by tensor.
    pub t: Setting,
    /// The measure of ingredients and soups for the method `greedy`, which requires it. None: nothing is measured.
    pub greedy: Option<MeasureConfig>,
    /// The search for the weights of the method `search`, which requires it; `seed` is that of its samples. None: nothing is
    /// searched.
    pub search: Option<SearchConfig>,
    /// Whether `model_stock` measures angles row by row instead of tensor by tensor.
    pub filter_wise: bool,
    /// Whether `nuslerp` treats a tensor as one vector instead of a vector for each row or column.
    pub nuslerp_flatten: bool,
    /// Whether `nuslerp` without `nuslerp_flatten` uses columns instead of rows (mergekit's name for it).
    pub nuslerp_row_wise: bool,
    /// Maximum number of iterations for a `karcher` mean.
    pub max_iter: usize,
    /// `karcher` ends with the first step shorter than this, in radians; a tensor with a norm of at most this counts as
    /// zero; above 0.
    pub tol: f64,
    /// Seed of the entries that the `dare` methods drop, and of the samples of `search`.
    pub seed: u64,
    /// Whether weights are divided by their sum. None: the method's default, which is yes for `linear` and `ties`.
    pub normalize: Option<bool>,
    /// Number type of the soup. None: the ingredients' type of each tensor; if they differ, the wider one.
    #[schemars(extend("x-heading" = "Output"))]
    pub dtype: Option<Dtype>,
    /// For adapters: rank of the soup, at least 1, as the best approximation of that rank. None: the sum of the
    /// ingredients' ranks, exact.
    pub svd_rank: Option<usize>,
    /// Maximum bytes of weights per file: a number, or text such as 5GB (powers of ten).
    pub max_shard_size: ByteSize,
    /// Source of tokenizer and chat template. None: the first ingredient that has a tokenizer.
    pub tokenizer_source: Option<ModelPath>,
    /// The soup's chat template: `chatml`, `llama3`, `alpaca` or `mistral`, a Jinja file, a Jinja text, or `auto` for
    /// the one that most models have. None: that of the tokenizer.
    pub chat_template: Option<TemplateChoice>,
    /// Whether to write norms, angles and distances to `geometry.json` and, as plots, to `geometry.html`.
    pub report: bool,
    /// Whether to write the BLAKE3 digest of every weight file, as printed by `b3sum`, to `soup.json`.
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
            search: None,
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
    /// Splits every `MODEL+ADAPTER` among the models into a model and an adapter, unless a file or folder with that
    /// whole name exists.
    ///
    /// # Errors
    /// If a model has more than one adapter, if adapters are also given separately, or if the base has one.
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
    const PRODUCES: Produces = Produces::SameModel;
    const NEXT: &'static [(&'static str, &'static str)] = &[
        ("what it is", "salsa inspect OUT"),
        ("PPO held to it", "salsa ppo --config FILE --reference.kind sft --reference.model OUT"),
    ];
    const PROCESSES: Processes = Processes::First;

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
                .validate("greedy")?;
        }
        if self.method == Method::Search {
            let search = self.search.as_ref();
            search
                .context("method search needs something to measure by; say search.dataset and search.eval_dataset")?
                .validate(self.models.len())?;
        }
        Arithmetic::new(self).map(drop)
    }

    fn reads(&self) -> Reads {
        let measure = self.greedy.as_ref().or(self.search.as_ref().map(|search| &search.measure));
        let chat = measure.map(|measure| measure.chat.clone()).unwrap_or_default();
        let reads = Reads::with_reader(self.models.first().map(AsRef::as_ref), &chat);
        let reads = [("models", ModelUse::Any), ("adapters", ModelUse::Any), ("base_model", ModelUse::Any)]
            .into_iter()
            .chain([("reward_model_path", ModelUse::Reward), ("tokenizer_source", ModelUse::Tokenizer)])
            .fold(reads.tokenizer_if_any(), |reads, (place, used)| reads.models(place, used));
        let Some(measure) = measure else { return reads };
        let used = match measure.reward_model_path {
            None => ExampleUse::Demonstration,
            Some(_) => ExampleUse::Prompt,
        };
        match &self.search {
            None => reads.examples("greedy.dataset", &measure.dataset, used),
            Some(search) => reads.examples("search.dataset", &measure.dataset, used).examples(
                "search.eval_dataset",
                &search.eval_dataset,
                used,
            ),
        }
    }

    fn computes(&self) -> Option<(DeviceChoice, ComputeType)> {
        None
    }

    fn plans_memory(&self) -> bool {
        matches!(self.method, Method::Greedy | Method::Search)
    }

    fn check_inputs(&self) -> anyhow::Result<()> {
        check_fit(self)
    }

    fn run(&self, context: &StageContext) -> anyhow::Result<Value> {
        run(self, context)
    }
}

/// Writes the soup into `output_dir`, which may hold files of the stage runner: weights, companions, `soup.json`,
/// `geometry.json` and `geometry.html` if requested and, last, `config.json`. All files are synced on return. A soup of
/// adapters of one base is an adapter: `output_dir` becomes a PEFT directory.
///
/// # Errors
/// If the ingredients are incompatible (then nothing is read or written), a weight is not finite, or a file cannot be
/// written.
pub(crate) fn run(config: &SoupConfig, context: &StageContext) -> anyhow::Result<Value> {
    Ok(cook(config, &config.output_dir, Durability::Synced, context)?.summary)
}

/// The result of a soup.
#[derive(Debug)]
pub(crate) struct SoupResult {
    /// Statistics of the soup.
    pub summary: Value,
    /// The report, if requested.
    pub geometry: Option<Geometry>,
}

/// Writes the soup to `output_dir`, which must be empty or absent. It is written to `OUTPUT_DIR.tmp`, which is renamed
/// at the end, so that no partial soup can exist. Syncing is left to the operating system. The directory has the
/// `stage.json` and `timings.json` of a stage, without SHA-256 digests of the inputs: they would take as long as the
/// soup.
///
/// # Errors
/// As [`run`], and if `output_dir` is not empty.
pub(crate) fn write_new_directory(config: &SoupConfig, context: &StageContext) -> anyhow::Result<SoupResult> {
    let dir = &config.output_dir;
    let shown = dir.display();
    if dir.exists() && fs::read_dir(dir).with_context(|| format!("cannot list {shown}"))?.next().is_some() {
        bail!("{shown} is not empty; remove it to make the soup anew, or choose another output directory");
    }
    let tmp = temporary(dir)?;
    if config.method == Method::Search {
        search::clear_except_journal(&tmp)?;
    } else if tmp.exists() {
        fs::remove_dir_all(&tmp)
            .with_context(|| format!("cannot remove {}, left by an interrupted run", tmp.display()))?;
    }
    let start = Instant::now();
    let done = cook(config, &tmp, Durability::Cached, context).and_then(|cooked| {
        if config.method == Method::Search {
            fs::remove_dir_all(tmp.join("checkpoints")).context("cannot remove the journal of the search")?;
        }
        let value = serde_json::to_value(config).context("configuration")?;
        let record =
            Record { results: cooked.summary.clone(), ..Record::new("soup", value, Places::of(config)?, Vec::new()) };
        mark_done(&tmp, &record, start.elapsed().as_secs_f64())?;
        fs::rename(&tmp, dir).with_context(|| format!("cannot rename {} to {shown}", tmp.display()))?;
        Ok(cooked)
    });
    if done.is_err() {
        // Report the first error; the next attempt removes the remaining files, and goes on with a search.
        let _ = match config.method {
            Method::Search => search::clear_except_journal(&tmp),
            _ => fs::remove_dir_all(&tmp).map_err(Into::into),
        };
    }
    done
}

fn temporary(dir: &Path) -> anyhow::Result<PathBuf> {
    let mut name =
        dir.file_name().with_context(|| format!("{} names no directory to write", dir.display()))?.to_owned();
    name.push(".tmp");
    Ok(dir.with_file_name(name))
}

/// Opens the ingredients and checks that they are compatible. Reads no weights and writes nothing.
///
/// # Errors
/// If one cannot be opened, or they are incompatible.
pub(crate) fn check_fit(config: &SoupConfig) -> anyhow::Result<()> {
    if adapters::any(&config.models) {
        // Adapters are compared when they are read.
        return adapters::check(config);
    }
    whole_models_only(config)?;
    Ingredients::open(config)?.tensors(config.dtype).map(drop)
}

/// Checks that no key is for adapters.
fn whole_models_only(config: &SoupConfig) -> anyhow::Result<()> {
    ensure!(
        config.svd_rank.is_none(),
        "svd_rank is for soups of adapters; {} is a whole model",
        config.models[0].display()
    );
    Ok(())
}

/// Keeps the guaranteed order: checks, weights, the rest, `config.json`.
fn cook(config: &SoupConfig, dir: &Path, durability: Durability, context: &StageContext) -> anyhow::Result<SoupResult> {
    let arithmetic = Arithmetic::new(config)?;
    if adapters::any(&config.models) {
        return adapters::cook(config, &arithmetic, dir, context);
    }
    whole_models_only(config)?;
    let ingredients = Ingredients::open(config)?;
    let tensors = ingredients.tensors(config.dtype)?;
    ingredients.check_tied_copies()?;
    let companions = chat_template::put(config, ingredients.companions(config)?, ingredients.dirs())?;
    let (config, choice) = &chosen(config, &ingredients, &tensors, dir, context)?;
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
    let record = provenance::record(config, &arithmetic, &ingredients, &digests, &files, choice.as_ref())?;
    write("soup.json", &record)?;
    let model = ingredients.config(main_dtype(&tensors));
    ingredients.say_lost_normalization(&model, context);
    write("config.json", &model)?;
    let mut summary = json!({
        "ingredients": config.models.len(),
        "method": choice.as_ref().map_or(config.method, Choice::method),
        "parameters": ingredients.parameters(),
        "bytes": bytes,
    });
    match choice {
        None => {}
        Some(Choice::Greedy(selection)) => summary["kept"] = json!(selection.kept),
        Some(Choice::Search(found)) => summary["weights"] = json!(found.weights()),
    }
    Ok(SoupResult { summary, geometry })
}

/// Turns a soup that is measured into a mean with the chosen weights.
fn chosen(
    config: &SoupConfig,
    ingredients: &Ingredients,
    tensors: &[NewTensor],
    dir: &Path,
    context: &StageContext,
) -> anyhow::Result<(SoupConfig, Option<Choice>)> {
    let choice = match config.method {
        Method::Greedy => Choice::Greedy(greedy::choose(config, ingredients, tensors, context)?),
        Method::Search => Choice::Search(search::search(config, ingredients, tensors, dir, context)?),
        _ => return Ok((config.clone(), None)),
    };
    let weights = choice.weights(config.models.len()).into_iter().map(Setting::number).collect();
    let linear = SoupConfig { method: Method::Linear, greedy: None, search: None, weights, ..config.clone() };
    Ok((linear, Some(choice)))
}

/// The number type of most weights.
fn main_dtype(tensors: &[NewTensor]) -> Dtype {
    let held = |dtype: Dtype| -> usize {
        tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.shape.iter().product::<usize>()).sum()
    };
    [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().max_by_key(|dtype| held(*dtype)).unwrap_or(Dtype::F32)
}
