//! What a soup's method is for one tensor, and the method at work on it.
use salsa_algo::soup::{
    KarcherSearch, KarcherStream, Normalize, NuSlerpStream, Origin, SlerpStream, StockStream, TaskMerge, TaskStream,
    Vectors, Weights, weighted_mean,
};

/// The method for one tensor, its numbers settled.
#[derive(Clone, Debug)]
pub(super) struct TensorRule {
    /// One weight for each ingredient, as used; of an arc, `1 - t` and `t`. Where angles decide, they are not used.
    pub weights: Vec<f64>,
    /// The arithmetic.
    pub rule: Rule,
}

/// The arithmetic for one tensor.
#[derive(Clone, Debug)]
pub(super) enum Rule {
    /// Of the ingredients whose weight is not 0.
    Mean(Weights),
    /// A point on the arc between two tensors.
    Arc { t: f64, origin: Origin },
    /// The same with an angle for each vector.
    Arcs { t: f64, origin: Origin, angles: AngleOf },
    /// Towards the mean as far as the angles of the task vectors say.
    Stock(AngleOf),
    /// The middle on a sphere.
    Karcher(KarcherSearch),
    /// Task vectors, with one density for each.
    Task { merge: TaskMerge, densities: Vec<f64> },
}

/// Of what an angle is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AngleOf {
    Tensor,
    Row,
    Column,
}

impl AngleOf {
    /// In a tensor of this shape; one with a single dimension is a vector as a whole.
    fn vectors(self, shape: &[usize]) -> Vectors {
        match (self, shape) {
            (AngleOf::Row, [_, width]) => Vectors::Rows(*width),
            (AngleOf::Column, [_, count]) => Vectors::Columns(*count),
            _ => Vectors::Whole,
        }
    }
}

impl TensorRule {
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
            // All of no weight are read too: a sum that is zero must still not hide a broken model.
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

    /// Starts on the tensor, which has this shape.
    pub(super) fn stream(&self, shape: &[usize]) -> Stream<'_> {
        let models = self.weights.len();
        match &self.rule {
            Rule::Mean(weights) => Stream::Mean(weights),
            Rule::Arc { t, origin } => Stream::Arc(SlerpStream::new(*t, *origin), Looks::Wanted),
            Rule::Arcs { t, origin, angles } => {
                Stream::Arcs(NuSlerpStream::new(*t, *origin, angles.vectors(shape)), Looks::Wanted)
            }
            Rule::Stock(angles) => Stream::Stock(StockStream::new(angles.vectors(shape), models), Looks::Wanted),
            Rule::Karcher(search) => Stream::Karcher(KarcherStream::new(models, *search), Looks::Wanted),
            Rule::Task { merge, densities } => {
                let stream = merge.stream_with_densities(shape.iter().product(), &self.weights, densities);
                Stream::Task(stream.expect("densities were checked when the rule was made"))
            }
        }
    }
}

/// A method at work on one tensor, piece by piece, the ingredients being those of [`TensorRule::reads`].
///
/// ```text
/// look at all pieces, then `looked`, as long as it `wants_a_look` → apply to all pieces; always in order
/// ```
pub(super) enum Stream<'a> {
    Mean(&'a Weights),
    Arc(SlerpStream, Looks),
    Arcs(NuSlerpStream, Looks),
    Stock(StockStream, Looks),
    Karcher(KarcherStream, Looks),
    Task(TaskStream),
}

/// Whether angles of the tensor are known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    Wanted,
    Taken,
}

impl Stream<'_> {
    pub(super) fn wants_a_look(&self) -> bool {
        match self {
            Stream::Mean(_) => false,
            Stream::Arc(_, looks) | Stream::Arcs(_, looks) | Stream::Stock(_, looks) | Stream::Karcher(_, looks) => {
                *looks == Looks::Wanted
            }
            Stream::Task(stream) => stream.wants_a_look(),
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
            *looks = Looks::Taken;
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

/// The rule of one model multiplied by a number.
///
/// # Errors
/// If the number is not finite.
pub(super) fn scaled(scale: f64) -> Result<TensorRule, salsa_algo::soup::SoupError> {
    let weights = Weights::new(&[scale], Normalize::Keep)?;
    Ok(TensorRule { weights: vec![scale], rule: Rule::Mean(weights) })
}
