//! Logarithm of the gamma function.

/// Returns `ln Γ(x)` for `x > 0`.
///
/// ```text
/// Γ(x) = Γ(x + n) / (x (x + 1) ... (x + n - 1))          n so large that x + n >= 15
/// ln Γ(z) ~ (z - 1/2) ln z - z + ln(2π) / 2 + Σ B_2k / (2k (2k - 1) z^(2k - 1))
/// ```
///
/// Six terms of the series leave less than 1e-17. Source: DLMF 5.5.1 and 5.11.1.
pub(super) fn ln_gamma(x: f64) -> f64 {
    let (mut z, mut product) = (x, 1.0);
    while z < 15.0 {
        product *= z;
        z += 1.0;
    }
    let series = STIRLING.iter().rev().fold(0.0, |sum, term| sum / (z * z) + term) / z;
    (z - 0.5) * z.ln() - z + HALF_LN_TWO_PI + series - f64::ln(product)
}

/// `ln(2π) / 2`.
const HALF_LN_TWO_PI: f64 = 0.918_938_533_204_672_8;

/// `B_2k / (2k (2k - 1))` for k = 1 to 6.
const STIRLING: [f64; 6] = [1.0 / 12.0, -1.0 / 360.0, 1.0 / 1260.0, -1.0 / 1680.0, 1.0 / 1188.0, -691.0 / 360_360.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factorials_and_halves() {
        let mut factorial = 1.0f64;
        for n in 1..30 {
            let exact = factorial.ln(); // Γ(n) = (n - 1)!
            assert!((ln_gamma(f64::from(n)) - exact).abs() <= 1e-14 * exact.max(1.0), "{n}");
            factorial *= f64::from(n);
        }
        let half = std::f64::consts::PI.sqrt(); // Γ(1/2), and Γ(7/2) = 15/8 of it
        assert!((ln_gamma(0.5) - half.ln()).abs() < 1e-14);
        assert!((ln_gamma(3.5) - (half * 15.0 / 8.0).ln()).abs() < 1e-14);
    }
}
