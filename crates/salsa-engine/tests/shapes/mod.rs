//! A small model with the options of each family beyond the basic form.
#![allow(dead_code, reason = "each test takes some of them")]

use salsa_engine::*;

/// Sequences of the tests are longer.
pub(crate) const TRAINED: usize = 4;

pub(crate) fn rope(scaling: RopeScaling) -> Rope {
    Rope { theta: 500.0, scaling }
}

pub(crate) fn yarn() -> Rope {
    rope(RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 1.0,
        beta_slow: 0.1,
        attention_factor: 1.2,
        original_max_positions: TRAINED,
        truncate: true,
    })
}

pub(crate) fn dynamic() -> Rope {
    rope(RopeScaling::Dynamic { factor: 3.0, original_max_positions: TRAINED })
}

/// Divisors for `pairs` pairs.
pub(crate) fn long_rope(pairs: usize) -> Rope {
    let grown = |first: f64| (0..pairs).map(|i| first + 0.5 * i as f64).collect();
    rope(RopeScaling::LongRope {
        short: grown(1.0),
        long: grown(3.0),
        attention_factor: 1.1,
        original_max_positions: TRAINED,
    })
}

fn layers(kinds: [(bool, Rotary); 2]) -> Vec<LayerOptions> {
    kinds.map(|(windowed, rotary)| LayerOptions { windowed, rotary }).to_vec()
}

pub(crate) fn gemma2() -> ModelSpec {
    ModelSpec {
        norm: NormWeight::OnePlus,
        activation: Activation::GeluTanh,
        embedding_scale: 8f32.sqrt(),
        head_dim: 6,
        tied_embeddings: true,
        sliding_window: Some(3),
        options: Options {
            norms: BlockNorms::Both,
            attention_scale: Some(0.6),
            attention_softcap: Some(2.0),
            logit_softcap: Some(3.0),
            layers: layers([(true, Rotary::Main), (false, Rotary::Main)]),
            ..Options::default()
        },
        ..tiny()
    }
}

pub(crate) fn gemma3() -> ModelSpec {
    ModelSpec {
        qk_norm: true,
        options: Options {
            norms: BlockNorms::Both,
            attention_scale: Some(0.6),
            local_rope: Some(rope(RopeScaling::None)),
            layers: layers([(true, Rotary::Local), (false, Rotary::Main)]),
            ..Options::default()
        },
        ..gemma2()
    }
}

pub(crate) fn olmo2() -> ModelSpec {
    let options = Options {
        norms: BlockNorms::After,
        qk_norm_span: NormSpan::Projection,
        output_bias: true,
        ..Options::default()
    };
    ModelSpec { qk_norm: true, qkv_bias: true, options, ..tiny() }
}

pub(crate) fn granite() -> ModelSpec {
    let options = Options {
        attention_scale: Some(0.3),
        residual_scale: 0.5,
        logit_divisor: 0.7,
        output_bias: true,
        ..Options::default()
    };
    ModelSpec { embedding_scale: 3.0, qkv_bias: true, tied_embeddings: true, options, ..tiny() }
}

pub(crate) fn smollm3() -> ModelSpec {
    let layers = layers([(false, Rotary::Main), (true, Rotary::None)]);
    ModelSpec { sliding_window: Some(3), options: Options { layers, ..Options::default() }, ..tiny() }
}

pub(crate) fn phi3() -> ModelSpec {
    let options = Options { fused_projections: true, rotary_dim: Some(4), ..Options::default() };
    ModelSpec { head_dim: 6, rope: long_rope(2), options, ..tiny() }
}
