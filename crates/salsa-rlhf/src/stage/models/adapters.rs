//! The weighted mean of low-rank adapters of one base, itself a low-rank adapter.
use anyhow::{Context, bail, ensure};
use salsa_algo::soup::{LowRank, Normalize, Weights, concatenate, weighted_mean};
use salsa_engine::{LoraSpec, Target, TensorView};

use crate::checkpoint::{Checkpoint, PeftAdapter};

/// Whether all models are adapters of the same base folder.
pub(crate) fn share_a_base(models: &[Checkpoint]) -> bool {
    models.first().is_some_and(|first| models.iter().all(|model| model.adapter().is_some() && same_base(first, model)))
}

/// The weighted mean of adapters of one base, as an adapter of scale 1 whose rank is the sum of their ranks; scales and
/// weights are folded into the factors B. An adapter without factors for a matrix that another one adapts contributes
/// zero. Scalar heads are averaged. Weights must sum to 1: otherwise the base itself would have to change.
///
/// # Errors
/// If the models are not adapters of the same base and kind, or one cannot be read.
pub(crate) fn mean(models: &[Checkpoint], weights: &[f64]) -> anyhow::Result<(LoraSpec, Vec<f32>)> {
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

/// An adapter of the mean, with its weights.
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
