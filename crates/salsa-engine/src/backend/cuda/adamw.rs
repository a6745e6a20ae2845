//! The optimizer's arithmetic: the norm of the gradient and one AdamW step, each one pass over memory.

use super::card::Card;
use super::kind::Kind;
use super::rows::start;
use crate::backend::{AdamWStep, Decay};
use std::sync::Arc;

/// Numbers per block of the sum of squares: `BLOCK` of the kernels.
const BLOCK: usize = 1 << 14;
/// Threads of a block.
const THREADS: usize = 256;

/// `sum x^2` of `len` f32 at address `x`, in f64 and in fixed blocks. Waits for the GPU.
pub(super) fn sum_of_squares(card: &Arc<Card>, x: u64, len: usize) -> f64 {
    if len == 0 {
        return 0.0;
    }
    let blocks = len.div_ceil(BLOCK);
    // Sums of eight bytes, two places for each.
    let (mut partial, mut total) = (card.room(2 * blocks, Kind::F32), card.room(2, Kind::F32));
    start(card, "squares", [blocks, 1], THREADS, &[&x, &partial.pointer_mut(), &(len as i64)]);
    start(card, "finish_squares", [1, 1], 1024, &[&partial.pointer(), &total.pointer_mut(), &(blocks as i64)]);
    let mut bytes = [0; 8];
    card.fetch(total.pointer(), &mut bytes);
    f64::from_ne_bytes(bytes)
}

/// One AdamW step on `len` f32 at the addresses of the weights, the gradients (zeroed), `m` and `v`. The new weights
/// are also written to the bfloat16 array at `copy`, unless that is 0.
pub(super) fn adamw(
    card: &Arc<Card>,
    [weights, gradients, m, v]: [u64; 4],
    copy: u64,
    len: usize,
    decay: Decay,
    step: &AdamWStep,
) {
    let keep = match decay {
        Decay::Yes => 1.0 - step.learning_rate * step.weight_decay,
        Decay::No => 1.0,
    };
    let blocks = len.div_ceil(THREADS).min(16 * card.multiprocessors());
    start(
        card,
        "adamw",
        [blocks, 1],
        THREADS,
        &[
            &weights,
            &gradients,
            &m,
            &v,
            &copy,
            &(len as i64),
            &keep,
            &(step.learning_rate / step.bias_correction1),
            &(1.0 / step.bias_correction2.sqrt()),
            &step.beta1,
            &step.beta2,
            &step.eps,
            &step.gradient_scale,
        ],
    );
}
