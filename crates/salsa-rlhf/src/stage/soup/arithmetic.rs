//! The method of a soup, checked, and what it does to one tensor.
use anyhow::{bail, ensure};
use salsa_algo::{
    random::bits,
    soup::{Consensus, Normalize, Sparsify, TaskMerge, Weights, slerp, slerp_from, weighted_mean},
};
use serde::{Deserialize, Serialize};

use super::SoupConfig;

/// How ingredients are combined; mergekit's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The weighted mean: the soup of the paper.
    Linear,
    /// A point on the arc between two models.
    Slerp,
    /// Task vectors trimmed by magnitude, with an election of signs.
    Ties,
    /// Task vectors thinned at random, then summed.
    DareLinear,
    /// Task vectors thinned at random, with an election of signs.
    DareTies,
    /// The weighted sum of task vectors.
    TaskArithmetic,
}

impl Method {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Method::Linear => "linear",
            Method::Slerp => "slerp",
            Method::Ties => "ties",
            Method::DareLinear => "dare_linear",
            Method::DareTies => "dare_ties",
            Method::TaskArithmetic => "task_arithmetic",
        }
    }

    /// Whether it works on differences from a base model.
    pub fn needs_base(self) -> bool {
        !matches!(self, Method::Linear | Method::Slerp)
    }

    fn is_sparse(self) -> bool {
        matches!(self, Method::Ties | Method::DareLinear | Method::DareTies)
    }
}

/// A checked method with its numbers.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    /// One weight for each ingredient, as used; of a slerp, `1 - t` and `t`.
    pub weights: Vec<f64>,
    rule: Rule,
}

#[derive(Clone, Debug)]
enum Rule {
    /// Of the ingredients whose weight is not 0.
    Mean(Weights),
    Arc {
        t: f64,
    },
    ArcFromBase {
        t: f64,
    },
    Task(TaskMerge),
    /// A [`TaskMerge`] whose seed differs from tensor to tensor.
    Dare {
        density: f64,
        seed: u64,
        consensus: Consensus,
        normalize: Normalize,
        scale: f64,
    },
}

impl Arithmetic {
    /// Checks the values that belong together.
    ///
    /// # Errors
    /// If weights are missing or unusable, a base is missing, or a value is given that the method does not use.
    pub fn new(config: &SoupConfig) -> anyhow::Result<Arithmetic> {
        let (method, count) = (config.method, config.models.len());
        let name = method.name();
        refuse_unused(config)?;
        if method.needs_base() && config.base_model.is_none() {
            bail!("method {name} works on differences from a base model; give it with base_model (--base DIR)");
        }
        if method == Method::Slerp {
            ensure!(count == 2, "method slerp takes exactly 2 models, not {count}");
            let t = config.t;
            let rule = if config.base_model.is_some() { Rule::ArcFromBase { t } } else { Rule::Arc { t } };
            return Ok(Arithmetic { weights: vec![1.0 - t, t], rule });
        }
        let given = given_weights(config)?;
        let normalize = normalization(config);
        if method == Method::Linear {
            let kept: Vec<f64> = given.iter().copied().filter(|w| *w != 0.0).collect();
            ensure!(!kept.is_empty(), "all weights are 0; at least one must be something else");
            let weights = Weights::new(&kept, normalize)?;
            let sum: f64 = if normalize == Normalize::Divide { given.iter().sum() } else { 1.0 };
            return Ok(Arithmetic { weights: given.iter().map(|w| w / sum).collect(), rule: Rule::Mean(weights) });
        }
        Weights::new(&given, Normalize::Keep)?; // finite
        let (density, seed, scale) = (config.density, config.seed, config.scale);
        let dare = |consensus| {
            TaskMerge::new(Sparsify::Random { density, seed }, consensus, normalize).map(|_| Rule::Dare {
                density,
                seed,
                consensus,
                normalize,
                scale,
            })
        };
        let task = |merge: TaskMerge| Rule::Task(merge.with_normalize(normalize).with_scale(scale));
        let rule = match method {
            Method::Ties => task(TaskMerge::ties(density)?),
            Method::DareLinear => dare(Consensus::Sum)?,
            Method::DareTies => dare(Consensus::Sign)?,
            _ => task(TaskMerge::task_arithmetic()),
        };
        Ok(Arithmetic { weights: given, rule })
    }

    /// The weights of a plain mean, of the ingredients that it reads.
    pub(super) fn mean(&self) -> Option<&Weights> {
        match &self.rule {
            Rule::Mean(weights) => Some(weights),
            _ => None,
        }
    }

    /// The ingredients that are read: a mean does not look at those of weight 0.
    pub(super) fn reads(&self) -> Vec<usize> {
        let all = 0..self.weights.len();
        match self.rule {
            Rule::Mean(_) => all.filter(|i| self.weights[*i] != 0.0).collect(),
            _ => all.collect(),
        }
    }

    /// Whether the base is read.
    pub(super) fn reads_base(&self) -> bool {
        matches!(self.rule, Rule::ArcFromBase { .. } | Rule::Task(_) | Rule::Dare { .. })
    }

    /// Combines tensor number `tensor`, of which `base` (empty if not read) and `ingredients` (those of
    /// [`Arithmetic::reads`]) are pieces, or all of it if this is no mean.
    pub(super) fn apply(&self, tensor: usize, base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
        match &self.rule {
            Rule::Mean(weights) => weighted_mean(ingredients, weights, out),
            Rule::Arc { t } => slerp(ingredients[0], ingredients[1], *t, out),
            Rule::ArcFromBase { t } => slerp_from(base, ingredients[0], ingredients[1], *t, out),
            Rule::Task(merge) => merge.apply(base, ingredients, &self.weights, out),
            Rule::Dare { density, seed, consensus, normalize, scale } => {
                let seed = bits(*seed, 0, tensor as u64);
                let merge = TaskMerge::new(Sparsify::Random { density: *density, seed }, *consensus, *normalize);
                let merge = merge.expect("the density was checked").with_scale(*scale);
                merge.apply(base, ingredients, &self.weights, out);
            }
        }
    }
}

/// A value that would be ignored is a misunderstanding.
fn refuse_unused(config: &SoupConfig) -> anyhow::Result<()> {
    let (method, unset) = (config.method, SoupConfig::default());
    let unused = [
        ("weights", method == Method::Slerp && !config.weights.is_empty(), "say where between the two with t"),
        ("normalize", method == Method::Slerp && config.normalize.is_some(), "leave it out"),
        ("t", method != Method::Slerp && config.t != unset.t, "give weights"),
        ("density", !method.is_sparse() && config.density != unset.density, "it belongs to ties and dare"),
        ("scale", !method.needs_base() && config.scale != unset.scale, "it belongs to methods with a base model"),
    ];
    for (key, is_unused, remedy) in unused {
        ensure!(!is_unused, "method {} does not use {key}; {remedy}", method.name());
    }
    ensure!(config.t.is_finite(), "t is {}; give a finite number", config.t);
    ensure!(config.scale.is_finite(), "scale is {}; give a finite number", config.scale);
    Ok(())
}

fn given_weights(config: &SoupConfig) -> anyhow::Result<Vec<f64>> {
    let count = config.models.len();
    if config.weights.is_empty() {
        return Ok(vec![1.0 / count as f64; count]);
    }
    let given = config.weights.len();
    ensure!(given == count, "{given} weights for {count} models; give one for each");
    Ok(config.weights.clone())
}

fn normalization(config: &SoupConfig) -> Normalize {
    match config.normalize.unwrap_or(matches!(config.method, Method::Linear | Method::Ties)) {
        true => Normalize::Divide,
        false => Normalize::Keep,
    }
}
