//! A transformer engine for RLHF: packed forward and hand-derived backward passes, KV-cache decoding, AdamW.
//!
//! The engine is independent of losses, data and rewards. A model has two outputs, the log-prob of a token and one
//! scalar per position; the loss is computed outside, and its gradient with respect to these is passed back.
//!
//! ```
//! use salsa_engine::*;
//! let mut model = Trainable::new(tiny(), tiny().init(1), Device::default(), Recompute::KeepActivations)?;
//! let (mut batch, mut query) = (Batch::new(), Query::default());
//! let rows = batch.push(&[1, 2, 3]);
//! query.push_logprobs(rows, &[1, 2, 3], 1);              // log p(2 | 1), log p(3 | 1, 2)
//! let before = model.forward(&batch, &query).logprobs;
//! let (_, tape) = model.forward_train(&batch, &query);
//! model.backward(tape, &OutputGradient { d_logprobs: &[-0.5, -0.5], d_values: &[] });
//! model.adamw_step(&AdamW::default(), 1e-3)?;            // the mean negative log-prob goes down
//! let after = model.forward(&batch, &query).logprobs;
//! assert!(after[0] + after[1] > before[0] + before[1]);
//! # Ok::<(), ModelError>(())
//! ```
//!
//! # Layout
//!
//! | module | what |
//! |---|---|
//! | [`spec`] | a model's shape and the layout of its flat weights |
//! | [`lora`] | low-rank adapters: their shape and the layout of their flat weights |
//! | [`weights`] | where weights are read from |
//! | [`batch`] | packed sequences, queries, outputs |
//! | [`comm`] | the processes of one run |
//! | [`model`] | forward, backward, decoding, optimizer step, written once against [`backend::Backend`] |
//! | [`backend`] | the operations; [`backend::cpu`] does them on the CPU, [`backend::cuda`] on a GPU; [`backend::planned`] takes memory alone |
//! | [`threads`] | threads for parallel regions of microseconds |
//! | [`random`] | counter-based random numbers |
//!
//! # Guarantees
//!
//! On the CPU a sequence's numbers do not depend on the other sequences of the batch, on the number of threads, or on
//! whether they were computed by decoding or by a training pass. Every reduction has a fixed order.

pub mod backend;
pub mod batch;
pub mod comm;
mod error;
pub mod lora;
mod memory;
pub mod model;
mod pool;
pub mod random;
pub mod spec;
pub mod weights;

pub use backend::Ranking;
pub use backend::cpu::{Cpu, Dtype};
pub use backend::device::Device;
pub use backend::planned::Planned;
pub use batch::{Batch, Output, OutputGradient, Query};
pub use error::ModelError;
pub use lora::{LoraSpec, Target};
pub use model::{
    AdamW, Base, Decoding, Event, Finish, Moment, OptimizerState, Prompt, Recompute, Response, Sampling, Tape, Ticket,
    TrainableTransformer, Transformer, geometric_logprobs,
};
pub use pool::{cores_of_machine, requested_threads, share_cores, threads, with_threads};
pub use spec::{
    Activation, BlockNorms, Head, LayerOptions, ModelSpec, NormSpan, NormWeight, Options, Rope, RopeScaling, Rotary,
    TensorView,
};
pub use weights::{Numbers, Room, Weights};

/// A model whose weights do not change.
pub type Model = Transformer<Device>;
/// A model in training.
pub type Trainable = TrainableTransformer<Device>;

/// The instruction set of the kernels in use: `amx-bf16`, `avx512-bf16`, `avx512`, `avx2`, `neon` or `scalar`; see
/// [`check_isa`].
pub fn isa() -> &'static str {
    backend::cpu::isa::isa().name()
}

/// Checks that the instruction set named by `SALSA_ISA` can be used.
///
/// # Errors
///
/// When the name is unknown (lists the names), or this machine lacks the instruction set.
pub fn check_isa() -> Result<(), String> {
    backend::cpu::isa::check().map(|_| ())
}

/// Returns memory that is free but kept for reuse to the operating system: pooled arrays of the CPU backend, and pages
/// of the allocator. Call it between two pieces of work that share nothing.
pub fn release_memory() {
    backend::cpu::Buffer::trim_pool();
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes no pointer, and may be called at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The smallest model that uses every part of the family's basic form, for examples and tests.
pub fn tiny() -> ModelSpec {
    ModelSpec {
        vocab_size: 11,
        hidden_size: 8,
        intermediate_size: 12,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 4,
        max_positions: 64,
        rms_norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, scaling: RopeScaling::None },
        activation: Activation::Silu,
        norm: NormWeight::Plain,
        embedding_scale: 1.0,
        qkv_bias: false,
        qk_norm: false,
        sliding_window: None,
        options: Options::default(),
        tied_embeddings: false,
        head: Head::LanguageModel,
    }
}
