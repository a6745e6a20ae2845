//! Bytes of a model and of its computations, from its shape alone.
use salsa_engine::{BlockNorms, Dtype, Head, LoraSpec, ModelSpec, Recompute};

use super::{MemorySettings, Place, Sharing};

/// Bytes per trained parameter: f32 weights, gradients and AdamW's two moments; without the packed copy.
pub(crate) const TRAINED: u64 = 16;

/// Bytes of f32.
pub(crate) const F32: u64 = 4;

/// Bytes per parameter of the packed copy for products.
pub(crate) fn packed(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => 4,
        Dtype::Bf16 => 2,
    }
}

/// A model for inference: packed matrices, the embedding and all vectors in f32. A tied embedding is also a packed
/// matrix; a separate f32 copy is only needed if packing is not lossless.
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

/// The same for weights read from a file: packing bfloat16 weights as bfloat16 is lossless.
pub(crate) fn stored(spec: &ModelSpec, dtype: Dtype, file_is_bf16: bool) -> u64 {
    let in_head = is_tied(spec) && dtype == Dtype::Bf16 && file_is_bf16;
    weights(spec, dtype) - if in_head { F32 * (spec.vocab_size * spec.hidden_size) as u64 } else { 0 }
}

fn is_tied(spec: &ModelSpec) -> bool {
    spec.tied_embeddings && spec.head != Head::Scalar
}

/// A model with all weights trained, in each process.
pub(crate) fn trained(spec: &ModelSpec, dtype: Dtype, sharing: Sharing) -> u64 {
    sharing.trained(spec.parameters()) + weights(spec, dtype)
}

/// Flat weights of `models` models, as input for combining them.
pub(crate) fn flat(spec: &ModelSpec, models: usize) -> u64 {
    F32 * (models * spec.parameters()) as u64
}

/// Memory that the allocator retains after flat weights of a model were read and freed.
pub(crate) fn read_and_kept(spec: &ModelSpec) -> u64 {
    kept_of(flat(spec, 1))
}

/// What the allocator retains of a freed buffer of so many bytes: small ones are not returned to the system.
fn kept_of(bytes: u64) -> u64 {
    const MOST: u64 = 32 << 20;
    if bytes < MOST { bytes } else { 0 }
}

/// An adapter for inference.
pub(crate) fn adapter(spec: &ModelSpec, lora: &LoraSpec, dtype: Dtype) -> u64 {
    lora.parameters(spec) as u64 * packed(dtype)
}

/// An adapter that is not trained, and what reading it leaves with the allocator.
pub(crate) fn frozen_adapter(spec: &ModelSpec, lora: &LoraSpec, dtype: Dtype) -> u64 {
    adapter(spec, lora, dtype) + kept_of(F32 * lora.parameters(spec) as u64)
}

/// A trained adapter, in each process.
pub(crate) fn trained_adapter(spec: &ModelSpec, lora: &LoraSpec, dtype: Dtype, sharing: Sharing) -> u64 {
    sharing.trained(lora.parameters(spec)) + adapter(spec, lora, dtype)
}

/// Stored activations of one layer in a training pass, per token.
///
/// ```text
/// the layer's input, its middle                    2 hidden
///   what is added to them before norms, if any     + 2 hidden
/// queries, keys, values, attention's output        (2 heads + 2 kv_heads) * head_dim
///   before the norms of heads, where there are     + (heads + 2 kv_heads) * head_dim
/// gate and up                                      2 intermediate
/// ```
pub(crate) fn layer_per_token(spec: &ModelSpec, knobs: &MemorySettings) -> u64 {
    let raw = if spec.qk_norm { spec.heads + 2 * spec.kv_heads } else { 0 };
    let attention = (2 * (spec.heads + spec.kv_heads) + raw) * spec.head_dim;
    let added = if spec.options.norms == BlockNorms::Before { 0 } else { 2 };
    F32 * (2 + added) * spec.hidden_size as u64
        + fed(knobs) * (attention + 2 * spec.intermediate_size) as u64
        + log_sums(spec, knobs.place)
}

/// Bytes of a number that is an operand or result of a product: on a GPU in the number type of products, on the CPU
/// f32.
fn fed(knobs: &MemorySettings) -> u64 {
    match knobs.place {
        Place::Gpu => packed(knobs.dtype),
        Place::Cpu => F32,
    }
}

/// Attention's data for the backward pass on a GPU, per token: the log-sum of each head.
fn log_sums(spec: &ModelSpec, place: Place) -> u64 {
    match place {
        Place::Gpu => F32 * spec.heads as u64,
        Place::Cpu => 0,
    }
}

/// All stored activations of a training pass, per token.
pub(crate) fn kept_per_token(spec: &ModelSpec, knobs: &MemorySettings) -> u64 {
    spec.layers as u64
        * match knobs.recompute {
            Recompute::KeepActivations => layer_per_token(spec, knobs),
            Recompute::PerLayer => F32 * spec.hidden_size as u64,
        }
}

/// Working memory of a pass in one layer, per token: forward its activations, their norms, the layer's output and the
/// product of gate and up; backward also the gradients of all these.
pub(crate) fn working_per_token(spec: &ModelSpec, knobs: &MemorySettings, backward: Backward) -> u64 {
    let (hidden, intermediate) = (F32 * spec.hidden_size as u64, F32 * spec.intermediate_size as u64);
    match backward {
        Backward::No => layer_per_token(spec, knobs) + 3 * hidden + intermediate,
        Backward::Yes => 2 * layer_per_token(spec, knobs) + 3 * hidden + 2 * intermediate,
    }
}

/// Whether gradients are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backward {
    /// Forward only.
    No,
    /// A training pass.
    Yes,
}

/// A training pass over `tokens` tokens: stored activations, working memory, and transposed copies of one layer's
/// matrices.
pub(crate) fn training_pass(spec: &ModelSpec, knobs: &MemorySettings, tokens: u64) -> u64 {
    let per_token = kept_per_token(spec, knobs) + working_per_token(spec, knobs, Backward::Yes);
    tokens * per_token + layer(spec, knobs.dtype)
}

/// A forward pass over `tokens` tokens.
pub(crate) fn forward_pass(spec: &ModelSpec, knobs: &MemorySettings, tokens: u64) -> u64 {
    tokens * working_per_token(spec, knobs, Backward::No)
}

/// The packed matrices of one layer.
fn layer(spec: &ModelSpec, dtype: Dtype) -> u64 {
    let attention = (2 * (spec.heads + spec.kv_heads)) * spec.head_dim * spec.hidden_size;
    (attention + 3 * spec.hidden_size * spec.intermediate_size) as u64 * packed(dtype)
}

/// Keys and values of one token of a sequence during generation.
pub(crate) fn cache_per_token(spec: &ModelSpec, dtype: Dtype) -> u64 {
    (2 * spec.layers * spec.kv_heads * spec.head_dim) as u64 * packed(dtype)
}

/// Generating `slots` sequences of up to `longest` tokens at once: keys and values, and the logits of a step. As
/// sequences end, steps shrink and allocate new arrays, each two thirds of the previous size: three times the largest
/// in total.
pub(crate) fn generation(spec: &ModelSpec, dtype: Dtype, slots: u64, longest: u64) -> u64 {
    /// Positions come in whole panels.
    const PANEL: u64 = 32;
    slots * (longest.next_multiple_of(PANEL) * cache_per_token(spec, dtype) + 3 * F32 * spec.vocab_size as u64)
}
