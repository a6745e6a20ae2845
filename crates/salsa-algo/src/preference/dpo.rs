//! Direct preference optimisation: a policy trained on pairs through its own log-probs, without a reward model.

use super::{sigmoid, softplus, weight};

/// The function of the log-ratio gap to minimise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Objective {
    /// DPO: the gap times `beta` is the logit of "chosen wins".
    Sigmoid {
        /// Strength of the pull towards the reference (`beta` of the paper; .1).
        beta: f64,
        /// Probability that a label is wrong, in `[0, .5)`; 0 is plain DPO.
        label_smoothing: f64,
    },
    /// IPO: regresses the gap to `1 / (2 beta)`.
    Ipo {
        /// Strength of the pull towards the reference (tau of the paper).
        beta: f64,
    },
}

impl Objective {
    fn beta(&self) -> f64 {
        match *self {
            Objective::Sigmoid { beta, .. } | Objective::Ipo { beta } => beta,
        }
    }

    /// Returns the loss of one pair and its derivative with respect to the gap.
    fn at(&self, gap: f64) -> (f64, f64) {
        match *self {
            Objective::Sigmoid { beta, label_smoothing: e } => {
                let x = beta * gap;
                let loss = (1.0 - e) * softplus(-x) + e * softplus(x);
                (loss, beta * (e * sigmoid(x) - (1.0 - e) * sigmoid(-x)))
            }
            Objective::Ipo { beta } => {
                let error = gap - 1.0 / (2.0 * beta);
                (error * error, 2.0 * error)
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

/// One micro-batch's share of the loss and its statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// Share of the mean loss.
    pub loss: f64,
    /// Derivative of `loss` by each chosen response's log-prob.
    pub d_chosen: Vec<f64>,
    /// Derivative of `loss` by each rejected response's log-prob.
    pub d_rejected: Vec<f64>,
    /// Implicit reward of each chosen response: `beta * (chosen - ref_chosen)`.
    pub rewards_chosen: Vec<f64>,
    /// Implicit reward of each rejected response.
    pub rewards_rejected: Vec<f64>,
    /// Share of the pairs whose chosen response has strictly the higher implicit reward.
    pub accuracy: f64,
    /// Share of the mean difference of the implicit rewards.
    pub reward_margin: f64,
}

/// Returns one micro-batch's share of the DPO or IPO loss, with its derivatives.
///
/// ```text
/// gap        = (chosen - ref_chosen) - (rejected - ref_rejected)
/// Sigmoid    f(gap) = (1 - e) * softplus(-beta * gap) + e * softplus(beta * gap)        e = label_smoothing
/// Ipo        f(gap) = (gap - 1 / (2 * beta))^2
/// loss       = sum f(gap) / pairs
/// d_chosen   = f'(gap) / pairs          d_rejected = -d_chosen
/// ```
///
/// A response's log-prob is the **sum** over its tokens, so its derivative is that of each of its tokens. (TRL's IPO
/// uses the mean over tokens: for that, pass means, and divide the derivatives by the lengths.) `pairs` counts the
/// whole batch. Sources: Rafailov et al. 2023 (2305.18290), equation 7; Azar et al. 2023 (2310.12036), equation 17;
/// label smoothing: E. Mitchell, "A note on DPO with noisy preferences" (2023).
///
/// ```
/// use salsa_algo::preference::dpo::{Batch, Objective, loss};
/// let batch = Batch { chosen: &[-5.0], rejected: &[-6.0], ref_chosen: &[-5.0], ref_rejected: &[-6.0] };
/// let start = loss(&batch, Objective::Sigmoid { beta: 0.1, label_smoothing: 0.0 }, 1); // policy = reference
/// assert_eq!(start.loss, 2f64.ln());
/// assert_eq!((start.d_chosen[0], start.d_rejected[0]), (-0.05, 0.05)); // beta / 2
/// let start = loss(&batch, Objective::Ipo { beta: 0.5 }, 1);
/// assert_eq!((start.loss, start.d_chosen[0]), (1.0, -2.0));
/// ```
///
/// # Panics
/// If the lengths differ or exceed `pairs`.
pub fn loss(batch: &Batch, objective: Objective, pairs: usize) -> Loss {
    let n = batch.chosen.len();
    for other in [batch.rejected, batch.ref_chosen, batch.ref_rejected] {
        assert_eq!(n, other.len(), "one log-prob per pair in every slice");
    }
    let weight = weight(n, pairs);
    let above_reference =
        |policy: &[f64], reference: &[f64]| -> Vec<f64> { policy.iter().zip(reference).map(|(p, r)| p - r).collect() };
    let chosen = above_reference(batch.chosen, batch.ref_chosen);
    let rejected = above_reference(batch.rejected, batch.ref_rejected);
    let (mut sum, mut right, mut gaps) = (0.0, 0.0, 0.0);
    let mut d_chosen = Vec::with_capacity(n);
    for (c, r) in chosen.iter().zip(&rejected) {
        let (loss, slope) = objective.at(c - r);
        sum += loss;
        d_chosen.push(slope * weight);
        right += f64::from(u8::from(c > r));
        gaps += c - r;
    }
    let beta = objective.beta();
    Loss {
        loss: sum * weight,
        d_rejected: d_chosen.iter().map(|d| -d).collect(),
        d_chosen,
        rewards_chosen: chosen.iter().map(|c| beta * c).collect(),
        rewards_rejected: rejected.iter().map(|r| beta * r).collect(),
        accuracy: right * weight,
        reward_margin: beta * gaps * weight,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finite_difference::{assert_close, gradient};

    const OBJECTIVES: [Objective; 3] = [
        Objective::Sigmoid { beta: 0.3, label_smoothing: 0.0 },
        Objective::Sigmoid { beta: 0.3, label_smoothing: 0.2 },
        Objective::Ipo { beta: 0.7 },
    ];

    #[test]
    fn pencil_table() {
        // gap = ln 3 / beta with beta .5: sigmoid 3/4; losses ln(4/3) and ln 4; slope by the gap -.5/4
        let gap = 2.0 * 3f64.ln();
        let batch = Batch { chosen: &[gap - 4.0], rejected: &[-1.0], ref_chosen: &[-6.0], ref_rejected: &[-3.0] };
        let (won, lost) = ((4.0f64 / 3.0).ln(), 4f64.ln());
        for (objective, loss_is, slope) in [
            (Objective::Sigmoid { beta: 0.5, label_smoothing: 0.0 }, won, -0.125),
            (Objective::Sigmoid { beta: 0.5, label_smoothing: 0.25 }, 0.75 * won + 0.25 * lost, 0.0),
            (Objective::Sigmoid { beta: 0.5, label_smoothing: 0.1 }, 0.9 * won + 0.1 * lost, -0.075),
            (Objective::Ipo { beta: 0.5 }, (gap - 1.0).powi(2), 2.0 * (gap - 1.0)),
        ] {
            let result = loss(&batch, objective, 1);
            let got = [result.loss, result.d_chosen[0], result.d_rejected[0]];
            assert_close(&got, &[loss_is, slope, -slope], 1e-14);
            let rewards = [result.rewards_chosen[0], result.rewards_rejected[0], result.reward_margin];
            assert_close(&rewards, &[3f64.ln() + 1.0, 1.0, 3f64.ln()], 1e-14);
            assert_eq!(result.accuracy, 1.0);
        }
    }

    #[test]
    fn derivatives() {
        let x = [-5.0, -3.0, -8.0, -4.0, -6.0, -2.0];
        let references = [-6.0, -3.5, -7.0, -4.0, -3.0, -3.0];
        for objective in OBJECTIVES {
            let at = |x: &[f64]| {
                let batch = Batch {
                    chosen: &x[..3],
                    rejected: &x[3..],
                    ref_chosen: &references[..3],
                    ref_rejected: &references[3..],
                };
                loss(&batch, objective, 4)
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
        let result = loss(&batch, OBJECTIVES[0], 4);
        assert_eq!(result.accuracy, 0.25);
        assert_close(&[result.reward_margin], &[-0.3 / 4.0], 1e-15);
        assert_close(&result.rewards_chosen, &[0.3, 0.6, 0.0], 1e-15);
        assert_close(&result.rewards_rejected, &[0.0, 0.6, 0.6], 1e-15);
    }

    #[test]
    fn only_the_difference_to_the_reference_counts() {
        for objective in OBJECTIVES {
            let a = Batch { chosen: &[-5.0], rejected: &[-4.0], ref_chosen: &[-6.0], ref_rejected: &[-4.5] };
            let b = Batch { chosen: &[-15.0], rejected: &[-40.0], ref_chosen: &[-16.0], ref_rejected: &[-40.5] };
            assert_eq!(loss(&a, objective, 1), loss(&b, objective, 1));
        }
    }

    #[test]
    fn ipo_is_content_at_half_the_inverse_beta() {
        let batch = Batch { chosen: &[2.0], rejected: &[0.0], ref_chosen: &[0.0], ref_rejected: &[0.0] };
        let result = loss(&batch, Objective::Ipo { beta: 0.25 }, 1);
        assert_eq!((result.loss, result.d_chosen[0]), (0.0, 0.0));
    }

    #[test]
    #[should_panic(expected = "one log-prob per pair in every slice")]
    fn lengths_must_agree() {
        loss(&Batch { chosen: &[0.0], rejected: &[0.0], ref_chosen: &[], ref_rejected: &[0.0] }, OBJECTIVES[0], 1);
    }
}
