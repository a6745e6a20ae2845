//! The optimizer's arithmetic: the norm of the gradient and one AdamW step, each one pass over memory.

use super::isa::multiversion;
use crate::backend::{AdamWStep, Decay};
use crate::pool;

/// Numbers per task; partial sums are added in the order of these blocks.
pub(crate) const BLOCK: usize = 1 << 14;

pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
    sums_of_squares(x).iter().sum()
}

/// The sum of each block.
pub(crate) fn sums_of_squares(x: &[f32]) -> Vec<f64> {
    let block = |i: usize| block_sum_of_squares(&x[i * BLOCK..x.len().min((i + 1) * BLOCK)]);
    pool::map(x.len().div_ceil(BLOCK), block)
}

/// `sum += other`.
pub(crate) fn add(sum: &mut [f32], other: &[f32]) {
    let blocks = sum.chunks_mut(BLOCK).zip(other.chunks(BLOCK));
    pool::each(blocks, |_, (sum, other)| sum.iter_mut().zip(other).for_each(|(sum, other)| *sum += other));
}

multiversion! {
    fn block_sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0f64; 8];
        let mut chunks = x.chunks_exact(8);
        for chunk in &mut chunks {
            for (lane, &x) in lanes.iter_mut().zip(chunk) {
                *lane += f64::from(x) * f64::from(x);
            }
        }
        let rest: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        lanes.iter().sum::<f64>() + rest
    }
}

/// One AdamW step on these weights. Zeroes their gradient.
pub(crate) fn update(
    weights: &mut [f32],
    gradients: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    decay: Decay,
    step: &AdamWStep,
) {
    let keep = match decay {
        Decay::Yes => 1.0 - step.learning_rate * step.weight_decay,
        Decay::No => 1.0,
    };
    let parts = weights.chunks_mut(BLOCK).zip(gradients.chunks_mut(BLOCK));
    let parts = parts.zip(m.chunks_mut(BLOCK)).zip(v.chunks_mut(BLOCK));
    pool::each(parts, |_, (((weights, gradients), m), v)| update_block(weights, gradients, m, v, keep, step));
}

multiversion! {
    /// ```text
    /// w *= 1 - lr * decay
    /// m = beta1 m + (1 - beta1) g,   v = beta2 v + (1 - beta2) g^2
    /// w -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps),   g = 0
    /// ```
    fn update_block(w: &mut [f32], gradients: &mut [f32], m: &mut [f32], v: &mut [f32], keep: f32, step: &AdamWStep) {
        let n = w.len();
        let (gradients, m, v) = (&mut gradients[..n], &mut m[..n], &mut v[..n]);
        let rate = step.learning_rate / step.bias_correction1;
        let root = 1.0 / step.bias_correction2.sqrt();
        for i in 0..n {
            let g = gradients[i] * step.gradient_scale;
            gradients[i] = 0.0;
            m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
            v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
            w[i] = w[i] * keep - rate * m[i] / (v[i].sqrt() * root + step.eps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: AdamWStep = AdamWStep {
        learning_rate: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 0.0,
        weight_decay: 0.5,
        bias_correction1: 0.1,
        bias_correction2: 0.01,
        gradient_scale: 1.0,
    };

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_sign() {
        // With eps 0 and both corrections at step 1, m / c1 = g and sqrt(v / c2) = |g|: every weight moves by lr.
        let (mut w, mut m, mut v) = ([1.0, 1.0, 2.0f32], [0.0; 3], [0.0; 3]);
        update(&mut w, &mut [0.5, -3.0, 1e-3], &mut m, &mut v, Decay::No, &STEP);
        for (w, expected) in w.iter().zip([0.9, 1.1, 1.9]) {
            assert!((w - expected).abs() < 1e-5, "{w} {expected}");
        }
    }

    #[test]
    fn decay_shrinks_before_the_step() {
        // No momentum yet: only the decay acts, w * (1 - 0.1 * 0.5).
        let (mut w, mut m, mut v) = ([2.0f32], [0.0], [1.0]);
        update(&mut w, &mut [0.0], &mut m, &mut v, Decay::Yes, &STEP);
        assert!((w[0] - 1.9).abs() < 1e-6);
    }

    #[test]
    fn the_norm_covers_whole_blocks_and_the_rest() {
        let x = vec![2.0f32; BLOCK + 11];
        assert_eq!(sum_of_squares(&x), 4.0 * (BLOCK + 11) as f64);
    }
}
