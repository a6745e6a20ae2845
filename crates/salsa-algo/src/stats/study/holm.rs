//! Several claims at once: Holm's correction.

use super::StudyError;

/// Returns p-values adjusted for testing all of them, in the order given (Holm-Bonferroni).
///
/// ```text
/// p_(1) <= ... <= p_(m):   adjusted_(i) = max over j <= i of min(1, (m - j + 1) p_(j))
/// ```
///
/// Rejecting claims whose adjusted value is at most 0.05 makes the probability of any false rejection at most 5 %, for
/// any dependence between the tests. Source: Holm 1979.
///
/// ```
/// // times 3, times 2, times 1, and never below the one before
/// let adjusted = salsa_algo::stats::study::holm(&[0.5, 0.125, 0.375]).unwrap();
/// assert_eq!(adjusted, [0.75, 0.375, 0.75]);
/// ```
///
/// # Errors
/// If a value is not in `[0, 1]`.
pub fn holm(p_values: &[f64]) -> Result<Vec<f64>, StudyError> {
    if let Some(position) = p_values.iter().position(|p| !(0.0..=1.0).contains(p)) {
        return Err(StudyError::PValue { position, value: p_values[position] });
    }
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let (mut adjusted, mut largest) = (vec![0.0; p_values.len()], 0.0);
    for (rank, &at) in order.iter().enumerate() {
        largest = f64::max(largest, (p_values[at] * (p_values.len() - rank) as f64).min(1.0));
        adjusted[at] = largest;
    }
    Ok(adjusted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_claim_stays_and_none_is_none() {
        assert_eq!(holm(&[0.03]), Ok(vec![0.03]));
        assert_eq!(holm(&[]), Ok(vec![]));
    }

    #[test]
    fn adjusted_values_keep_the_order_and_end_at_one() {
        assert_eq!(holm(&[0.25, 0.25, 0.25, 0.25]), Ok(vec![1.0; 4]));
        assert_eq!(holm(&[1.0, 0.0, 0.125]), Ok(vec![1.0, 0.0, 0.25]));
        // The second would be .1875 * 2 = .375, below the first's .125 * 4 = .5.
        assert_eq!(holm(&[0.125, 0.75, 0.1250001, 0.9]).expect("p-values")[..1], [0.5]);
        assert_eq!(holm(&[0.125, 0.75, 0.1250001, 0.9]).expect("p-values")[2], 0.5);
    }

    #[test]
    fn what_is_no_probability_is_refused() {
        for bad in [-0.1, 1.1, f64::NAN] {
            assert!(holm(&[0.5, bad]).expect_err("refused").to_string().starts_with("p-value 2 is"), "{bad}");
        }
    }
}
