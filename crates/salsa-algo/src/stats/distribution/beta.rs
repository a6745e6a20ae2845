//! The regularised incomplete beta function.

use super::gamma::ln_gamma;

/// Returns `I_x(a, b)` for positive `a` and `b`; `y = 1 - x` is also passed, so that neither end loses digits.
///
/// ```text
/// I_x(a, b) = x^a y^b / (a B(a, b)) * 1 / (1 + d1 / (1 + d2 / (1 + ...)))
/// d_2m+1 = -(a + m) (a + b + m) x / ((a + 2m) (a + 2m + 1))      d_2m = m (b - m) x / ((a + 2m - 1) (a + 2m))
/// ```
///
/// The continued fraction converges fast for `x < (a + 1) / (a + b + 2)`; above, `I_x(a, b) = 1 - I_y(b, a)`.
/// Source: DLMF 8.17.4 and 8.17.22.
pub(super) fn incomplete_beta(a: f64, b: f64, x: f64, y: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if y <= 0.0 {
        return 1.0;
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - below_mode(b, a, y, x);
    }
    below_mode(a, b, x, y)
}

fn below_mode(a: f64, b: f64, x: f64, y: f64) -> f64 {
    let ln_factor = a * x.ln() + b * y.ln() + ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b);
    ln_factor.exp() / (a * continued_fraction(|i| coefficient(a, b, x, i)))
}

fn coefficient(a: f64, b: f64, x: f64, i: u32) -> f64 {
    let m = f64::from(i / 2);
    if i % 2 == 1 {
        -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
    } else {
        m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
    }
}

/// Returns `1 + d(1) / (1 + d(2) / (1 + ...))`, evaluated forwards by the modified method of Lentz.
fn continued_fraction(d: impl Fn(u32) -> f64) -> f64 {
    let away_from_zero = |x: f64| if x.abs() < 1e-300 { 1e-300 } else { x };
    let (mut value, mut numerator, mut denominator) = (1.0, 1.0, 0.0);
    for i in 1..MOST_TERMS {
        let d = d(i);
        denominator = 1.0 / away_from_zero(1.0 + d * denominator);
        numerator = away_from_zero(1.0 + d / numerator);
        let factor = numerator * denominator;
        value *= factor;
        if (factor - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    value
}

/// The fraction needs about as many terms as the root of the larger parameter.
const MOST_TERMS: u32 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_forms() {
        for x in [1e-9, 0.1, 0.3, 0.5, 0.77, 0.999] {
            let y = 1.0 - x;
            let close = |a: f64, b: f64, exact: f64| {
                let got = incomplete_beta(a, b, x, y);
                assert!((got - exact).abs() < 1e-14 * exact.max(1e-3), "I_{x}({a}, {b}) = {got}, not {exact}");
            };
            close(1.0, 1.0, x);
            close(3.0, 1.0, x.powi(3));
            close(1.0, 4.0, -(4.0 * (-x).ln_1p()).exp_m1()); // 1 - (1 - x)^4
            close(2.0, 2.0, x * x * (3.0 - 2.0 * x));
            close(0.5, 0.5, 2.0 / std::f64::consts::PI * x.sqrt().asin());
        }
        assert_eq!((incomplete_beta(2.0, 3.0, 0.0, 1.0), incomplete_beta(2.0, 3.0, 1.0, 0.0)), (0.0, 1.0));
    }
}
