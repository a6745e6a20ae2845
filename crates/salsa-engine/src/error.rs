//! Errors of models.

use crate::comm::CommError;

/// Why a model was refused, or a step failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// The shape is not valid for this family.
    #[error("model shape: {0}")]
    Spec(String),
    /// The flat buffer does not fit the shape.
    #[error("{found} weights given, the model's shape has {expected}")]
    WeightCount {
        /// What the shape requires.
        expected: usize,
        /// What was passed.
        found: usize,
    },
    /// A weight is NaN or infinite.
    #[error("tensor {tensor}: element {index} is {value}; the checkpoint is damaged or its training diverged")]
    NonFinite {
        /// The tensor's name.
        tensor: String,
        /// The first such element.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// Weights could not be read.
    #[error("{0}")]
    Source(String),
    /// The gradient is not finite; nothing was changed.
    #[error(
        "the gradient is not finite (norm {norm}); the weights were left as they were. A lower learning rate may help"
    )]
    NonFiniteGradient {
        /// The norm.
        norm: f64,
    },
    /// These processes cannot train one model together.
    #[error("{0}")]
    Shared(String),
    /// The processes of the run cannot go on together.
    #[error(transparent)]
    Comm(#[from] CommError),
}
