//! What a soup's method is for one tensor, and the method at work on it.
use salsa_algo::soup::{Normalize, Origin, SlerpStream, TaskMerge, TaskStream, Weights, weighted_mean};

/// The method for one tensor, its numbers settled.
#[derive(Clone, Debug)]
pub(super) struct TensorRule {
    /// One weight for each ingredient, as used; of a slerp, `1 - t` and `t`.
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
    /// Task vectors, with one density for each.
    Task { merge: TaskMerge, densities: Vec<f64> },
}

impl TensorRule {
    /// The weights of a plain mean, of the ingredients that it reads.
    pub fn mean(&self) -> Option<&Weights> {
        match &self.rule {
            Rule::Mean(weights) => Some(weights),
            _ => None,
        }
    }

    /// The ingredients that are read: a mean does not look at those of weight 0.
    pub fn reads(&self) -> Vec<usize> {
        let all = 0..self.weights.len();
        match self.rule {
            Rule::Mean(_) => all.filter(|i| self.weights[*i] != 0.0).collect(),
            _ => all.collect(),
        }
    }

    /// Whether the base is read.
    pub fn reads_base(&self) -> bool {
        matches!(self.rule, Rule::Arc { origin: Origin::Base, .. } | Rule::Task { .. })
    }

    /// Starts on the tensor, which has this many numbers.
    pub fn stream(&self, numbers: usize) -> Stream<'_> {
        match &self.rule {
            Rule::Mean(weights) => Stream::Mean(weights),
            Rule::Arc { t, origin } => Stream::Arc(SlerpStream::new(*t, *origin), Looks::Wanted),
            Rule::Task { merge, densities } => {
                let stream = merge.stream_with_densities(numbers, &self.weights, densities);
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
    Task(TaskStream),
}

/// Whether an arc has seen its tensor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Looks {
    Wanted,
    Taken,
}

impl Stream<'_> {
    pub fn wants_a_look(&self) -> bool {
        match self {
            Stream::Mean(_) => false,
            Stream::Arc(_, looks) => *looks == Looks::Wanted,
            Stream::Task(stream) => stream.wants_a_look(),
        }
    }

    pub fn look(&mut self, base: &[f32], ingredients: &[&[f32]]) {
        match self {
            Stream::Mean(_) => {}
            Stream::Arc(stream, _) => stream.look(base, ingredients[0], ingredients[1]),
            Stream::Task(stream) => stream.look(base, ingredients),
        }
    }

    pub fn looked(&mut self) {
        match self {
            Stream::Mean(_) => {}
            Stream::Arc(_, looks) => *looks = Looks::Taken,
            Stream::Task(stream) => stream.looked(),
        }
    }

    pub fn apply(&mut self, base: &[f32], ingredients: &[&[f32]], out: &mut [f32]) {
        match self {
            Stream::Mean(weights) => weighted_mean(ingredients, weights, out),
            Stream::Arc(stream, _) => stream.apply(base, ingredients[0], ingredients[1], out),
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
