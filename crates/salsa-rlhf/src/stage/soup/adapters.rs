//! Soups of adapters of one base: the mean of low-rank adapters is a low-rank adapter.
use std::path::Path;

use anyhow::{Context, bail, ensure};
use salsa_algo::soup::compress;
use salsa_engine::{Head, LoraSpec, ModelSpec, TensorView};
use serde_json::{Value, json};

use super::{
    SoupConfig, SoupResult,
    arithmetic::{Arithmetic, Method},
    chat_template,
    ingredients::LOST_NORMALIZATION,
};
use crate::{
    atomic,
    checkpoint::{AdapterToSave, Checkpoint, Companions, Dtype, PeftAdapter, save_adapter},
    config::paths::ModelPath,
    stage::{
        StageContext,
        models::{adapters::mean, score_token::say_where_peft_reads_scores, tokenizers},
    },
};

#[cfg(test)]
mod tests;

/// Whether one of the folders is a PEFT directory.
pub(super) fn any(models: &[ModelPath]) -> bool {
    models.iter().any(|dir| PeftAdapter::is_one(dir))
}

/// Checks what a soup of adapters cannot do, whatever their weights are.
///
/// # Errors
/// Names the key.
pub(super) fn check(config: &SoupConfig) -> anyhow::Result<()> {
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
    Ok(())
}

/// Writes the soup of adapters as a PEFT directory with `soup.json`. Ingredients of weight 0 are omitted.
pub(super) fn cook(
    config: &SoupConfig,
    arithmetic: &Arithmetic,
    dir: &Path,
    context: &StageContext,
) -> anyhow::Result<SoupResult> {
    check(config)?;
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
    if kept[0].spec.head == Head::Scalar {
        say_where_peft_reads_scores(&kept[0], context);
    }
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
    Ok(SoupResult { summary, geometry: None })
}

/// The content of `soup.json`.
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

/// The score normalisation, if all ingredients have the same.
fn same_scores(models: &[Checkpoint]) -> Vec<(&'static str, Value)> {
    let first = models[0].score_normalization();
    let same = models.iter().all(|model| model.score_normalization() == first);
    let pair = first.filter(|_| same && models[0].spec.head == Head::Scalar);
    pair.map_or_else(Vec::new, |(mean, std)| vec![("score_mean", json!(mean)), ("score_std", json!(std))])
}

/// Relative error of a reduced rank: Frobenius norm of the cut-off part divided by that of the whole.
struct Lost {
    overall: f64,
    worst: f64,
    worst_matrix: String,
}

/// The best approximation with this rank, matrix by matrix.
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
