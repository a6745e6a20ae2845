//! Quantiles.

/// Returns the quantiles of a sample at the given shares, or none if the sample is empty.
///
/// ```text
/// h = q * (n - 1);   x[floor h] + (h - floor h) * (x[floor h + 1] - x[floor h])          x sorted
/// ```
///
/// Linear interpolation, numpy's default (type 7 of Hyndman and Fan 1996). Shares outside `[0, 1]` count as 0 or 1.
/// NaN sorts above every number.
///
/// ```
/// let q = salsa_algo::stats::quantiles(&[4.0, 1.0, 3.0, 2.0], &[0.0, 0.5, 0.75, 1.0]).unwrap();
/// assert_eq!(q, [1.0, 2.5, 3.25, 4.0]);
/// ```
pub fn quantiles(values: &[f64], shares: &[f64]) -> Option<Vec<f64>> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let at = |share: &f64| {
        let place = share.clamp(0.0, 1.0) * last as f64;
        let below = sorted[place.floor() as usize];
        let above = sorted[place.ceil() as usize];
        // A weight of zero, or an infinite neighbour, must not turn an infinite number into NaN.
        let weight = place.fract();
        if weight == 0.0 || below == above { below } else { below + weight * (above - below) }
    };
    Some(shares.iter().map(at).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x = [10.0, 30.0, 20.0];
        // places 0, .2, 1, 1.5, 2
        assert_eq!(quantiles(&x, &[0.0, 0.1, 0.5, 0.75, 1.0]).expect("not empty"), [10.0, 12.0, 20.0, 25.0, 30.0]);
        assert_eq!(quantiles(&x, &[-1.0, 7.0]).expect("not empty"), [10.0, 30.0]);
        assert_eq!(quantiles(&[5.0], &[0.0, 0.3, 1.0]).expect("not empty"), [5.0; 3]);
        assert_eq!(quantiles(&[], &[0.5]), None);
        assert_eq!(quantiles(&[1.0, f64::INFINITY], &[0.0, 1.0]).expect("not empty"), [1.0, f64::INFINITY]);
        assert_eq!(quantiles(&[f64::INFINITY; 4], &[0.5]).expect("not empty"), [f64::INFINITY]);
    }

    #[test]
    fn the_order_of_the_sample_does_not_matter() {
        let shares = [0.05, 0.33, 0.9];
        assert_eq!(quantiles(&[3.0, 1.0, 2.0, 9.0], &shares), quantiles(&[9.0, 2.0, 3.0, 1.0], &shares));
    }
}
