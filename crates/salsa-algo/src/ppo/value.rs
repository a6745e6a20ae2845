//! The clipped value loss, and the variance of the returns that the critic explains.

use super::weight;

/// One micro-batch's share of the value loss.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueLoss {
    /// Share of the mean over the minibatch's slots.
    pub loss: f64,
    /// Derivative of `loss` by each value.
    pub d_values: Vec<f64>,
    /// Share of the slots whose gain was clipped.
    pub clip_fraction: f64,
}

/// Returns one micro-batch's share of the clipped value loss, with its derivative.
///
/// ```text
/// clipped   = clip(value, old_value - clip_value, old_value + clip_value)
/// loss      = 1/2 * sum max((value - return)^2, (clipped - return)^2) / slots
/// d_value   = (value - return) / slots, or 0 where the clipped error is the larger one
/// ```
///
/// Slices have one entry per slot of the micro-batch; `slots` counts those of the whole minibatch. An infinite
/// `clip_value` gives half the mean squared error. Source: baselines' PPO2; TRL's `PPOTrainer`.
///
/// ```
/// // error 1 - 3 = -2, but from 0 only a step of .2 counts: .5 * (.2 - 3)^2 = 3.92
/// let loss = salsa_algo::ppo::value_loss(&[1.0], &[0.0], &[3.0], 0.2, 1);
/// assert!((loss.loss - 3.92).abs() < 1e-12);
/// assert_eq!((loss.d_values[0], loss.clip_fraction), (0.0, 1.0));
/// // unclipped: .5 * (-2)^2 = 2
/// let loss = salsa_algo::ppo::value_loss(&[1.0], &[0.0], &[3.0], f64::INFINITY, 1);
/// assert_eq!((loss.loss, loss.d_values[0]), (2.0, -2.0));
/// ```
///
/// # Panics
/// If the lengths differ or exceed `slots`.
pub fn value_loss(values: &[f64], old_values: &[f64], returns: &[f64], clip_value: f64, slots: usize) -> ValueLoss {
    assert_eq!(values.len(), old_values.len(), "one old value per value");
    assert_eq!(values.len(), returns.len(), "one return per value");
    let weight = weight(values.len(), slots, "slots");
    let (mut squares, mut cut_off_slots) = (0.0, 0.0);
    let mut d_values = Vec::with_capacity(values.len());
    for ((&value, old), target) in values.iter().zip(old_values).zip(returns) {
        let error = value - target;
        let clipped_error = value.max(old - clip_value).min(old + clip_value) - target;
        let cut_off = clipped_error * clipped_error > error * error;
        let counted = if cut_off { clipped_error } else { error };
        squares += counted * counted;
        cut_off_slots += f64::from(u8::from(cut_off));
        d_values.push(if cut_off { 0.0 } else { error * weight });
    }
    ValueLoss { loss: 0.5 * squares * weight, d_values, clip_fraction: cut_off_slots * weight }
}

/// Returns the share of the returns' variance that the values explain.
///
/// ```text
/// 1 - variance(returns - values) / variance(returns)
/// ```
///
/// 1 is a perfect critic, 0 one that predicts only the mean, below 0 is worse than that. 0 if the returns do not vary,
/// as there is then nothing to explain.
///
/// ```
/// use salsa_algo::ppo::explained_variance;
/// assert_eq!(explained_variance(&[1.0, 2.0], &[1.0, 2.0]), 1.0);
/// assert_eq!(explained_variance(&[5.0, 5.0], &[1.0, 2.0]), 0.0);
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn explained_variance(values: &[f64], returns: &[f64]) -> f64 {
    assert_eq!(values.len(), returns.len(), "one return per value");
    let errors: Vec<f64> = returns.iter().zip(values).map(|(r, v)| r - v).collect();
    let total = crate::whiten::moments(returns).variance;
    if total == 0.0 { 0.0 } else { 1.0 - crate::whiten::moments(&errors).variance / total }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    #[test]
    fn pencil_table() {
        // old value 0, clip .5; value, return, loss, derivative, cut off
        for (value, target, loss, d, cut_off) in [
            (0.25, 1.25, 0.5, -1.0, 0.0),  // inside the clip
            (1.0, 2.0, 1.125, 0.0, 1.0),   // moved towards the return beyond the clip: .5 * 1.5^2
            (1.0, -1.0, 2.0, 2.0, 0.0),    // moved away: .5 * 2^2
            (-1.0, -2.0, 1.125, 0.0, 1.0), // the same downwards
            (-1.0, 1.0, 2.0, -2.0, 0.0),
            (0.0, 0.0, 0.0, 0.0, 0.0),
        ] {
            let result = value_loss(&[value], &[0.0], &[target], 0.5, 1);
            assert_eq!((result.loss, result.d_values[0], result.clip_fraction), (loss, d, cut_off), "{value} {target}");
        }
    }

    #[test]
    fn the_clip_is_measured_from_the_old_value_and_shares_divide_by_all_slots() {
        // from 2, a step to 3 counts as 2.5: .5 * (2.5 - 4)^2 = 1.125; among 4 slots a quarter
        let result = value_loss(&[3.0], &[2.0], &[4.0], 0.5, 4);
        assert_eq!((result.loss, result.clip_fraction), (0.28125, 0.25));
        assert_eq!(value_loss(&[3.0], &[3.0], &[4.0], 0.5, 4).d_values, [-0.25]);
    }

    #[test]
    fn derivative_on_every_branch() {
        let (values, old) = ([0.25, 1.0, 1.0, -1.0, -1.0, 0.3], [0.0, 0.0, 0.1, 0.0, -0.2, 0.3]);
        let returns = [1.25, 2.0, -1.0, -2.0, 1.0, -4.0];
        let at = |x: &[f64]| value_loss(x, &old, &returns, 0.5, 7);
        assert_close(&at(&values).d_values, &gradient(|x| at(x).loss, &values), 1e-9);
    }

    #[test]
    fn nan_comes_out_where_it_went_in() {
        assert!(value_loss(&[f64::NAN], &[0.0], &[0.0], 0.2, 1).loss.is_nan());
        assert!(value_loss(&[0.0], &[0.0], &[f64::NAN], 0.2, 1).d_values[0].is_nan());
    }

    #[test]
    fn explained_variance_by_hand() {
        // returns 1 2 3 (variance 1), errors 0 0 1 (variance 1/3)
        assert!((explained_variance(&[1.0, 2.0, 2.0], &[1.0, 2.0, 3.0]) - 2.0 / 3.0).abs() < 1e-15);
        // scale-invariant
        assert!((explained_variance(&[10.0, 20.0, 20.0], &[10.0, 20.0, 30.0]) - 2.0 / 3.0).abs() < 1e-15);
        // a constant offset costs nothing; the opposite of the truth costs 1 - 4
        assert_eq!(explained_variance(&[11.0, 12.0, 13.0], &[1.0, 2.0, 3.0]), 1.0);
        assert_eq!(explained_variance(&[-1.0, -2.0, -3.0], &[1.0, 2.0, 3.0]), -3.0);
        assert_eq!(explained_variance(&[1.0, 2.0], &[3.0, 3.0]), 0.0);
        assert_eq!(explained_variance(&[], &[]), 0.0);
    }
}
