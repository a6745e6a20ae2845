//! The noncentral t distribution: t values in the presence of an effect.

use super::{beta::incomplete_beta, gamma::ln_gamma, normal::normal_cdf};

/// Returns the probability that a noncentral t variable is at most `t`.
///
/// ```text
/// T = (Z + delta) / sqrt(chi^2_df / df)
/// t >= 0:  P(T <= t) = Φ(-delta) + 1/2 Σ_j (p_j I_x(j + 1/2, df / 2) + q_j I_x(j + 1, df / 2))
///          x = t^2 / (df + t^2)     l = delta^2 / 2
///          p_j = e^-l l^j / j!      q_j = delta / sqrt(2) * e^-l l^j / Γ(j + 3/2)
/// t < 0:   P(T <= t; delta) = 1 - P(T <= -t; -delta)
/// ```
///
/// The sum runs from its largest weights outwards, so that it does not underflow for a large `delta`.
/// Source: Lenth 1989 (algorithm AS 243), equation 1.
pub(crate) fn noncentral_t_cdf(t: f64, df: f64, delta: f64) -> f64 {
    if t < 0.0 {
        return 1.0 - noncentral_t_cdf(-t, df, -delta);
    }
    let square = t * t;
    let (x, y) = (square / (df + square), df / (df + square));
    let half = delta * delta / 2.0;
    let term = |j: f64| {
        let weight = |shift: f64| {
            let power = if j == 0.0 { 0.0 } else { j * half.ln() };
            (power - half - ln_gamma(j + shift)).exp()
        };
        let (even, odd) = (weight(1.0), delta / std::f64::consts::SQRT_2 * weight(1.5));
        let value = even * incomplete_beta(j + 0.5, df / 2.0, x, y) + odd * incomplete_beta(j + 1.0, df / 2.0, x, y);
        (value, even)
    };
    let middle = half.floor();
    let upwards = sum_while_it_weighs((0u32..).map(|k| term(middle + f64::from(k))));
    let steps_down = (0u32..).map(|k| middle - 1.0 - f64::from(k)).take_while(|&j| j >= 0.0);
    let downwards = sum_while_it_weighs(steps_down.map(term));
    (normal_cdf(-delta) + 0.5 * (upwards + downwards)).clamp(0.0, 1.0)
}

/// Adds the values of (value, weight) until the decreasing weights are negligible in double precision.
fn sum_while_it_weighs(terms: impl Iterator<Item = (f64, f64)>) -> f64 {
    terms.take_while(|(_, weight)| *weight > 1e-20).map(|(value, _)| value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::distribution::student_t_two_sided;

    #[test]
    fn without_an_effect_it_is_students() {
        for (t, df) in [(0.3, 1.0), (2.0, 4.0), (5.0, 17.0)] {
            let above = student_t_two_sided(t, df) / 2.0;
            assert!((noncentral_t_cdf(t, df, 0.0) - (1.0 - above)).abs() < 1e-14);
            assert!((noncentral_t_cdf(-t, df, 0.0) - above).abs() < 1e-14);
        }
    }

    #[test]
    fn it_is_the_integral_over_the_denominator() {
        // P(T <= t) = ∫ Φ(t s - delta) f(s) ds with s = sqrt(chi^2_df / df), by Simpson's rule.
        for (t, df, delta) in
            [(2.8, 4.0f64, 2.0), (1.0, 2.0, -1.5), (-1.0, 9.0, 0.7), (30.0, 3.0, 25.0), (12.7, 1.0, 40.0)]
        {
            let density = |s: f64| {
                let ln_factor = f64::ln(2.0) + df / 2.0 * (df / 2.0).ln() - ln_gamma(df / 2.0);
                if s == 0.0 && df > 1.0 { 0.0 } else { (ln_factor - df * s * s / 2.0).exp() * s.powf(df - 1.0) }
            };
            let (n, end) = (40_000u32, 12.0);
            let at = |i: u32| f64::from(i) / f64::from(n) * end;
            let weight = |i: u32| if i == 0 || i == n { 1.0 } else { f64::from(2 + 2 * (i % 2)) };
            let sum: f64 = (0..=n).map(|i| weight(i) * normal_cdf(t * at(i) - delta) * density(at(i))).sum();
            let integral = sum * end / f64::from(3 * n);
            let series = noncentral_t_cdf(t, df, delta);
            assert!((series - integral).abs() < 1e-11, "{t} {df} {delta}: {series} {integral}");
        }
    }
}
