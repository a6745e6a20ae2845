//! The checked method of a soup, and its parameters for each tensor.
use anyhow::{Context, bail, ensure};
use salsa_algo::{
    random::bits,
    soup::{Consensus, KarcherSearch, Normalize, Origin, Sparsify, TaskMerge, Weights, nuslerp_place},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    SoupConfig,
    rule::{self, AngleOf, Rule, TensorRule},
    setting::{Setting, place},
};

/// How ingredients are combined; mergekit's names, `greedy` and `search`. Below, `x` are ingredients, `d = x - base` task
/// vectors, `w` weights; each formula is for one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The weighted mean, the soup of the paper: `sum w x / sum w`. Takes weights, normalize.
    Linear,
    /// The mean of those ingredients that do not worsen the measured result. Takes greedy.
    Greedy,
    /// The weighted mean with the weights that measure best, found by CMA-ES on the simplex. Takes search, seed.
    Search,
    /// A point on the arc between two models: `(sin((1 - t) W) a + sin(t W) b) / sin W` with W their angle; with a
    /// base, between task vectors. Takes t, base_model.
    Slerp,
    /// As slerp with `t = w2 / (w1 + w2)`, with an angle for each tensor, row or column. Takes weights, base_model,
    /// nuslerp_flatten, nuslerp_row_wise.
    Nuslerp,
    /// The mean on a sphere: the direction with the least sum of squared angles, times the mean norm. Takes max_iter,
    /// tol.
    Karcher,
    /// Task vectors trimmed to the largest entries, signs elected: `base + scale sum w d / sum w` over those with the
    /// elected sign. Takes weights, density or densities, scale, normalize.
    Ties,
    /// Entries of task vectors dropped at random, the others divided by the density, then summed:
    /// `base + scale sum w d`. Takes weights, density or densities, scale, seed, normalize.
    DareLinear,
    /// As dare_linear, with the sign election of ties.
    DareTies,
    /// The weighted sum of task vectors: `base + scale sum w d`. Takes weights, scale, normalize.
    TaskArithmetic,
    /// Interpolation towards the mean, by angle: `r mean(x) + (1 - r) base`, `r = n c / (1 + (n - 1) c)`, with c the
    /// mean cosine between task vectors. Takes filter_wise.
    ModelStock,
    /// One model, times scale. Takes scale.
    Passthrough,
}

impl Method {
    /// The method's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Method::Linear => "linear",
            Method::Greedy => "greedy",
            Method::Search => "search",
            Method::Slerp => "slerp",
            Method::Ties => "ties",
            Method::DareLinear => "dare_linear",
            Method::DareTies => "dare_ties",
            Method::TaskArithmetic => "task_arithmetic",
            Method::ModelStock => "model_stock",
            Method::Nuslerp => "nuslerp",
            Method::Karcher => "karcher",
            Method::Passthrough => "passthrough",
        }
    }

    /// Whether the method works on differences from a base model.
    pub fn needs_base(self) -> bool {
        self.merges_task_vectors() || self == Method::ModelStock
    }

    fn merges_task_vectors(self) -> bool {
        self.is_sparse() || self == Method::TaskArithmetic
    }

    fn has_weights(self) -> bool {
        self.merges_task_vectors() || matches!(self, Method::Linear | Method::Nuslerp)
    }

    fn has_scale(self) -> bool {
        self.merges_task_vectors() || self == Method::Passthrough
    }

    /// The allowed numbers of models, also in words, if restricted.
    fn count(self) -> Option<(std::ops::RangeInclusive<usize>, &'static str)> {
        match self {
            Method::Slerp | Method::Nuslerp => Some((2..=2, "exactly 2 models")),
            Method::ModelStock => Some((2..=usize::MAX, "2 models or more, besides the base")),
            Method::Passthrough => Some((1..=1, "exactly 1 model")),
            _ => None,
        }
    }

    fn is_sparse(self) -> bool {
        matches!(self, Method::Ties | Method::DareLinear | Method::DareTies)
    }
}

/// A checked method, whose parameters may vary by tensor.
#[derive(Clone, Debug)]
pub(super) struct Arithmetic {
    method: Method,
    /// The number of ingredients.
    count: usize,
    /// One for each ingredient; empty if the method has no weights.
    weights: Vec<Setting>,
    /// One for each ingredient.
    densities: Vec<Setting>,
    scale: Setting,
    t: Setting,
    normalize: Normalize,
    origin: Origin,
    angles: AngleOf,
    search: KarcherSearch,
    seed: u64,
}

impl Arithmetic {
    /// Checks the parameters together.
    ///
    /// # Errors
    /// If weights are missing or invalid, a base is missing, or a value is given that the method does not use.
    pub(super) fn new(config: &SoupConfig) -> anyhow::Result<Arithmetic> {
        let (method, count) = (config.method, config.models.len());
        let name = method.name();
        refuse_unused(config)?;
        if method.needs_base() && config.base_model.is_none() {
            bail!("method {name} works on differences from a base model; give it with base_model (--base DIR)");
        }
        if let Some((allowed, words)) = method.count() {
            ensure!(allowed.contains(&count), "method {name} takes {words}, not {count}");
        }
        let (max_iter, tol) = (config.max_iter, config.tol);
        ensure!(tol > 0.0 && tol.is_finite(), "tol is {tol}; it must be above 0");
        let arithmetic = Arithmetic {
            method,
            count,
            weights: given_weights(config)?,
            densities: given_densities(config)?,
            scale: config.scale.clone(),
            t: config.t.clone(),
            normalize: normalization(config),
            origin: if config.base_model.is_some() { Origin::Base } else { Origin::Zero },
            angles: angles(config),
            search: KarcherSearch { max_iter, tol },
            seed: config.seed,
        };
        arithmetic.check_numbers()?;
        if arithmetic.is_constant() {
            // Fail early, before the ingredients are opened.
            arithmetic.rule(0, "", 0.0)?;
        }
        Ok(arithmetic)
    }

    /// The effective weights, if they are the same for all tensors and do not depend on angles.
    pub(super) fn constant_weights(&self) -> Option<Vec<f64>> {
        if matches!(self.method, Method::Karcher | Method::ModelStock) {
            return None;
        }
        let weights = self.is_constant().then(|| self.rule(0, "", 0.0).ok())??.weights;
        Some(weights)
    }

    /// The rules for these tensors of a model with this many layers.
    ///
    /// # Errors
    /// If a tensor has no number because no filter matches, or its weights are invalid; the error names it.
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
        match self.method {
            Method::Karcher => {
                let weights = vec![1.0 / self.count as f64; self.count];
                return Ok(TensorRule { weights, rule: Rule::Karcher(self.search) });
            }
            Method::ModelStock => {
                let weights = vec![1.0 / self.count as f64; self.count];
                return Ok(TensorRule { weights, rule: Rule::Stock(self.angles) });
            }
            // As in mergekit, a tensor that matches no filter is unchanged.
            Method::Passthrough => return Ok(rule::scaled(self.scale.at(name, place).unwrap_or(1.0))?),
            _ => {}
        }
        let weights =
            self.weights.iter().map(|weight| number(weight, "a weight")).collect::<anyhow::Result<Vec<f64>>>()?;
        if let (Method::Nuslerp, [first, second]) = (self.method, &weights[..]) {
            let t = nuslerp_place([*first, *second]);
            let rule = Rule::Arcs { t, origin: self.origin, angles: self.angles };
            return Ok(TensorRule { weights: vec![1.0 - t, t], rule });
        }
        if matches!(self.method, Method::Linear | Method::Greedy | Method::Search) {
            ensure!(weights.iter().any(|w| *w != 0.0), "all weights are 0; at least one must be something else");
            return Ok(rule::mean(&weights, self.normalize)?);
        }
        // As in mergekit, the default without a matching filter is density 1 and scale 1.
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

    /// Whether all tensors have the same parameters.
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
            let bad = density.numbers().into_iter().find(|d| !(0.0..=1.0).contains(d));
            ensure!(
                bad.is_none(),
                "density {} is not a share of entries to keep; give a number from 0 to 1",
                bad.unwrap_or(f64::NAN)
            );
        }
        // Density 0 omits one model; for all of them there would be nothing to merge.
        let keeps_nothing = self.densities.iter().all(|density| density.constant() == Some(0.0));
        ensure!(
            !keeps_nothing || !self.method.is_sparse(),
            "density 0 keeps nothing of any model, so that the soup would be the base; give a number above 0"
        );
        Ok(())
    }
}

/// Fails on a given value that the method would ignore.
fn refuse_unused(config: &SoupConfig) -> anyhow::Result<()> {
    let (method, unset) = (config.method, SoupConfig::default());
    let weights = match method {
        Method::Slerp => "say where between the two with t",
        Method::Greedy => "all that are kept weigh the same",
        Method::Search => "they are searched for",
        Method::Passthrough => "give scale",
        _ => "angles decide",
    };
    let divides = method.merges_task_vectors() || method == Method::Linear;
    let nuslerp = "it belongs to method nuslerp";
    let karcher = "it belongs to method karcher";
    let unused = [
        ("weights", !method.has_weights() && !config.weights.is_empty(), weights),
        ("normalize", !divides && config.normalize.is_some(), "leave it out"),
        ("t", method != Method::Slerp && config.t != unset.t, "give weights"),
        ("density", !method.is_sparse() && config.density != unset.density, "it belongs to ties and dare"),
        ("densities", !method.is_sparse() && !config.densities.is_empty(), "they belong to ties and dare"),
        (
            "scale",
            !method.has_scale() && config.scale != unset.scale,
            "it belongs to methods that sum task vectors, and to passthrough",
        ),
        ("greedy", method != Method::Greedy && config.greedy.is_some(), "it belongs to method greedy"),
        ("search", method != Method::Search && config.search.is_some(), "it belongs to method search"),
        ("filter_wise", method != Method::ModelStock && config.filter_wise, "it belongs to method model_stock"),
        ("nuslerp_flatten", method != Method::Nuslerp && !config.nuslerp_flatten, nuslerp),
        ("nuslerp_row_wise", method != Method::Nuslerp && config.nuslerp_row_wise, nuslerp),
        ("max_iter", method != Method::Karcher && config.max_iter != unset.max_iter, karcher),
        ("tol", method != Method::Karcher && config.tol != unset.tol, karcher),
    ];
    for (key, is_unused, remedy) in unused {
        ensure!(!is_unused, "method {} does not use {key}; {remedy}", method.name());
    }
    ensure!(
        !(config.nuslerp_row_wise && config.nuslerp_flatten),
        "nuslerp_row_wise has no effect while nuslerp_flatten is true; add nuslerp_flatten: false"
    );
    let both = config.density != unset.density && !config.densities.is_empty();
    ensure!(!both, "density and densities are both given; give one for all models, or one for each");
    Ok(())
}

fn given_weights(config: &SoupConfig) -> anyhow::Result<Vec<Setting>> {
    let count = config.models.len();
    if !config.method.has_weights() && !matches!(config.method, Method::Greedy | Method::Search) {
        return Ok(Vec::new());
    }
    if config.weights.is_empty() {
        // With division by their sum, ones represent equal weights exactly.
        let divided = matches!(config.method, Method::Linear | Method::Greedy | Method::Search)
            && config.normalize != Some(false);
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

/// mergekit's `nuslerp` takes angles along the last dimension or, "row-wise", along the first: of rows or of columns in
/// the layout used here.
fn angles(config: &SoupConfig) -> AngleOf {
    match (config.method, config.filter_wise, config.nuslerp_flatten, config.nuslerp_row_wise) {
        (Method::ModelStock, true, ..) | (Method::Nuslerp, _, false, false) => AngleOf::Row,
        (Method::Nuslerp, _, false, true) => AngleOf::Column,
        _ => AngleOf::Tensor,
    }
}

fn normalization(config: &SoupConfig) -> Normalize {
    let divides = matches!(config.method, Method::Linear | Method::Greedy | Method::Search | Method::Ties);
    match config.normalize.unwrap_or(divides) {
        true => Normalize::Divide,
        false => Normalize::Keep,
    }
}
