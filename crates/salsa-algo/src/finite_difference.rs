//! Central differences, to check the closed-form derivatives of the losses in tests.

/// The gradient of `f` at `x` by central differences of width `1e-5`; error about `1e-10` for smooth `f` of size one.
pub(crate) fn gradient(f: impl Fn(&[f64]) -> f64, x: &[f64]) -> Vec<f64> {
    const STEP: f64 = 1e-5;
    let moved = |i: usize, by: f64| {
        let mut x = x.to_vec();
        x[i] += by;
        f(&x)
    };
    (0..x.len()).map(|i| (moved(i, STEP) - moved(i, -STEP)) / (2.0 * STEP)).collect()
}

/// Panics unless every element of `a` is within `tolerance` of the corresponding one of `b`.
#[track_caller]
pub(crate) fn assert_close(a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "lengths differ: {a:?} and {b:?}");
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance, "element {i}: {x} and {y} differ by {:e}", (x - y).abs());
    }
}

#[test]
fn the_gradient_of_a_known_function() {
    // f = x0^2 + 3 x0 x1, at (2, 5): df/dx0 = 2*2 + 3*5 = 19, df/dx1 = 3*2 = 6
    assert_close(&gradient(|x| x[0] * x[0] + 3.0 * x[0] * x[1], &[2.0, 5.0]), &[19.0, 6.0], 1e-8);
}
