//! Whitening: scaling a batch to variance one, with its mean removed (advantages) or kept (rewards).

/// Added to the variance before taking the square root, as in TRL.
const EPSILON: f64 = 1e-8;

/// Mean and unbiased variance of some numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Moments {
    /// The mean; 0 for an empty slice.
    pub mean: f64,
    /// The variance with denominator `n - 1`; 0 for fewer than two numbers, where it is undefined.
    pub variance: f64,
}

/// Returns the mean and the unbiased variance.
///
/// ```text
/// mean = sum x / n          variance = sum (x - mean)^2 / (n - 1)
/// ```
///
/// ```
/// let moments = salsa_algo::whiten::moments(&[1.0, 3.0]);
/// assert_eq!((moments.mean, moments.variance), (2.0, 2.0));
/// ```
pub fn moments(values: &[f64]) -> Moments {
    let n = values.len();
    if n == 0 {
        return Moments { mean: 0.0, variance: 0.0 };
    }
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    Moments { mean, variance: squares / (n.max(2) - 1) as f64 }
}

/// Treatment of the mean in whitening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mean {
    /// It is subtracted: the result has mean 0. For advantages.
    Remove,
    /// It is added back after scaling. For rewards, whose sign is meaningful.
    Keep,
}

/// Scales numbers in place to variance one.
///
/// ```text
/// Remove   (x - mean) / sqrt(variance + 1e-8)
/// Keep     (x - mean) / sqrt(variance + 1e-8) + mean
/// ```
///
/// `values` is a whole batch, responses concatenated; pass only what is to be whitened together (advantages: one per
/// token, without the slot after EOS; see [`drop_score_slots`]). A single number becomes 0 with the mean removed and is
/// unchanged with the mean kept, since its variance counts as 0; `torch` gives NaN.
///
/// ```
/// use salsa_algo::whiten::{Mean, whiten};
/// let mut x = [1.0, 3.0]; // mean 2, variance 2
/// whiten(&mut x, Mean::Remove);
/// assert!((x[1] - 0.5f64.sqrt()).abs() < 1e-8);
/// ```
pub fn whiten(values: &mut [f64], mean: Mean) {
    let moments = moments(values);
    whiten_with(values, moments, mean);
}

/// [`whiten`] with moments computed elsewhere: of a batch of which `values` is a part.
///
/// ```
/// use salsa_algo::whiten::{Mean, moments, whiten_with};
/// let mut part = [3.0];
/// whiten_with(&mut part, moments(&[1.0, 3.0]), Mean::Remove);
/// assert!((part[0] - 0.5f64.sqrt()).abs() < 1e-8);
/// ```
pub fn whiten_with(values: &mut [f64], moments: Moments, mean: Mean) {
    let Moments { mean: center, variance } = moments;
    let scale = 1.0 / (variance + EPSILON).sqrt();
    let kept = match mean {
        Mean::Remove => 0.0,
        Mean::Keep => center,
    };
    for x in values {
        *x = (*x - center) * scale + kept;
    }
}

/// Returns the numbers of the tokens only, without those of the slots after EOS.
///
/// `per_slot` holds concatenated responses, `slots[i]` entries for response i, of which the first `tokens[i]` are kept.
///
/// ```
/// // a response of 2 tokens and a slot after EOS, then one of 1 token without
/// let kept = salsa_algo::whiten::drop_score_slots(&[1.0, 2.0, 9.0, 3.0], &[3, 1], &[2, 1]);
/// assert_eq!(kept, [1.0, 2.0, 3.0]);
/// ```
///
/// # Panics
/// If the lengths of `slots` and `tokens` differ, if a response has fewer slots than tokens, or if the slots do not add
/// up to the length of `per_slot`.
pub fn drop_score_slots(per_slot: &[f64], slots: &[usize], tokens: &[usize]) -> Vec<f64> {
    assert_eq!(slots.len(), tokens.len(), "one slot count per token count");
    let mut kept = Vec::with_capacity(per_slot.len());
    let mut rest = per_slot;
    for (&slots, &tokens) in slots.iter().zip(tokens) {
        assert!(slots <= rest.len(), "the slot counts exceed the {} numbers given", per_slot.len());
        let (response, behind) = rest.split_at(slots);
        kept.extend_from_slice(&response[..tokens]);
        rest = behind;
    }
    assert!(rest.is_empty(), "{} numbers behind the last response", rest.len());
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::assert_close;

    #[test]
    fn pencil_moments() {
        for (values, mean, variance) in [
            (&[][..], 0.0, 0.0),
            (&[7.0][..], 7.0, 0.0),
            (&[2.0, 2.0, 2.0][..], 2.0, 0.0),
            (&[1.0, 2.0, 3.0, 6.0][..], 3.0, 14.0 / 3.0), // squares 4 + 1 + 0 + 9
        ] {
            assert_eq!(moments(values), Moments { mean, variance }, "{values:?}");
        }
    }

    #[test]
    fn whitened_numbers_have_the_promised_moments() {
        let start = [1.0, 2.0, 3.0, 6.0];
        for (mode, mean) in [(Mean::Remove, 0.0), (Mean::Keep, 3.0)] {
            let mut x = start;
            whiten(&mut x, mode);
            let after = moments(&x);
            assert!((after.mean - mean).abs() < 1e-15);
            assert!((after.variance - 1.0).abs() < 1e-8);
        }
    }

    #[test]
    fn absolute_numbers() {
        // deviations -2, -1, 0, 3 over sqrt(14/3) = 2.160246899469287
        let mut x = [1.0, 2.0, 3.0, 6.0];
        whiten(&mut x, Mean::Remove);
        assert_close(&x, &[-0.9258200997725514, -0.4629100498862757, 0.0, 1.3887301496588271], 2e-9);
        // the epsilon, seen where the variance is small: x = ±1e-4, variance 2e-8, scale 1/sqrt(3e-8)
        let mut x = [1e-4, -1e-4];
        whiten(&mut x, Mean::Remove);
        assert_close(&x, &[(1.0f64 / 3.0).sqrt(), -(1.0f64 / 3.0).sqrt()], 1e-12);
    }

    #[test]
    fn too_few_or_equal_numbers_do_no_harm() {
        whiten(&mut [], Mean::Remove);
        for (mode, expected) in [(Mean::Remove, 0.0), (Mean::Keep, 7.0)] {
            let (mut one, mut three) = ([7.0], [7.0; 3]);
            whiten(&mut one, mode);
            whiten(&mut three, mode);
            assert_eq!((one, three), ([expected], [expected; 3]));
        }
    }

    #[test]
    fn shifting_and_positive_scaling_do_not_matter_when_the_mean_is_removed() {
        let mut a = [0.3, -1.2, 0.7, 2.0];
        let mut b = a.map(|x| 50.0 * x + 3.0);
        whiten(&mut a, Mean::Remove);
        whiten(&mut b, Mean::Remove);
        assert_close(&a, &b, 1e-8);
    }

    #[test]
    #[should_panic(expected = "behind the last response")]
    fn leftover_numbers_are_noticed() {
        drop_score_slots(&[1.0, 2.0], &[1], &[1]);
    }

    #[test]
    #[should_panic(expected = "the slot counts exceed the 2 numbers")]
    fn missing_numbers_are_noticed() {
        drop_score_slots(&[1.0, 2.0], &[3], &[1]);
    }
}
