//! The method of a soup, checked, and settled for each tensor.
use anyhow::{Context, bail, ensure};
use salsa_algo::{
    random::bits,
    soup::{Consensus, Normalize, Origin, Sparsify, TaskMerge, Weights},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    SoupConfig,
    rule::{self, Rule, TensorRule},
    setting::{Setting, place},
};

/// How ingredients are combined; mergekit's names, and `greedy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The weighted mean: the soup of the paper.
    Linear,
    /// The mean of those ingredients that do not make it worse, as measured.
    Greedy,
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
            Method::Greedy => "greedy",
            Method::Slerp => "slerp",
            Method::Ties => "ties",
            Method::DareLinear => "dare_linear",
            Method::DareTies => "dare_ties",
            Method::TaskArithmetic => "task_arithmetic",
        }
    }

    /// Whether it works on differences from a base model.
    pub fn needs_base(self) -> bool {
        !matches!(self, Method::Linear | Method::Greedy | Method::Slerp)
    }

    fn is_sparse(self) -> bool {
        matches!(self, Method::Ties | Method::DareLinear | Method::DareTies)
    }
}

/// A checked method, whose numbers may differ from tensor to tensor.
#[derive(Clone, Debug)]
pub struct Arithmetic {
    method: Method,
    /// One for each ingredient; of a slerp, none.
    weights: Vec<Setting>,
    /// One for each ingredient.
    densities: Vec<Setting>,
    scale: Setting,
    t: Setting,
    normalize: Normalize,
    origin: Origin,
    seed: u64,
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
        }
        let arithmetic = Arithmetic {
            method,
            weights: given_weights(config)?,
            densities: given_densities(config)?,
            scale: config.scale.clone(),
            t: config.t.clone(),
            normalize: normalization(config),
            origin: if config.base_model.is_some() { Origin::Base } else { Origin::Zero },
            seed: config.seed,
        };
        arithmetic.check_numbers()?;
        if arithmetic.is_constant() {
            // What can be known before the ingredients are opened.
            arithmetic.rule(0, "", 0.0)?;
        }
        Ok(arithmetic)
    }

    /// The weights as used, if they are the same for all tensors.
    pub fn constant_weights(&self) -> Option<Vec<f64>> {
        let weights = self.is_constant().then(|| self.rule(0, "", 0.0).ok())??.weights;
        Some(weights)
    }

    /// The method for each of these tensors of a model with this many layers.
    ///
    /// # Errors
    /// If a tensor gets no number because no filter fits, or unusable weights; names it.
    pub(super) fn rules<'a>(
        &self,
        tensors: impl Iterator<Item = &'a str>,
        layers: usize,
    ) -> anyhow::Result<Vec<TensorRule>> {
        let rule = |(i, name): (usize, &str)| self.rule(i, name, place(name, layers)).with_context(|| name.to_owned());
        tensors.enumerate().map(rule).collect()
    }

    fn rule(&self, tensor: usize, name: &str, place: f64) -> anyhow::Result<TensorRule> {
        let number = |setting: &Setting, what: &str| {
            setting.at(name, place).with_context(|| {
                format!("no filter of {what} fits this tensor; add one without a name: {{value: NUMBER}}")
            })
        };
        if self.method == Method::Slerp {
            let t = number(&self.t, "t")?;
            return Ok(TensorRule { weights: vec![1.0 - t, t], rule: Rule::Arc { t, origin: self.origin } });
        }
        let weights =
            self.weights.iter().map(|weight| number(weight, "a weight")).collect::<anyhow::Result<Vec<f64>>>()?;
        if matches!(self.method, Method::Linear | Method::Greedy) {
            ensure!(weights.iter().any(|w| *w != 0.0), "all weights are 0; at least one must be something else");
            return Ok(rule::mean(&weights, self.normalize)?);
        }
        // Where no filter fits, all of a task vector is kept and it counts once, as in mergekit.
        let densities: Vec<f64> = self.densities.iter().map(|d| d.at(name, place).unwrap_or(1.0)).collect();
        let scale = self.scale.at(name, place).unwrap_or(1.0);
        let seed = bits(self.seed, 0, tensor as u64);
        let dare = |consensus| TaskMerge::new(Sparsify::Random { density: 1.0, seed }, consensus, self.normalize);
        let merge = match self.method {
            Method::Ties => TaskMerge::ties(1.0)?,
            Method::DareLinear => dare(Consensus::Sum)?,
            Method::DareTies => dare(Consensus::Sign)?,
            _ => TaskMerge::task_arithmetic(),
        };
        let merge = merge.with_normalize(self.normalize).with_scale(scale);
        Ok(TensorRule { weights, rule: Rule::Task { merge, densities } })
    }

    /// Whether all tensors are treated the same.
    fn is_constant(&self) -> bool {
        let settings = self.weights.iter().chain(&self.densities).chain([&self.scale, &self.t]);
        settings.into_iter().all(|setting| setting.constant().is_some())
    }

    fn check_numbers(&self) -> anyhow::Result<()> {
        for (i, weight) in self.weights.iter().enumerate() {
            let bad = weight.numbers().into_iter().find(|w| !w.is_finite());
            ensure!(bad.is_none(), "weight {} of the soup is {}; give a finite number", i + 1, bad.unwrap_or(f64::NAN));
        }
        for (key, setting) in [("t", &self.t), ("scale", &self.scale)] {
            let bad = setting.numbers().into_iter().find(|x| !x.is_finite());
            ensure!(bad.is_none(), "{key} is {}; give a finite number", bad.unwrap_or(f64::NAN));
        }
        for density in &self.densities {
            // Beside others, 0 leaves a model out of some tensors; alone, it would leave out all.
            let least = if density.constant().is_some() { f64::MIN_POSITIVE } else { 0.0 };
            let bad = density.numbers().into_iter().find(|d| !(least..=1.0).contains(d));
            ensure!(
                bad.is_none(),
                "density {} is not a share of entries to keep; give a number above 0 and at most 1",
                bad.unwrap_or(f64::NAN)
            );
        }
        Ok(())
    }
}

/// A value that would be ignored is a misunderstanding.
fn refuse_unused(config: &SoupConfig) -> anyhow::Result<()> {
    let (method, unset) = (config.method, SoupConfig::default());
    let unused = [
        ("weights", method == Method::Slerp && !config.weights.is_empty(), "say where between the two with t"),
        ("weights", method == Method::Greedy && !config.weights.is_empty(), "all that are kept weigh the same"),
        ("normalize", method == Method::Slerp && config.normalize.is_some(), "leave it out"),
        ("normalize", method == Method::Greedy && config.normalize.is_some(), "leave it out"),
        ("t", method != Method::Slerp && config.t != unset.t, "give weights"),
        ("density", !method.is_sparse() && config.density != unset.density, "it belongs to ties and dare"),
        ("densities", !method.is_sparse() && !config.densities.is_empty(), "they belong to ties and dare"),
        ("scale", !method.needs_base() && config.scale != unset.scale, "it belongs to methods with a base model"),
        ("greedy", method != Method::Greedy && config.greedy.is_some(), "it belongs to method greedy"),
    ];
    for (key, is_unused, remedy) in unused {
        ensure!(!is_unused, "method {} does not use {key}; {remedy}", method.name());
    }
    let both = config.density != unset.density && !config.densities.is_empty();
    ensure!(!both, "density and densities are both given; give one for all models, or one for each");
    Ok(())
}

fn given_weights(config: &SoupConfig) -> anyhow::Result<Vec<Setting>> {
    let count = config.models.len();
    if config.method == Method::Slerp {
        return Ok(Vec::new());
    }
    if config.weights.is_empty() {
        // Divided by their sum, ones are the exact way of saying so.
        let divided = matches!(config.method, Method::Linear | Method::Greedy) && config.normalize != Some(false);
        let equal = if divided { 1.0 } else { 1.0 / count as f64 };
        return Ok(vec![Setting::number(equal); count]);
    }
    let given = config.weights.len();
    ensure!(given == count, "{given} weights for {count} models; give one for each");
    if let Some(numbers) = config.weights.iter().map(Setting::constant).collect::<Option<Vec<f64>>>() {
        Weights::new(&numbers, Normalize::Keep)?; // finite
    }
    Ok(config.weights.clone())
}

fn given_densities(config: &SoupConfig) -> anyhow::Result<Vec<Setting>> {
    let count = config.models.len();
    if config.densities.is_empty() {
        return Ok(vec![config.density.clone(); count]);
    }
    let given = config.densities.len();
    ensure!(given == count, "{given} densities for {count} models; give one for each");
    Ok(config.densities.clone())
}

fn normalization(config: &SoupConfig) -> Normalize {
    let divides = matches!(config.method, Method::Linear | Method::Greedy | Method::Ties);
    match config.normalize.unwrap_or(divides) {
        true => Normalize::Divide,
        false => Normalize::Keep,
    }
}
