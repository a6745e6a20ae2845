//! Bytes of a model and of what is computed with it, from its shape alone.
use salsa_engine::{Dtype, Head, LoraSpec, ModelSpec, Recompute};

use super::{Knobs, Place};

/// Bytes per parameter that is trained: f32 weights, gradients and AdamW's two moments; without the packed copy.
pub(crate) const TRAINED: u64 = 16;

/// Bytes of f32.
pub(crate) const F32: u64 = 4;

/// Bytes per parameter of the copy that products read.
pub(crate) fn packed(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => 4,
        Dtype::Bf16 => 2,
    }
}

/// A model for use: packed matrices, the embedding and all vectors in f32. A tied embedding is a packed matrix too, and
/// nothing else where that has the same numbers.
pub(crate) fn weights(spec: &ModelSpec, dtype: Dtype) -> u64 {
    let table = (spec.vocab_size * spec.hidden_size) as u64;
    let head = if is_tied(spec) && dtype == Dtype::Bf16 { table * packed(dtype) } else { 0 };
    let tensor = |shape: &[usize], name: &str| {
        let is_matrix = shape.len() > 1 && name != "model.embed_tokens.weight" && name != "score.weight";
        let numbers = shape.iter().product::<usize>() as u64;
        numbers * if is_matrix { packed(dtype) } else { F32 }
    };
    head + spec.tensors().iter().map(|view| tensor(&view.shape, &view.name)).sum::<u64>()
}

/// The same of weights that come from a file. In bfloat16 they keep their numbers when they are packed.
pub(crate) fn stored(spec: &ModelSpec, dtype: Dtype, file_is_bf16: bool) -> u64 {
    let in_head = is_tied(spec) && dtype == Dtype::Bf16 && file_is_bf16;
    weights(spec, dtype) - if in_head { F32 * (spec.vocab_size * spec.hidden_size) as u64 } else { 0 }
}

fn is_tied(spec: &ModelSpec) -> bool {
    spec.tied_embeddings && spec.head != Head::Scalar
}

/// A model all of whose weights are trained.
pub(crate) fn trained(spec: &ModelSpec, dtype: Dtype) -> u64 {
    spec.parameters() as u64 * TRAINED + weights(spec, dtype)
}

/// Flat weights of so many models, as they are combined.
pub(crate) fn flat(spec: &ModelSpec, models: usize) -> u64 {
    F32 * (models * spec.parameters()) as u64
}

/// What the allocator keeps after flat weights of a model were read and given up: few of them are not given back to the
/// system.
pub(crate) fn read_and_kept(spec: &ModelSpec) -> u64 {
    const MOST: u64 = 32 << 20;
    let bytes = flat(spec, 1);
    if bytes < MOST { bytes } else { 0 }
}

/// An adapter for use.
pub(crate) fn adapter(spec: &ModelSpec, lora: &LoraSpec, dtype: Dtype) -> u64 {
    lora.parameters(spec) as u64 * packed(dtype)
}

/// An adapter that is trained.
pub(crate) fn trained_adapter(spec: &ModelSpec, lora: &LoraSpec, dtype: Dtype) -> u64 {
    lora.parameters(spec) as u64 * TRAINED + adapter(spec, lora, dtype)
}

/// What a training pass keeps of one layer, for one token.
///
/// ```text
/// the layer's input, its middle                    2 hidden
/// queries, keys, values, attention's output        (2 heads + 2 kv_heads) * head_dim
///   before the norms of heads, where there are     + (heads + 2 kv_heads) * head_dim
/// gate and up                                      2 intermediate
/// ```
pub(crate) fn layer_per_token(spec: &ModelSpec, knobs: &Knobs) -> u64 {
    let raw = if spec.qk_norm { spec.heads + 2 * spec.kv_heads } else { 0 };
    let attention = (2 * (spec.heads + spec.kv_heads) + raw) * spec.head_dim;
    F32 * 2 * spec.hidden_size as u64
        + fed(knobs) * (attention + 2 * spec.intermediate_size) as u64
        + log_sums(spec, knobs.place)
}

/// Bytes of a number that feeds or leaves a product: on a GPU in the type of products, on the processor f32.
fn fed(knobs: &Knobs) -> u64 {
    match knobs.place {
        Place::Gpu => packed(knobs.dtype),
        Place::Cpu => F32,
    }
}

/// What attention on a GPU keeps for its backward pass, of one token: the log-sum of each head.
fn log_sums(spec: &ModelSpec, place: Place) -> u64 {
    match place {
        Place::Gpu => F32 * spec.heads as u64,
        Place::Cpu => 0,
    }
}

/// What a training pass keeps in all, for one token.
pub(crate) fn kept_per_token(spec: &ModelSpec, knobs: &Knobs) -> u64 {
    spec.layers as u64
        * match knobs.recompute {
            Recompute::KeepActivations => layer_per_token(spec, knobs),
            Recompute::PerLayer => F32 * spec.hidden_size as u64,
        }
}

/// What exists at once while a pass goes through a layer, for one token: forward its activations, their norms, the
/// layer's output and the product of gate and up; backward the gradients of all these too.
pub(crate) fn working_per_token(spec: &ModelSpec, knobs: &Knobs, backward: Backward) -> u64 {
    let (hidden, intermediate) = (F32 * spec.hidden_size as u64, F32 * spec.intermediate_size as u64);
    match backward {
        Backward::No => layer_per_token(spec, knobs) + 3 * hidden + intermediate,
        Backward::Yes => 2 * layer_per_token(spec, knobs) + 3 * hidden + 2 * intermediate,
    }
}

/// Whether gradients are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backward {
    /// A pass for its numbers alone.
    No,
    /// A training pass.
    Yes,
}

/// A training pass over so many tokens: what it keeps, its working space, and transposed copies of one layer's matrices.
pub(crate) fn training_pass(spec: &ModelSpec, knobs: &Knobs, tokens: u64) -> u64 {
    let per_token = kept_per_token(spec, knobs) + working_per_token(spec, knobs, Backward::Yes);
    tokens * per_token + layer(spec, knobs.dtype)
}

/// A forward pass over so many tokens.
pub(crate) fn forward_pass(spec: &ModelSpec, knobs: &Knobs, tokens: u64) -> u64 {
    tokens * working_per_token(spec, knobs, Backward::No)
}

/// The packed matrices of one layer.
fn layer(spec: &ModelSpec, dtype: Dtype) -> u64 {
    let attention = (2 * (spec.heads + spec.kv_heads)) * spec.head_dim * spec.hidden_size;
    (attention + 3 * spec.hidden_size * spec.intermediate_size) as u64 * packed(dtype)
}

/// Keys and values of one token of a sequence that is being generated.
pub(crate) fn cache_per_token(spec: &ModelSpec, dtype: Dtype) -> u64 {
    (2 * spec.layers * spec.kv_heads * spec.head_dim) as u64 * packed(dtype)
}

/// Generating `slots` sequences of up to `longest` tokens at once: keys and values, and the logits of a step. As sequences
/// end, steps become smaller and get arrays of their own, each two thirds of those before: three times the largest.
pub(crate) fn generation(spec: &ModelSpec, dtype: Dtype, slots: u64, longest: u64) -> u64 {
    /// Positions come in whole panels.
    const PANEL: u64 = 32;
    slots * (longest.next_multiple_of(PANEL) * cache_per_token(spec, dtype) + 3 * F32 * spec.vocab_size as u64)
}
