//! Soups of adapters of one base: the mean of low-rank adapters is a low-rank adapter.
use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_algo::soup::{LowRank, Normalize, Weights, compress, concatenate, weighted_mean};
use salsa_engine::{Head, LoraSpec, ModelSpec, Target, TensorView};
use serde_json::{Value, json};

use super::{
    Cooked, SoupConfig,
    arithmetic::{Arithmetic, Method},
    chat_template,
    ingredients::LOST_NORMALIZATION,
    tokenizers,
};
use crate::config::paths::ModelPath;
use crate::{
    atomic,
    checkpoint::{AdapterToSave, Checkpoint, Companions, Dtype, PeftAdapter, save_adapter},
    stage::StageContext,
};

#[cfg(test)]
mod tests;

/// Whether one of the folders is a PEFT directory.
pub(super) fn any(models: &[ModelPath]) -> bool {
    models.iter().any(|dir| PeftAdapter::is_one(dir))
}

/// Writes the soup of adapters as a PEFT directory with `soup.json`. Ingredients of weight 0 are left out.
pub(super) fn cook(
    config: &SoupConfig,
    arithmetic: &Arithmetic,
    dir: &Path,
    context: &StageContext,
) -> anyhow::Result<Cooked> {
    ensure!(
        config.adapters.is_empty(),
        "adapters are for whole models, which they are merged into; models names adapters already"
    );
    ensure!(
        config.method == Method::Linear,
        "adapters can only be mixed with method linear, not {}: merge each into its base first (salsa merge)",
        config.method.name()
    );
    ensure!(!config.report, "there is no report on adapters; merge each into its base (salsa merge) and mix these");
    let models = config.models.iter().map(|dir| Checkpoint::open(dir)).collect::<anyhow::Result<Vec<_>>>()?;
    for other in &models[1..] {
        if let Some(difference) = tokenizers::difference(models[0].dir(), other.dir())? {
            let names = format!("{} and {}", config.models[0].display(), other.dir().display());
            bail!("{names} cannot be mixed: tokenizer.json differs: {difference}");
        }
    }
    let weights = arithmetic.constant_weights().context(
        "adapters can only be mixed with one weight each: merge each into its base (salsa merge) for weights by tensor",
    )?;
    let weights = &weights;
    let (kept, shares): (Vec<Checkpoint>, Vec<f64>) =
        models.into_iter().zip(weights.iter().copied()).filter(|(_, weight)| *weight != 0.0).unzip();
    let (exact, factors) = mean(&kept, &shares)?;
    let spec = &kept[0].spec;
    let (lora, factors, lost) = match config.svd_rank {
        Some(rank) if rank < exact.rank => {
            let (lora, factors, lost) = compressed(&exact, &factors, spec, rank);
            (lora, factors, Some(lost))
        }
        _ => (exact.clone(), factors, None),
    };
    let scores = same_scores(&kept);
    if scores.is_empty() && kept.iter().any(|model| model.score_normalization().is_some()) {
        context.say(LOST_NORMALIZATION);
    }
    let companions = Companions::from_dir(config.tokenizer_source.as_deref().unwrap_or(kept[0].dir()))?;
    let companions = chat_template::put(config, companions, kept.iter().map(Checkpoint::dir))?;
    let mut summary = json!({
        "ingredients": config.models.len(),
        "method": config.method,
        "rank": lora.rank,
        "parameters": factors.len(),
        "base": kept[0].base_dir(),
    });
    if let Some(lost) = lost {
        summary["exact_rank"] = json!(exact.rank);
        summary["relative_error"] = json!(lost.overall);
        summary["worst_relative_error"] = json!(lost.worst);
        summary["worst_matrix"] = json!(lost.worst_matrix);
    }
    let adapter = AdapterToSave {
        base: kept[0].base_dir(),
        spec,
        lora: &lora,
        weights: &factors,
        dtype: config.dtype.map_or(Dtype::F32, Into::into),
        companions: &companions,
        scores: &scores,
    };
    std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let record = format!("{:#}\n", record(config, weights, &summary)?);
    atomic::write(&dir.join("soup.json"), record.as_bytes())?;
    save_adapter(dir, &adapter)?;
    Ok(Cooked { summary, geometry: None })
}

/// What the soup was made of.
fn record(config: &SoupConfig, weights: &[f64], summary: &Value) -> anyhow::Result<Value> {
    let ingredient = |(dir, weight): (&ModelPath, &f64)| -> anyhow::Result<Value> {
        let path = dir.join("adapter_model.safetensors");
        let mut ingredient = json!({ "path": dir, "weight": weight });
        if config.digests && path.is_file() {
            ingredient["sha256"] = json!(atomic::sha256_file(&path)?);
        }
        Ok(ingredient)
    };
    let ingredients = config.models.iter().zip(weights).map(ingredient).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(json!({ "salsa": env!("CARGO_PKG_VERSION"), "ingredients": ingredients, "soup": summary }))
}

/// The normalisation of scores, if all ingredients have the same.
fn same_scores(models: &[Checkpoint]) -> Vec<(&'static str, Value)> {
    let first = models[0].score_normalization();
    let same = models.iter().all(|model| model.score_normalization() == first);
    let pair = first.filter(|_| same && models[0].spec.head == Head::Scalar);
    pair.map_or_else(Vec::new, |(mean, std)| vec![("score_mean", json!(mean)), ("score_std", json!(std))])
}

/// What a smaller rank cost: Frobenius norm of what was cut off over that of the whole.
struct Lost {
    overall: f64,
    worst: f64,
    worst_matrix: String,
}

/// The nearest adapter of this rank, matrix by matrix.
fn compressed(lora: &LoraSpec, factors: &[f32], spec: &ModelSpec, rank: usize) -> (LoraSpec, Vec<f32>, Lost) {
    let small = LoraSpec { rank, alpha: rank as f64, ..lora.clone() };
    let (views, small_views) = (lora.tensors(spec), small.tensors(spec));
    let find = |views: &[TensorView], name: &str| {
        let view = views.iter().find(|view| view.name == name);
        view.expect("every target has both factors in every block").range.clone()
    };
    let mut out = vec![0f32; small.parameters(spec)];
    let (mut lost, mut total) = (0.0, 0.0);
    let (mut worst, mut worst_matrix) = (0.0, String::new());
    for layer in 0..spec.layers {
        for target in &lora.targets {
            let matrix = format!("model.layers.{layer}.{}", target.path());
            let (name_a, name_b) = (format!("{matrix}.lora_A.weight"), format!("{matrix}.lora_B.weight"));
            let (a, b) = (&factors[find(&views, &name_a)], &factors[find(&views, &name_b)]);
            let result = compress(a, b, lora.rank, target.shape(spec), rank);
            out[find(&small_views, &name_a)].copy_from_slice(&result.a);
            out[find(&small_views, &name_b)].copy_from_slice(&result.b);
            let error = relative(result.lost, result.total);
            if error > worst {
                (worst, worst_matrix) = (error, matrix);
            }
            lost += result.lost;
            total += result.total;
        }
    }
    if spec.head == Head::Scalar {
        out[find(&small_views, "score.weight")].copy_from_slice(&factors[find(&views, "score.weight")]);
    }
    (small, out, Lost { overall: relative(lost, total), worst, worst_matrix })
}

fn relative(lost: f64, total: f64) -> f64 {
    if total > 0.0 { (lost / total).sqrt() } else { 0.0 }
}

/// Whether all these models are adapters of the same base folder.
pub fn share_a_base(models: &[Checkpoint]) -> bool {
    models.first().is_some_and(|first| models.iter().all(|model| model.adapter().is_some() && same_base(first, model)))
}

/// The weighted mean of adapters of one base, as an adapter of scale 1 whose rank is the sum of theirs; scales and weights
/// are folded into the factors B. Where an adapter has no factors for a matrix that another one adapts, its part is zero.
/// Scalar heads are averaged. Weights must sum to 1: else the base itself would have to change.
///
/// # Errors
/// If the models are not adapters of one base and of one kind, or one cannot be read.
pub fn mean(models: &[Checkpoint], weights: &[f64]) -> anyhow::Result<(LoraSpec, Vec<f32>)> {
    let parts = models.iter().map(Part::read).collect::<anyhow::Result<Vec<_>>>()?;
    let first = models.first().context("a soup needs at least one model")?;
    for model in models {
        let names = || format!("{} and {}", models[0].dir().display(), model.dir().display());
        if !same_base(first, model) {
            bail!(
                "{} are adapters of different base models; merge each into its base (salsa merge) and mix these",
                names()
            );
        }
        ensure!(model.spec == first.spec, "{} cannot be mixed: one is a language model, one a reward model", names());
    }
    let sum: f64 = weights.iter().sum();
    ensure!((sum - 1.0).abs() < 1e-6, "the weights of adapters sum to {sum}, not to 1; divide each by the sum");
    let rank: usize = parts.iter().map(|part| part.adapter.lora.rank).sum();
    let targets = parts.iter().flat_map(|part| part.adapter.lora.targets.iter().copied()).collect();
    let lora = LoraSpec { rank, alpha: rank as f64, rslora: false, targets };
    let mut out = vec![0f32; lora.parameters(&first.spec)];
    let views = lora.tensors(&first.spec);
    let place = |name: &str| views.iter().find(|view| view.name == name).map(|view| view.range.clone());
    for layer in 0..first.spec.layers {
        for target in &lora.targets {
            let name = |factor: &str| format!("model.layers.{layer}.{}.lora_{factor}.weight", target.path());
            let factors: Vec<Factors> = parts.iter().map(|part| part.factors(*target, &name, first)).collect();
            let views: Vec<LowRank<'_>> = factors.iter().map(Factors::view).collect();
            let (a, b) = concatenate(&views, weights, target.shape(&first.spec));
            for (factor, numbers) in [("A", a), ("B", b)] {
                out[place(&name(factor)).context("every target has both factors")?].copy_from_slice(&numbers);
            }
        }
    }
    if let Some(range) = place("score.weight") {
        let heads = parts.iter().map(|part| part.tensor("score.weight").context("every reward model has a head"));
        let heads = heads.collect::<anyhow::Result<Vec<_>>>()?;
        weighted_mean(&heads, &Weights::new(weights, Normalize::Keep)?, &mut out[range]);
    }
    Ok((lora, out))
}

fn same_base(a: &Checkpoint, b: &Checkpoint) -> bool {
    let base = |model: &Checkpoint| model.base_dir().canonicalize().ok();
    base(a).is_some() && base(a) == base(b)
}

/// An ingredient.
struct Part<'a> {
    adapter: &'a PeftAdapter,
    weights: Vec<f32>,
    views: Vec<TensorView>,
}

/// The factors of one matrix, zeros where the ingredient has none.
struct Factors {
    a: Vec<f32>,
    b: Vec<f32>,
    rank: usize,
    scale: f64,
}

impl Factors {
    fn view(&self) -> LowRank<'_> {
        LowRank { a: &self.a, b: &self.b, rank: self.rank, scale: self.scale }
    }
}

impl<'a> Part<'a> {
    fn read(model: &'a Checkpoint) -> anyhow::Result<Part<'a>> {
        let adapter = model.adapter().with_context(|| {
            format!(
                "{} is a whole model, others are adapters: merge the adapters into their bases first (salsa merge)",
                model.dir().display()
            )
        })?;
        Ok(Part { adapter, weights: adapter.read(&model.spec)?, views: adapter.lora.tensors(&model.spec) })
    }

    fn tensor(&self, name: &str) -> Option<&[f32]> {
        self.views.iter().find(|view| view.name == name).map(|view| &self.weights[view.range.clone()])
    }

    fn factors(&self, target: Target, name: &dyn Fn(&str) -> String, model: &Checkpoint) -> Factors {
        let ([out, input], rank) = (target.shape(&model.spec), self.adapter.lora.rank);
        let own = |factor: &str, len: usize| self.tensor(&name(factor)).map_or_else(|| vec![0.0; len], <[f32]>::to_vec);
        let scale = f64::from(self.adapter.lora.scale());
        Factors { a: own("A", rank * input), b: own("B", out * rank), rank, scale }
    }
}
