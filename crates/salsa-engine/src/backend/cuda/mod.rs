//! The GPU backend: one NVIDIA GPU, its work ordered on one stream.
//!
//! CUDA is not needed to build this or to run it without a GPU: the driver, cuBLASLt (matrix products) and NVRTC
//! (which compiles the kernels for the installed GPU) are loaded when a GPU is opened.
//!
//! # Number types
//!
//! The residual stream, its gradient, norm weights, flat memory and every sum are f32. With [`Dtype::Bf16`] all inputs
//! and results of matrix products inside a block are bfloat16: norm outputs, fused projections, attention, gates, and
//! the gradients with respect to them. With [`Dtype::F32`] they are f32 and products are true f32.
//!
//! # Guarantees
//!
//! The same work on the same GPU gives the same bits: no sum depends on the timing of threads. Unlike on the CPU, the
//! result of a row may depend on how many others are computed with it, because cuBLASLt chooses its kernel by shape.

mod adamw;
mod attention;
mod buffer;
mod cache;
mod card;
mod error;
mod event;
mod gemm;
mod head;
mod kernels;
mod kind;
mod library;
mod memory;
mod operations;
mod products;
mod profile;
mod recent;
mod rows;
mod staging;
#[cfg(test)]
mod tests;

pub use buffer::Buffer;
pub use cache::Cache;
pub use error::DeviceError;
pub use kernels::compile_all;
pub use library::{CardInfo, available};
pub use memory::MemoryUse;
pub use products::Matrix;

use crate::backend::cpu::Dtype;
use buffer::Words;
use card::Card;
use kind::Kind;
use recent::Recent;
use std::sync::{Arc, Mutex, Weak};

/// A GPU and the number type of its products.
#[derive(Clone, Debug)]
pub struct Cuda {
    card: Arc<Card>,
    dtype: Dtype,
    recent: Arc<Recent>,
}

/// Flat f32 memory on the GPU.
pub struct Flat(Buffer);

impl Flat {
    /// The address of a number, for writing.
    fn place(&mut self, at: usize) -> u64 {
        self.0.pointer_mut() + (at * Kind::F32.bytes()) as u64
    }
}

/// Cosines and sines on the GPU.
pub struct Angles {
    cos: Buffer,
    sin: Buffer,
}

/// The GPUs in use by this process, shared by models.
static OPEN: Mutex<Vec<(usize, Weak<Card>)>> = Mutex::new(Vec::new());

impl Cuda {
    /// Opens a GPU, or shares one that is already open.
    ///
    /// # Errors
    ///
    /// When a library or the GPU is missing, or the driver refuses.
    pub fn open(index: usize, dtype: Dtype) -> Result<Cuda, DeviceError> {
        let mut open = error::locked(&OPEN);
        let known = open.iter().find(|(number, _)| *number == index).and_then(|(_, card)| card.upgrade());
        let card = match known {
            Some(card) => card,
            None => {
                let card = Card::open(index)?;
                open.retain(|(_, card)| card.strong_count() > 0);
                open.push((index, Arc::downgrade(&card)));
                card
            }
        };
        Ok(Cuda { card, dtype, recent: Arc::default() })
    }

    /// The number type of products.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The GPU's name, such as `NVIDIA H200`.
    pub fn name(&self) -> &str {
        &self.card.info().name
    }

    /// The number of the GPU, as [`Cuda::open`] takes it.
    pub fn index(&self) -> usize {
        self.card.info().index
    }

    /// The memory use of the GPU.
    pub fn memory(&self) -> MemoryUse {
        self.card.memory()
    }

    /// Resets the peak of [`Cuda::memory`] to the current use.
    pub fn reset_peak(&self) {
        self.card.reset_peak();
    }

    /// GPU seconds by kernel and by product since the last call: `(name, calls, seconds)`, longest first. Empty unless
    /// the program was started with `SALSA_CUDA_PROFILE=1`.
    pub fn profile(&self) -> Vec<(String, u64, f64)> {
        self.card.profile()
    }

    /// Copies numbers to the GPU in the type of products, as the operations inside a block expect them.
    pub fn upload_for_products(&self, data: &[f32]) -> Buffer {
        self.card.upload_f32(data).converted(self.kind())
    }

    fn kind(&self) -> Kind {
        match self.dtype {
            Dtype::F32 => Kind::F32,
            Dtype::Bf16 => Kind::Bf16,
        }
    }

    fn words(&self, data: &[u32]) -> Arc<Words> {
        self.recent.words(&self.card, data)
    }

    /// Uploads each component of the entries as an array.
    fn entries<const N: usize>(&self, entries: impl Iterator<Item = [usize; N]>) -> [Arc<Words>; N] {
        let mut parts = [const { Vec::new() }; N];
        entries.for_each(|entry| parts.iter_mut().zip(entry).for_each(|(part, x)| part.push(x as u32)));
        parts.map(|part| self.words(&part))
    }
}
