//! The operations of a transformer, forward and backward, behind one trait.
//!
//! A model is written once against [`Backend`]; a backend supplies memory and arithmetic. [`cpu::Cpu`] is the reference
//! for [`cuda::Cuda`]; [`device::Device`] is either, chosen at run time. Rows are tokens of concatenated sequences;
//! `x[T, H]` has T rows of H numbers. Backward operations named `..._backward` take the gradient of the loss with
//! respect to their forward's output.

pub mod cpu;
pub mod cuda;
pub mod device;
pub mod planned;

use crate::error::ModelError;
use crate::spec::{Activation, ModelSpec, NormWeight};
use crate::weights::Numbers;
use std::borrow::Cow;
use std::ops::Range;

/// How attention reads a row of fused projections: `heads` queries, `kv_heads` keys, `kv_heads` values, `head_dim` each.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Numbers per head.
    pub head_dim: usize,
    /// A token sees at most this many tokens, itself included.
    pub window: Option<usize>,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// Scaled scores `s` become `cap * tanh(s / cap)`.
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// Full attention with scores scaled by `1 / sqrt(head_dim)`.
    pub fn new(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
        AttentionShape { heads, kv_heads, head_dim, window: None, scale: 1.0 / (head_dim as f32).sqrt(), softcap: None }
    }
    /// Numbers in a row of fused projections.
    pub fn fused(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// Numbers in a row of attention output.
    pub fn output(&self) -> usize {
        self.heads * self.head_dim
    }
}

/// Adjacent columns of a matrix with rows of `of` numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first column.
    pub first: usize,
    /// The number of columns.
    pub count: usize,
    /// Numbers in a row of the whole matrix.
    pub of: usize,
}

impl Columns {
    /// All columns of a matrix with rows of `count` numbers.
    pub fn all(count: usize) -> Columns {
        Columns { first: 0, count, of: count }
    }
}

/// The query of the log-prob head: the targets, and the temperature.
#[derive(Clone, Copy)]
pub struct LogprobQuery<'a> {
    /// The target token of each hidden row.
    pub targets: &'a [u32],
    /// Logits are divided by this before the softmax.
    pub temperature: f32,
    /// Before that, logits `l` become `cap * tanh(l / cap)`.
    pub softcap: Option<f32>,
}

/// The result of the log-prob head: one number of each kind for each row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenStats {
    /// `log p(target)`.
    pub logprobs: Vec<f32>,
    /// `-sum_v p(v) log p(v)`, in nats.
    pub entropies: Vec<f32>,
    /// `log sum_v exp(logit_v / temperature)`, for the backward pass.
    pub log_sums: Vec<f32>,
}

/// The parameters of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamWStep {
    /// Step size.
    pub learning_rate: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled decay, times the learning rate.
    pub weight_decay: f32,
    /// `1 - beta1^step`.
    pub bias_correction1: f32,
    /// `1 - beta2^step`.
    pub bias_correction2: f32,
    /// Gradients are multiplied by this first (global-norm clipping).
    pub gradient_scale: f32,
}

/// A low-rank factor that adds to some columns of a product: `y[:, outer] += z[:, inner] * W^T`.
#[derive(Clone, Copy, Debug)]
pub struct LowRank<'a, M> {
    /// `[outer.count, inner.count]`.
    pub weight: &'a M,
    /// The columns it reads.
    pub inner: Columns,
    /// The columns it adds to.
    pub outer: Columns,
}

/// Which tokens may be drawn from a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Logits are divided by this; 0 takes the most likely token, the first of equal ones.
    pub temperature: f32,
    /// Only this many most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together reach this probability; 1 for all.
    pub top_p: f32,
}

/// The log-prob of a token at temperature 1, and the most likely tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ranking {
    /// The log-prob of the target.
    pub logprob: f32,
    /// The most likely tokens with their log-probs, most likely first; of equally likely ones, the smaller id first.
    pub top: Vec<(u32, f32)>,
}

/// A range of flat memory that an operation adds to.
pub struct Part<'a, F> {
    /// The memory.
    pub flat: &'a mut F,
    /// The range.
    pub range: Range<usize>,
}

impl<'a, F> Part<'a, F> {
    /// Refers to `range` of `flat`.
    pub fn new(flat: &'a mut F, range: Range<usize>) -> Part<'a, F> {
        Part { flat, range }
    }
}

impl<'a> From<&'a mut Vec<f32>> for Part<'a, Vec<f32>> {
    fn from(flat: &'a mut Vec<f32>) -> Self {
        let range = 0..flat.len();
        Part { flat, range }
    }
}

/// The arrays that an AdamW step changes: flat memory of equal layout, see [`Backend::adamw`].
pub struct Moments<'a, F> {
    /// Master weights.
    pub weights: &'a mut F,
    /// Their gradient.
    pub gradients: &'a mut F,
    /// First moments.
    pub m: &'a mut F,
    /// Second moments.
    pub v: &'a mut F,
}

/// Row granularity of packing: a multiple of the columns of any kernel's panel.
pub const PACKED_ROWS: usize = 256;

/// Memory and arithmetic for one kind of device.
///
/// # Contract
///
/// The same work gives the same bits: every reduction has a fixed order. On the CPU, moreover, the result for a row (or
/// sequence) does not depend on the other rows, on threads, or on whether it was computed in a training pass or one
/// token at a time; on a GPU the last bits may.
pub trait Backend: Send + Sync + 'static {
    /// An array of f32.
    type Buffer: Send + Sync + Clone;
    /// A weight matrix `[out, in]` in the layout of multiplication.
    type Matrix: Send + Sync;
    /// Keys and values of the sequences being decoded, for one layer.
    type Cache: Send + Sync;
    /// Flat f32 memory of the trained parameters: master weights, gradients, moments.
    type Flat: Send + Sync;
    /// Cosines and sines of rotary angles.
    type Angles: Send + Sync;

    /// Whether this backend can compute models of this shape.
    ///
    /// # Errors
    ///
    /// When the backend does not support it; names the reason.
    fn check(&self, spec: &ModelSpec) -> Result<(), ModelError> {
        let _ = spec;
        Ok(())
    }

    /// Whether rows that sequences have in common are computed once ([`crate::Batch::sharing_prefixes`]).
    fn shares_prefixes(&self) -> bool;

    /// Moves numbers into flat memory.
    fn flat(&self, numbers: Vec<f32>) -> Self::Flat;
    /// Flat memory of `len` zeros.
    fn flat_zeros(&self, len: usize) -> Self::Flat;
    /// Returns the numbers of flat memory.
    fn numbers<'a>(&self, flat: &'a Self::Flat) -> Cow<'a, [f32]>;
    /// Flat memory that the CPU can read and write; `None` if it is elsewhere.
    fn host<'a>(&self, flat: &'a mut Self::Flat) -> Option<&'a mut [f32]> {
        let _ = flat;
        None
    }
    /// Fills flat memory with zeros.
    fn clear(&self, flat: &mut Self::Flat);
    /// Copies a range of flat memory to an array.
    fn copy(&self, flat: &Self::Flat, range: Range<usize>) -> Self::Buffer;
    /// Packs a whole matrix from flat memory, see [`Backend::refresh`].
    fn refresh_from(&self, matrix: &mut Self::Matrix, flat: &Self::Flat, range: Range<usize>);
    /// The angles of `table`, in the memory of the device.
    fn angles(&self, table: RotaryTable) -> Self::Angles;

    /// Copies numbers to the device.
    fn upload(&self, data: &[f32]) -> Self::Buffer;
    /// Copies numbers from the device.
    fn download(&self, buffer: &Self::Buffer) -> Vec<f32>;
    /// Allocates an uninitialised buffer; fill it with [`Backend::store`] before reading.
    fn room(&self, len: usize) -> Self::Buffer;
    /// Copies numbers into a buffer, starting at `at`.
    fn store(&self, buffer: &mut Self::Buffer, at: usize, numbers: Numbers<'_>);
    /// Packs `[out, in]` weights, row-major.
    fn matrix(&self, weights: &[f32], out: usize, input: usize) -> Self::Matrix {
        let mut matrix = self.allocate_matrix(out, input);
        self.refresh(&mut matrix, 0, weights.into());
        matrix
    }
    /// Allocates an uninitialised matrix; fill it with [`Backend::refresh`] before reading.
    fn allocate_matrix(&self, out: usize, input: usize) -> Self::Matrix;
    /// Packs weights into rows `first..`. Both ends of the rows are multiples of [`PACKED_ROWS`] or ends of the matrix.
    fn refresh(&self, matrix: &mut Self::Matrix, first: usize, weights: Numbers<'_>);
    /// Whether packing is lossless (subnormals aside), so that the original can be recovered.
    fn packs_losslessly(&self, numbers: Numbers<'_>) -> bool;

    /// `out[t] = scale * table[tokens[t]]`, rows of `hidden`.
    fn embed(&self, table: &Self::Buffer, tokens: &[u32], hidden: usize, scale: f32) -> Self::Buffer;
    /// As [`Backend::embed`], from a packed table: that of a head whose weights are the embedding.
    fn embed_packed(&self, table: &Self::Matrix, tokens: &[u32], scale: f32) -> Self::Buffer;
    /// `d_table[tokens[t]] += scale * d_out[t]`.
    fn embed_backward(
        &self,
        d_out: &Self::Buffer,
        tokens: &[u32],
        hidden: usize,
        scale: f32,
        d_table: Part<'_, Self::Flat>,
    );

    /// ```text
    /// out[r] = x[r] * inverse[r] * w,   inverse[r] = 1 / sqrt(mean(x[r]^2) + eps),   w = weight or 1 + weight
    /// ```
    /// Returns `(out, inverse)`. Rows have `weight.len()` numbers.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        weight: &Self::Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> (Self::Buffer, Self::Buffer);
    /// `d_x += ...`, and `d_weight += ...` if it is given.
    fn rms_norm_backward(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        inverse: &Self::Buffer,
        weight: &Self::Buffer,
        kind: NormWeight,
        d_x: &mut Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    );

    /// `out[T, out] = x[T, in] * W^T`.
    fn linear(&self, x: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer;
    /// `out[T, out] = residual[T, out] + x[T, in] * W^T`.
    fn linear_onto(&self, x: &Self::Buffer, weight: &Self::Matrix, residual: &Self::Buffer) -> Self::Buffer;
    /// `d_x[T, in] = d_out[T, out] * W`.
    fn linear_backward_input(&self, d_out: &Self::Buffer, weight: &Self::Matrix) -> Self::Buffer;
    /// `d_weight[out, in] += d_out^T * x`.
    fn linear_backward_weight(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        out: usize,
        input: usize,
        d_weight: Part<'_, Self::Flat>,
    );

    /// `y[:, to] += x[:, from] * W^T`: a product of some columns, added to some columns.
    fn linear_columns(&self, x: &Self::Buffer, from: Columns, weight: &Self::Matrix, y: &mut Self::Buffer, to: Columns);
    /// `d_x[:, to] += d_out[:, from] * W`.
    fn linear_columns_backward_input(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        weight: &Self::Matrix,
        d_x: &mut Self::Buffer,
        to: Columns,
    );
    /// `d_weight[out, in] += d_out[:, from]^T * x[:, of]`, where `out` and `in` are the counts of columns.
    fn linear_columns_backward_weight(
        &self,
        d_out: &Self::Buffer,
        from: Columns,
        x: &Self::Buffer,
        of: Columns,
        d_weight: Part<'_, Self::Flat>,
    );
    /// `x W^T`, plus the products of the factors with `z`, plus the residual if there is one.
    fn linear_low_rank(
        &self,
        x: &Self::Buffer,
        weight: &Self::Matrix,
        z: &Self::Buffer,
        factors: &[LowRank<'_, Self::Matrix>],
        residual: Option<&Self::Buffer>,
    ) -> Self::Buffer {
        let mut y = match residual {
            Some(residual) => self.linear_onto(x, weight, residual),
            None => self.linear(x, weight),
        };
        for factor in factors {
            self.linear_columns(z, factor.inner, factor.weight, &mut y, factor.outer);
        }
        y
    }
    /// `d_out W + d_z A`.
    fn linear_low_rank_backward_input(
        &self,
        d_out: &Self::Buffer,
        weight: &Self::Matrix,
        d_z: &Self::Buffer,
        a: LowRank<'_, Self::Matrix>,
    ) -> Self::Buffer {
        let mut d_x = self.linear_backward_input(d_out, weight);
        self.linear_columns_backward_input(d_z, a.inner, a.weight, &mut d_x, a.outer);
        d_x
    }
    /// `x *= factor`.
    fn scale(&self, x: &mut Self::Buffer, factor: f32);
    /// `x += y`, rows of `width`.
    fn add(&self, x: &mut Self::Buffer, y: &Self::Buffer, width: usize) {
        let rows: Vec<u32> = (0..(self.len(y) / width) as u32).collect();
        self.scatter_add(x, width, &rows, y);
    }

    /// `x[t] += bias`, row by row.
    fn add_bias(&self, x: &mut Self::Buffer, bias: &Self::Buffer);
    /// `d_bias += sum_t d_out[t]`.
    fn add_bias_backward(&self, d_out: &Self::Buffer, d_bias: Part<'_, Self::Flat>);

    /// RMSNorm of query (or key) heads inside fused rows: heads `heads` of `head_dim` numbers each. A weight of
    /// `head_dim` numbers makes a norm for each head, one of all heads' numbers a single norm. Returns the inverse
    /// norms, `[T, norms]`.
    fn head_norm(
        &self,
        fused: &mut Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        kind: NormWeight,
        eps: f32,
    ) -> Self::Buffer;
    /// Turns the gradient with respect to the normed heads, in `d_fused`, into that with respect to the raw ones.
    /// `raw` holds the fused rows before [`Backend::head_norm`].
    fn head_norm_backward(
        &self,
        d_fused: &mut Self::Buffer,
        raw: &Self::Buffer,
        inverse: &Self::Buffer,
        shape: &AttentionShape,
        heads: Range<usize>,
        weight: &Self::Buffer,
        kind: NormWeight,
        d_weight: Option<Part<'_, Self::Flat>>,
    );

    /// Rotates the first `d = 2 * half` numbers of queries and keys by the angles at row `positions[t]` of the table
    /// (rotate-half form):
    ///
    /// ```text
    /// out[i] = x[i] cos - x[i + d/2] sin,   out[i + d/2] = x[i + d/2] cos + x[i] sin,   i < d/2
    /// ```
    fn rotary(&self, fused: &mut Self::Buffer, positions: &[u32], angles: &Self::Angles, shape: &AttentionShape);
    /// The inverse rotation (the transpose), for gradients.
    fn rotary_backward(
        &self,
        d_fused: &mut Self::Buffer,
        positions: &[u32],
        angles: &Self::Angles,
        shape: &AttentionShape,
    );

    /// Causal grouped-query attention inside each sequence, `softmax(cap(scale * q k^T)) v`, where `cap` is that of
    /// [`AttentionShape::softcap`]. Returns the output, and statistics of the softmax for the backward pass, which may be empty.
    fn attention(
        &self,
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> (Self::Buffer, Self::Buffer);
    /// Returns the gradient with respect to the fused projections, from that of the output and the results of
    /// [`Backend::attention`].
    fn attention_backward(
        &self,
        d_out: &Self::Buffer,
        attended: (&Self::Buffer, &Self::Buffer),
        fused: &Self::Buffer,
        cu_seqlens: &[usize],
        shape: &AttentionShape,
    ) -> Self::Buffer;

    /// `out = activation(gate) * up`, where rows of `x` are `[gate, up]`.
    fn gated(&self, x: &Self::Buffer, width: usize, activation: Activation) -> Self::Buffer;
    /// Returns the gradient with respect to `[gate, up]`.
    fn gated_backward(
        &self,
        d_out: &Self::Buffer,
        x: &Self::Buffer,
        width: usize,
        activation: Activation,
    ) -> Self::Buffer;

    /// Returns the given rows of `x`.
    fn gather(&self, x: &Self::Buffer, width: usize, rows: &[u32]) -> Self::Buffer;
    /// `x[rows[i]] += y[i]`, in order.
    fn scatter_add(&self, x: &mut Self::Buffer, width: usize, rows: &[u32], y: &Self::Buffer);
    /// The number of elements of an array.
    fn len(&self, x: &Self::Buffer) -> usize;
    /// `len` zeros.
    fn zeros(&self, len: usize) -> Self::Buffer;

    /// Log-prob, entropy and log-sum of each hidden row under
    /// `softmax(sum_i mix[i] * cap(hidden[i] * W[i]^T) / temperature)`, where `cap` is that of the query.
    /// One head with weight 1 is a language model; several give the normalised geometric mean of their distributions.
    /// The logits are computed in blocks of rows and vocabulary and never exist as a whole.
    fn token_stats(&self, heads: &[(&Self::Buffer, &Self::Matrix, f32)], query: LogprobQuery<'_>) -> TokenStats;
    /// Returns `d_hidden` from `d_logprobs`, and adds to `d_weight[vocab, hidden]` unless the head is frozen.
    fn token_stats_backward(
        &self,
        d_logprobs: &[f32],
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        query: LogprobQuery<'_>,
        log_sums: &[f32],
        d_weight: Option<Part<'_, Self::Flat>>,
    ) -> Self::Buffer;
    /// Draws a token from each hidden row's distribution by inverting its cumulative sum at that row's uniform number.
    /// Returns it with its log-prob under the full softmax (not truncated by top-k or top-p; at temperature 1 when
    /// greedy), as a training forward pass computes it. Logits are capped as in [`LogprobQuery`].
    fn draw(
        &self,
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        softcap: Option<f32>,
        choice: &Choice,
        uniforms: &[f32],
    ) -> Vec<(u32, f32)>;
    /// The log-prob of each hidden row's target and the `count` most likely tokens, under the full softmax at
    /// temperature 1. The log-probs equal those of [`Backend::token_stats`], within the backend's contract.
    fn rank(
        &self,
        hidden: &Self::Buffer,
        head: &Self::Matrix,
        softcap: Option<f32>,
        targets: &[u32],
        count: usize,
    ) -> Vec<Ranking>;
    /// `values[t] = x[t] . w`.
    fn scalar_head(&self, x: &Self::Buffer, weight: &Self::Buffer) -> Vec<f32>;
    /// Returns `d_x`; `d_weight += sum_t d_values[t] * x[t]` if it is given.
    fn scalar_head_backward(
        &self,
        d_values: &[f32],
        x: &Self::Buffer,
        weight: &Self::Buffer,
        d_weight: Option<Part<'_, Self::Flat>>,
    ) -> Self::Buffer;

    /// A cache for `slots` sequences of at most `capacity` tokens.
    fn cache(&self, slots: usize, capacity: usize, shape: &AttentionShape) -> Self::Cache;
    /// Stores the keys and values of row `row` of `fused` as token `position` of sequence `slot`, for each `(row, slot, position)`.
    fn cache_store(&self, cache: &mut Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize, usize)]);
    /// Copies the first `len` tokens of sequence `from` to sequence `to`.
    fn cache_copy(&self, cache: &mut Self::Cache, from: usize, to: usize, len: usize);
    /// Attention of one new token for each `(slot, position)` to the stored tokens `..= position` of its sequence.
    fn cached_attention(&self, cache: &Self::Cache, fused: &Self::Buffer, entries: &[(usize, usize)]) -> Self::Buffer;

    /// `sum g^2`, in f64 and in fixed blocks.
    fn sum_of_squares(&self, gradients: &Self::Flat) -> f64;
    /// One AdamW step on a range of the weights, with weight decay if `decay` is `Yes`. Zeroes their gradient.
    fn adamw(&self, of: Moments<'_, Self::Flat>, range: Range<usize>, decay: Decay, step: &AdamWStep);
}

/// Whether a tensor is decayed (matrices are; norms and biases are not, as in transformers' Trainer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decay {
    /// Weight decay applies.
    Yes,
    /// It does not.
    No,
}

/// Cosines and sines of the rotary angles: `[rows, half]` each. A row is a position, or one at some sequence length.
#[derive(Clone, Debug, Default)]
pub struct RotaryTable {
    /// Pairs that turn: half of the numbers of a head that are rotated.
    pub half: usize,
    /// Cosines.
    pub cos: Vec<f32>,
    /// Sines.
    pub sin: Vec<f32>,
}
