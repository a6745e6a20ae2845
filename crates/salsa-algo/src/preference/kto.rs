//! KTO: single responses, each desirable or not, against a reference.

use super::{sigmoid, weight};

/// The loss of a response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"), schemars(rename = "KtoLossType"))]
pub enum LossType {
    /// KTO: the log-ratio to the reference is compared with its mean over mismatched responses.
    #[default]
    Kto,
    /// APO-zero for single responses: the log-ratio is compared with 0.
    ApoZeroUnpaired,
}

/// A loss with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// Strength of the pull towards the reference (.1).
    pub beta: f64,
    /// Weight of desirable responses (1).
    pub desirable_weight: f64,
    /// Weight of undesirable responses (1).
    pub undesirable_weight: f64,
}

/// Log-probs of whole responses, and their labels: one entry per response in each slice.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The responses under the policy.
    pub logprobs: &'a [f64],
    /// The responses under the reference.
    pub ref_logprobs: &'a [f64],
    /// Whether each is desirable.
    pub desirable: &'a [bool],
    /// What the log-ratios are compared with: [`kl`] for KTO, 0 for APO-zero.
    pub kl: f64,
}

/// One micro-batch's share of the loss and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Share of the mean loss.
    pub loss: f64,
    /// Derivative of `loss` by each response's log-prob.
    pub d_logprobs: Vec<f64>,
    /// Implicit reward of each response: `beta * (logprob - ref_logprob)`.
    pub rewards: Vec<f64>,
}

/// Estimates the KL of policy to reference from log-probs of responses to other prompts: the mean log-ratio, at least
/// 0. No gradient flows through it.
///
/// ```
/// use salsa_algo::preference::kto::kl;
/// assert_eq!(kl(&[-4.0, -6.0], &[-5.0, -6.0]), 0.5);
/// assert_eq!(kl(&[-6.0], &[-5.0]), 0.0);
/// ```
///
/// # Panics
/// If the lengths differ.
pub fn kl(logprobs: &[f64], ref_logprobs: &[f64]) -> f64 {
    assert_eq!(logprobs.len(), ref_logprobs.len(), "one log-prob per response in every slice");
    let sum: f64 = logprobs.iter().zip(ref_logprobs).map(|(p, r)| p - r).sum();
    let mean = sum / logprobs.len().max(1) as f64;
    if mean < 0.0 { 0.0 } else { mean } // keeps NaN
}

/// Returns one micro-batch's share of the loss, with its derivatives.
///
/// ```text
/// x          = beta * (logprob - ref_logprob - kl)
/// desirable    desirable_weight   * (1 - sigmoid(x)) / responses
/// undesirable  undesirable_weight * (1 - sigmoid(-x)) / responses
/// d_logprob  = -+ weight * beta * sigmoid(x) * sigmoid(-x) / responses
/// ```
///
/// `responses` counts the whole batch. Sources: Ethayarajh et al. 2024 (2402.01306), equation 7; APO-zero:
/// D'Oosterlinck et al. 2024 (2408.06266), equation 7.
///
/// ```
/// use salsa_algo::preference::kto::{Batch, Objective, loss};
/// let batch = Batch { logprobs: &[-5.0, -3.0], ref_logprobs: &[-5.0, -3.0], desirable: &[true, false], kl: 0.0 };
/// let start = loss(&batch, &Objective { beta: 0.4, desirable_weight: 1.0, undesirable_weight: 3.0 }, 2);
/// assert_eq!(start.loss, 1.0); // (1/2 + 3/2) / 2
/// let close = |a: f64, b: f64| (a - b).abs() < 1e-15;
/// assert!(close(start.d_logprobs[0], -0.05) && close(start.d_logprobs[1], 0.15)); // weight * beta / 4 / 2
/// ```
///
/// # Panics
/// If the lengths differ or exceed `responses`.
pub fn loss(batch: &Batch, objective: &Objective, responses: usize) -> Loss {
    let Batch { logprobs, ref_logprobs, desirable, kl } = *batch;
    assert!(
        logprobs.len() == ref_logprobs.len() && logprobs.len() == desirable.len(),
        "one log-prob per response in every slice"
    );
    let share = weight(logprobs.len(), responses);
    let Objective { beta, desirable_weight, undesirable_weight } = *objective;
    let mut result = Loss { loss: 0.0, d_logprobs: Vec::new(), rewards: Vec::new() };
    for (i, &desirable) in desirable.iter().enumerate() {
        let ratio = logprobs[i] - ref_logprobs[i];
        let x = beta * (ratio - kl);
        let (weight, sign) = if desirable { (desirable_weight, -1.0) } else { (undesirable_weight, 1.0) };
        result.loss += weight * sigmoid(sign * x);
        result.d_logprobs.push(sign * weight * beta * sigmoid(x) * sigmoid(-x) * share);
        result.rewards.push(beta * ratio);
    }
    result.loss *= share;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    #[test]
    fn derivatives() {
        let x = [-5.0, -3.0, -8.0, -4.0];
        let at = |x: &[f64]| {
            let desirable = &[true, false, false, true];
            let batch = Batch { logprobs: x, ref_logprobs: &[-6.0, -3.5, -7.0, -4.0], desirable, kl: 0.7 };
            loss(&batch, &Objective { beta: 0.3, desirable_weight: 1.5, undesirable_weight: 0.5 }, 5)
        };
        assert_close(&at(&x).d_logprobs, &gradient(|x| at(x).loss, &x), 1e-9);
    }

    #[test]
    fn a_ratio_of_the_kl_is_half_a_loss() {
        let batch = Batch { logprobs: &[-2.0], ref_logprobs: &[-4.0], desirable: &[false], kl: 2.0 };
        let result = loss(&batch, &Objective { beta: 0.5, desirable_weight: 9.0, undesirable_weight: 1.0 }, 1);
        assert_eq!((result.loss, result.rewards), (0.5, vec![1.0]));
    }

    #[test]
    fn the_kl_is_not_below_zero_and_keeps_nan() {
        assert_eq!(kl(&[], &[]), 0.0);
        assert!(kl(&[f64::NAN], &[0.0]).is_nan());
    }
}
