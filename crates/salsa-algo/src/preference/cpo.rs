//! CPO and SimPO: the policy's own log-probs are the rewards, without a reference.

use super::{PairLoss, sigmoid, softplus};

/// The loss of a pair. With `g` the log-prob of the chosen response minus that of the rejected one, and `e` the label
/// smoothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"), schemars(rename = "CpoLossType"))]
pub enum LossType {
    /// CPO: `-(1 - e) log sigmoid(beta g) - e log sigmoid(-beta g)`.
    #[default]
    Sigmoid,
    /// SLiC: `max(0, 1 - beta g)`.
    Hinge,
    /// IPO: `(g - 1 / (2 beta))^2`, with log-probs per token.
    Ipo,
    /// SimPO: as sigmoid, with log-probs per token and `beta g - simpo_gamma` for `beta g`.
    Simpo,
}

impl LossType {
    /// Whether a response's log-prob is the mean over its tokens instead of the sum.
    pub fn is_per_token(self) -> bool {
        matches!(self, LossType::Ipo | LossType::Simpo)
    }
}

/// A loss with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The loss of a pair.
    pub loss_type: LossType,
    /// Scale of the log-probs (.1).
    pub beta: f64,
    /// Probability that a label is wrong, in `[0, .5)`; used by sigmoid and SimPO.
    pub label_smoothing: f64,
    /// The margin by which the chosen response should win (.5); used by SimPO.
    pub simpo_gamma: f64,
}

impl Objective {
    /// Returns the loss of one pair and its derivatives with respect to the two log-probs.
    fn at(&self, chosen: f64, rejected: f64) -> (f64, f64, f64) {
        let Objective { loss_type, beta, label_smoothing: e, simpo_gamma } = *self;
        let gap = chosen - rejected;
        let (loss, slope) = match loss_type {
            LossType::Sigmoid | LossType::Simpo => {
                let margin = if loss_type == LossType::Simpo { simpo_gamma } else { 0.0 };
                let x = beta * gap - margin;
                let loss = (1.0 - e) * softplus(-x) + e * softplus(x);
                (loss, beta * (e * sigmoid(x) - (1.0 - e) * sigmoid(-x)))
            }
            LossType::Hinge if beta * gap < 1.0 => (1.0 - beta * gap, -beta),
            LossType::Hinge => (0.0, 0.0),
            LossType::Ipo => {
                let error = gap - 1.0 / (2.0 * beta);
                (error * error, 2.0 * error)
            }
        };
        (loss, slope, -slope)
    }
}

/// Returns one micro-batch's share of the loss, with its derivatives; CPO adds the likelihood of the chosen response
/// ([`super::negative_log_likelihood`]).
///
/// ```text
/// loss = sum f(chosen - rejected) / pairs                       f: see LossType
/// ```
///
/// `chosen` and `rejected` have one log-prob per pair: sums over tokens or, where [`LossType::is_per_token`], means;
/// then divide the derivatives by the lengths. Sources: CPO: Xu et al. 2024 (2401.08417), equations 3 and 5; SimPO:
/// Meng et al. 2024 (2405.14734), equation 6.
///
/// ```
/// use salsa_algo::preference::cpo::{LossType, Objective, loss};
/// let simpo = Objective { loss_type: LossType::Simpo, beta: 2.0, label_smoothing: 0.0, simpo_gamma: 1.0 };
/// let even = loss(&[-1.0], &[-1.5], &simpo, 1); // 2 * 0.5 is the margin
/// assert_eq!((even.loss, even.d_chosen[0], even.d_rejected[0]), (2f64.ln(), -1.0, 1.0));
/// ```
///
/// # Panics
/// If the lengths differ or exceed `pairs`.
pub fn loss(chosen: &[f64], rejected: &[f64], objective: &Objective, pairs: usize) -> PairLoss {
    PairLoss::sum(chosen, rejected, objective.beta, pairs, |c, r| objective.at(c, r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    #[test]
    fn derivatives() {
        let x = [-1.0, -3.0, -2.0, -1.5, -2.5, -2.0];
        for loss_type in [LossType::Sigmoid, LossType::Hinge, LossType::Ipo, LossType::Simpo] {
            let objective = Objective { loss_type, beta: 0.7, label_smoothing: 0.1, simpo_gamma: 0.4 };
            let at = |x: &[f64]| loss(&x[..3], &x[3..], &objective, 4);
            let expected = gradient(|x| at(x).loss, &x);
            assert_close(&at(&x).d_chosen, &expected[..3], 1e-9);
            assert_close(&at(&x).d_rejected, &expected[3..], 1e-9);
        }
    }

    #[test]
    fn rewards_are_scaled_log_probs() {
        let objective = Objective { loss_type: LossType::Hinge, beta: 0.5, label_smoothing: 0.0, simpo_gamma: 0.0 };
        let result = loss(&[-1.0, -4.0], &[-3.0, -2.0], &objective, 2);
        assert_eq!((result.rewards_chosen, result.rewards_rejected), (vec![-0.5, -2.0], vec![-1.5, -1.0]));
        assert_eq!((result.accuracy, result.reward_margin), (0.5, 0.0));
        assert_eq!((result.loss, result.d_chosen), (1.0, vec![0.0, -0.25])); // gaps 2 and -2: losses 0 and 2
    }
}
