//! The method of a soup for one tensor, and its streaming computation.
use salsa_algo::soup::{
    KarcherSearch, KarcherStream, Normalize, NuSlerpStream, Origin, SlerpStream, StockStream, TaskMerge, TaskStream,
    Vectors, Weights, weighted_mean,
};

/// The method for one tensor, with its parameters.
#[derive(Clone, Debug)]
pub(super) struct TensorRule {
    /// The effective weight of each ingredient; for an arc, `1 - t` and `t`. Not used if angles determine the result.
    pub weights: Vec<f64>,
    /// The arithmetic.
    pub rule: Rule,
}

/// The arithmetic for one tensor.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Mean of the ingredients whose weight is not 0.
    Mean(Weights),
    /// A point on the arc between two tensors.
    Arc { t: f64, origin: Origin },
    /// As `Arc`, with an angle for each vector.
    Arcs { t: f64, origin: Origin, angles: AngleOf },
    /// Interpolation towards the mean, by the angles of the task vectors.
    Stock(AngleOf),
    /// Mean on a sphere.
    Karcher(KarcherSearch),
    /// Task vectors, with one density for each.
    Task { merge: TaskMerge, densities: Vec<f64> },
}

/// The vectors between which angles are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AngleOf {
    Tensor,
    Row,
    Column,
}

impl AngleOf {
    /// The vectors in a tensor of this shape; a one-dimensional tensor is a single vector.
    fn vectors(self, shape: &[usize]) -> Vectors {
        match (self, shape) {
            (AngleOf::Row, [_, width]) => Vectors::Rows(*width),
            (AngleOf::Column, [_, count]) => Vectors::Columns(*count),
            _ => Vectors::Whole,
        }
    }
}

impl TensorRule {
    /// The weights of a plain mean, for the ingredients that it reads.
    pub(super) fn mean(&self) -> Option<&Weights> {
        match &self.rule {
            Rule::Mean(weights) => Some(weights),
            _ => None,
        }
    }

    /// The ingredients to read: a mean skips those of weight 0.
    pub(super) fn reads(&self) -> Vec<usize> {
        let all = 0..self.weights.len();
        match self.rule {
            // If all weights are 0, all are read: a sum of zero must not hide a broken model.
            Rule::Mean(_) if self.weights.iter().any(|weight| *weight != 0.0) => {
                all.filter(|i| self.weights[*i] != 0.0).collect()
            }
            _ => all.collect(),
        }
    }

    /// Whether the base is read.
    pub(super) fn reads_base(&self) -> bool {
        match self.rule {
            Rule::Arc { origin, .. } | Rule::Arcs { origin, .. } => origin == Origin::Base,
            Rule::Stock(_) | Rule::Task { .. } => true,
            Rule::Mean(_) | Rule::Karcher(_) => false,
        }
    }

    /// Starts the computation of a tensor of this shape.
    pub(super) fn stream(&self, shape: &[usize]) -> Stream<'_> {
        let models = self.weights.len();
        match &self.rule {
            Rule::Mean(weights) => Stream::Mean(weights),
            Rule::Arc { t, origin } => Stream::Arc(SlerpStream::new(*t, *origin), ScanState::Wanted),
            Rule::Arcs { t, origin, angles } => {
                Stream::Arcs(NuSlerpStream::new(*t, *origin, angles.vectors(shape)), ScanState::Wanted)
            }
            Rule::Stock(angles) => Stream::Stock(StockStream::new(angles.vectors(shape), models), ScanState::Wanted),
            Rule::Karcher(search) => Stream::Karcher(KarcherStream::new(models, *search), ScanState::Wanted),
            Rule::Task { merge, densities } => {
                let stream = merge.stream_with_densities(shape.iter().product(), &self.weights, densities);
                Stream::Task(stream.expect("densities were checked when the rule was made"))
            }
        }
    }
}

/// The streaming computation of one tensor, piece by piece, from the ingredients of [`TensorRule::reads`].
///
/// ```text
/// look at all pieces, then `looked`, as long as it `needs_scan` → apply to all pieces; always in order
/// ```
pub(super) enum Stream<'a> {
    Mean(&'a Weights),
    Arc(SlerpStream, ScanState),
    Arcs(NuSlerpStream, ScanState),
    Stock(StockStream, ScanState),
    Karcher(KarcherStream, ScanState),
    Task(TaskStream),
}

/// Whether the angles of the tensor are known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ScanState {
    Wanted,
    Taken,
}

impl Stream<'_> {
    pub(super) fn needs_scan(&self) -> bool {
        match self {
            Stream::Mean(_) => false,
            Stream::Arc(_, looks) | Stream::Arcs(_, looks) | Stream::Stock(_, looks) | Stream::Karcher(_, looks) => {
                *looks == ScanState::Wanted
            }
            Stream::Task(stream) => stream.needs_scan(),
        }
    }

    pub(super) fn look(&mut self, base: &[f32], ingredients: &[&[f32]]) {
        match self {
            Stream::Mean(_) => {}
            Stream::Arc(stream, _) => stream.look(base, ingredients[0], ingredients[1]),
            Stream::Arcs(stream, _) => stream.look(base, ingredients[0], ingredients[1]),
            Stream::Stock(stream, _) => stream.look(base, ingredients),
            Stream::Karcher(stream, _) => stream.look(ingredients),
            Stream::Task(stream) => stream.look(base, ingredients),
        }
    }

    pub(super) fn looked(&mut self) {
        match self {
            Stream::Mean(_) => {}
            Stream::Arc(..) => {}
            Stream::Arcs(stream, _) => stream.looked(),
            Stream::Stock(stream, _) => stream.looked(),
            Stream::Karcher(stream, _) => stream.looked(),
            Stream::Task(stream) => stream.looked(),
        }
        if let Stream::Arc(_, looks) | Stream::Arcs(_, looks) | Stream::Stock(_, looks) | Stream::Karcher(_, looks) =
            self
        {
            *looks = ScanState::Taken;
        }
    }

    pub(super) fn apply(&mut self, base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
        match self {
            Stream::Mean(weights) => weighted_mean(ingredients, weights, out),
            Stream::Arc(stream, _) => stream.apply(base, ingredients[0], ingredients[1], out),
            Stream::Arcs(stream, _) => stream.apply(base, ingredients[0], ingredients[1], out),
            Stream::Stock(stream, _) => stream.apply(base, ingredients, out),
            Stream::Karcher(stream, _) => stream.apply(ingredients, out),
            Stream::Task(stream) => stream.apply(base, ingredients, out),
        }
    }
}

/// The rule of a mean with these weights.
///
/// # Errors
/// If they cannot be normalised.
pub(super) fn mean(given: &[f64], normalize: Normalize) -> Result<TensorRule, salsa_algo::soup::SoupError> {
    let kept: Vec<f64> = given.iter().copied().filter(|w| *w != 0.0).collect();
    let weights = Weights::new(&kept, normalize)?;
    let sum: f64 = if normalize == Normalize::Divide { given.iter().sum() } else { 1.0 };
    Ok(TensorRule { weights: given.iter().map(|w| w / sum).collect(), rule: Rule::Mean(weights) })
}

/// The rule of one model times a number.
///
/// # Errors
/// If the number is not finite.
pub(super) fn scaled(scale: f64) -> Result<TensorRule, salsa_algo::soup::SoupError> {
    let weights = Weights::new(&[scale], Normalize::Keep)?;
    Ok(TensorRule { weights: vec![scale], rule: Rule::Mean(weights) })
}
