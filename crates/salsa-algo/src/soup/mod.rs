//! Model soups: combining the weights of models fine-tuned from one base.
//!
//! Functions work on one tensor at a time, given as `f32` slices of equal length, and write into `out`. Elementwise
//! ones ([`weighted_mean`], [`lerp`]) may be called on pieces of a tensor in any order, in parallel, with the same
//! result; those that depend on the whole tensor (an angle, a magnitude threshold) are documented as such, and have a
//! streaming variant that takes the tensor in pieces ([`SlerpStream`], [`TaskStream`], …) and gives the same bits.
//! SALSA's reference is `lerp(sft_a, sft_b, alpha)`, or [`weighted_mean`] for more than two.
//!
//! | function | method | source |
//! |---|---|---|
//! | [`weighted_mean`], [`lerp`] | linear | Wortsman et al. 2022 (2203.05482) |
//! | [`slerp()`], [`slerp_from`] | along the arc | Shoemake 1985; Ramé et al. 2024 (2406.16768) |
//! | [`NuSlerpStream`] | along the arc, row by row or column by column | mergekit's `nuslerp` |
//! | [`karcher()`] | the Karcher mean of several on a sphere | Karcher 1977; 2603.04972 |
//! | [`model_stock`] | towards the mean, by a ratio from the angles | Jang et al. 2024 (2403.19522) |
//! | [`TaskMerge`] | task arithmetic, TIES, DARE | 2212.04089, 2306.01708, 2311.03099 |
//! | [`concatenate`] | the mean of low-rank adapters | |
//! | [`compress()`] | the nearest adapter of a smaller rank | Eckart and Young 1936 |
//! | [`Gram`] | norms and angles of task vectors | |
//! | [`search`] | weights by what their means are worth: CMA-ES on the simplex | Hansen 2016 (1604.00772) |

mod compress;
mod gram;
mod karcher;
mod linear;
mod low_rank;
mod nuslerp;
pub mod search;
mod slerp;
mod sparsify;
mod stock;
mod task;
mod vectors;
mod weights;

pub use compress::{Compressed, compress};
pub use gram::Gram;
pub use karcher::{KarcherSearch, KarcherStream, karcher, karcher_factors};
pub use linear::{add_product, divide, lerp, lerp_in_place, weighted_mean};
pub use low_rank::{LowRank, concatenate};
pub use nuslerp::{NuSlerpStream, nuslerp_place};
pub use slerp::{Origin, SlerpStream, slerp, slerp_from};
pub use sparsify::Sparsify;
pub use stock::{StockStream, model_stock, stock_ratio};
pub use task::{Consensus, TaskMerge, TaskStream};
pub use vectors::Vectors;
pub use weights::{Normalize, SoupError, Weights};

/// Panics unless every tensor has the length of the output.
#[track_caller]
fn same_lengths(out: &[f32], tensors: &[&[f32]]) {
    for (i, tensor) in tensors.iter().enumerate() {
        assert_eq!(tensor.len(), out.len(), "tensor {i} and the output differ in length");
    }
}
