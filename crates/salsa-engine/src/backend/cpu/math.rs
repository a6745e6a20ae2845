//! Scalar functions and row reductions that the compiler can vectorise, with a fixed order of summation.

/// `e^x` to about one unit in the last place, for all finite x; below -87.3 it stays near the smallest normal number.
///
/// Cody and Waite's reduction to |r| <= ln 2 / 2, then a polynomial of degree six: no branches and no table, so that
/// loops over it vectorise, and the same bits on every machine.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    let x = x.clamp(-87.3, 88.7);
    // Adding 1.5 * 2^23 rounds to the nearest integer in the low bits of the mantissa.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    let r = (x - n * 0.693_359_4) - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 0.166_666_65;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    // The result is always a normal number, so its exponent can be raised as an integer. For a NaN nothing is added.
    let exponent = shifted.to_bits().wrapping_sub(0x4b40_0000) << 23;
    f32::from_bits(y.to_bits().wrapping_add(exponent))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh x = 1 - 2 / (e^2x + 1)`.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (exp(2.0 * x) + 1.0)
}

/// Interleaved lanes of a reduction.
pub(crate) const LANES: usize = 16;

/// Combines the lanes pairwise.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// `sum_i x[i] * y[i]`, in sixteen interleaved lanes that are then added pairwise: the same order on every machine.
#[inline(always)]
pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    let mut sum = [0f32; LANES];
    for (x, y) in x.iter().zip(y) {
        for i in 0..LANES {
            sum[i] += x[i] * y[i];
        }
    }
    for (sum, (x, y)) in sum.iter_mut().zip(x_rest.iter().zip(y_rest)) {
        *sum += x * y;
    }
    fold(sum, |a, b| a + b)
}

/// `sum_i x[i] * y[i] * z[i]`, in the same order; `offset` is added to `y` first.
#[inline(always)]
pub(crate) fn dot3(x: &[f32], (y, offset): (&[f32], f32), z: &[f32]) -> f32 {
    assert!(x.len() == y.len() && x.len() == z.len());
    let ((x, x_rest), (y, y_rest), (z, z_rest)) =
        (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    let mut sum = [0f32; LANES];
    for ((x, y), z) in x.iter().zip(y).zip(z) {
        for i in 0..LANES {
            sum[i] += x[i] * (y[i] + offset) * z[i];
        }
    }
    for (sum, ((x, y), z)) in sum.iter_mut().zip(x_rest.iter().zip(y_rest).zip(z_rest)) {
        *sum += x * (y + offset) * z;
    }
    fold(sum, |a, b| a + b)
}

/// `max_i x[i]`, negative infinity for an empty slice.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let (whole, rest) = x.as_chunks::<LANES>();
    let mut top = [f32::NEG_INFINITY; LANES];
    for x in whole {
        for i in 0..LANES {
            top[i] = if x[i] > top[i] { x[i] } else { top[i] };
        }
    }
    for (top, &x) in top.iter_mut().zip(rest) {
        *top = if x > *top { x } else { *top };
    }
    fold(top, |a, b| if b > a { b } else { a })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_of_the_exact_value() {
        let mut worst = 0f64;
        for i in -87_000..88_700 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - exact) / exact).abs());
        }
        assert!(worst < 2.4e-7, "relative error {worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(-1000.0) >= 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_cover_every_element_at_every_length() {
        for len in 0..70usize {
            let x: Vec<f32> = (1..=len).map(|i| i as f32).collect();
            assert_eq!(max(&x), if len == 0 { f32::NEG_INFINITY } else { len as f32 });
            assert_eq!(dot(&x, &x), x.iter().map(|x| x * x).sum::<f32>());
        }
    }

    #[test]
    fn sigmoid_and_tanh_saturate() {
        assert_eq!((sigmoid(0.0), tanh(0.0)), (0.5, 0.0));
        assert_eq!((tanh(50.0), tanh(-50.0)), (1.0, -1.0));
        assert!(sigmoid(100.0) == 1.0 && sigmoid(-80.0) < 1e-30);
    }
}
