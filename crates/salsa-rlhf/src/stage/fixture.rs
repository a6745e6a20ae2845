//! What the tests of the stages share: a tiny model and tiny data.
use salsa_engine::{Activation, Head, ModelSpec, NormWeight, Recompute, Rope, RopeScaling, Trainable};

use super::next_token::{NextToken, Sequence};

/// A model of a few thousand weights.
pub fn spec(vocab_size: usize, head: Head) -> ModelSpec {
    ModelSpec {
        vocab_size,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        max_positions: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: Activation::Silu,
        norm: NormWeight::Plain,
        embedding_scale: 1.0,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: None,
        tied_embeddings: false,
        head,
    }
}

/// A freshly made tiny model in training.
pub fn trainable(vocab_size: usize, head: Head) -> Trainable {
    let spec = spec(vocab_size, head);
    let weights = spec.init(1);
    Trainable::new(spec, weights, Recompute::KeepActivations).unwrap()
}

/// `count` sequences of rising tokens, of lengths 3 to 9: easy to learn.
pub fn counting(count: u32) -> NextToken {
    let sequence = |i: u32| (i % 5..i % 5 + 3 + i % 7).collect();
    NextToken { examples: (0..count).map(|i| vec![Sequence::whole(sequence(i))]).collect() }
}
