//! Direct preference optimisation: a policy trained on pairs through its own log-probs, without a reward model.

use super::{PairLoss, sigmoid, softplus};

/// The loss of a pair. With `c` and `r` the log-ratios of policy to reference of the chosen and the rejected response,
/// `x = beta (c - r)`, and `e` the label smoothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize, schemars::JsonSchema))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"), schemars(rename = "DpoLossType"))]
pub enum LossType {
    /// DPO: `-log sigmoid(x)`; with label smoothing cDPO: `-(1 - e) log sigmoid(x) - e log sigmoid(-x)`.
    #[default]
    Sigmoid,
    /// SLiC: `max(0, 1 - x)`.
    Hinge,
    /// IPO: `(c - r - 1 / (2 beta))^2`, with `c` and `r` per token (online DPO: of whole responses).
    Ipo,
    /// EXO: KL of `(sigmoid(x), sigmoid(-x))` to `(1 - e, e)`; needs label smoothing above 0.
    ExoPair,
    /// NCA: `-log sigmoid(beta c) - 0.5 log sigmoid(-beta c) - 0.5 log sigmoid(-beta r)`.
    NcaPair,
    /// Robust DPO: `(-(1 - e) log sigmoid(x) + e log sigmoid(-x)) / (1 - 2 e)`.
    Robust,
    /// BCO on pairs, without its shift: `-log sigmoid(beta c) - log sigmoid(-beta r)`.
    BcoPair,
    /// SPPO with hard labels: `(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2`.
    SppoHard,
    /// APO-zero: `1 - sigmoid(beta c) + sigmoid(beta r)`.
    ApoZero,
    /// APO-down: `sigmoid(beta c) + 1 - sigmoid(x)`.
    ApoDown,
    /// DiscoPOP: `-(1 - m) log sigmoid(x) + m exp(-x)` with `m = sigmoid(x / discopop_tau)`.
    Discopop,
    /// DPO with `c` and `r` per token.
    SigmoidNorm,
}

impl LossType {
    /// Whether a response's log-prob is the mean over its tokens instead of the sum.
    pub fn is_per_token(self) -> bool {
        matches!(self, LossType::Ipo | LossType::SigmoidNorm)
    }

    /// Whether the loss depends on the label smoothing.
    pub fn uses_label_smoothing(self) -> bool {
        matches!(self, LossType::Sigmoid | LossType::Robust | LossType::ExoPair)
    }
}

/// A loss with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Objective {
    /// The loss of a pair.
    pub loss_type: LossType,
    /// Strength of the pull towards the reference (`beta` of the DPO paper, tau of the IPO paper; .1).
    pub beta: f64,
    /// Probability that a label is wrong, in `[0, .5)`; used where [`LossType::uses_label_smoothing`].
    pub label_smoothing: f64,
    /// Temperature of [`LossType::Discopop`] (.05).
    pub discopop_tau: f64,
}

impl Objective {
    /// A loss with this strength, without label smoothing.
    pub fn new(loss_type: LossType, beta: f64) -> Objective {
        Objective { loss_type, beta, label_smoothing: 0.0, discopop_tau: 0.05 }
    }

    /// Returns the loss of one pair and its derivatives with respect to the two log-ratios.
    fn at(&self, c: f64, r: f64) -> (f64, f64, f64) {
        let Objective { loss_type, beta, label_smoothing: e, discopop_tau: tau } = *self;
        let of_gap = |(loss, slope): (f64, f64)| (loss, slope, -slope);
        let bell = |x: f64| sigmoid(x) * sigmoid(-x);
        let (gap, half) = (c - r, 1.0 / (2.0 * beta));
        let x = beta * gap;
        match loss_type {
            LossType::Sigmoid | LossType::SigmoidNorm => {
                let e = if loss_type == LossType::Sigmoid { e } else { 0.0 };
                let loss = (1.0 - e) * softplus(-x) + e * softplus(x);
                of_gap((loss, beta * (e * sigmoid(x) - (1.0 - e) * sigmoid(-x))))
            }
            LossType::Hinge => of_gap(if x < 1.0 { (1.0 - x, -beta) } else { (0.0, 0.0) }),
            LossType::Ipo => {
                let error = gap - half;
                of_gap((error * error, 2.0 * error))
            }
            LossType::ExoPair => {
                let (right, wrong) = ((-e).ln_1p(), e.ln());
                let loss = sigmoid(x) * (-softplus(-x) - right) + sigmoid(-x) * (-softplus(x) - wrong);
                of_gap((loss, beta * bell(x) * (x - right + wrong)))
            }
            LossType::NcaPair => {
                let (c, r) = (beta * c, beta * r);
                let loss = softplus(-c) + 0.5 * softplus(c) + 0.5 * softplus(r);
                (loss, beta * (0.5 * sigmoid(c) - sigmoid(-c)), beta * 0.5 * sigmoid(r))
            }
            LossType::Robust => {
                let scale = 1.0 - 2.0 * e;
                let loss = ((1.0 - e) * softplus(-x) - e * softplus(x)) / scale;
                of_gap((loss, -beta * ((1.0 - e) * sigmoid(-x) + e * sigmoid(x)) / scale))
            }
            LossType::BcoPair => {
                let (c, r) = (beta * c, beta * r);
                (softplus(-c) + softplus(r), -beta * sigmoid(-c), beta * sigmoid(r))
            }
            LossType::SppoHard => {
                let (won, lost) = (c - half, r + half);
                (won * won + lost * lost, 2.0 * won, 2.0 * lost)
            }
            LossType::ApoZero => {
                let (c, r) = (beta * c, beta * r);
                (sigmoid(-c) + sigmoid(r), -beta * bell(c), beta * bell(r))
            }
            LossType::ApoDown => {
                let c = beta * c;
                (sigmoid(c) + sigmoid(-x), beta * (bell(c) - bell(x)), beta * bell(x))
            }
            LossType::Discopop => {
                let (m, other) = (sigmoid(x / tau), sigmoid(-x / tau));
                let (log, exp) = (softplus(-x), (-x).exp());
                let slope = -other * sigmoid(-x) - m * exp + m * other / tau * (exp - log);
                of_gap((log * other + exp * m, beta * slope))
            }
        }
    }
}

/// Log-probs of whole responses, one entry per pair in each slice.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Chosen responses under the policy.
    pub chosen: &'a [f64],
    /// Rejected responses under the policy.
    pub rejected: &'a [f64],
    /// Chosen responses under the reference.
    pub ref_chosen: &'a [f64],
    /// Rejected responses under the reference.
    pub ref_rejected: &'a [f64],
}

/// Returns one micro-batch's share of the loss, with its derivatives.
///
/// ```text
/// c = chosen - ref_chosen          r = rejected - ref_rejected
/// loss       = sum f(c, r) / pairs                              f: see LossType
/// d_chosen   = df/dc / pairs       d_rejected = df/dr / pairs
/// ```
///
/// A response's log-prob is the **sum** over its tokens, so its derivative is that of each of its tokens. Where
/// [`LossType::is_per_token`] (as in TRL), pass means, and divide the derivatives by the lengths. `pairs` counts the
/// whole batch.
///
/// Sources: DPO: Rafailov et al. 2023 (2305.18290), equation 7; label smoothing: E. Mitchell, "A note on DPO with noisy
/// preferences" (2023); robust: Ray Chowdhury et al. 2024 (2403.00409); IPO: Azar et al. 2023 (2310.12036), equation
/// 17; hinge: Zhao et al. 2023 (2305.10425), Liu et al. 2023 (2309.06657); EXO: Ji et al. 2024 (2402.00856), equation
/// 16; NCA: Chen et al. 2024 (2402.05369); BCO: Jung et al. 2024 (2404.04656); SPPO: Wu et al. 2024 (2405.00675);
/// APO: D'Oosterlinck et al. 2024 (2408.06266), equations 7 and 8; DiscoPOP: Lu et al. 2024 (2406.08414), equation 5.
///
/// ```
/// use salsa_algo::preference::dpo::{Batch, LossType, Objective, loss};
/// let batch = Batch { chosen: &[-5.0], rejected: &[-6.0], ref_chosen: &[-5.0], ref_rejected: &[-6.0] };
/// let start = loss(&batch, &Objective::new(LossType::Sigmoid, 0.1), 1); // policy = reference
/// assert_eq!(start.loss, 2f64.ln());
/// assert_eq!((start.d_chosen[0], start.d_rejected[0]), (-0.05, 0.05)); // beta / 2
/// let start = loss(&batch, &Objective::new(LossType::Ipo, 0.5), 1);
/// assert_eq!((start.loss, start.d_chosen[0]), (1.0, -2.0));
/// let start = loss(&batch, &Objective::new(LossType::ApoZero, 0.1), 1);
/// assert_eq!((start.loss, start.d_chosen[0]), (1.0, -0.025)); // 1/2 + 1/2, beta / 4
/// ```
///
/// # Panics
/// If the lengths differ or exceed `pairs`.
pub fn loss(batch: &Batch, objective: &Objective, pairs: usize) -> PairLoss {
    let n = batch.chosen.len();
    for other in [batch.rejected, batch.ref_chosen, batch.ref_rejected] {
        assert_eq!(n, other.len(), "one log-prob per pair in every slice");
    }
    let above_reference =
        |policy: &[f64], reference: &[f64]| -> Vec<f64> { policy.iter().zip(reference).map(|(p, r)| p - r).collect() };
    let chosen = above_reference(batch.chosen, batch.ref_chosen);
    let rejected = above_reference(batch.rejected, batch.ref_rejected);
    PairLoss::sum(&chosen, &rejected, objective.beta, pairs, |c, r| objective.at(c, r))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    const ALL: [LossType; 12] = [
        LossType::Sigmoid,
        LossType::Hinge,
        LossType::Ipo,
        LossType::ExoPair,
        LossType::NcaPair,
        LossType::Robust,
        LossType::BcoPair,
        LossType::SppoHard,
        LossType::ApoZero,
        LossType::ApoDown,
        LossType::Discopop,
        LossType::SigmoidNorm,
    ];

    fn of(loss_type: LossType, beta: f64, label_smoothing: f64) -> Objective {
        Objective { label_smoothing, ..Objective::new(loss_type, beta) }
    }

    #[test]
    fn pencil_table() {
        // gap = ln 3 / beta with beta .5: sigmoid 3/4; losses ln(4/3) and ln 4; slope by the gap -.5/4
        let gap = 2.0 * 3f64.ln();
        let batch = Batch { chosen: &[gap - 4.0], rejected: &[-1.0], ref_chosen: &[-6.0], ref_rejected: &[-3.0] };
        let (won, lost) = ((4.0f64 / 3.0).ln(), 4f64.ln());
        for (objective, loss_is, slope) in [
            (of(LossType::Sigmoid, 0.5, 0.0), won, -0.125),
            (of(LossType::Sigmoid, 0.5, 0.25), 0.75 * won + 0.25 * lost, 0.0),
            (of(LossType::Sigmoid, 0.5, 0.1), 0.9 * won + 0.1 * lost, -0.075),
            (of(LossType::Ipo, 0.5, 0.0), (gap - 1.0).powi(2), 2.0 * (gap - 1.0)),
            (of(LossType::Hinge, 0.5, 0.0), 0.0, 0.0), // ln 3 is above 1
            (of(LossType::Hinge, 0.25, 0.0), 1.0 - 3f64.ln() / 2.0, -0.25),
            (of(LossType::Robust, 0.5, 0.25), (0.75 * won - 0.25 * lost) / 0.5, -0.5 * 0.375 / 0.5),
            (of(LossType::ExoPair, 0.5, 0.25), 0.0, 0.0), // sigmoid is 1 - e
        ] {
            let result = loss(&batch, &objective, 1);
            let got = [result.loss, result.d_chosen[0], result.d_rejected[0]];
            assert_close(&got, &[loss_is, slope, -slope], 1e-14);
            let rewards = [result.rewards_chosen[0], result.rewards_rejected[0], result.reward_margin];
            assert_close(&rewards, &[3f64.ln() + 1.0, 1.0, 3f64.ln()].map(|x| x * objective.beta / 0.5), 1e-14);
            assert_eq!(result.accuracy, 1.0);
        }
    }

    #[test]
    fn derivatives() {
        let x = [-5.0, -3.0, -8.0, -4.0, -6.0, -2.0];
        let references = [-6.0, -3.5, -7.0, -4.0, -3.0, -3.0];
        for objective in ALL.map(|loss_type| of(loss_type, 0.3, 0.2)) {
            let at = |x: &[f64]| {
                let batch = Batch {
                    chosen: &x[..3],
                    rejected: &x[3..],
                    ref_chosen: &references[..3],
                    ref_rejected: &references[3..],
                };
                loss(&batch, &objective, 4)
            };
            let expected = gradient(|x| at(x).loss, &x);
            assert_close(&at(&x).d_chosen, &expected[..3], 1e-9);
            assert_close(&at(&x).d_rejected, &expected[3..], 1e-9);
        }
    }

    #[test]
    fn statistics_are_shares_and_a_tie_is_not_a_success() {
        // gaps 1, 0, -2 among 4 pairs, beta .3
        let batch = Batch {
            chosen: &[1.0, 2.0, 0.0],
            rejected: &[0.0, 2.0, 2.0],
            ref_chosen: &[0.0; 3],
            ref_rejected: &[0.0; 3],
        };
        let result = loss(&batch, &of(LossType::Sigmoid, 0.3, 0.0), 4);
        assert_eq!(result.accuracy, 0.25);
        assert_close(&[result.reward_margin], &[-0.3 / 4.0], 1e-15);
        assert_close(&result.rewards_chosen, &[0.3, 0.6, 0.0], 1e-15);
        assert_close(&result.rewards_rejected, &[0.0, 0.6, 0.6], 1e-15);
    }

    #[test]
    fn only_the_difference_to_the_reference_counts() {
        for objective in ALL.map(|loss_type| of(loss_type, 0.3, 0.2)) {
            let a = Batch { chosen: &[-5.0], rejected: &[-4.0], ref_chosen: &[-6.0], ref_rejected: &[-4.5] };
            let b = Batch { chosen: &[-15.0], rejected: &[-40.0], ref_chosen: &[-16.0], ref_rejected: &[-40.5] };
            assert_eq!(loss(&a, &objective, 1), loss(&b, &objective, 1));
        }
    }

    #[test]
    fn ipo_is_content_at_half_the_inverse_beta() {
        let batch = Batch { chosen: &[2.0], rejected: &[0.0], ref_chosen: &[0.0], ref_rejected: &[0.0] };
        let result = loss(&batch, &of(LossType::Ipo, 0.25, 0.0), 1);
        assert_eq!((result.loss, result.d_chosen[0]), (0.0, 0.0));
    }

    #[test]
    #[should_panic(expected = "one log-prob per pair in every slice")]
    fn lengths_must_agree() {
        let batch = Batch { chosen: &[0.0], rejected: &[0.0], ref_chosen: &[], ref_rejected: &[0.0] };
        loss(&batch, &of(LossType::Sigmoid, 0.3, 0.0), 1);
    }
}
